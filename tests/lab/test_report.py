"""The page of a report: its numbers against other formulas, what it says of few seeds and unfinished runs, a browser.

Leaves out reading (`test_report_reading.py`) and the statistics themselves (`test_metrics.py`).
"""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from run_folders import Config, Page, cleanrl, numbers, ours

from telescope import cli
from telescope.lab import record
from telescope.lab.report import plots, write
from telescope.lab.report.scores import chance
from telescope.metrics import interval, iqm

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def made(folder, *runs, **options):
    path = write([*runs], folder / "report.html", **{"replay": 0, **options})
    return Page(path.read_text(encoding="utf-8"))


def drawn(rng, seeds, mean, noise=20.0, steps=20):
    """Scores that rise to `mean`."""
    return mean * np.linspace(0.1, 1.0, steps) + noise * rng.normal(size=(seeds, steps))


def rows_of(page, section, which=0):
    """The rows of a table by their first cell."""
    return {row[0]: row[1:] for row in page.tables[section][which]}


def close(found, expected, digits=1):
    """A number on the page is the right one, rounded."""
    return found == pytest.approx(expected, abs=0.5001 * 10.0**-digits)


# Numbers


def test_final_scores_are_those_of_scipy(tmp_path):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    rng = np.random.default_rng(0)
    scores = {"a": drawn(rng, 8, 300.0), "b": drawn(rng, 4, 200.0)}
    for name, table in scores.items():
        ours(tmp_path / name, table, config=Config(seeds=len(table), lam=len(table) / 10))
    rows = rows_of(made(tmp_path, tmp_path / "a", tmp_path / "b"), "scores")
    for name, table in scores.items():
        final = table[:, -2:].mean(axis=1)  # the last tenth of 20 rows
        cells = rows[name]
        middle, low, high = numbers(cells[0])
        assert close(middle, stats.trim_mean(final, 0.25))  # 4 divides the number of seeds
        expected = interval(final) if len(final) >= 5 else (final.min(), final.max())
        assert close(low, expected[0])
        assert close(high, expected[1])
        statistics = [float(cell) for cell in cells[2:6]]
        for found, value in zip(statistics, (final.mean(), np.median(final), final.min(), final.max()), strict=True):
            assert close(found, value)
        gap = np.maximum(1 - (final - 22) / (475 - 22), 0).mean()
        assert close(float(cells[6]), gap, 3)
        assert cells[7] == str(len(final))


def test_probabilities_are_counted_pairs(tmp_path):
    rng = np.random.default_rng(1)
    scores = {name: np.round(drawn(rng, 6, mean) / 20) * 20 for name, mean in (("a", 200), ("b", 210), ("c", 150))}
    for k, (name, table) in enumerate(scores.items()):
        ours(tmp_path / name, table, config=Config(seeds=6, lam=k / 10))
    table = made(tmp_path, *(tmp_path / name for name in scores)).tables["better"][0]
    names = table[0][1:]
    assert sorted(names) == ["a", "b", "c"]
    for row in table[1:]:
        for name, cell in zip(names, row[1:], strict=True):
            if name == row[0]:
                assert cell == "·"
                continue
            x, y = (scores[one][:, -2:].mean(axis=1) for one in (row[0], name))
            expected = np.mean([1.0 if a > b else 0.5 * (a == b) for a in x for b in y])
            found = re.match(r"([\d.]+)\[([\d.]+), ([\d.]+)\]", cell)
            assert close(float(found[1]), expected, 2)
            assert float(found[2]) <= float(found[1]) <= float(found[3])


def test_profiles_are_counted(tmp_path):
    rng = np.random.default_rng(2)
    scores = {name: drawn(rng, 7, mean) for name, mean in (("a", 200), ("b", 260))}
    for k, (name, table) in enumerate(scores.items()):
        ours(tmp_path / name, table, config=Config(seeds=7, lam=k / 10))
    table = made(tmp_path, tmp_path / "a", tmp_path / "b").tables["better"][1]
    assert len(table) == 102
    for row in table[1:]:
        level = float(row[0].replace(",", ""))
        for name, cell in zip(table[0][1:], row[1:], strict=True):
            final = scores[name][:, -2:].mean(axis=1)
            near = np.abs(final - level) < 0.06  # the level on the page is rounded
            share, low, high = numbers(cell)
            assert (final > level).mean() - near.mean() - 0.006 <= share <= (final > level).mean() + near.mean() + 0.006
            assert low <= share <= high


