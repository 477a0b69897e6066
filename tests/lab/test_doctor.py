"""The doctor names a planted mistake and its first row, and finds nothing in right rollouts."""

import numpy as np
import pytest
from rollouts import advantages, rollout, world

from telescope.lab.doctor import Rollout, examine

RIGHT, EACH = 150, 60
"""Rollouts per test. The slow tests take 1,000 and 200."""


def first(where):
    return tuple(int(i) for i in np.argwhere(where)[0])


@pytest.mark.parametrize("padded", [False, True])
def test_nothing_is_found_in_right_rollouts(padded):
    nothing_is_found(padded, range(RIGHT))


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_nothing_is_found_in_a_thousand_right_rollouts(padded):
    nothing_is_found(padded, range(RIGHT, RIGHT + 1000))


def nothing_is_found(padded, seeds):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        w = world(rng, padded=padded)
        found = examine(rollout(w, advantages(w), rng))
        assert not found.findings, (seed, found)


def test_nothing_is_found_where_reset_rows_are_masked():
    for seed in range(EACH):
        rng = np.random.default_rng(seed)
        w, resets = reset_rows(rng)
        w.mask = ~resets
        w.final = np.where(resets, np.nan, w.final)
        found = examine(rollout(w, advantages(w), rng))
        assert not found.findings, (seed, found)


def half(x, kind):
    """Numbers of half precision in float32, as a recorder keeps bfloat16."""
    import torch

    return torch.as_tensor(np.asarray(x, np.float32)).to(getattr(torch, kind)).float().numpy()


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_numbers_of_half_precision_are_right_and_their_mistakes_are_found(kind):
    for seed in range(EACH):
        rng = np.random.default_rng(seed)
        w = world(rng)
        for name in ("rewards", "values", "final"):
            setattr(w, name, half(getattr(w, name), kind).astype(np.float64))
        given = {"terminated": w.terminated, "truncated": w.truncated, "gamma": w.gamma, "lam": w.lam}
        numbers = {"rewards": w.rewards, "values": w.values, "next_values": w.final}
        right = {name: half(x, kind) for name, x in (numbers | {"advantages": advantages(w)}).items()}
        report = examine(Rollout(**right, **given))
        assert not report.findings, (seed, report)
        wrong = right | {
            "advantages": half(advantages(w) + np.where(w.truncated, 30 * np.abs(w.values).max(), 0), kind)
        }
        assert examine(Rollout(**wrong, **given)).findings, seed


def test_flags_of_half_precision_say_nothing_about_the_numbers():
    for seed in range(EACH):
        rng = np.random.default_rng(seed)
        w = world(rng)
        r = rollout(w, advantages(w, at_truncation=lambda t, b, later, w=w: 0.0), rng, given=True)
        r = r._replace(truncated=r.truncated.astype(np.float16), terminated=r.terminated.astype(np.float16))
        found = [one for one in examine(r).findings if one.name == "truncation_as_termination"]
        assert found[0].row == first(r.truncated != 0), seed


@pytest.mark.parametrize("kind", ["every row ends", "one row", "whitened at γ = λ = 1", "constant values"])
def test_nothing_is_found_in_right_rollouts_that_say_little(kind):
    for seed in range(EACH):
        rng = np.random.default_rng(seed)
        w = world(rng)
        if kind == "every row ends":
            w.truncated = rng.random(w.values.shape) < 0.5
            w.terminated = ~w.truncated
        elif kind == "one row":
            for name in ("rewards", "values", "final", "terminated", "truncated", "mask"):
                setattr(w, name, getattr(w, name)[-1:])
        elif kind == "constant values":
            w.values, w.final = np.ones_like(w.values), np.ones_like(w.final)
            w.rewards = np.sign(w.rewards)
        else:
            w.gamma = w.lam = 1.0
        a = advantages(w)
        if a.size > 4 and a.std() > 0 and (kind != "constant values" or seed % 2):
            a = (a - a.mean()) / a.std()
        report = examine(rollout(w, a, rng, given=True, returns=None))
        assert not report.findings, (kind, seed, report)


def test_one_wrong_reward_is_found_without_gamma_and_lam():
    for seed in range(EACH):
        rng = np.random.default_rng(seed)
        w = world(rng, mean_length=20)
        a = advantages(w)
        inside = np.argwhere(~(w.terminated | w.truncated)[:-1])
        t, b = inside[rng.integers(len(inside))]
        w.rewards[t, b] += w.rewards.std()
        r = rollout(w, a, rng, given=False)
        row = first((np.arange(w.rewards.size) == t * w.rewards.shape[1] + b).reshape(r.rewards.shape))
        assert [(one.name, one.row, one.rows) for one in examine(r).findings] == [("not_gae", row, 1)], seed


def following(w):
    return np.vstack([w.values[1:], np.zeros_like(w.values[:1])])


def plant_truncation_as_termination(w, rng):
    a = advantages(w, at_truncation=lambda t, b, later: 0.0)
    return rollout(w, a, rng), w.truncated


