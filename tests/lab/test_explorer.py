"""The explorer in a real browser: its sliders are moved by keyboard, and every number is that of telescope.

Leaves out rollouts of our own runs (`test_playing.py`).
"""

import base64
import json
import re
import shutil
from urllib.parse import urlencode

import numpy as np
import pytest
from rollouts import advantages, rollout, world
from test_files import MAKERS

import telescope
from telescope import cli, lab
from telescope.lab import explorer
from telescope.lab.evidence import Rollout
from telescope.lab.explorer import Extras

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
ROWS = """() => [...document.querySelectorAll("#numbers tr")].map((row) => ({
    step: Number(row.querySelector("th").textContent), end: row.querySelector("td").textContent,
    numbers: [...row.querySelectorAll("data")].map((one) => Number(one.value))}))"""


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens the page of a rollout; in the end nothing was wrong and nothing was asked of the network."""
    wrong, asked = [], []
    context = chromium.new_context(viewport={"width": 1200, "height": 900})

    def open_page(recording, *, extras=None, title="Advantages", **view):
        path = explorer.write(tmp_path / "page.html", recording, title=title, extras=extras or Extras())
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{path}#{urlencode(view)}")
        page.evaluate(DRAWN)
        return page

    yield open_page
    context.close()
    assert not wrong
    assert asked
    assert all(url.startswith(("file://", "data:")) for url in asked)


def column_of(recording, c):
    """One column of a rollout in float64 and as the arguments of an estimator, with the successors of a full file."""
    flat = {name: x.reshape(len(x), -1)[:, c] for name, x in recording.arrays().items()}
    numbers = {name: flat[name].astype(np.float64) for name in ("rewards", "values", "next_values")}
    ends = {name: flat[name] != 0 for name in ("terminated", "truncated")}
    return numbers, {**ends, "mask": flat.get("mask", np.ones(len(flat["rewards"]))) != 0}


def expected(estimator, setting, numbers, ends, gamma):
    """Advantages and targets by telescope's own functions."""
    if estimator == "td":
        made = telescope.td_error(**numbers, terminated=ends["terminated"], mask=ends["mask"], gamma=gamma)
    elif estimator == "k_step":
        made = telescope.k_step_advantage(**numbers, **ends, gamma=gamma, k=int(setting))
    elif estimator == "monte_carlo":
        returns = telescope.discounted_return(numbers["rewards"], numbers["next_values"], **ends, gamma=gamma)
        return returns - numbers["values"], returns
    else:
        lam = float(setting)
        if estimator == "end_corrected":
            lam = telescope.end_corrected(numbers["values"], **ends, lam=lam)
        made, returns = telescope.gae(**numbers, **ends, gamma=gamma, lam=lam)
        return made, returns
    return made, numbers["values"] + made


def compare(page, recording, c, *estimators):
    """The table of the page, all digits of it, with the definition of every column in it."""
    numbers, ends = column_of(recording, c)
    live, gamma = ends["mask"], gamma_of(page)
    rows = page.evaluate(ROWS)
    assert [row["step"] for row in rows] == np.flatnonzero(live).tolist()
    lists = [numbers["rewards"], numbers["values"], None]
    lists.append(telescope.td_error(**numbers, terminated=ends["terminated"], mask=live, gamma=gamma))
    for name, setting in estimators:
        lists += expected(name, setting, numbers, ends, gamma)
    found = np.array([row["numbers"] for row in rows]).T
    assert len(found) == len(lists)
    scale = max(np.abs(x[live]).max() for x in lists if x is not None)
    for got, wanted in zip(found, lists, strict=True):
        if wanted is not None:
            np.testing.assert_allclose(got, wanted[live], rtol=0, atol=1e-13 * scale * live.sum())
    after = ~ends["terminated"][live]
    np.testing.assert_array_equal(found[2][after], numbers["next_values"][live][after])


def gamma_of(page):
    """γ as the page has it, all digits of it."""
    return page.evaluate("() => state.gamma")


