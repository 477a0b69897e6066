"""The language benchmark compares like with like: settings, prompts, gradients, counts of tokens, and its page.

What needs TRL is left out where it is not installed; `pip install "telescope-rl[rivals]"` gets it. Nothing is timed
here.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import language, language_report, language_rivals
from benchmarks.language_rivals import Job, Size, Step, Watch

from telescope.algorithms import grpo, sft
from telescope.algorithms.sft import SFT
from telescope.language.data import tasks
from telescope.language.experience.rollout import RolloutSession

SMALL = Size("lm/addition", 1, 4, 4, 3, minibatches=2, epochs=2)
needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
# TRL uses what transformers, and torch, have deprecated.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "DeprecationWarning")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built-in model after some steps on right answers, so that completions end, and some are right."""
    path = tmp_path_factory.mktemp("model")
    config = SFT(digits=1, total_steps=40, batch_size=64, lr_warmup=0, eval_every=0, eval_prompts=1, threads=1)
    *_, last = sft.train(config)
    last.save_model(path)
    return str(path)


def job(trainer: str, folder: str, size: Size = SMALL, **more: Any) -> Job:
    return Job(trainer, size, folder, seed=5, threads=1, steps=2, **more)


# like with like


@needs_trl
def test_trl_holds_the_settings_that_ours_has(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours, args = language_rivals.config_of(job("telescope", folder)), language_rivals.trl_config(job("trl", folder))
    row = grpo.row(ours)
    assert (args.generation_batch_size, args.num_generations) == (ours.prompts * ours.group, ours.group)
    assert args.steps_per_generation * args.num_iterations == ours.updates_per_rollout
    assert args.gradient_accumulation_steps == 1
    assert args.max_completion_length == ours.max_tokens
    assert (args.temperature, args.top_k, args.top_p, args.min_p) == (ours.temperature, 0, 1.0, None)
    assert (args.epsilon, args.epsilon_high, args.delta) == (row.clip[0], None, row.ratio_cap)
    assert row.clip[0] == row.clip[1]
    assert (args.beta, row.beta, args.entropy_coef) == (0, 0, 0)
    assert (args.loss_type, row.weight, row.ratio) == ("grpo", "sequence_mean", "token")
    assert (args.learning_rate, args.weight_decay) == (ours.learning_rate, ours.weight_decay)
    assert (args.lr_scheduler_type, args.warmup_steps) == ("constant_with_warmup", ours.lr_warmup)
    assert ours.min_lr_ratio == 1
    assert args.max_grad_norm == ours.max_grad_norm
    assert not args.bf16
    assert not args.gradient_checkpointing


@needs_trl
@pytest.mark.parametrize("updates", [0, 1])
def test_both_have_the_same_gradient(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    """On one rollout of ours: before the first update, where all ratios are 1, and after it, where some are clipped."""
    monkeypatch.chdir(tmp_path)
    size = SMALL._replace(prompts=8, minibatches=1, epochs=1, learning_rate=3e-3)
    config = language_rivals.config_of(job("telescope", folder, size))
    session = RolloutSession(config, grpo.row(config), None, grpo.STATISTICS)
    session.begin({"policy": session.policy}, None)
    rollout = session.collect()
    generator = torch.Generator().manual_seed(1)
    rollout = rollout._replace(scores=torch.rand(size.batch, generator=generator).round(decimals=1))
    advantages, everybody = grpo.advantages_of(session, rollout), torch.arange(size.prompts)
    for _ in range(updates):
        grpo.update(session, rollout, advantages, everybody, first=False)
    trainer = language_rivals.trl_trainer(job("trl", folder, size), Watch())
    trainer.model.load_state_dict(session.policy.state_dict())
    trainer.current_gradient_accumulation_steps = 1
    mask = rollout.completions.mask
    scores = rollout.scores.view(-1, size.group)
    inputs = {
        "prompt_ids": rollout.prompts.tokens.repeat_interleave(size.group, 0),
        "prompt_mask": rollout.prompts.mask.repeat_interleave(size.group, 0).long(),
        "completion_ids": rollout.completions.tokens,
        "completion_mask": mask.long(),
        "advantages": ((scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)).view(-1),
        "old_per_token_logps": rollout.completions.log_probs,
    }
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    ours: list[torch.Tensor] = []

    def step(progress: float) -> float:
        ours.append(torch.cat([p.grad.flatten() for p in session.policy.parameters() if p.grad is not None]))
        return 0.0

    monkeypatch.setattr(session.optimiser, "step", step)
    found = grpo.update(session, rollout, advantages, everybody, first=False)
    assert (found["clipped"] > 0) == bool(updates)
    assert not mask.all()
    assert float(loss.detach()) == pytest.approx(found["policy_loss"], abs=1e-5)
    torch.testing.assert_close(ours[0], theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("trainer", ["telescope", pytest.param("trl", marks=needs_trl)])
def test_everybody_answers_the_same_prompts_and_counts_its_tokens(
    trainer: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    right = tasks.exact_match

    def recorded(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.append(prompts)
        return right(prompts, completions, **columns)

    monkeypatch.setattr(tasks, "exact_match", recorded)
    monkeypatch.chdir(tmp_path)
    one, watch = job(trainer, folder), Watch()
    language_rivals.TRAINERS[trainer](one, watch)
    drawn = [row["prompt"] for row in language_rivals.rows_of(one) for _ in range(SMALL.group)]
    assert [prompt for prompts in seen for prompt in prompts if len(prompts) == SMALL.batch] == drawn
    assert len(watch.steps) == one.steps
    for step in watch.steps:
        assert SMALL.batch <= step.tokens <= SMALL.batch * SMALL.max_tokens
        assert 0 <= step.reward <= 1
        assert 0 < step.sampling < step.seconds
        assert 0 <= step.rest < step.seconds - step.sampling


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    one, path = job("trl", "there", options={"torch_compile": True}), tmp_path / "job.json"
    path.write_text(json.dumps({**one._asdict(), "size": one.size._asdict()}))
    assert Job.read(str(path)) == one


# numbers


def test_rates_leave_out_the_first_steps() -> None:
    steps = [Step(100.0, 1.0, 8, 0.0, 50.0, 50.0, 1.0)] * 4
    steps += [Step(2.0, 3.0, 6, 0.5, 1.0, 0.5, 0.25), Step(2.0, 5.0, 10, 0.75, 0.5, 0.0, 0.75)]
    found = language.summary(steps, 4, warm=4)
    expected = {"rate": 4.0, "step": 2.0, "length": 2.0, "busy": 2.0, "sampling": 0.375, "rest": 0.125, "skipped": 0.5}
    assert found == expected | {"steps": 6, "first": 0.1, "last": 0.25}


def test_all_take_turns_and_what_else_trl_could_be_told_comes_once() -> None:
    chosen = language.parser().parse_args(["--repeats", "2", "--select", "at most 64"])
    planned = [(one.name, number) for one, _, _, number in language.plans(chosen)]
    assert planned[: len(language.CHOICES)] == [(one.name, 0) for one in language.CHOICES]
    assert planned[len(language.CHOICES) :] == [("telescope", 0), ("TRL", 0), ("telescope", 1), ("TRL", 1)]
    assert {one.trainer for one in (*language.CONTESTANTS, *language.CHOICES)} == set(language_rivals.TRAINERS)
    assert {one.name for one in language.CONTESTANTS} == {language_report.OURS, language_report.THEIRS}
    assert all(steps > max(language.WARM, language.LAST) for _, steps in language.SIZES)
    assert all(size.prompts % size.minibatches == 0 for size, _ in (*language.SIZES, *language.QUICK))


# the page


def record(name: str, size: str, rate: float, memory: float) -> dict[str, Any]:
    return {
        **{"name": name, "size": size, "threads": 2, "seed": 0, "memory": memory * 2**20, "rate": rate, "step": 1.0},
        **{"length": 3.0, "busy": 1.5, "sampling": 0.25, "rest": 0.05, "skipped": 0.5, "steps": 9},
        **{"first": 0.2, "last": 0.4, "least": 2.0, "method": "grpo"},
    }


def test_the_page_says_where_the_bar_is_met_and_what_both_hold(tmp_path: Path) -> None:
    records = [record("TRL, compiled", "large", 900.0, 9.0)]  # no part of the bar
    records += [record("telescope", "large", rate, 300.0) for rate in (390.0, 410.0, 400.0)]
    records += [record("TRL", "large", rate, 500.0 + rate) for rate in (100.0, 100.0, 70.0)]
    records += [record("telescope", "small", 199.0, 300.0), record("TRL", "small", 100.0, 500.0)]
    known = {
        "facts": {"processor": "a slow one", "date": "never", "command": "none"},
        "rules": {"threads": 2, "warm": 2, "last": 5},
        **{"command": "bench it", "date": "today", "records": records},
        "starts": {"lm/addition, 2 digits": {"steps": 140, "exact_match": 0.29, "model": "somewhere"}},
    }
    page = tmp_path / "deep" / "language-here.md"
    language_report.write(page, known)
    text = page.read_text()
    assert "| large | ≥ 2 | 4.00 | met | 300 MiB | 600 MiB |" in text
    assert "| small | ≥ 2 | 1.99 | **missed** | 300 MiB | 500 MiB |" in text
    assert "| telescope | 400 | 395 – 405 | 3 | 4.00 | 1.000 s | 1.50 | 25% | 70% | 5% | 50% | 300 MiB |" in text
    assert "| TRL, compiled | 900 | 900 – 900 | 1 | 9.00 |" in text
    assert text.index("| TRL | 100 |") < text.index("| TRL, compiled |")
    assert "| telescope | 9 | 0.200 | 0.400 | 3.00 |" in text
    assert "| lm/addition, 2 digits | 140 | 29.0% |" in text
    assert "`bench it`" in text
    assert "a slow one" in text
    assert len(json.loads(page.with_suffix(".json").read_text())["records"]) == len(records)


def test_a_piece_keeps_what_the_page_has_of_other_sizes(tmp_path: Path) -> None:
    page = tmp_path / "language-here.md"
    facts = {"facts": {"processor": "slow"}, "rules": {"threads": 2, "warm": 2, "last": 5}, "command": "", "date": ""}
    for rate, sizes in ((100.0, ("large", "small")), (200.0, ("small",))):
        records = [record(name, size, rate, 1.0) for size in sizes for name in ("telescope", "TRL")]
        known = facts | {"records": records, "starts": {}}
        language_report.write(page, language_report.joined(page, known))
    rates = {r["size"]: r["rate"] for r in json.loads(page.with_suffix(".json").read_text())["records"]}
    assert rates == {"large": 100.0, "small": 200.0}


@needs_trl
def test_both_fine_tune_on_the_same_rows_to_the_same_loss(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = Size("lm/addition", 1, 8, 1, 3, method="sft")
    found = []
    for trainer in ("telescope", "trl"):
        watch = Watch()
        language_rivals.trainer_of(job(trainer, folder, size))(job(trainer, folder, size), watch)
        found.append(watch.steps)
    ours, theirs = found
    assert [step.tokens for step in ours] == [step.tokens for step in theirs]
    assert ours[0].reward == pytest.approx(theirs[0].reward, abs=1e-4)
    assert ours[1].reward == pytest.approx(theirs[1].reward, abs=0.01)  # TRL's first step has a learning rate of 0


@needs_trl
@pytest.mark.slow
def test_the_whole_of_it_runs(tmp_path: Path) -> None:
    assert language.main(["--quick", "--threads", "1", "--folder", str(tmp_path), "--machine", "here"]) == 0
    text = (tmp_path / "language-here.md").read_text()
    for prompts in (4, 2):
        assert f"| lm/addition, 1 digits, {prompts} prompts × 2, at most 3 tokens, 2 minibatches × 1 | ≥ 2 |" in text
    assert "| SFT of lm/addition, 1 digits, 8 rows | ≥ 2 |" in text
