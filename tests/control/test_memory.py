"""Policies that remember: the GRU against torch's own, whole rollouts against a plain loop over episodes.

Leaves out what holds of every algorithm (`tests/algorithms/roster.py` has a row for PPO with a memory).
"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import telescope
from telescope import gae
from telescope.algorithms import dqn, ppo
from telescope.control.agents.layout import create
from telescope.control.agents.memory import unroll, with_memory
from telescope.control.agents.networks import Network, mlp
from telescope.control.experience.minibatches import sequence_indices
from telescope.control.training import Session
from telescope.policy import Policy
from worlds import Recall, Shown

SMALL = ppo.PPO(
    env=Recall,
    seeds=2,
    seed=5,
    num_envs=3,
    num_steps=8,
    minibatch_size=16,
    epochs=2,
    total_steps=48,
    memory="gru",
    memory_size=4,
    shared_memory=True,
    hidden=(5,),
    gamma=0.9,
    threads=1,
    compile="off",
)

NOTHING = {"memory": "none", "memory_size": 64, "shared_memory": False}
FORGETFUL = dataclasses.replace(SMALL, **NOTHING)


def gru(inputs, size):
    """Our GRU alone, and torch's with the same weights."""
    network = with_memory(mlp(size, 2, hidden=(3,)), inputs, size)
    rng = np.random.default_rng(0)
    ours = {name: torch.as_tensor(x) + 0.1 * torch.randn(x.shape) for name, x in network.init(rng).items()}
    theirs = nn.GRUCell(inputs, size)
    with torch.no_grad():
        theirs.weight_ih.copy_(ours["memory.input.weight"].T)
        theirs.weight_hh.copy_(ours["memory.hidden.weight"].T)
        theirs.bias_ih.copy_(ours["memory.input.bias"])
        theirs.bias_hh.copy_(ours["memory.hidden.bias"])
    return network, ours, theirs


def test_the_gru_is_torchs():
    torch.manual_seed(0)
    network, parameters, theirs = gru(3, 5)
    observations, memory = torch.randn(7, 3), torch.randn(7, 5)
    wanted = theirs(observations, memory).detach()
    torch.testing.assert_close(network.remember(parameters, observations, memory), wanted, rtol=1e-5, atol=1e-6)
    arrays = {name: x.numpy() for name, x in parameters.items()}
    found = network.remember(arrays, observations.numpy(), memory.numpy())
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_it_takes_all_agents_at_once():
    """[S, N, D] and parameters of S agents give what each agent gives alone."""
    network = with_memory(mlp(4, 2, hidden=(3,)), 3, 4)
    vectors, layout = create(network, [1, 2, 3])
    observations, memory = torch.randn(3, 6, 3), torch.randn(3, 6, 4)
    together = network.remember(layout.unflatten(vectors), observations, memory)
    for s in range(3):
        alone = network.remember(layout.unflatten(vectors[s]), observations[s], memory[s])
        torch.testing.assert_close(together[s], alone, rtol=1e-5, atol=1e-6)


def test_unrolling_is_a_loop_over_episodes():
    torch.manual_seed(1)
    network, parameters, theirs = gru(2, 3)
    begins = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 1], [0, 0]], dtype=torch.bool)
    observations, memory = torch.randn(5, 2, 2), torch.randn(2, 3)
    found = unroll(lambda x, h: network.remember(parameters, x, h), observations, memory, begins)
    for column, cuts in enumerate(([0, 2, 5], [0, 1, 3, 5])):  # the episodes of each environment
        for episode, (start, end) in enumerate(itertools.pairwise(cuts)):
            h = memory[column] if episode == 0 else torch.zeros(3)
            for t in range(start, end):
                h = theirs(observations[t, column][None], h[None])[0]
                torch.testing.assert_close(found[t, column], h.detach(), rtol=1e-5, atol=1e-6)