def setting_of(page, which, name="lam"):
    return page.evaluate(f"() => state.{which}Setting.{name}")


def show_numbers(page):
    page.locator("#table summary").click()
    page.evaluate(DRAWN)


def press(page, selector, *keys):
    for key in keys:
        page.locator(selector).press(key)
    page.evaluate(DRAWN)


def recorded(seed, **settings):
    """A rollout of random size, layout, dtype and flags with ends of every kind, and its plain parts."""
    rng = np.random.default_rng(seed)
    w = world(rng, **settings)
    found = rollout(w, advantages(w), rng, given=True)
    dtype = found.rewards.dtype
    reached = w.final.astype(dtype).reshape(found.rewards.shape)
    if seed % 2:  # any steps may be masked
        w.mask &= rng.random(w.mask.shape) < 0.8
        w.mask[0] = True
    flags = {name: getattr(w, name).reshape(found.rewards.shape) for name in ("terminated", "truncated", "mask")}
    return found._replace(next_values=reached, **flags, advantages=None, returns=None)


@pytest.mark.parametrize("seed", range(6))
def test_every_number_is_that_of_gae_wherever_the_sliders_stand(opened, seed):
    recording = recorded(seed, padded=seed == 2)
    columns = recording.rewards[0].size
    column = columns - 1
    page = opened(recording, column=column, episode=-1)
    show_numbers(page)
    assert gamma_of(page) == recording.gamma
    compare(page, recording, column, ("gae", recording.lam))
    for keys in (["Home"], ["End"], ["ArrowLeft"] * 3, ["PageDown"] * 2, ["ArrowRight"]):
        press(page, "#first-range", *keys)
        press(page, "#gamma", *keys[:2])
        lam = setting_of(page, "first")
        assert page.locator("#first-number").input_value() == f"{lam:g}"
        compare(page, recording, column, ("gae", lam))
    assert 0 < lam < 1


@pytest.mark.parametrize("name", ["end_corrected", "k_step", "td", "monte_carlo"])
def test_every_estimator_is_telescopes_beside_gae(opened, name):
    for seed in (0, 3):
        recording = recorded(seed)
        page = opened(recording, episode=-1, b=name)
        show_numbers(page)
        if name in ("end_corrected", "k_step"):
            press(page, "#second-range", "ArrowRight", "ArrowRight")
        setting = setting_of(page, "second", "k" if name == "k_step" else "lam")
        compare(page, recording, 0, ("gae", recording.lam), (name, setting))
        page.locator("#first").select_option(name)
        page.locator("#second").select_option("gae")
        page.evaluate(DRAWN)
        first = setting_of(page, "first", "k" if name == "k_step" else "lam")
        compare(page, recording, 0, (name, first), ("gae", setting_of(page, "second")))


def test_vtrace_is_there_if_the_file_has_ratios(opened):
    recording = recorded(1)
    log_ratios = np.random.default_rng(0).normal(size=recording.rewards.shape)
    page = opened(recording, extras=Extras(log_ratios=log_ratios), episode=-1, a="vtrace:0.9")
    show_numbers(page)
    numbers, ends = column_of(recording, 0)
    ratios = log_ratios.reshape(len(log_ratios), -1)[:, 0]
    targets, made = telescope.vtrace(**numbers, log_ratios=ratios, **ends, gamma=recording.gamma, lam=0.9)
    found = np.array([row["numbers"] for row in page.evaluate(ROWS)]).T
    np.testing.assert_allclose(found[4], made[ends["mask"]], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[5], targets[ends["mask"]], rtol=1e-10, atol=1e-12)
    without = opened(recording)
    assert "vtrace" not in without.locator("#first option").evaluate_all("(all) => all.map((one) => one.value)")


