"""The replay buffer: what is drawn is what was added, whatever the autoreset mode, also when full and when restored.

The oracle keeps every step in a list and computes returns by a plain loop. Leaves out learning (`test_dqn.py`).
"""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telescope.control.experience.frames import Frames
from telescope.control.experience.replay import Replay
from telescope.control.experience.rollout import Transition

GAMMA = 0.9


class World(NamedTuple):
    """How a stream of steps looks."""

    seeds: int = 2
    envs: int = 3
    capacity: int = 14
    mode: str = "same_step"
    ends: float = 0.3
    dtype: str = "float32"
    masks: bool = False
    holes: float = 0.0
    """How often a row does not count, besides those after an end."""
    still: bool = False
    """Whether all frames are alike, so that only the flags say where an episode ends."""
    anew: float = 0.0
    """How often all environments begin new episodes, as after a resume that could not restore them."""


WORLDS = st.builds(
    World,
    seeds=st.integers(1, 3),
    envs=st.integers(1, 4),
    capacity=st.integers(4, 40),
    mode=st.sampled_from(["same_step", "next_step", "disabled"]),
    ends=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    dtype=st.sampled_from(["float32", "float64", "uint8"]),
    masks=st.booleans(),
    holes=st.sampled_from([0.0, 0.2]),
    still=st.booleans(),
    anew=st.sampled_from([0.0, 0.2]),
)


