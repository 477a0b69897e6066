"""A map over λ and γ: what is asked for reaches GAE, a stopped map goes on, and the table says what was measured."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from telescope.algorithms.ppo import preset, train
from telescope.cli import main
from telescope.commands.gae_paper import GAMMAS, LAMS, MapOptions, chosen, folder_of
from telescope.lab import gae_paper, map_figures, maps
from telescope.lab.maps import Cell, Curve, Task, cells, measure, summary

TASK = Task(maps.PAPER, seeds=2, iterations=2)
CELLS = cells((0.0, 0.9, None), (0.9, 1.0))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    experiment = gae_paper.Experiment(trajectories=2, limit=30)
    monkeypatch.setattr(maps, "_experiment", lambda whiten: experiment)
    return experiment


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}


def test_a_stopped_map_goes_on_and_ends_as_one_that_was_not_stopped(tmp_path, monkeypatch):
    whole = dict(measure(tmp_path / "whole", TASK, CELLS, jobs=1))
    stopped = measure(tmp_path / "stopped", TASK, CELLS, jobs=1)
    for _ in range(2):
        next(stopped)
    stopped.close()
    learned = []
    learn = maps.learn
    monkeypatch.setattr(maps, "learn", lambda task, cell: learned.append(cell) or learn(task, cell))
    continued = dict(measure(tmp_path / "stopped", TASK, CELLS, jobs=1))
    assert set(learned) == set(CELLS[2:])
    assert files(tmp_path / "whole") == files(tmp_path / "stopped")
    for cell in CELLS:
        np.testing.assert_array_equal(continued[cell].scores, whole[cell].scores)
        assert whole[cell].scores.shape == (3, 2)


def test_a_cell_that_was_cut_off_while_it_was_written_is_learned_again(tmp_path):
    first = dict(measure(tmp_path, TASK, CELLS[:1], jobs=1))
    path = tmp_path / "cells" / f"{CELLS[0].name}.csv"
    (tmp_path / "cells" / f".{path.name}.0123abcd.tmp").write_bytes(path.read_bytes()[:20])
    path.unlink()
    again = dict(measure(tmp_path, TASK, CELLS[:1], jobs=1))
    np.testing.assert_array_equal(first[CELLS[0]].scores, again[CELLS[0]].scores)


def test_lam_and_gamma_of_each_cell_reach_gae(tmp_path, monkeypatch):
    seen = set()
    gae, plain = gae_paper.gae, gae_paper.discounted_return
    spies = {
        "gae": lambda *a, **k: seen.add((k["lam"], k["gamma"])) or gae(*a, **k),
        "discounted_return": lambda *a, **k: seen.add((None, k["gamma"])) or plain(*a, **k),
    }
    for name, spy in spies.items():
        monkeypatch.setattr(gae_paper, name, spy)
    dict(measure(tmp_path, TASK, CELLS, jobs=1))
    assert seen == set(CELLS)


def test_a_map_of_ppo_passes_lam_and_gamma_and_is_the_run_that_train_makes(tmp_path):
    task = Task("CartPole-v1", seeds=2, iterations=2)
    found = dict(measure(tmp_path, task, [Cell(0.5, 0.9)], jobs=1))[Cell(0.5, 0.9)]
    config = replace(preset("CartPole-v1"), seeds=2, total_steps=2048, lam=0.5, gamma=0.9, compile="off", threads=1)
    rows = [[row["return_mean"] for row in iteration.rows] for iteration in train(config)]
    np.testing.assert_array_equal(found.scores, rows)
    assert found.steps.tolist() == [1024, 2048]


def test_the_folder_of_another_map_is_refused(tmp_path):
    dict(measure(tmp_path, TASK, CELLS[:1], jobs=1))
    with pytest.raises(ValueError, match=r"has a map with seeds 2, but seeds is 3; use the same, or another --out"):
        dict(measure(tmp_path, TASK._replace(seeds=3), CELLS, jobs=1))


def test_a_summary_is_the_last_batch_and_the_mean_of_the_curve():
    curve = Curve(np.arange(3), np.array([[1.0, 3.0], [2.0, 2.0], [6.0, 10.0]]))
    found = summary(TASK, curve)
    assert found == (8.0, 2.0, 4.0, pytest.approx(1.0))


def test_the_table_marks_the_best_cell():
    found = {Cell(0.0, 0.9): Curve(np.arange(1), np.array([[1.0, 3.0]]))}
    found[Cell(None, 0.9)] = Curve(np.arange(1), np.array([[7.0, 7.0]]))
    assert map_figures.table(TASK, found).splitlines() == [
        "| λ \\ γ | 0.9 |",
        "| --- | --- |",
        "| 0 | 2 ± 1 |",
        "| no V | **7 ± 0** |",
    ]


def test_the_command_writes_picture_and_table(tmp_path, capsys):
    flags = ["--seeds", "2", "--iterations", "1", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["lab", "gae-paper", "--lams", "0", "none", "--gammas", "0.99", *flags]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2" in printed
    assert "no V" in printed
    assert (tmp_path / "gae-paper.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader((tmp_path / "gae-paper.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["lam"], row["gamma"]) for row in rows] == [("0.0", "0.99"), ("none", "0.99")]
    assert float(rows[0]["final"]) > 5


def test_the_defaults_are_the_papers_and_quick_is_smaller():
    task, wanted = chosen(MapOptions())
    assert task == Task(maps.PAPER, 21, 20)
    assert wanted == cells((*LAMS, None), GAMMAS)
    assert chosen(MapOptions(whiten=True))[0].whiten
    quick, few = chosen(MapOptions(quick=True, gammas=(0.9,)))
    assert quick == Task(maps.PAPER, 4, 12)
    assert few == cells((0.0, 0.95, 1.0), (0.9,))


def test_each_kind_of_map_has_a_folder_of_its_own():
    assert folder_of(MapOptions()) == Path("lab/gae-paper")
    assert folder_of(MapOptions(env="ALE/Pong-v5", quick=True)) == Path("lab/gae-paper-ALE-Pong-v5-quick")
    assert folder_of(MapOptions(whiten=True)) == Path("lab/gae-paper-whitened")
    assert folder_of(MapOptions(quick=True, out="here")) == Path("here")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lams", "1.5"], "lams has 1.5; expected numbers between 0 and 1"),
        (["--seeds", "0"], "seeds is 0; expected at least 1"),
        (["--env", "CartPole-v1", "--whiten"], "whiten is for cart-pole, but env is CartPole-v1"),
        (["--env", "CartPole-v1", "--lams", "none", "1"], "lams has none, but PPO on CartPole-v1 always has a value"),
    ],
)
def test_wrong_flags_end_with_a_sentence(flags, sentence, capsys):
    assert main(["lab", "gae-paper", *flags]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_same_map_as_one(tmp_path):
    task = Task(maps.PAPER, seeds=1, iterations=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "_experiment", lambda whiten: gae_paper.Experiment())
        alone = dict(measure(tmp_path / "one", task, CELLS[:2], jobs=1))
    both = dict(measure(tmp_path / "two", task, CELLS[:2], jobs=2))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert set(alone) == set(both)
