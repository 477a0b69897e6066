"""More than one process: the loss and the gradients of one, to rounding, however the rows are shared.

Leaves out CUDA, and what a process of its own learns (`test_language_training.py`).
"""

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from telescope.cli import main
from telescope.language import parallel
from telescope.runs import RunFolder
from updates import CASES, SHARDINGS, run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
REWARD = """
def digits(prompts, completions, **columns):
    return [sum(c.isdigit() for c in text) / 8 for text in completions]
"""


def torchrun(*arguments):
    """Two processes on this machine; no port of anybody else's."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


# One update


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "found"
    done = torchrun(Path(__file__).parents[1] / "updates.py", out)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(f"{out}.{rank}") for rank in range(2)]


@pytest.fixture(scope="module")
def one_process():
    return {case: run(case) for case in CASES}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_loss_and_the_gradients_of_one(two_processes, one_process, case, sharding):
    expected = one_process[case]
    for each in two_processes:
        found = each["found"][case, sharding]
        assert found["statistics"].keys() == expected["statistics"].keys()
        for name, number in expected["statistics"].items():
            assert found["statistics"][name] == pytest.approx(number, rel=1e-4, abs=2e-6), name
        assert len(found["gradients"]) == len(expected["gradients"])
        for one, other in zip(found["gradients"], expected["gradients"], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))


def test_the_gradients_compared_are_gradients(one_process):
    for case, found in one_process.items():
        assert any(g.abs().max() > 1e-6 for g in found["gradients"]) != (case == "grpo, none learns"), case


def test_all_stop_where_one_is_told_to_and_save_when_the_first_wants(two_processes):
    assert [each["agreed"] for each in two_processes] == [[(15, True), (0, True)]] * 2


def test_what_is_wrong_on_the_first_rank_is_said_on_all(two_processes):
    assert [each["refused"] for each in two_processes] == ["said by rank 0"] * 2


# Shares


@pytest.mark.parametrize("n", [0, 1, 2, 5, 8, 63])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_row_is_in_one_share_and_in_one_piece(monkeypatch, n, ranks):
    monkeypatch.setattr(parallel, "size", lambda: ranks)
    shares, counts = [], set()
    for rank in range(ranks):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        shares.append(range(n)[parallel.share(n)])
        for length, even in itertools.product((1, 3, 100), (False, True)):
            pieces = [range(n)[piece] for piece in parallel.pieces(n, length, even=even)]
            assert [i for piece in pieces for i in piece] == list(shares[-1])
            assert all(len(piece) <= length for piece in pieces)
            assert even or all(pieces)
            counts.add((length, len(pieces)) if even else (length, None))
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(counts) == 6


# Whole runs


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("time_")} for row in csv.DictReader(file)]


FLAGS = ["--prompts", "6", "--group", "4", "--minibatches", "2", "--warm-start-steps", "3", "--eval-prompts", "21",
         "--eval-every", "2", "--threads", "1"]  # fmt: skip


@pytest.mark.parametrize(("algorithm", "sharding"), [("dapo", "ddp"), ("ppo", "fsdp")])
def test_a_run_of_two_processes_is_that_of_one(tmp_path, capsys, algorithm, sharding):
    (tmp_path / "rewards.py").write_text(REWARD)
    flags = [*FLAGS, "--reward", str(tmp_path / "rewards.py:digits")]
    alone, out = tmp_path / "alone", tmp_path / "two"
    command = ["train", algorithm, "lm/addition", "--total-steps", "3", *flags]
    assert main([*command, "--out", str(alone)]) == 0
    done = torchrun("-m", "telescope", *command, "--out", out, "--sharding", sharding)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [row["step"] for row in rows(out)] == ["0", "1", "2", "3"]
    for one, other in zip(rows(out), rows(alone), strict=True):
        for name, number in other.items():
            assert float(one[name] or 0) == pytest.approx(float(number or 0), rel=2e-3, abs=1e-4), name
    state, expected = (RunFolder.open(folder).load_checkpoint() for folder in (out, alone))
    for model, parameters in expected["models"].items():
        for name, parameter in parameters.items():
            torch.testing.assert_close(state["models"][model][name], parameter, rtol=0, atol=1e-3)
    assert main(["eval", str(out), "--json", "--prompts", "20"]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {"exact_match", "kl_completion", "length"}
    # and goes on from there: two processes as they were, one though not bit for bit
    longer = ["train", "--resume", str(out), "--total-steps", "4"]
    if sharding == "fsdp":
        done = torchrun("-m", "telescope", *longer)
        assert done.returncode == 0, done.stderr[-4000:]
    else:
        assert main(longer) == 1
        assert "ranks was 2" in capsys.readouterr().err
        assert main([*longer, "--allow-inexact"]) == 0
    assert main(["train", "--resume", str(alone), "--total-steps", "4"]) == 0
    for name, number in rows(alone)[-1].items():
        assert float(rows(out)[-1][name] or 0) == pytest.approx(float(number or 0), rel=2e-3, abs=1e-4), name


def test_what_goes_wrong_says_on_which_rank(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["learn"]) == 2
    assert "telescope (rank 1): there is no command 'learn'" in capsys.readouterr().err


def test_environments_are_not_for_torchrun(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "ppo", "CartPole-v1", "--out", "nowhere"]) == 2
    assert "starts its own: --processes" in capsys.readouterr().err


def test_a_sharded_adapter_is_saved_as_that_of_one_process(tmp_path):
    from telescope.language.models import causal as models

    pytest.importorskip("peft")
    (tmp_path / "rewards.py").write_text(REWARD)
    flags = [*FLAGS, "--reward", str(tmp_path / "rewards.py:digits"), "--lora-rank", "4"]
    alone, out = tmp_path / "alone", tmp_path / "two"
    command = ["train", "grpo", "lm/addition", "--total-steps", "2", *flags]
    assert main([*command, "--out", str(alone)]) == 0
    done = torchrun("-m", "telescope", *command, "--out", out, "--sharding", "fsdp")
    assert done.returncode == 0, done.stderr[-4000:]
    for place in ("model", "adapter"):
        found, expected = (models.load(str(folder / place))[0].state_dict() for folder in (out, alone))
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-3)
    done = torchrun("-m", "telescope", "train", "--resume", out, "--total-steps", "3")
    assert done.returncode == 0, done.stderr[-4000:]