def stream(world, steps, seed=0):
    """Steps of S·B environments whose actions are their names; their frames are all different, or all alike."""
    rng, shape, names = np.random.default_rng(seed), (world.seeds, world.envs), iter(range(10**6))

    def frames():
        fresh = np.array([[next(names) for _ in range(world.envs)] for _ in range(world.seeds)])
        observed = np.stack([fresh % 251, fresh // 251 % 251, 7 + 0 * fresh], -1).astype(world.dtype)
        if world.still:
            return np.zeros_like(observed), np.ones((*shape, 5), bool)
        return observed, rng.random((*shape, 5)) < 0.5

    (seen, allowed), resetting = frames(), np.zeros(shape, bool)
    for t in range(steps):
        (reached, then), (first, there) = frames(), frames()
        ended = (rng.random(shape) < world.ends) & ~resetting
        terminated = ended & (rng.random(shape) < 0.5)
        truncated = ended & ~terminated | terminated & (rng.random(shape) < 0.3)
        actions = np.arange(shape[0])[:, None] * 100 + np.arange(shape[1]) + 10_000 * t
        rewards = rng.standard_normal(shape)
        if world.mode == "next_step":  # the row after an end leads to the first state
            reached[resetting], then[resetting] = first[resetting], there[resetting]
        masks = (then | ended[..., None], allowed) if world.masks else (None, None)
        live = ~resetting & (rng.random(shape) >= world.holes)
        yield Transition(seen, actions, rewards, terminated, truncated, live, reached, *masks)
        seen, allowed = reached.copy(), then.copy()
        if world.mode != "next_step":
            seen[ended], allowed[ended] = first[ended], there[ended]
        resetting = ended if world.mode == "next_step" else resetting
        if rng.random() < world.anew:
            (seen, allowed), resetting = frames(), np.zeros(shape, bool)


def expected(steps, t, s, b, n):
    """The sample that begins with step t of environment b, by a plain loop: (Σ γ^i r, γ^k, the last step)."""
    total = 0.0
    for k, step in enumerate(steps[t : t + n], start=1):
        total += GAMMA ** (k - 1) * step.rewards[s, b]
        following = steps[t + k] if t + k < len(steps) else None
        if step.terminated[s, b] or step.truncated[s, b] or following is None or k == n:
            break
        begun_anew = (following.observations[s, b] != step.next_observations[s, b]).any()
        if begun_anew or not following.mask[s, b]:
            break
    return total, GAMMA**k, step


def every(replay):
    """All of a buffer's steps once: numbers [1, S, N] for `draw`."""
    count = len(replay)
    return np.tile((np.arange(count) + 0.5) / count, (1, replay.seeds, 1))


def require_right(replay, steps, world, n):
    drawn = replay.draw(every(replay), n=n, gamma=GAMMA)
    rows = world.capacity // world.envs
    for s in range(world.seeds):
        named = {int(a): i for i, a in enumerate(drawn.actions[0, s])}
        latest = range(max(0, len(steps) - rows), len(steps))
        assert set(named) == {int(steps[t].actions[s, b]) for t in latest for b in range(world.envs)}
        for t in latest:
            for b in range(world.envs):
                i = named[int(steps[t].actions[s, b])]
                total, discount, last = expected(steps, t, s, b, n)
                assert drawn.rewards[0, s, i] == pytest.approx(total, rel=1e-12, abs=1e-12)
                assert drawn.discounts[0, s, i] == pytest.approx(discount, rel=1e-12)
                assert drawn.terminated[0, s, i] == last.terminated[s, b]
                assert drawn.live[0, s, i] == steps[t].mask[s, b]
                np.testing.assert_array_equal(drawn.observations[0, s, i], steps[t].observations[s, b])
                np.testing.assert_array_equal(drawn.next_observations[0, s, i], last.next_observations[s, b])
                if world.masks:
                    np.testing.assert_array_equal(drawn.masks[0, s, i], steps[t].masks[s, b])
                    np.testing.assert_array_equal(drawn.next_masks[0, s, i], last.next_masks[s, b])
    assert drawn.observations.dtype == world.dtype
    assert (drawn.masks is None) is not world.masks


@settings(max_examples=80, deadline=None, derandomize=True)
@given(world=WORLDS, count=st.integers(1, 60), n=st.integers(1, 5), seed=st.integers(0, 99))
def test_what_is_drawn_is_what_was_added(world, count, n, seed):
    replay, steps = Replay(world.capacity, world.seeds, world.envs), []
    for step in stream(world, count, seed):
        replay.add(step)
        steps.append(step)
        if len(steps) in (1, count // 2, count):
            require_right(replay, steps, world, n)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(world=WORLDS, count=st.integers(1, 40), stop=st.integers(1, 40), n=st.integers(1, 4), small=st.booleans())
def test_a_restored_buffer_goes_on_as_the_one_that_was_saved(world, count, stop, n, small):
    """From a whole copy, or from chunks of which each save adds those of the rows since the last one."""
    ours, steps, chunks, saved = Replay(world.capacity, world.seeds, world.envs), [], [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("telescope.control.experience.replay.CHUNK_BYTES", 200 if small else 10**6)
        for step in stream(world, count):
            ours.add(step)
            steps.append(step)
            if len(steps) % 7 == 0 or len(steps) == min(stop, count):
                while (chunk := ours.chunk(saved)) is not None:
                    chunks.append(chunk)
                    saved = chunk["start"] + chunk["mask"].shape[1]
                assert saved == ours.time
            if len(steps) == min(stop, count):
                whole, parts = ours.state(), ours.saved(iter(chunks))
                for state in (whole, parts):
                    theirs = Replay(world.capacity, world.seeds, world.envs)
                    theirs.restore(state)
                    require_right(theirs, steps, world, n)
                    for more in list(stream(world, count))[len(steps) :]:
                        theirs.add(more)
                    last = theirs
    require_right(last, steps, world, n)
    same(ours.state(), last.state())


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            same(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        np.testing.assert_array_equal(a, b)


def test_every_step_is_drawn_as_often_by_each_seed_from_its_own_numbers():
    world = World(capacity=12)
    replay = Replay(12, world.seeds, world.envs)
    for step in stream(world, 9):
        replay.add(step)
    uniform = np.random.default_rng(0).random((50, 2, 240))
    uniform[:, 0] = uniform[:, 0] * 0.5  # the first seed's numbers choose the older half
    drawn = replay.draw(uniform)
    old, all_of_them = (np.unique(drawn.actions[:, s], return_counts=True) for s in range(2))
    assert len(old[0]) == 6
    assert len(all_of_them[0]) == 12
    assert (old[0] // 10_000 < 7).all()
    np.testing.assert_allclose(all_of_them[1], 1000, rtol=0.15)


def test_a_successor_is_stored_twice_only_where_an_episode_ended():
    for ends, aside in ((0.0, 0), (1.0, 6)):
        world = World(ends=ends, envs=2, seeds=1, capacity=8)
        replay = Replay(8, 1, 2)
        for step in stream(world, 4):
            replay.add(step)
        kept = replay.kept(0, 4)
        assert kept["observations"].shape == (1, 4, 2, 3)
        assert kept["aside_observations"].shape == (aside, 3)
        assert kept["actions"].shape == (1, 4, 2)


def test_the_room_for_ends_grows_with_them_alone():
    """At first an episode ends every 100 steps, later every second one, while the oldest ends are overwritten."""
    frames, rng, followed = Frames(1000, {"observations": np.zeros((1, 2, 3))}), np.random.default_rng(0), []
    frame = rng.random((1, 2, 3))
    for t in range(6500):
        after = rng.random((1, 2, 3))
        followed.append(after[0])
        frames.add(t, {"observations": frame}, {"observations": after})
        frame = rng.random((1, 2, 3)) if t % (100 if t < 5000 else 2) == 0 else after
        if t == 4999:
            assert frames.aside["observations"].shape == (1, 32, 3)  # 20 are in the buffer
    assert frames.ring["observations"].shape == (1, 1001, 2, 3)
    assert frames.aside["observations"].shape == (1, 1024, 3)
    times, envs = np.arange(5500, 6500)[:, None], np.arange(2)
    np.testing.assert_array_equal(frames.after((np.int64(0), times, envs))["observations"], followed[5500:])


@pytest.mark.parametrize("n", [1, 3])
def test_a_full_buffer_that_is_restored_goes_on_after_its_newest_step(n):
    """The oldest row may begin an episode. The step before it is gone, and the newest one lies in its place."""
    for seed in range(12):
        world = World(seeds=1, envs=1, capacity=4, ends=0.3)
        replay, steps = Replay(4, 1, 1), list(stream(world, 10, seed))
        for step in steps[:9]:
            replay.add(step)
        restored = Replay(4, 1, 1)
        restored.restore(replay.state())
        restored.add(steps[9])
        require_right(restored, steps, world, n)


def test_a_million_steps_of_half_cheetah_of_eight_seeds_are_less_than_a_gigabyte():
    shape, kinds = (8, 1), {"observations": (17, np.float32), "actions": (6, np.float32)}
    seen, acted = (np.zeros((*shape, size), kind) for size, kind in kinds.values())
    flag = np.zeros(shape, bool)
    replay = Replay(1000, 8, 1)
    replay.add(Transition(seen, acted, np.zeros(shape), flag, flag, ~flag, seen, None))
    arrays = [*replay._steps.values(), replay._stops, *replay._frames.ring.values(), replay._frames.number]
    assert sum(x.nbytes for x in arrays) * 1000 < 10**9


def test_a_buffer_of_less_than_one_step_is_refused():
    with pytest.raises(ValueError, match="one step of 3 environments adds 3"):
        Replay(2, 2, 3)