def test_across_environments_the_bootstrap_stays_within_each(tmp_path):
    rng = np.random.default_rng(3)
    envs = ("CartPole-v1", "LunarLander-v3")
    finals = {}
    for env, size in zip(envs, (300.0, 100.0), strict=True):
        for k, name in enumerate(("a", "b")):
            table = drawn(rng, 5, size + 3 * k)
            finals[env, name] = table[:, -2:].mean(axis=1)
            ours(tmp_path / env / name, table, config=Config(env=env, seeds=5, lam=k / 10))
    page = made(tmp_path, f"a={tmp_path}/*/a", f"b={tmp_path}/*/b")
    assert "Across 2 environments" in page.text
    table = page.tables["better"][-2]
    row = next(row for row in table[1:] if row[0] == "a")
    cell = row[1 + table[0][1:].index("b")]
    pairs = [np.mean(finals[env, "a"][:, None] > finals[env, "b"]) for env in envs]
    assert close(float(cell[:4]), np.mean(pairs), 2)
    # Replicates in a loop: seeds of each line and environment are drawn on their own.
    draws = []
    for _ in range(4000):
        each = []
        for env in envs:
            x, y = (rng.choice(finals[env, name], 5) for name in ("a", "b"))
            each.append(np.mean(x[:, None] > y) + 0.5 * np.mean(x[:, None] == y))
        draws.append(np.mean(each))
    low, high = np.quantile(draws, [0.025, 0.975])
    found = numbers(cell[4:])
    assert found == pytest.approx([low, high], abs=0.05)
    profile = page.tables["better"][-1]
    assert profile[0][0] == "score τ"


def test_the_chance_over_tasks_is_the_mean_of_theirs():
    x, y = [np.arange(5.0), np.arange(6.0)], [np.arange(5.0) + 0.5, np.full(7, -1.0)]
    found = chance(x, y)
    assert found.probability == pytest.approx((10 / 25 + 1.0) / 2)
    assert found.low < found.probability < found.high
    assert np.isnan(chance([np.arange(4.0)], [np.arange(9.0)]).low)


def test_curves_on_the_page_are_the_statistics_of_each_step(tmp_path):
    scores = drawn(np.random.default_rng(4), 6, 300.0)
    table = made(tmp_path, ours(tmp_path / "run", scores)).tables["curves"][0]
    assert [row[0] for row in table[1:]] == [f"{50 * (i + 1):,}" for i in range(20)]
    for i, row in enumerate(table[1:]):
        middle, low, high = numbers(row[1])
        assert close(middle, iqm(scores[:, i]))
        assert (low, high) == pytest.approx(interval(scores[:, i]), abs=0.051)


def test_times_are_shares_of_a_run(tmp_path):
    parts = {"time_env": 0.1, "time_policy": 0.2, "time_update": 0.6, "time_other": 0.1}
    total = np.tile(np.cumsum(np.full(10, 1.0)), (2, 1))
    path = ours(tmp_path / "run", drawn(np.random.default_rng(0), 2, 300.0, steps=10), **parts, time_total=total)
    row = rows_of(made(tmp_path, path), "time")["ppo"]
    assert row[1:] == ["10 %", "20 %", "60 %", "10 %", "10 s", "200.0"]  # 2 seeds × 1000 steps in 10 s


def test_only_settings_that_differ_are_in_the_table(tmp_path):
    for name, lam in (("a", 0.9), ("b", 0.95)):
        ours(tmp_path / name, [[1.0, 2.0]], config=Config(lam=lam))
    page = made(tmp_path, tmp_path / "a", tmp_path / "b")
    assert page.tables["settings"][0] == [["setting", "a", "b"], ["lam", "0.9", "0.95"]]
    assert "4 settings are equal in all" in page.text  # the seed is none of them


