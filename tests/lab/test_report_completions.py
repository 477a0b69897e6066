"""The report's section on completions: which samples are counted, and how they are distributed."""

import types

import pytest

from telescope.lab.report.completions import completions, samples_of
from telescope.runs.formats.tables import GrowingTable


def line(path, rows, label="ours"):
    path.mkdir()
    table = GrowingTable(path / "samples.csv", resume_step=None)
    for step, some in rows.items():
        table.write(step, [{"completion": "x\n,", "score": score, "length": length} for score, length in some])
    table.close()
    run = types.SimpleNamespace(path=path)
    return types.SimpleNamespace(label=label, colour=0, runs=[run])


def test_late_samples_are_counted_and_unscored_ones_have_a_length(tmp_path):
    rows = {10: [(9.0, 99)] * 3, 80: [(0.0, 4), (1.0, 6)], 100: [(1.0, 8), (None, 8)]}
    ours = line(tmp_path / "run", rows)
    found = samples_of(ours)
    assert found[:, 1].tolist() == [4, 6, 8, 8]
    assert found[:3, 0].tolist() == [0, 1, 1]
    html = completions([ours])
    assert "(4 completions)" in html
    assert "66.7 %" in html, "of three scores"
    assert "50.0 %" in html, "of four lengths"


@pytest.mark.parametrize("rows", [{}, {3: [(None, 5)]}])
def test_runs_without_samples_or_scores_are_no_mistake(rows, tmp_path):
    html = completions([line(tmp_path / "run", rows)])
    assert ("Lengths of completions" in html) == bool(rows)
    assert "Scores of completions" not in html