def test_what_is_recorded_stands_beside_gae(opened):
    w = world(np.random.default_rng(5))
    made = advantages(w)
    page = opened(
        Rollout(w.rewards, w.values, w.final, w.terminated, w.truncated, w.mask, made, gamma=w.gamma, lam=w.lam),
        episode=-1,
    )
    show_numbers(page)
    found = np.array([row["numbers"] for row in page.evaluate(ROWS)]).T
    np.testing.assert_array_equal(found[6], made[:, 0])
    np.testing.assert_allclose(found[4], found[6], rtol=1e-10, atol=1e-10)
    assert page.evaluate("() => domain(PANELS.find((one) => one.name === 'difference').lists(now))[1]") > 1e-3


def test_ends_are_shown_as_what_they_are(opened):
    flags = np.zeros((2, 9), bool)
    flags[0, 2] = flags[1, 5] = True
    page = opened(Rollout(*np.ones((3, 9)), *flags), episode=-1)
    show_numbers(page)
    ends = {row["step"]: row["end"] for row in page.evaluate(ROWS) if row["end"]}
    assert ends == {2: "terminated", 5: "truncated", 8: "end of the buffer"}
    for kind in ("terminated", "truncated", "cut"):
        assert page.locator(f"#panel-rewards .end.{kind}").count() == 1
        assert page.locator(f"#axis .sign.{kind}").count() == 1
    options = page.locator("#episode option").all_text_contents()
    assert [words.partition(", ")[2] for words in options[1:]] == ["terminated", "truncated", "end of the buffer"]


def test_the_weights_of_a_step_are_powers_and_their_sum_is_its_advantage(opened):
    rng = np.random.default_rng(0)
    ended = np.zeros(12, bool)
    ended[8] = True
    recording = Rollout(*rng.normal(size=(3, 12)), ended, gamma=0.9, lam=0.5)
    page = opened(recording, episode=-1, step=4)
    numbers, _ = column_of(recording._replace(truncated=np.zeros(12, bool)), 0)
    deltas = telescope.td_error(**numbers, terminated=ended, gamma=0.9)
    weights = page.evaluate("() => now.one.weights")
    np.testing.assert_allclose(weights, 0.45 ** np.arange(5), rtol=1e-15)  # up to step 8, which terminates
    receipt = page.locator("#receipt tr").all_text_contents()
    assert len(receipt) == 6
    np.testing.assert_allclose(page.evaluate("() => now.one.advantages[4]"), weights @ deltas[4:9], rtol=1e-12)


def test_the_trade_off_is_that_of_all_columns(opened):
    recording = recorded(4)
    page = opened(recording)
    page.wait_for_function("() => document.getElementById('trade-words').textContent !== ''")
    made = {}
    for lam in (0.0, 0.95, 1.0):
        parts = [column_of(recording, c) for c in range(recording.rewards[0].size)]
        rows = [
            telescope.gae(**numbers, **ends, gamma=recording.gamma, lam=lam)[0][ends["mask"]] for numbers, ends in parts
        ]
        made[lam] = np.concatenate(rows)
    found = page.evaluate("() => traded.rows.map((one, i) => [GRID[i], one.spread, one.distance, one.shift])")
    for lam, spread, distance, shift in found:
        if lam in made:
            apart = made[lam] - made[1.0]
            wanted = [made[lam].std(), np.sqrt((apart**2).mean()), apart.mean()]
            np.testing.assert_allclose([spread, distance, shift], wanted, rtol=1e-9, atol=1e-12)
    assert {0.0, 0.95, 1.0} <= {lam for lam, *_ in found}


def test_the_keyboard_moves_steps_episodes_and_zoom(opened):
    flags = np.zeros((2, 30), bool)
    flags[0, 9] = flags[1, 19] = True
    page = opened(Rollout(*np.ones((3, 30)), *flags), episode=-1)
    press(page, "#steps", "ArrowRight", "ArrowRight", "ArrowLeft")
    assert page.evaluate("() => state.step") == 1
    assert page.locator("#steps").get_attribute("aria-valuetext").startswith("step 1, reward 1, advantage ")
    press(page, "#steps", "PageDown", "PageDown")
    assert page.evaluate("() => [state.episode, ...state.view]") == [1, 10, 19]
    press(page, "#steps", "End", "ArrowRight")  # beyond the view, which follows
    assert page.evaluate("() => [state.step, ...state.view]") == [20, 11, 20]
    press(page, "#steps", "PageUp", "+")
    assert page.evaluate("() => [state.step, ...state.view]") == [0, 0, 6]
    press(page, "#steps", "-", "-", "-")
    assert page.evaluate("() => state.view") == [0, 29]