def test_settings_that_only_some_lines_have_are_apart(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Clipped(Config):
        clip: float = 0.2

    ours(tmp_path / "a", [[1.0, 2.0]], config=Config(lam=0.5))
    ours(tmp_path / "b", [[1.0, 2.0]], config=Clipped())
    page = made(tmp_path, tmp_path / "a", tmp_path / "b")
    assert page.tables["settings"][0][1:] == [["lam", "0.5", "0.95"]]
    assert page.tables["settings"][1][1:] == [["clip", "–", "0.2"]]


# What it says


def test_one_seed_has_no_interval(tmp_path):
    page = made(tmp_path, ours(tmp_path / "run", [[100.0, 200.0]]))
    assert "Each line is one seed." in page.text
    assert rows_of(page, "scores")["ppo"][0].split()[1:] == ["one", "seed"]
    assert "One seed has no interval" in page.text
    assert "interval around it" not in page.text
    assert "[" not in page.tables["curves"][0][1][1]


def test_few_seeds_have_a_range_and_pairs_no_interval(tmp_path):
    for k, name in enumerate("ab"):
        ours(tmp_path / name, drawn(np.random.default_rng(k), 3, 200.0), config=Config(seeds=3, lam=k / 10))
    page = made(tmp_path, tmp_path / "a", tmp_path / "b")
    assert "lowest to highest seed" in page.text
    assert "95 % bootstrap interval of the IQM" not in page.text
    assert "Pairs with fewer than 5 seeds on a side have no interval" in page.text
    assert all("[" not in cell for row in page.tables["better"][0][1:] for cell in row[1:])


@pytest.mark.parametrize("status", ["stopped", "running"])
def test_unfinished_runs_are_shown_as_what_they_are(tmp_path, status):
    scores = drawn(np.random.default_rng(0), 2, 200.0, steps=4)
    ours(tmp_path / "a", scores, steps=[100, 200, 300, 400], status=status, config=Config(seeds=2, lam=0.5))
    ours(tmp_path / "b", scores, config=Config(seeds=2))
    page = made(tmp_path, tmp_path / "a", tmp_path / "b")
    word = {"stopped": "stopped", "running": "killed"}[status]
    assert f"a {word} at 40 %" in rows_of(page, "scores")
    assert "compared as far as they went" in page.text
    rows = page.tables["runs"][0]
    assert [row[4:6] for row in rows[1:]] == [[word, "400 of 1,000"], ["finished", "1,000 of 1,000"]]
    curve = {row[0]: row[1:] for row in page.tables["curves"][0]}
    assert curve["500"][curve["steps"].index("a")] == "–"
    assert curve["500"][curve["steps"].index("b")] != "–"


def test_runs_of_several_libraries_stand_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    ours(tmp_path / "ours", drawn(rng, 3, 200.0), config=Config(seeds=3))
    for seed in range(3):
        points = [(int(step), float(rng.normal(150, 10))) for step in np.sort(rng.integers(1, 1000, 90))]
        folder = tmp_path / "cleanrl" / f"CartPole-v1__ppo__{seed}__17000000{seed}0"
        cleanrl(folder, points, seed=seed, explained_variance=[(500, 0.5)])
    page = made(tmp_path, f"ours={tmp_path}/ours", f"cleanrl={tmp_path}/cleanrl")
    assert {row[1] for row in page.tables["runs"][0][1:]} == {"telescope", "CleanRL"}
    assert rows_of(page, "scores").keys() >= {"ours", "cleanrl"}
    assert page.tables["curves"][0][0][1:] == ["ours", "cleanrl"]


@pytest.mark.parametrize(("algorithm", "column"), [("grpo", "exact_match"), ("sft", "exact_match"), ("rlhf", "score")])
def test_language_runs_have_their_columns(tmp_path, algorithm, column):
    rng = np.random.default_rng(0)
    more = {
        name: rng.random((1, 12)) for name in ("length", "kl_reference", "kl_completion", "entropy", "equal_groups")
    }
    more[column] = np.linspace(0, 1, 12)[None]
    path = ours(
        tmp_path / "run", np.full((1, 12), np.nan), algorithm=algorithm, config=Config(env="lm/addition"), **more
    )
    page = made(tmp_path, path)
    for title in ("Length", "KL to the reference", "Entropy", "Groups without signal"):
        assert title in page.text
    final = float(numbers(rows_of(page, "scores")[{"rlhf": "ppo"}.get(algorithm, algorithm)][0])[0])
    assert close(final, more[column][0, -2:].mean(), 3)


def test_text_of_users_stays_text(tmp_path):
    trick = "<script>alert(1)</script>&amp;"
    ours(tmp_path / "a", [[1.0, 2.0]], config=Config(env=trick))
    page = made(tmp_path, f"<b>={tmp_path}/a")
    assert trick in page.text
    assert ("b", {}) not in page.tags


def test_a_kept_rollout_is_examined(tmp_path):
    rng = np.random.default_rng(0)
    path = ours(tmp_path / "run", [[1.0, 2.0]])
    arrays = {"rewards": rng.normal(size=(64, 4)), "values": rng.normal(size=(64, 4))}
    ends = {"terminated": rng.random((64, 4)) < 0.05, "truncated": np.zeros((64, 4), bool)}
    record(path / "rollout.npz", **arrays, **ends, advantages=rng.normal(size=(64, 4)), gamma=0.99, lam=0.95)
    page = made(tmp_path, path)
    assert "not_gae" in page.text
    with np.load(path / "rollout.npz") as file:
        advantages = file["advantages"]
    rows = rows_of(page, "advantages", 1)
    assert rows["rows"] == ["256"]
    assert close(float(rows["standard deviation"][0]), advantages.std(), 3)
    assert rows["share above 0"] == [f"{100 * (advantages > 0).mean():.0f} %"]
    shares = [numbers(row[1])[0] for row in page.tables["advantages"][0][1:]]
    assert sum(shares) == pytest.approx(100, abs=4)


def test_a_rollout_that_cannot_be_read_is_a_note(tmp_path):
    path = ours(tmp_path / "run", [[1.0, 2.0]])
    (path / "rollout.npz").write_text("x")
    assert "is no npz file" in made(tmp_path, path).text


def test_saved_agents_play_a_rollout(tmp_path):
    sizes = {"--num-envs": 2, "--num-steps": 32, "--minibatch-size": 32, "--epochs": 1, "--total-steps": 128}
    flags = [str(word) for pair in sizes.items() for word in pair]
    assert cli.main(["train", "ppo", "CartPole-v1", *flags, "--out", str(tmp_path / "run")]) == 0
    page = made(tmp_path, tmp_path / "run", replay=40)
    rows = rows_of(page, "advantages", 1)
    assert 100 < int(rows["rows"][0]) <= 160  # rows of resets do not count
    assert rows["γ, λ"] == ["0.99, 0.95"]
    assert "nothing wrong was found" in page.text
    assert "played by seed 0" in page.text


def test_agents_that_cannot_play_are_a_note(tmp_path):
    page = made(tmp_path, ours(tmp_path / "run", [[1.0, 2.0]]), replay=8)
    assert "its agents could not play a rollout: " in page.text


# Figures


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 517), (1e-9, 3e-9), (5, 5), (0, 0), (-1e6, 1e6)])
@pytest.mark.parametrize("snug", [False, True])
def test_an_axis_covers_its_range_with_round_ticks(low, high, snug):
    axis = plots.axis(low, high, snug=snug)
    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.ticks) <= 8
    steps = np.diff(axis.ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert all(axis.low - 1e-9 * abs(axis.low) <= tick <= axis.high + 1e-9 * abs(axis.high) for tick in axis.ticks)


def test_a_line_breaks_where_there_is_no_number():
    x, y = np.array([0.0, 0.25, 0.5, 1.0]), np.array([0.0, 1.0, np.nan, 0.5])
    assert plots.path(x, y) == "M0 1000L250 0M1000 500"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (-0.0001, "−1.00e−04"), (1234.5, "1,234"), (np.nan, "–"), (12.34, "12.3"), (0.5, "0.500")],
)
def test_numbers_have_digits_that_count(number, text):
    assert plots.number(number) == text