def test_gradients_flow_through_an_episode_and_not_into_the_one_before():
    network, parameters, _ = gru(2, 3)
    observations = torch.randn(4, 1, 2, requires_grad=True)
    begins = torch.tensor([False, False, True, False])[:, None]
    found = unroll(lambda x, h: network.remember(parameters, x, h), observations, torch.zeros(1, 3), begins)
    reached = torch.autograd.grad(found[3].sum(), observations)[0].abs().sum((1, 2)) > 0
    assert reached.tolist() == [False, False, True, True]


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("autoreset", ["same_step", "next_step", "disabled"])
def test_a_rollout_is_what_a_plain_loop_over_episodes_gives(autoreset, truncated):
    """Memories, values of truncated episodes' last states, advantages: all with one observation at a time."""
    config = dataclasses.replace(SMALL, autoreset=autoreset, env_kwargs={"truncated": truncated})
    session = Session(config, None, ppo.Learner, recurrent=True)
    try:
        agent = session.agent
        carried = torch.zeros(2, 3, 4)
        noise = torch.randn(session.parameters.shape, generator=torch.Generator().manual_seed(0))
        session.learner = ppo.Learner.begin(session.parameters + 0.3 * noise)  # and biases
        for _ in session.iterations():
            rollout = session.collect()
            batch = ppo.with_advantages(config, session, rollout, ppo.samples(session, rollout))
            for s in range(2):
                vector = session.parameters[s]
                for b in range(3):
                    h, values, successors = carried[s, b], [], []
                    for t in range(8):
                        torch.testing.assert_close(rollout.memory[t, s, b], h, rtol=1e-4, atol=1e-6)
                        h = agent.see(vector, rollout.observations[t, s, b][None], h[None])[0]
                        values.append(agent.value(vector, h[None])[0].detach())
                        ended = rollout.terminated[t, s, b] | rollout.truncated[t, s, b]
                        # Recall shows nothing where it ends
                        final = agent.see(vector, torch.zeros(1, 1), h[None])
                        successors.append(agent.value(vector, final)[0].detach() if ended else None)
                        if ended or not rollout.mask[t, s, b]:
                            h = torch.zeros(4)
                    carried[s, b] = h
                    torch.testing.assert_close(rollout.last_memory[s, b], h, rtol=1e-4, atol=1e-6)
                    last = agent.see(vector, rollout.last_observations[s, b][None], h[None])
                    values.append(agent.value(vector, last)[0].detach())
                    live = rollout.mask[:, s, b]
                    after = [x if x is not None else values[t + 1] for t, x in enumerate(successors)]
                    wanted, _ = gae(
                        rollout.rewards[:, s, b],
                        torch.stack(values[:-1]),
                        torch.stack(after),
                        terminated=rollout.terminated[:, s, b],
                        truncated=rollout.truncated[:, s, b],
                        mask=live,
                        gamma=config.gamma,
                        lam=config.lam,
                    )
                    found = batch.advantages[s].unflatten(0, (8, 3))[:, b]
                    torch.testing.assert_close(found[live], wanted[live], rtol=1e-4, atol=1e-5)
            session.clock.iteration += 1
    finally:
        session.close()


def test_minibatches_are_whole_sequences():
    config = dataclasses.replace(SMALL, num_envs=5, total_steps=400)
    for epoch in sequence_indices(config, 0):
        assert epoch.shape == (2, 3, 16)
        for seed in epoch:
            drawn = seed.reshape(3, 8, 2)  # minibatch, step, place
            whole = [drawn[k, :, i].tolist() for k in range(3) for i in range(2)]
            assert sorted(whole) == sorted([[t * 5 + b for t in range(8)] for b in range(5)] + [[-1] * 8])
    first, second = sequence_indices(config, 0)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1]), "each seed shuffles for itself"


def test_it_learns_what_needs_a_memory():
    """A cue is shown three steps before it is asked for: one half is the most that a policy without memory earns."""
    config = dataclasses.replace(
        SMALL,
        num_envs=8,
        num_steps=15,
        minibatch_size=60,
        epochs=4,
        total_steps=2400,
        memory_size=8,
        learning_rate=2e-2,
    )
    *_, last = ppo.train(config)
    returns = [row["return_mean"] for row in last.rows]
    assert min(returns) > 0.95
    found = Policy(config, last.policy).evaluate(50)
    assert found.returns.mean(axis=1).tolist() == [1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_it_remembers_what_was_in_a_picture(kind, compiled):
    config = ppo.PPO(
        env=Shown,
        env_kwargs={"steps": 5},
        seeds=2,
        num_envs=16,
        num_steps=20,
        minibatch_size=80,
        epochs=4,
        total_steps=16_000,
        memory=kind,
        memory_size=16,
        hidden=(16,),
        learning_rate=3e-3,
        threads=1,
        compile=compiled,
    )
    *_, last = ppo.train(config)
    assert (Policy(config, last.policy).evaluate(20).returns == 1).all()


def test_a_player_acts_as_the_evaluation_does(tmp_path):
    config = dataclasses.replace(SMALL, total_steps=480, env_kwargs={"steps": 6})
    *_, last = ppo.train(config)
    policy = Policy(config, last.policy)
    torch.manual_seed(0)
    policy.parameters.normal_()  # so that actions depend on what is remembered
    with pytest.raises(ValueError, match=r"act takes one observation.*player\(observation\)"):
        policy.act(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="value takes one observation"):
        policy.value(np.zeros(1, np.float32))
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (9, 2, 1)).astype(np.float32)  # two environments
    begins = rng.random((9, 2)) < 0.3
    player, memory, forgetful = policy.player(seed=6), torch.zeros(2, 4), []
    for seen, new in zip(observations, begins, strict=True):
        memory = torch.where(torch.from_numpy(new)[:, None], 0.0, memory)
        vector = policy.parameters[1]
        memory = policy.agent.see(vector, torch.from_numpy(seen), memory)
        wanted = policy.agent.act(vector, memory, None, None).tolist()
        assert player(seen, begins=new).tolist() == wanted
        forgetful.append(policy.player(seed=6)(seen).tolist() == wanted)
    assert not all(forgetful), "what is remembered matters"
    with pytest.raises(ValueError, match=r"3 observations, but the player remembers 2 episodes.*begins=True"):
        player(np.zeros((3, 1), np.float32))
    with pytest.raises(ValueError, match=r"begins has shape \(3,\); expected a bool, or \(2,\)"):
        player(np.zeros((2, 1), np.float32), begins=[True, False, False])
    assert player(np.zeros((3, 1), np.float32), begins=True).shape == (3,)


