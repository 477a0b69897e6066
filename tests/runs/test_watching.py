"""`telescope watch` shows what the files of a run say, whatever state they are in."""

import io
import os
import threading
import time

import numpy as np
import pytest
from rich.console import Console

import telescope
from telescope import cli
from telescope.algorithms import ppo, sft
from telescope.commands import watch as command
from telescope.runs.files import RunError
from telescope.runs.watching import BARS, sparkline, view

FLAGS = {"num_envs": 2, "num_steps": 32, "minibatch_size": 32, "epochs": 1, "total_steps": 256, "compile": "off"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cart"
    telescope.train(ppo.PPO(seeds=3, eval_every=128, eval_episodes=2, **FLAGS), folder)
    return folder


def copied(run, folder, lines):
    """The folder after the first `lines` lines of its metrics."""
    folder.mkdir()
    for name in ("run.json", "config.toml"):
        (folder / name).write_bytes((run / name).read_bytes())
    text = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(text[:lines]))
    return folder


def test_a_finished_run_shows_its_clock_its_scores_and_its_seeds(run):
    found = view(run, written=False)
    table = telescope.runs.read_metrics(run)
    assert (found.title, found.status, found.step, found.total_steps) == ("ppo on CartPole-v1", "finished", 256, 256)
    assert found.left is None
    assert [line.label for line in found.lines] == ["episode return", "evaluation return"]
    for seed in (0, 1, 2):
        own = table["seed"] == seed
        latest = table["eval_return_mean"][own][np.isfinite(table["eval_return_mean"][own])][-1]
        assert found.seeds[seed]["eval_return_mean"] == latest
        assert found.seeds[seed]["step"] == 256
    last = [row["eval_return_mean"] for row in found.seeds.values()]
    assert (found.lines[1].lowest, found.lines[1].highest) == (min(last), max(last))
    assert found.elapsed == table["time_total"].max()


def test_speed_and_time_left_are_those_of_the_last_iterations(run, tmp_path):
    half = view(copied(run, tmp_path / "half", 1 + 3 * 2), written=True)  # two iterations of three seeds
    table = telescope.runs.read_metrics(tmp_path / "half")
    first, second = (float(table["time_total"][table["iteration"] == i].max()) for i in (1, 2))
    assert half.step == 128
    assert half.speed == pytest.approx(3 * 64 / (second - first))
    assert half.left is None  # run.json says that it has finished
    (tmp_path / "half" / "run.json").write_text(
        (run / "run.json").read_text().replace('"status": "finished"', '"status": "running"')
    )
    half = view(tmp_path / "half", written=True)
    assert half.status == "running"
    assert half.left == pytest.approx(3 * (256 - 128) / half.speed)
    assert view(tmp_path / "half", written=False).status == "not running (killed?)"


@pytest.mark.parametrize("lines", [0, 1, 2, 5])
def test_a_run_that_has_hardly_begun_is_shown(run, tmp_path, lines, capsys):
    folder = copied(run, tmp_path / "young", lines)
    if not lines:
        (folder / "metrics.csv").unlink()
    assert cli.main(["watch", str(folder), "--once"]) == 0
    assert "of 256 steps" in capsys.readouterr().out


def test_every_byte_of_a_growing_table_is_shown(run, tmp_path):
    """A look may fall between two writes: a row that is not whole yet does not count."""
    folder = copied(run, tmp_path / "growing", 99)
    whole = (folder / "metrics.csv").read_bytes()
    header = whole.index(b"\n") + 1
    for size in range(header, len(whole), 7):
        (folder / "metrics.csv").write_bytes(whole[:size])
        assert 0 <= view(folder).step <= 256


def test_other_columns_are_shown_by_name(run, capsys):
    assert cli.main(["watch", str(run), "--once", "--columns", "entropy"]) == 0
    assert "entropy" in capsys.readouterr().out
    assert cli.main(["watch", str(run), "--once", "--columns", "entropie"]) == 2
    assert "columns has 'entropie'; the columns of this run are step" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    assert cli.main(["watch", str(tmp_path), "--once"]) == 1
    assert "has no run.json" in capsys.readouterr().err


def test_a_run_is_followed_until_it_ends(tmp_path, monkeypatch):
    """Also while the folder cannot be read for a moment."""
    looks = iter([RunError("damaged"), OSError("gone"), "running", "finished"])

    def look(*_):
        what = next(looks)
        if isinstance(what, Exception):
            raise what
        return first._replace(status=what)

    folder = tmp_path / "run"
    telescope.train(ppo.PPO(**FLAGS), folder)
    first = view(folder)._replace(status="running")
    monkeypatch.setattr(command, "_look", look)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    command._follow(str(folder), command.WatchOptions(every=0.001), first, console)
    assert "finished" in console.file.getvalue()


def test_a_run_that_is_written_is_followed_from_another_thread(tmp_path):
    folder, seen = tmp_path / "run", []
    config = ppo.PPO(**FLAGS | {"total_steps": 64 * 40})
    trainer = threading.Thread(target=lambda: telescope.train(config, folder, checkpoint_seconds=0.05))
    trainer.start()
    while trainer.is_alive():
        if os.path.exists(folder / "run.json"):
            seen.append(view(folder).step)
        time.sleep(0.01)
    trainer.join()
    assert view(folder).step == 64 * 40
    assert seen == sorted(seen)


def test_a_language_run_is_shown(tmp_path, capsys):
    sizes = {"eval_prompts": 8, "batch_size": 4, "max_tokens": 4, "threads": 1}
    config = sft.SFT(task="lm/reverse", total_steps=2, eval_every=1, **sizes)
    telescope.train(config, tmp_path / "run")
    assert cli.main(["watch", str(tmp_path / "run"), "--once"]) == 0
    out = capsys.readouterr().out
    assert "sft on lm/reverse" in out
    assert "2 of 2 steps" in out
    assert "exact match" in out


def test_a_sparkline_has_the_shape_of_its_numbers():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == BARS
    assert sparkline([7, 0], 8) == BARS[-1] + BARS[0]
    assert sparkline([1, 1, 1], 8) == 3 * BARS[4]
    assert sparkline([0, np.nan, 1], 3) == BARS[0] + " " + BARS[-1]
    assert sparkline(np.arange(100), 4) == "".join(BARS[i] for i in (0, 2, 5, 7))
    assert sparkline([np.nan], 5) == " "