# The command, and a browser


def test_the_command_writes_the_page_and_names_what_is_wrong(tmp_path, capsys):
    path = ours(tmp_path / "run", [[1.0, 2.0]])
    assert cli.main(["report", str(path), "--out", str(tmp_path / "deep" / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "deep" / "page.html")
    for arguments, words in (
        ([], "takes at least one run folder"),
        ([str(tmp_path / "none")], "does not exist; expected a run folder"),
        ([str(path), "--metric", "x"], "has no values of 'x'; it has return_mean"),
        ([str(path), "--final", "2"], "final is 2.0; expected a share"),
        ([str(path), "--scale", "3", "1"], "expected a low score, then a higher one"),
        ([str(path), "--columns", "step"], "expected OURS=THEIRS"),
        ([str(path), "--convention", "x"], "convention"),
        ([str(path), "--replay", "-1"], "expected a number of steps"),
    ):
        assert cli.main(["report", *arguments, "--out", str(tmp_path / "page.html")]) in (1, 2)
        assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser, tmp_path, width, scheme):
    rng = np.random.default_rng(0)
    for k, name in enumerate(("a", "b", "c")):
        table = drawn(rng, 5, 200.0 + 30 * k)
        ours(tmp_path / name, table, config=Config(seeds=5, lam=k / 10), explained_variance=0.1 * k, time_update=1.0)
    path = write([tmp_path / name for name in "abc"], tmp_path / "report.html")
    wrong, asked = [], []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{path}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    frame = page.locator("#curves .frame").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    page.mouse.move(box["x"] + 0.995 * box["width"], box["y"] + 40)
    tip = frame.locator(".tip")
    last = page.locator("#curves tbody tr").last.locator("td")
    assert tip.inner_text().startswith("steps 1,000")
    for k in range(3):
        assert last.nth(k).text_content() in tip.inner_text()
    around = tip.bounding_box()
    assert box["x"] - 1 <= around["x"]
    assert around["x"] + around["width"] <= box["x"] + box["width"] + 1
    frame.focus()
    page.keyboard.press("Home")
    assert tip.inner_text().startswith("steps 50")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("steps 100")
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.close()
    assert wrong == []
    assert asked
    assert all(url.startswith(("file:", "data:")) for url in asked)
