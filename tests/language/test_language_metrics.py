"""Metrics of language runs say what was measured, and their tables are those of the checkpoint.

Leaves out what is healthy (`test_language_health.py`).
"""

import csv
import dataclasses
import math
import os
import sys

import pytest
import torch

from telescope.algorithms import grpo, rlhf
from telescope.language import health
from telescope.language.experience.rollout import Completions, Prompts, Rollout, RolloutSession
from telescope.language.experience.statistics import rollout_statistics
from telescope.losses import kl_k3
from telescope.runs.formats.tables import GrowingTable

SMALL = {"prompts": 4, "group": 4, "minibatches": 1, "eval_prompts": 4, "eval_every": 0, "threads": 1, "lr_warmup": 0}
SMALL |= {"warm_start": 0.0, "total_steps": 2, "max_tokens": 4}
REWARDS = """
def length(prompts, completions, **columns):
    return [float(len(text)) + i % 2 for i, text in enumerate(completions)]
def none(prompts, completions, **columns):
    return [None] * len(prompts)
def alike(prompts, completions, **columns):
    return [1.0] * len(prompts)
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARDS)
    return lambda name: f"{path}:{name}"


def rows(module, **settings):
    """The metrics of each step of a small run on the untrained built-in model."""
    config = dataclasses.replace(module.preset("lm/addition"), **SMALL | settings)
    return [iteration.rows[0] for iteration in module.train(config)][1:]


# The distance to the reference


def remembered(monkeypatch):
    """The rollouts of the sessions to come."""
    seen, made = [], RolloutSession.collect

    def remember(self, *arguments, **settings):
        seen.append(made(self, *arguments, **settings))
        return seen[-1]

    monkeypatch.setattr(RolloutSession, "collect", remember)
    return seen


def test_the_distance_of_a_completion_is_the_sum_over_its_tokens(rewards, monkeypatch):
    seen = remembered(monkeypatch)
    found = rows(rlhf, reward=rewards("length"), beta=0.01, learning_rate=0.01)
    for row, rollout in zip(found, seen, strict=True):
        mask, new = rollout.completions.mask, rollout.completions.log_probs
        sums = torch.where(mask, new - rollout.reference, 0.0).sum(1).double()
        assert row["kl_completion"] == pytest.approx(float(sums.mean()), rel=1e-5, abs=1e-6)
        assert row["kl_reference"] == pytest.approx(float(kl_k3(rollout.reference, new)[mask].mean()), abs=1e-6)
    assert abs(found[1]["kl_completion"] - found[1]["kl_reference"]) > 1e-3


@pytest.mark.parametrize("objective", ["grpo", "rloo", "reinforce", "gspo", "openrlhf/reinforce++"])
def test_the_distance_to_the_reference_is_that_of_the_rollout_whatever_the_place_of_the_kl(
    objective, rewards, monkeypatch
):
    seen = remembered(monkeypatch)
    found = rows(grpo, objective=objective, reward=rewards("length"), beta=0.01, learning_rate=0.01)
    for row, rollout in zip(found, seen, strict=True):
        mask = rollout.completions.mask
        by_hand = kl_k3(rollout.reference, rollout.completions.log_probs)[mask].double().mean()
        assert row["kl_reference"] == pytest.approx(float(by_hand), rel=1e-5, abs=1e-9)
    assert found[0]["kl_reference"] < 1e-6  # nothing has moved yet
    assert found[1]["kl_reference"] > 0.01


def test_the_health_check_of_the_distance_fires_where_the_kl_is_in_the_reward(rewards, monkeypatch):
    lower = [check._replace(high=1.0) if check.name == "kl_reference" else check for check in health.CHECKS]
    monkeypatch.setattr(health, "CHECKS", lower)  # an untrained reference is at most log 100 nats away
    config = dataclasses.replace(grpo.preset("lm/addition", "rloo"), **SMALL | {"total_steps": 4})
    config = dataclasses.replace(config, reward=rewards("length"), beta=1e-6, learning_rate=0.1)
    assert "kl_reference" in [finding.name for iteration in grpo.train(config) for finding in iteration.findings]


def test_the_policy_loss_is_the_surrogate_without_the_kl(rewards):
    """REINFORCE's surrogate is −A log π: with advantages known, the metric is a sum that can be done by hand."""
    some = {"reward": rewards("length"), "learning_rate": 0.05, "epochs": 2}
    without, found = (rows(grpo, beta=beta, **some)[0]["policy_loss"] for beta in (0.0, 1e-12))
    assert found == pytest.approx(without, rel=1e-4)
    # Before the first update ratio is 1 and advantages sum to 0, so the surrogate is 0 whatever the KL's share is.
    held = rows(grpo, beta=100.0, reward=rewards("length"), learning_rate=1e-3, total_steps=3)
    moved = next(row for row in held if row["kl_reference"] > 1e-4)
    assert abs(moved["policy_loss"]) < 0.1 * 100.0 * moved["kl_reference"]


