"""Games by their ids: what they are, that an episode follows from its seed, and the presets of their namespaces."""

import dataclasses
import sys

import gymnasium as gym
import numpy as np
import pytest

from telescope.algorithms import dqn, ppo
from telescope.control.config import for_family
from telescope.control.environments.factory import find_source
from telescope.control.environments.games import MINATAR, MinAtar, atari, game_spec
from telescope.control.experience.rollout import Rollouts

minatar = pytest.importorskip("minatar")
CHANNELS = {"Asterix": 4, "Breakout": 4, "Freeway": 7, "Seaquest": 10, "SpaceInvaders": 6}


@pytest.mark.parametrize("game", MINATAR)
def test_a_game_of_minatar_is_found_by_its_id(game):
    env = gym.make(find_source(f"MinAtar/{game}-v1"))
    assert env.observation_space == gym.spaces.Box(0.0, 1.0, (10, 10, CHANNELS[game]), np.bool_)
    assert env.action_space.n == len(env.unwrapped.game.minimal_action_set())
    assert gym.make(find_source(f"MinAtar/{game}-v0")).action_space.n == 6


@pytest.mark.parametrize("env", ["MinAtar/Pong-v1", "MinAtar/Breakout-v2", "MinAtar/Breakout"])
def test_other_ids_are_unknown(env):
    assert game_spec(env) is None
    with pytest.raises(ValueError, match="is not registered"):
        find_source(env)


@pytest.mark.parametrize(("env", "module"), [("MinAtar/Breakout-v1", "minatar"), ("ALE/Pong-v5", "ale_py")])
def test_a_missing_package_is_named_with_its_extra(env, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"telescope-rl\[atari\]"):
        find_source(env)


def episodes(env, seed, actions):
    """Everything that a game shows in a few episodes of these actions; only the first has a seed."""
    shown = [env.reset(seed=seed)[0]]
    for action in actions:
        picture, reward, terminated, truncated, _ = env.step(action)
        shown.append((picture, reward, terminated))
        if terminated or truncated:
            shown.append(env.reset()[0])
    return shown


def equal(one, other):
    return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("game", MINATAR)
def test_an_episode_of_minatar_follows_from_its_seed(game):
    """Also where the game was played before, and from one episode to the next."""
    actions = np.random.default_rng(0).integers(0, 3, 300)
    fresh, used = MinAtar(MINATAR[game]), MinAtar(MINATAR[game])
    episodes(used, 5, actions[:77])
    wanted = episodes(fresh, 3, actions)
    assert equal(wanted, episodes(used, 3, actions))
    assert not equal(wanted, episodes(used, 4, actions))


def test_a_game_of_minatar_is_the_packages():
    """The package's own game with the same random numbers; its state before the first step has no last action."""
    env = MinAtar("breakout")
    actions = [0, 1, 2, 2, 1, 0] * 5
    shown = episodes(env, 3, actions)
    random = np.random.default_rng()
    random.bit_generator.state = _first_state(3)
    game = minatar.Environment("breakout")
    game.seed(int(random.integers(2**32)))
    game.reset()
    assert np.array_equal(game.state(), shown[0])
    for action, (picture, reward, terminated) in zip(actions, shown[1:], strict=False):
        got, ended = game.act(game.minimal_action_set()[action])
        assert np.array_equal(game.state(), picture)
        assert (got, ended) == (reward, terminated)
        if ended:
            break


def _first_state(seed):
    return gym.utils.seeding.np_random(seed)[0].bit_generator.state


def test_an_atari_game_is_preprocessed_and_follows_from_its_seed():
    pytest.importorskip("ale_py")
    spec = find_source("ALE/Breakout-v5")
    assert spec.kwargs["repeat_action_probability"] == 0.25
    assert gym.make(spec).observation_space.shape == (210, 160, 3)
    one, other = (gym.make(spec, preprocessed=True) for _ in range(2))
    assert one.observation_space == gym.spaces.Box(0, 255, (84, 84), np.uint8)
    actions = np.random.default_rng(0).integers(0, 4, 500)
    episodes(other, 9, actions[:20])
    wanted = episodes(one, 3, actions)
    assert len(wanted) > 501, "an episode has ended"
    assert equal(wanted, episodes(other, 3, actions))
    assert not equal(wanted, episodes(other, 4, actions))


def test_a_preprocessed_step_is_four_frames_of_which_the_last_two_count():
    """Against the game itself, without sticky actions: the same action four times, the brighter pixel of two frames."""
    ale_py = pytest.importorskip("ale_py")
    import cv2

    quiet = {"game": "breakout", "repeat_action_probability": 0.0, "obs_type": "grayscale"}
    env, game = atari(preprocessed=True, **quiet), ale_py.AtariEnv(**quiet, frameskip=1)
    env.reset(seed=3)
    game.reset(seed=3)
    for action in (1, 2, 2, 3, 0):
        picture, reward, *_ = env.step(action)
        frames, earned = zip(*[game.step(action)[:2] for _ in range(4)], strict=True)
        wanted = cv2.resize(np.maximum(*frames[2:]), (84, 84), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(picture, wanted)
        assert reward == sum(earned)


def test_a_namespace_has_presets_of_its_own():
    presets = {"MinAtar/": 1, "MinAtar/Freeway": 2, "Breakout": 3}
    found = {}
    for env in ("MinAtar/Breakout-v1", "MinAtar/Freeway-v1", "Breakout-v0", "ALE/Breakout-v5", "Other/Pong-v5"):

        @dataclasses.dataclass(frozen=True)
        class Settings:
            number: int
            env: str = ""

        rows = {key: Settings(number) for key, number in presets.items()}
        settings = for_family(rows, env, Settings(0))
        assert settings.env == env
        found[env] = settings.number
    assert list(found.values()) == [1, 2, 3, 3, 0]


@pytest.mark.parametrize("module", [ppo, dqn])
def test_presets_of_games_share_one_encoder_and_train(module):
    config = module.preset("MinAtar/Breakout-v1")
    assert config.hidden == ()
    network = config.network_for(MinAtar("breakout").observation_space, gym.spaces.Discrete(3))
    names = {name.partition(".")[0] for name in network.init(np.random.default_rng(0))}
    assert names == ({"encoder", "policy", "value"} if module is ppo else {"encoder", "q"})
    assert module.preset("ALE/Pong-v5").reward_bound == 1


class Rich(gym.Env):
    """Five rewards of 5 or −5 an episode."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 5.0 * (-1) ** self.steps, self.steps == 5, False, {}


def test_rewards_are_learned_clipped_and_told_whole(monkeypatch):
    """In rollouts and in the replay buffer."""
    seen, collect = [], Rollouts.collect
    monkeypatch.setattr(Rollouts, "collect", lambda *given: seen.append(collect(*given)) or seen[-1])
    common = {"env": Rich, "num_steps": 10, "total_steps": 10, "reward_bound": 1.5, "threads": 1, "compile": "off"}
    step = next(ppo.train(ppo.PPO(**common, minibatch_size=10, epochs=1)))
    assert step.rows[0]["return_mean"] == -5
    assert seen[0][0].rewards.unique().tolist() == [-1.5, 1.5]
    step = next(dqn.train(dqn.DQN(**common)))
    assert step.rows[0]["return_mean"] == -5
    assert set(step.state["replay"]["chunks"][0]["rewards"].ravel()) == {-1.5, 1.5}