def plant_trace_over_reset(w, rng):
    a = advantages(w, at_truncation=lambda t, b, later: w.gamma * (w.final[t, b] + w.lam * later))
    return rollout(w, a, rng, next_values=w.final), w.truncated & (
        np.arange(len(w.values))[:, None] < len(w.values) - 1
    )


def plant_trace_over_termination(w, rng):
    a = advantages(w, at_termination=lambda t, b, later: w.gamma * w.lam * later)
    return rollout(w, a, rng), w.terminated & (np.arange(len(w.values))[:, None] < len(w.values) - 1)


def plant_reset_state_value(w, rng):
    ahead = following(w)
    inner = w.truncated & (np.arange(len(w.values))[:, None] < len(w.values) - 1)
    w.final = np.where(inner, ahead, w.final)
    return rollout(w, advantages(w), rng), inner


def plant_double_bootstrap(w, rng):
    a = advantages(w, at_truncation=lambda t, b, later: 2 * w.gamma * w.final[t, b])
    return rollout(w, a, rng, next_values=w.final), w.truncated


def plant_double_bootstrap_at_the_end(w, rng):
    a = advantages(w, at_end=lambda t, b, later: 2 * w.gamma * w.final[t, b])
    last = np.zeros_like(w.truncated)
    last[-1] = ~(w.terminated | w.truncated)[-1]
    return rollout(w, a, rng, next_values=w.final), last


def plant_end_as_termination(w, rng):
    a = advantages(w, at_end=lambda t, b, later: 0.0)
    last = np.zeros_like(w.truncated)
    last[-1] = ~(w.terminated | w.truncated)[-1]
    return rollout(w, a, rng), last


def plant_shifted_flags(w, rng, step=1):
    a = advantages(w)
    moved = {}
    for name in ("terminated", "truncated"):
        x = getattr(w, name)
        moved[name] = np.roll(x, step, 0)
        moved[name][0 if step > 0 else -1] = False
    r = rollout(w, a, rng, **({"next_values": w.final} if step < 0 else {}))  # the first flag falls out
    shape = r.rewards.shape
    changed = {name: x.reshape(shape) for name, x in moved.items()}
    return r._replace(**changed), (moved["terminated"] != w.terminated) | (moved["truncated"] != w.truncated)


def plant_early_flags(w, rng):
    return plant_shifted_flags(w, rng, -1)


def plant_swapped_flags(w, rng):
    r = rollout(w, advantages(w), rng)
    return r._replace(terminated=r.truncated, truncated=r.terminated), w.terminated | w.truncated


def plant_other_discounts(w, rng):
    said = w.gamma, w.lam
    w.gamma, w.lam = float(rng.uniform(0.5, 0.75)), float(rng.uniform(0.0, 0.25))
    r = rollout(w, advantages(w), rng)._replace(gamma=said[0], lam=said[1])
    return r, None


def plant_permuted_advantages(w, rng):
    a = advantages(w)
    order = rng.permutation(a.size)
    b = a.ravel()[order].reshape(a.shape)
    return rollout(w, b, rng, given=True, returns=None, next_values=w.final), ~np.isclose(a, b, rtol=1e-5)


def plant_permuted_rewards(w, rng):
    a, r = advantages(w), w.rewards
    w.rewards = rng.permutation(r.ravel()).reshape(r.shape)
    return rollout(w, a, rng, given=True, next_values=w.final), None


def plant_not_gae(w, rng):
    a = advantages(w)
    return rollout(w, a + rng.normal(size=a.shape) * a.std(), rng, returns=None), None


def plant_other_returns(w, rng):
    a = advantages(w)
    wrong = a + 2 * w.values
    r = rollout(w, a, rng)
    return r._replace(returns=wrong.astype(r.values.dtype).reshape(r.values.shape)), w.mask


def plant_own_value(w, rng):
    a = advantages(w, at_truncation=lambda t, b, later: w.gamma * w.values[t, b])
    return rollout(w, a, rng), w.truncated


def plant_abandoned_step(w, rng):
    a = advantages(w, at_truncation=lambda t, b, later: w.values[t, b] - w.rewards[t, b])
    return rollout(w, a, rng, next_values=w.final), w.truncated


PLANTS = {
    name.removeprefix("plant_"): (function, expected)
    for name, function, expected in [
        (plant.__name__, plant, expected)
        for plant, expected in [
            (plant_truncation_as_termination, "truncation_as_termination"),
            (plant_trace_over_reset, "trace_over_reset"),
            (plant_trace_over_termination, "trace_over_reset"),
            (plant_reset_state_value, "reset_state_value"),
            (plant_double_bootstrap, "double_bootstrap"),
            (plant_double_bootstrap_at_the_end, "double_bootstrap"),
            (plant_end_as_termination, "end_as_termination"),
            (plant_own_value, "own_value"),
            (plant_abandoned_step, "abandoned_step"),
            (plant_shifted_flags, "shifted_flags"),
            (plant_early_flags, "shifted_flags"),
            (plant_swapped_flags, "shifted_flags"),
            (plant_other_discounts, "other_discounts"),
            (plant_permuted_advantages, "permuted_rows"),
            (plant_permuted_rewards, "permuted_rows"),
            (plant_not_gae, "not_gae"),
            (plant_other_returns, "other_returns"),
        ]
    ]
}


