"""What holds of every trainer, whatever its loss: one list of laws × the algorithms of `roster.py`.

Leaves out what only some of them do, and language fields (`tests/language/test_every_field.py`).
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from roster import ROSTER, learner, smaller  # noqa: F401

import telescope
from telescope.algorithms import CONFIGS, LANGUAGE, family, find
from worlds import Forced, Masked

CONTROL = [name for name in ROSTER if name not in LANGUAGE]
STOCHASTIC = [name for name in CONTROL if hasattr(ROSTER[name].small, "entropy_coefficient")]
SAMPLED = [(name, i) for name, row in ROSTER.items() for i in range(len(row.samplers))]
EPOCHS = [name for name, row in ROSTER.items() if hasattr(row.small, "epochs") and row.gradient_steps]


def comparable(x):
    """Rows and states as plain values that compare by their bits; what counts seconds is left out."""
    if isinstance(x, dict):
        return {k: comparable(v) for k, v in x.items() if k != "elapsed" and not str(k).startswith("time_")}
    if isinstance(x, torch.Tensor | np.ndarray):
        return (str(x.dtype), tuple(x.shape), np.asarray(x.float() if isinstance(x, torch.Tensor) else x).tobytes())
    return [comparable(value) for value in x] if isinstance(x, list | tuple) else repr(x)


def outcome(name, config, **more):
    """All that a run shows: the rows of every iteration, and the last state."""
    rows = []
    for step in ROSTER[name].module.train(config, **more):
        rows += step.rows
        state = step.state if step.finished else None
    return comparable(rows), comparable(state)


def with_settings(name, **changes):
    return dataclasses.replace(ROSTER[name].small, **changes)


def in_one_update(name):
    """Settings by which a small run makes one update of an iteration, of those that an algorithm has."""
    fields = {field.name for field in dataclasses.fields(ROSTER[name].small)}
    return {
        field: value
        for field, value in {"minibatch_size": 32, "minibatches": 1, "epochs": 1}.items()
        if field in fields
    }


def test_every_algorithm_has_its_row():
    assert {row.module for row in ROSTER.values()} == {find(name) for name in CONFIGS}


@pytest.fixture(scope="module")
def whole():
    """The outcome of each small run, made once."""
    return functools.cache(lambda name: outcome(name, ROSTER[name].small))


# Fields


@pytest.mark.parametrize("name", CONTROL)
def test_every_field_has_another_value_or_a_reason(name):
    row = ROSTER[name]
    fields = {field.name for field in dataclasses.fields(row.small)}
    assert fields == row.other.keys() | row.inert.keys()
    assert not row.other.keys() & row.inert.keys()


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in CONTROL for field in ROSTER[name].other])
def test_every_field_acts_or_is_refused_by_name(name, field, whole):
    try:
        changed = with_settings(name, **{field: ROSTER[name].other[field]})
        family(name).try_out(changed)
        found = outcome(name, changed)
    except (ValueError, ImportError) as error:
        assert field in str(error) or str(ROSTER[name].other[field]) in str(error)  # noqa: PT017
        return
    if field.startswith("eval_"):
        assert found != whole(name)
    else:  # and not in evaluations alone
        assert trained(found) != trained(whole(name))


def trained(found):
    """An outcome without what evaluations say."""
    rows, state = found
    return [{k: v for k, v in row.items() if k != "eval_return_mean"} for row in rows], state


# Learning


@pytest.mark.parametrize("name", ROSTER)
def test_every_trainer_learns_its_own_loss(name, tmp_path):
    row, config = ROSTER[name], learner(name, tmp_path)
    values = [one[row.metric] for step in row.module.train(config) for one in step.rows[:1]]
    values = [value for value in values if value is not None]
    start, end = values[0], values[-1]
    sign = 1 if row.better == "higher" else -1
    assert sign * start < sign * row.reaches <= sign * end, (start, end)


def test_a_reward_model_prefers_what_was_chosen(tmp_path):
    """Asked as a reward is, by texts: its own accuracy counts margins, which could be turned round with the loss."""
    run = telescope.train(learner("reward_model", tmp_path), tmp_path / "run")
    model = ROSTER["reward_model"].module.RewardModel.load(str(run.path), "cpu")
    found = model.reward(["7:", "8:"] * 2, ["13", "14", "23", "24"])
    assert min(found[:2]) > max(found[2:])


@pytest.mark.parametrize(("name", "sampler"), SAMPLED)
def test_the_first_update_has_ratio_1(name, sampler):
    """The trainer judges actions by the probabilities with which they were drawn, whatever shaped these."""
    once = {"eval_every": 0} | ({"epochs": 1, "minibatches": 1} if name in LANGUAGE else in_one_update(name))
    config = with_settings(name, **once, **ROSTER[name].samplers[sampler])
    rows = next(step.rows for step in ROSTER[name].module.train(config) if "kl" in step.rows[0] and step.step)
    for row in rows:
        assert row["kl"] == pytest.approx(0, abs=1e-6)
        assert row["clipped" if "clipped" in row else "clip_fraction"] == 0
        assert row.get("ratio_max", 1) == pytest.approx(1, abs=1e-4)
        assert row.get("sampler_mismatch", 0) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("narrowest", [{"top_k": 1}, {"top_p": 1e-300}, {"temperature": 1e-5}], ids=str)
@pytest.mark.parametrize("name", [name for name, row in ROSTER.items() if hasattr(row.small, "temperature")])
def test_the_sampler_draws_from_what_it_is_told(name, narrowest):
    """Where one token is left to draw, a rollout has no entropy."""
    rows = [
        row for step in ROSTER[name].module.train(with_settings(name, **narrowest)) for row in step.rows if step.step
    ]
    assert [row["entropy"] for row in rows] == pytest.approx([0, 0], abs=1e-4)


def first_moments(x):
    """The optimiser's running mean of gradients, wherever a state keeps it."""
    if isinstance(x, dict):
        named = [v for k, v in x.items() if k in ("first_moment", "exp_avg")]
        return named + [
            v for k, value in x.items() if k not in ("first_moment", "exp_avg") for v in first_moments(value)
        ]
    return [v for value in x for v in first_moments(value)] if isinstance(x, list) else []