def test_the_address_holds_the_view(opened):
    recording = recorded(0)
    page = opened(recording, episode=-1)
    page.locator("#second").select_option("k_step")
    page.evaluate(DRAWN)
    page.locator("#gamma-number").fill("0.9876")
    page.locator("#gamma-number").press("Enter")
    press(page, "#steps", "ArrowRight")
    address = page.evaluate("() => location.hash.slice(1)")
    again = opened(recording, **dict(part.split("=") for part in address.replace("%3A", ":").split("&")))
    kept = "() => JSON.stringify(state)"
    assert again.evaluate(kept) == page.evaluate(kept)
    assert gamma_of(again) == 0.9876
    wrong = opened(recording, column=99, step=-3, gamma=7, a="nothing:2", b="gae:9", episode="x")
    assert gamma_of(wrong) == recording.gamma
    assert wrong.evaluate("() => [state.column, state.first]") == [0, "gae"]


def test_a_number_out_of_range_is_not_taken(opened):
    page = opened(recorded(0))
    before = gamma_of(page)
    for text in ("1.5", "-1", ""):
        page.locator("#gamma-number").fill(text)
        page.locator("#gamma-number").press("Enter")
        page.evaluate(DRAWN)
        assert gamma_of(page) == before


def test_tokens_are_shown_as_text_and_choose_a_step(opened):
    tokens = np.array([["<b>", "x"], ["\n", "y & z"], ["", ""]])
    mask = np.array([[1, 1], [1, 1], [0, 0]])
    extras = Extras(tokens=tokens, prompts=["<i>ask</i> ", "two "])
    recording = Rollout(rewards=np.ones((3, 2)), mask=mask)
    page = opened(recording, extras=extras, title="</title><script>alert(1)</script>")
    assert page.locator("#tokens").inner_text() == "<i>ask</i> <b>⏎\n"
    assert page.title() == "</title><script>alert(1)</script>"
    page.locator("#tokens span[data-at='1']").click()
    page.evaluate(DRAWN)
    assert page.evaluate("() => state.step") == 1
    page.locator("#column").select_option("1")
    page.evaluate(DRAWN)
    assert page.locator("#tokens").inner_text() == "two xy & z"


def test_a_sweep_moves_lam_until_it_is_stopped(opened):
    page = opened(recorded(0), a="gae:0.9")
    page.locator("#sweep").click()
    page.wait_for_function("() => state.firstSetting.lam > 0 && state.firstSetting.lam < 0.9")
    page.locator("#sweep").click()
    stopped = setting_of(page, "first")
    page.evaluate(DRAWN)
    assert setting_of(page, "first") == stopped
    assert page.locator("#sweep").get_attribute("aria-pressed") == "false"


def test_every_control_has_a_name_and_nothing_is_wider_than_a_phone(chromium, opened):
    page = opened(recorded(0), b="k_step:5")
    unnamed = page.evaluate("""() => [...document.querySelectorAll("select, input, button, [role]")]
        .filter((one) => !one.hidden && !(one.labels && one.labels.length && one.labels[0].textContent)
            && !one.getAttribute("aria-label") && !one.textContent.trim()).map((one) => one.id)""")
    assert set(unnamed) <= {"step-lams", "trade"}  # pictures, which get a description when they are drawn
    page.set_viewport_size({"width": 400, "height": 800})
    page.evaluate(DRAWN)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 400


# What the page is made of


def embedded(text):
    return json.loads(re.search(r'id="rollout">(.*?)</script>', text)[1])


def numbers_of(one):
    return np.frombuffer(base64.b64decode(one["data"]), f"<{one['type']}")