def test_a_player_of_a_policy_without_memory_acts_as_the_policy():
    config = FORGETFUL
    *_, last = ppo.train(config)
    policy = Policy(config, last.policy)
    seen = np.linspace(-1, 1, 7, dtype=np.float32)[:, None]
    assert policy.player()(seen).tolist() == policy.act(seen).tolist()


def own(size):
    """A network of one's own that remembers a running sum of its observations."""

    def init(rng):
        return {"w": torch.from_numpy(rng.standard_normal((size, 3)).astype(np.float32))}

    def apply(parameters, seen):
        found = seen @ parameters["w"]
        return found[..., :2], found[..., 2]

    def remember(parameters, observations, memory):
        return memory + observations

    return Network(init, apply, remember=remember, memory=size)


def joined(parameters, observations, memory):
    return torch.cat([memory, observations], -1)


def test_a_network_of_ones_own_may_remember():
    *_, last = ppo.train(FORGETFUL, network=own(1))
    state = next(ppo.train(FORGETFUL, network=own(1))).state
    *_, again = ppo.train(FORGETFUL, state, network=own(1))
    assert torch.equal(last.policy["parameters"], again.policy["parameters"])
    assert state["rollouts"]["memory"].shape == (2, 3, 1)
    assert np.abs(state["rollouts"]["memory"]).max() == 1, "a cue was seen"


@pytest.mark.parametrize(
    ("algorithm", "config", "network", "message"),
    [
        (ppo, {**NOTHING, "minibatch_size": 12}, own(1), "minibatch_size is 12, .* multiple of it, such as 8"),
        (dqn, {}, own(1), "network has a memory of 1 numbers, but this algorithm learns from single steps"),
        (ppo, NOTHING, own(1)._replace(remember=None), "only one of memory and remember"),
        (
            ppo,
            NOTHING,
            own(2)._replace(memory=1, remember=joined),
            r"remember gives .*\(3, 2\); expected .*\(3, 1\)",
        ),
    ],
)
def test_what_cannot_remember_is_told(algorithm, config, network, message):
    small = dataclasses.replace(SMALL, **config) if algorithm is ppo else dqn.DQN(env=Recall, total_steps=2000)
    with pytest.raises(ValueError, match=message):
        next(algorithm.train(small, network=network))


def test_sequences_need_minibatches_of_their_length():
    with pytest.raises(
        ValueError, match=r"minibatch_size is 12, but a policy with a memory learns from whole .* or sequence_length 4"
    ):
        dataclasses.replace(SMALL, minibatch_size=12)


def test_a_run_folder_of_it_is_evaluated_and_resumed(tmp_path):
    run = telescope.train(dataclasses.replace(SMALL, total_steps=96, eval_every=48), tmp_path / "run")
    policy = telescope.load(run.path)
    assert policy.agent.network.memory == 4
    assert policy.evaluate(3).returns.shape == (2, 3)


def test_a_part_of_an_agent_is_found_by_name():
    _, layout = create(with_memory(mlp(4, 2, hidden=(3,)), 2, 4), [0])
    total = sum(layout.sizes)
    parts = [layout.part(name) for name in ("memory.", "policy.", "value.")]
    assert sorted(torch.cat(parts).tolist()) == list(range(total))
    marked = torch.zeros(total)
    marked[layout.part("policy.out")] = 1
    for name, values in layout.unflatten(marked).items():
        assert set(values.unique().tolist()) == {float(name.startswith("policy.out"))}
    with pytest.raises(ValueError, match=r"no parameter's name begins with 'critic'; there are memory.input.weight"):
        layout.part("critic")