@pytest.mark.parametrize("name", EPOCHS)
def test_epochs_have_minibatches_of_their_own(name):
    """Two epochs over the same minibatches, of a policy that stays, would leave (1 + βᴹ) times the moments of one."""
    still = {"learning_rate": 1e-30, "max_grad_norm": 1e9, "eval_every": 0}
    still |= {"warm_start": 0.0, "value_learning_rate": 1e-30} if name == "rlhf" else {}
    still |= {"seeds": 1} if name not in LANGUAGE else {}
    if name in LANGUAGE:
        still |= {"total_steps": 1}
    elif hasattr(ROSTER[name].small, "minibatch_size"):
        still |= {"total_steps": 128, "num_envs": 8, "minibatch_size": 16}
    else:
        still |= {"total_steps": 1, "num_envs": 32, "minibatches": 8}  # one iteration of 8 groups
    found = []
    for epochs in (1, 2):
        config = with_settings(name, **still, epochs=epochs)
        *_, last = ROSTER[name].module.train(config)
        found.append(torch.cat([torch.as_tensor(one).flatten() for one in first_moments(last.state)]))
    once, twice = found
    assert len(once)
    again = (1 + 0.9**config.minibatches) * once  # M minibatches in an epoch
    assert (twice - again).norm() > 1e-2 * again.norm()
    assert (twice - once).norm() > 1e-2 * once.norm(), "there is no second epoch"


@pytest.mark.parametrize("name", ROSTER)
def test_annealing_acts_and_rests(name):
    longer = 5 if name in LANGUAGE else 5 * 32
    rates = {}
    for anneal in (True, False):
        how = {"min_lr_ratio": 0.1 if anneal else 1.0} if name in LANGUAGE else {"anneal_learning_rate": anneal}
        config = with_settings(name, **how, total_steps=longer, eval_every=0)
        rows = [row for step in ROSTER[name].module.train(config) for row in step.rows]
        rates[anneal] = [row["learning_rate"] for row in rows if row["learning_rate"] is not None]
    assert rates[True][0] == max(rates[True]) == rates[False][0]
    assert sorted(set(rates[True]), reverse=True) == list(dict.fromkeys(rates[True])), "it falls"
    assert rates[True][-1] < 0.5 * rates[True][0]
    assert len(set(rates[False])) == 1


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_action_masks_reach_the_update(name, autoreset):
    """Of three actions one is forbidden: no policy over the other two has more entropy than log 2."""
    config = with_settings(name, env=Masked, env_kwargs={}, autoreset=autoreset, **in_one_update(name))
    for step in ROSTER[name].module.train(config):
        for row in step.rows:
            assert row["entropy"] <= math.log(2) + 1e-6
            assert "clip_fraction" not in row or row["kl"] == pytest.approx(0, abs=1e-6)
            assert row["entropy"] > 0.5, "it has not yet become certain"


@pytest.mark.parametrize("name", [name for name in STOCHASTIC if hasattr(ROSTER[name].small, "value_coefficient")])
def test_where_one_action_is_allowed_its_policy_has_nothing_to_learn(name):
    """A forbidden action has no probability, so none that could be lowered; without a value loss nothing is left."""
    config = with_settings(name, env=Forced, env_kwargs={}, value_coefficient=0.0, entropy_coefficient=0.0)
    for step in ROSTER[name].module.train(config):
        for row in step.rows:
            assert row["gradient_norm"] == pytest.approx(0, abs=1e-6)
            assert row["entropy"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", [name for name, row in ROSTER.items() if row.gradient_steps])
def test_parameters_that_diverge_are_told(name):
    most = {field: 1e30 for field in ("learning_rate", "max_grad_norm") if hasattr(ROSTER[name].small, field)}
    config = with_settings(name, **most)
    with pytest.raises(FloatingPointError, match="finite"):
        list(ROSTER[name].module.train(config))


@pytest.mark.parametrize("name", ROSTER)
def test_a_resumed_run_is_the_run_that_was_never_stopped(name, whole):
    row = ROSTER[name]
    state = next(step.state for step in row.module.train(row.small) if step.step)
    rows, last = outcome(name, row.small, resume=state)
    assert rows == whole(name)[0][-len(rows) :]
    assert last == whole(name)[1]


@pytest.mark.parametrize("name", CONTROL)
def test_a_seed_alone_is_that_seed_in_company(name):
    """To rounding: a population multiplies larger matrices, which sum in another order."""
    config = ROSTER[name].small
    together = [row for step in ROSTER[name].module.train(config) for row in step.rows]
    for seed in config.seed_values:
        rows = [row for step in ROSTER[name].module.train(with_settings(name, seeds=1, seed=seed)) for row in step.rows]
        mine = [row for row in together if row["seed"] == seed]
        assert len(rows) == len(mine)
        for one, other in zip(rows, mine, strict=True):
            for column, value in one.items():
                if not column.startswith("time_"):
                    expected = other[column]
                    close = expected if expected is None else pytest.approx(expected, rel=1e-3, abs=1e-5, nan_ok=True)
                    assert value == close, column