def reset_rows(rng):
    """A rollout of a next-step autoreset whose reset rows are not masked."""
    w = world(rng)
    steps, columns = w.rewards.shape
    long = {name: np.zeros((2 * steps, columns)) for name in ("rewards", "values", "final")}
    flags = {name: np.zeros((2 * steps, columns), bool) for name in ("terminated", "truncated")}
    resets = np.zeros((2 * steps, columns), bool)
    lengths = []
    for b in range(columns):
        row = 0
        for t in range(steps):
            for name in long:
                long[name][row, b] = getattr(w, name)[t, b]
            for name in flags:
                flags[name][row, b] = getattr(w, name)[t, b]
            row += 1
            if (w.terminated | w.truncated)[t, b] and t < steps - 1:
                long["values"][row, b], long["final"][row, b] = w.final[t, b], w.values[t + 1, b]
                resets[row, b] = True
                row += 1
        lengths.append(row)
    end = min(lengths)
    w.rewards, w.values, w.final = (long[name][:end] for name in ("rewards", "values", "final"))
    w.terminated, w.truncated = (flags[name][:end] for name in ("terminated", "truncated"))
    w.mask = np.ones_like(w.terminated)
    return w, resets[:end]


def padded_reward(rng):
    w = world(rng, padded=True)
    a = advantages(w)
    where = ~w.mask & (rng.random(w.mask.shape) < 0.1)
    where[-1, np.argmin(w.mask.sum(0))] = True
    w.rewards = w.rewards + where
    return rollout(w, a, rng), where


def padded_whitening(rng):
    w = world(rng, padded=True)
    w.mask[-1], w.terminated[-1] = False, False  # some padding everywhere
    w.terminated[-2] |= w.mask[-2] & ~w.terminated[-2]
    a = advantages(w)
    if np.std(a[w.mask]) == 0:
        return None
    whitened = (a - a.mean()) / (a.std() + 1e-8)
    return rollout(w, whitened, rng, returns=None), w.mask


def padding_in_trace(rng):
    """A loop that does not know the mask: what stands behind a completion enters its last advantage."""
    w = world(rng, padded=True)
    if w.mask.all():
        return None
    w.values = np.where(w.mask, w.values, rng.normal(size=w.values.shape) * np.abs(w.values).mean())
    steps, columns = w.values.shape
    a, later, ahead = np.zeros((steps, columns)), np.zeros(columns), np.zeros(columns)
    for t in reversed(range(steps)):
        later = w.rewards[t] + w.gamma * ahead - w.values[t] + w.gamma * min(w.lam, 0.9) * later
        a[t], ahead = later, w.values[t]
    w.lam = min(w.lam, 0.9)  # at λ = 1 the values behind the end cancel
    r = rollout(w, a, rng, returns=None)
    return r, w.terminated & (np.arange(steps)[:, None] < steps - 1)


MORE = {"reset_row": reset_rows, "padding_reward": padded_reward, "padding_whitened": padded_whitening}
MORE["padding_in_trace"] = padding_in_trace


def planted(name, seed):
    """A rollout with the mistake, the name that it has, and where it stands (None: anywhere)."""
    rng = np.random.default_rng([seed, len(name)])
    if name == "reset_row":
        w, where = reset_rows(rng)
        return rollout(w, advantages(w), rng), "reset_row", where
    if name in MORE:
        made = MORE[name](rng)
        return None if made is None else (made[0], name, made[1])
    plant, expected = PLANTS[name]
    r, where = plant(world(rng), rng)
    return r, expected, where


@pytest.mark.parametrize("name", [*PLANTS, *MORE])
def test_a_planted_mistake_is_named_with_its_first_row(name):
    tried, missed = tries(name, range(EACH))
    assert len(missed) <= 0.01 * tried, (tried, missed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PLANTS, *MORE])
def test_a_mistake_that_is_planted_often_is_nearly_always_named(name):
    tried, missed = tries(name, range(EACH, EACH + 250))
    assert tried >= 200
    assert len(missed) <= 0.01 * tried, (tried, missed)


def tries(name, seeds):
    """How many rollouts have the mistake, and those where it is not named, or not with its first row."""
    tried, missed = 0, []
    for seed in seeds:
        made = planted(name, seed)
        if made is None or (made[2] is not None and not made[2].any()):
            continue
        r, expected, where = made
        tried += 1
        hit = [finding.row for finding in examine(r).findings if finding.name == expected]
        wanted = hit[0] if where is None and hit else None if where is None else first(where.reshape(r.rewards.shape))
        if not hit or hit[0] != wanted:
            missed.append((seed, hit, wanted))
    return tried, missed