# What was not measured


def test_what_was_not_measured_is_empty(rewards):
    """Where nothing could be learned from there is no loss, KL or clip; where nothing was scored, no spread."""
    (row, _) = rows(grpo, reward=rewards("alike"), beta=0.0)
    assert row["skipped"] == 1
    assert row["gradient_norm"] == 0  # a measurement: the step was made
    for name in ("policy_loss", "kl", "clipped", "ratio_max", "sampler_mismatch", "kl_reference"):
        assert row[name] is None, name
    (row, _) = rows(grpo, reward=rewards("none"), beta=0.0)
    assert row["score"] is row["score_min"] is row["score_std"] is None
    assert row["unscored"] == 1
    (row, _) = rows(rlhf, reward=rewards("none"), beta=0.0)
    for name in ("policy_loss", "value_loss", "kl", "ratio_max", "explained_variance", "bootstrapped", "score_std"):
        assert row[name] is None, name


def test_a_rollout_is_measured_where_there_is_something_to_measure():
    """The spread over groups that have scores, the distance over live tokens."""
    scores = torch.tensor([1.0, 3.0, torch.nan, torch.nan])
    mask = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
    zeros = torch.zeros(4, 2)
    completions = Completions(zeros.long(), mask, zeros, zeros, mask[:, 0], None)
    prompts = Prompts(zeros.long()[:2], mask[:2])
    found = rollout_statistics(Rollout([], [], prompts, completions, scores, torch.where(mask, -1.0, -5.0), 2))
    assert found["score_std"] == 1.0
    assert found["kl_reference"] == pytest.approx(math.exp(-1))  # k3 of −1 at each live token


# Tables


def completion(text):
    return {"prompt": "p", "completion": text, "score": 0.5, "terminated": True}


AWKWARD = ["x" * 200_000, "a\rb", "a\r\nb", 'quote " and , comma', "\n" * 3, "", "\r", "é🙂\u2028", "0"]


def test_samples_of_any_text_come_back_and_none_is_lost_on_resume(tmp_path):
    path = tmp_path / "samples.csv"
    table = GrowingTable(path, resume_step=None)
    for step, text in enumerate(AWKWARD):
        table.write(step, [completion(text), completion("after")])
    table.close()
    before = path.read_bytes()
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            read = list(csv.DictReader(file))
    finally:
        csv.field_size_limit(131_072)
    assert [row["completion"] for row in read[::2]] == AWKWARD
    table = GrowingTable(path, resume_step=len(AWKWARD) - 1)  # resuming reads what is longer than csv's own limit
    assert path.read_bytes() == before
    table.write(len(AWKWARD), [completion("new")])
    table.close()
    GrowingTable(path, resume_step=len(AWKWARD) - 1).close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_rows_after_the_checkpoint_and_a_row_that_a_crash_cut_are_dropped(tmp_path, cut):
    path = tmp_path / "samples.csv"
    table = GrowingTable(path, resume_step=None)
    table.write(2, [completion("one\ntwo")])
    kept = path.read_bytes()
    table.write(4, [completion("three\nfour" + "x" * 60)])
    table.close()
    path.write_bytes(path.read_bytes()[:-cut])
    GrowingTable(path, resume_step=2).close()
    assert path.read_bytes() == kept
    GrowingTable(path, resume_step=None)
    assert not path.exists()


def test_tables_are_on_the_disk_before_the_checkpoint(tmp_path, monkeypatch):
    """What a checkpoint calls done is in the tables even if the power fails right after it."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino) or real(file))
    table = GrowingTable(tmp_path / "health.csv", resume_step=None)
    table.sync()  # nothing has looked wrong yet
    table.write(1, [{"name": "kl"}])
    table.write(2, [{"name": "kl"}])
    synced.clear()
    table.sync()
    table.close()
    assert synced == [(tmp_path / "health.csv").stat().st_ino]