def test_no_digit_is_lost_and_none_is_wasted():
    exact = np.random.default_rng(0).normal(size=(50, 2))
    arrays = embedded(explorer.html(Rollout(exact, exact.astype(np.float32))))["arrays"]
    np.testing.assert_array_equal(numbers_of(arrays["rewards"]).reshape(2, 50).T, exact)
    assert (arrays["rewards"]["type"], arrays["values"]["type"]) == ("f8", "f4")


def large(steps=1000, columns=100):
    """100,000 steps, as large as they can be."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(4, steps, columns))
    ended = rng.random((2, steps, columns)) < 0.005
    return Rollout(*numbers[:3], *ended, advantages=numbers[3], gamma=0.99, lam=0.95), numbers[3]


def test_a_hundred_thousand_steps_are_below_five_megabytes():
    recording, ratios = large()
    assert len(explorer.html(recording, extras=Extras(log_ratios=ratios)).encode()) < 5e6


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1000, 100), (100_000, 1)])
def test_a_hundred_thousand_steps_open_within_two_seconds(opened, shape):
    recording, _ = large(*shape)
    page = opened(recording, episode=-1)
    assert page.evaluate("() => performance.now()") < 2000


def test_missing_successors_are_recovered_from_recorded_advantages():
    w = world(np.random.default_rng(2))
    parts = {"terminated": w.terminated, "truncated": w.truncated, "gamma": w.gamma, "lam": w.lam}
    data = embedded(explorer.html(Rollout(w.rewards, w.values, **parts, advantages=advantages(w))))
    assert "recovered" in " ".join(data["notes"])
    last = np.zeros_like(w.truncated)
    last[-1] = True
    cut = (w.truncated | last) & ~w.terminated
    np.testing.assert_array_equal(numbers_of(data["arrays"]["places"]), np.flatnonzero(cut.T))
    np.testing.assert_allclose(numbers_of(data["arrays"]["reached"]), w.final.T[cut.T], rtol=1e-9)
    wrong = Rollout(w.rewards, w.values, **parts, advantages=advantages(w) * 1.1)
    data = embedded(explorer.html(wrong))
    assert "stands in" in " ".join(data["notes"])
    np.testing.assert_array_equal(numbers_of(data["arrays"]["reached"]), w.values.T[cut.T])


@pytest.mark.filterwarnings("ignore:.*jax:DeprecationWarning")  # rlax calls old names of jax
@pytest.mark.parametrize("name", MAKERS)
def test_the_page_of_every_library_has_the_advantages_that_it_computed(name, tmp_path):
    for seed in range(6):
        path = lab.record(tmp_path / "r.npz", **MAKERS[name](np.random.default_rng(seed)))
        data = embedded(explorer.html(explorer.from_file(path, name)[0]))
        arrays = {key: numbers_of(one) for key, one in data["arrays"].items()}
        shape = data["shape"][::-1]
        flags = arrays["flags"].reshape(shape).T
        values = arrays["values"].reshape(shape).T.astype(np.float64)
        ends = {"terminated": flags & 1 > 0, "truncated": flags & 2 > 0, "mask": flags & 4 > 0}
        usual = telescope.next_values(values, np.zeros(len(values[0])), **ends, final_values=np.zeros_like(values))
        reached = usual.T.ravel().copy()
        reached[arrays.get("places", slice(None))] = arrays["reached"]
        rewards, reached = arrays["rewards"].reshape(shape).T, reached.reshape(shape).T
        found, _ = telescope.gae(rewards, values, reached, **ends, gamma=data["gamma"], lam=data["lam"])
        recorded = arrays["advantages"].reshape(shape).T
        scale = np.abs(recorded).max()
        np.testing.assert_allclose(found, recorded * ends["mask"], rtol=0, atol=1e-4 * scale)
        assert all("recovered" in note for note in data["notes"])


def test_what_is_missing_is_said():
    notes = " ".join(embedded(explorer.html(Rollout(np.ones(5))))["notes"])
    assert "no values" in notes
    assert "gamma and lam; the sliders begin at γ 0.99 and λ 0.95" in notes
    notes = " ".join(embedded(explorer.html(Rollout(np.ones(5), gamma=0.5)))["notes"])
    assert "its lam; the sliders begin at λ 0.95" in notes


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        (Rollout(np.zeros(3), np.zeros(4)), r"values has shape \(4,\) but rewards has \(3,\)"),
        (Rollout(np.zeros((0, 2))), r"rewards has shape \(0, 2\); expected \[T, …\] with at least one step"),
        (Rollout(np.zeros(4), advantages=np.zeros(4), group=2), "one reward per completion"),
        (Rollout(np.array([0.0, np.nan])), "rewards is nan at step 1 of column 0"),
        (Rollout(np.zeros(2), np.zeros(2), np.array([np.inf, 0])), "next_values is inf at step 0 of column 0"),
    ],
)
def test_what_cannot_be_shown_is_an_error(recording, message):
    with pytest.raises(ValueError, match=message):
        explorer.html(recording)


def test_numbers_that_are_not_read_may_be_none():
    numbers = np.array([1.0, np.nan, 1.0])
    mask, terminated = np.array([1, 0, 1]), np.array([0, 0, 1])
    after = np.array([1.0, np.nan, np.nan])
    assert explorer.html(Rollout(numbers, numbers, after, terminated, mask=mask))


# The command


def test_the_command_writes_the_page_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokens = np.array(["a", "b", "c"])
    np.savez("buffer.npz", rewards=np.ones(3), values=np.ones(3), tokens=tokens, log_ratios=np.zeros(3), lam=0.5)
    assert cli.main(["lab", "explore", "buffer.npz"]) == 0
    data = embedded((tmp_path / "buffer.html").read_text(encoding="utf-8"))
    assert (data["lam"], data["tokens"]) == (0.5, [["a", "b", "c"]])
    assert "log_ratios" in data["arrays"]
    assert capsys.readouterr().out.startswith("buffer.html (0.1 MB)")
    arrays = {"r_t": np.ones(3), "discount_t": np.array([0.9, 0.9, 0.0]), "v_t": np.arange(4.0), "lambda_": 0.5}
    lab.record("rlax.npz", **arrays)
    assert cli.main(["lab", "explore", "rlax.npz", "--convention", "rlax", "--out", "other.html"]) == 0
    data = embedded((tmp_path / "other.html").read_text(encoding="utf-8"))
    assert data["gamma"] == 0.9
    assert data["facts"]["terminated"] == "1"


def test_what_the_doctor_finds_stands_on_the_page(tmp_path):
    w = world(np.random.default_rng(0))
    wrong = advantages(w, at_truncation=lambda t, b, later: 0.0)
    parts = {"terminated": w.terminated, "truncated": w.truncated, "gamma": w.gamma, "lam": w.lam}
    path = lab.record(tmp_path / "r.npz", rewards=w.rewards, values=w.values, **parts, advantages=wrong)
    notes = explorer.from_file(path)[1].notes
    assert [note for note in notes if note.startswith("The doctor finds: ") and "truncat" in note]
    path = lab.record(tmp_path / "r.npz", rewards=w.rewards, values=w.values, **parts, advantages=advantages(w))
    assert not explorer.from_file(path)[1].notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "telescope lab needs a word: study, explore"),
        (["explorer"], "telescope lab knows study, explore"),
        (["explore"], "takes one run folder or npz file, got 0"),
        (["explore", "a.npz", "b.npz"], "takes one run folder or npz file, got 2"),
        (["explore", "a.npz", "--steps", "5"], "--steps has no effect on an npz file"),
        (["explore", "a.npz", "--envs", "0"], "envs is 0; expected at least 1"),
        (["study", "a.npz"], "telescope lab study takes no arguments but flags, got a.npz"),
    ],
)
def test_the_command_says_what_it_needs(arguments, message, capsys):
    assert cli.main(["lab", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_explains_its_words(capsys):
    assert cli.main(["lab", "--help"]) == 0
    said = capsys.readouterr().out
    assert "telescope lab study" in said
    assert "telescope lab explore RUN|rollout.npz" in said
