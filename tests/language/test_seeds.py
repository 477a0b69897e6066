"""Language runs of several seeds: a seed alone is a seed in company, in metrics, states, models and evaluations."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from telescope import answers
from telescope.algorithms import grpo, rlhf, sft
from telescope.cli import main
from telescope.runs import read_metrics

QUICK = {"prompts": 4, "group": 2, "minibatches": 1, "eval_prompts": 4, "eval_every": 1, "warm_start_steps": 2}
CONFIGS = {
    "ppo": (rlhf, rlhf.RLHF(task="lm/guess", gae_over="turns", beta=0.0, total_steps=2, seed=4, seeds=3, **QUICK)),
    "sft": (sft, sft.SFT(task="lm/sort", batch_size=4, total_steps=2, eval_prompts=4, eval_every=1, seeds=2)),
}


def rows_of(steps):
    return [{k: v for k, v in row.items() if not k.startswith("time_")} for step in steps for row in step.rows]


def plain(x):
    if isinstance(x, torch.Tensor):
        return x.tolist()
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items() if key not in ("elapsed", "seed", "execution")}
    return [plain(value) for value in x] if isinstance(x, list | tuple) else x


@pytest.mark.parametrize("name", CONFIGS)
def test_a_seed_alone_is_a_seed_in_company_and_resume_is_exact(name):
    module, config = CONFIGS[name]
    steps, middle = [], None
    for step in module.train(config):
        steps.append(step)
        middle = step.state if step.step == 1 else middle
    last = steps[-1].state
    assert [row["seed"] for row in steps[0].rows] == config.seed_values
    for i, seed in enumerate(config.seed_values):
        alone = list(module.train(dataclasses.replace(config, seed=seed, seeds=1, threads=1)))
        assert [row for row in rows_of(steps) if row["seed"] == seed] == rows_of(alone)
        assert plain(last["seeds"][i]) == plain(alone[-1].state)
    again = list(module.train(config, middle))
    assert rows_of(again) == rows_of(steps[2:])
    assert plain(again[-1].state) == plain(last)


def test_one_folder_has_all_seeds(tmp_path, capsys):
    """Metrics, samples, models, a stop and a resume, evaluation, curves."""
    out = str(tmp_path / "run")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in QUICK.items()]
    assert main(["train", "ppo", "lm/guess", "--seeds", "2", "--total-steps", "1", "--out", out, *flags]) == 0
    assert main(["train", "--resume", out, "--total-steps", "2"]) == 0
    table = read_metrics(tmp_path / "run")
    assert list(table["seed"]) == [0, 1] * 3
    assert "seed" in (tmp_path / "run" / "samples.csv").read_text().partition("\n")[0]
    assert (tmp_path / "run" / "curves.png").exists()
    first, second = (load_file(tmp_path / "run" / place / "model.safetensors") for place in ("model", "model/seed_1"))
    assert any(not first[key].equal(second[key]) for key in first)
    capsys.readouterr()
    assert main(["eval", out, "--json", "--prompts", "30"]) == 0
    found = json.loads(capsys.readouterr().out)
    each = [answers.load(out, seed=seed).evaluate(30)["reward"] for seed in (0, 1)]
    assert [one["reward"] for one in found["per_seed"]] == each
    assert found["reward"] == pytest.approx(np.mean(each))
    with pytest.raises(ValueError, match="seed is 7; this run has the seeds 0, 1"):
        answers.load(out, seed=7)
    assert main(["lab", "explore", out, "--prompts", "2", "--out", str(tmp_path / "page.html")]) == 0


def test_what_seeds_cannot_do_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"stop_at is 0\.5, but seeds is 2"):
        sft.SFT(stop_at=0.5, seeds=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="seeds is 2, but torchrun"):
        next(grpo.train(grpo.GRPO(task="lm/guess", seeds=2, **QUICK)))
