"""The report reads runs of ours and of other libraries, whole or damaged, and joins those that belong together.

The other libraries are the real ones. Leaves out the page (`test_report.py`).
"""

import csv
import dataclasses
import fcntl
import os
import types

import numpy as np
import pytest
from run_folders import Config, cleanrl, ours

from telescope.lab.report.files import Track
from telescope.lab.report.lines import band, curves, final_scores, lines, main_column
from telescope.lab.report.runs import found, without_seed
from telescope.metrics import interval, iqm
from telescope.runs import RunError


def only(*arguments, **more):
    (run,) = found(arguments, **more)
    return run


def column(run, name, seed=None):
    tracks = run.tracks[name]
    return tracks[next(iter(tracks)) if seed is None else seed]


# Our own runs


def test_our_runs_have_every_column_of_every_seed(tmp_path):
    scores = np.arange(8.0).reshape(2, 4)
    run = only(ours(tmp_path / "run", scores, entropy=0.5))
    assert (run.library, run.method, run.env, run.status) == ("telescope", "ppo", "CartPole-v1", "finished")
    assert run.seeds == ["0", "1"]
    assert run.total == run.reached == 1000
    for s in range(2):
        assert column(run, "return_mean", str(s)).steps.tolist() == [250, 500, 750, 1000]
        assert column(run, "return_mean", str(s)).values.tolist() == scores[s].tolist()
        assert column(run, "entropy", str(s)).values.tolist() == [0.5] * 4


@pytest.mark.parametrize("status", ["stopped", "finished"])
def test_a_run_that_ended_says_how(tmp_path, status):
    run = only(ours(tmp_path / "run", [[1.0, 2.0]], steps=[100, 200], status=status))
    assert run.status == status
    assert run.unfinished == (status == "stopped")


def test_a_run_that_runs_is_told_from_one_that_was_killed(tmp_path):
    path = ours(tmp_path / "run", [[1.0, 2.0]], status="running")
    assert only(path).status == "killed"
    held = os.open(path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert only(path).status == "running"
    os.close(held)


def test_damaged_rows_are_left_out_and_counted(tmp_path):
    path = ours(tmp_path / "run", [[1.0, 2.0, 3.0, 4.0]], entropy=0.5)
    lines = (path / "metrics.csv").read_text().splitlines()
    lines[2] = lines[2].replace("2.0", "2.x0")
    lines[3] = lines[3].rsplit(",", 1)[0]
    (path / "metrics.csv").write_text("\n".join([*lines, "\0\0\0", '12,"']) + "\n")
    run = only(path)
    assert column(run, "return_mean").values.tolist() == [1.0, 4.0]
    assert "4 damaged rows were left out" in run.notes
    assert "metrics.csv was changed" in run.notes[-1] or len(run.notes) == 1


def test_a_seed_that_is_none_of_the_run_is_damage(tmp_path):
    path = ours(tmp_path / "run", [[1.0, 2.0], [3.0, 4.0]])
    text = (path / "metrics.csv").read_text().replace("1000,1,1,4.0", "1000,1,71,4.0")
    (path / "metrics.csv").write_text(text)
    run = only(path)
    assert run.seeds == ["0", "1"]
    assert column(run, "return_mean", "1").values.tolist() == [3.0]
    assert run.notes[0] == "1 damaged row was left out"


def test_a_row_that_is_being_written_is_no_damage(tmp_path):
    path = ours(tmp_path / "run", [[1.0, 2.0]])
    with open(path / "metrics.csv", "a") as file:
        file.write("1500,3")
    run = only(path)
    assert column(run, "return_mean").values.tolist() == [1.0, 2.0]
    assert run.notes == []


def test_numbers_that_are_not_finite_are_gaps(tmp_path):
    run = only(ours(tmp_path / "run", [[1.0, np.nan, np.inf, 4.0]]))
    assert column(run, "return_mean").steps.tolist() == [250, 1000]
    assert run.notes == []


def test_a_damaged_record_leaves_the_metrics(tmp_path):
    path = ours(tmp_path / "run", [[1.0, 2.0]])
    (path / "run.json").write_text("{")
    run = only(path)
    assert column(run, "return_mean").values.tolist() == [1.0, 2.0]
    assert "settings and status are not known" in run.notes[0]


@pytest.mark.parametrize("name", ["metrics.csv", "run.json"])
def test_any_bytes_are_a_page_or_a_sentence(tmp_path, name):
    rng = np.random.default_rng(0)
    for k in range(30):
        path = ours(tmp_path / f"{name}-{k}", [[1.0, 2.0, 3.0]])
        data = bytearray((path / name).read_bytes())
        for _ in range(5):
            data[rng.integers(len(data))] = rng.integers(256)
        (path / name).write_bytes(data)
        said = ""
        try:
            lines(found([path]))
        except (RunError, ValueError) as error:
            said = str(error)
        assert not said or str(path) in said


# Other libraries


def test_monitor_files_of_stable_baselines3(tmp_path):
    gym = pytest.importorskip("gymnasium")
    monitor = pytest.importorskip("stable_baselines3.common.monitor", reason="stable-baselines3 is not installed")
    episodes = []
    envs = [monitor.Monitor(gym.make("CartPole-v1"), str(tmp_path / str(k))) for k in range(2)]
    for turn in range(6):
        env = envs[turn % 2]
        env.reset(seed=turn)
        env.action_space.seed(turn)
        done, length = False, 0
        while not done:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            done, length = terminated or truncated, length + 1
        episodes.append(length)
    for env in envs:
        env.close()
    run = only(tmp_path)
    assert (run.library, run.env) == ("Stable-Baselines3", "CartPole-v1")
    assert len(run.seeds) == 1
    # in the order of time, whichever environment they were in, as SB3's own ts2xy has them
    results_plotter = pytest.importorskip("stable_baselines3.common.results_plotter")
    x, y = results_plotter.ts2xy(monitor.load_results(str(tmp_path)), "timesteps")
    assert column(run, "return_mean").steps.tolist() == x.tolist() == np.cumsum(episodes).tolist()
    assert column(run, "return_mean").values.tolist() == y.tolist() == episodes
    assert (np.diff(column(run, "time_total").values) >= 0).all()


def test_the_logger_and_the_evaluations_of_stable_baselines3(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import configure

    env, other = (make_vec_env("CartPole-v1", 2, seed=seed) for seed in (0, 1))
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    model.learn(512, callback=EvalCallback(other, log_path=str(tmp_path), eval_freq=64, n_eval_episodes=2, verbose=0))
    model.logger.close()
    run = only(tmp_path)
    assert run.library == "Stable-Baselines3"
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rollout/ep_rew_mean"]]
    assert column(run, "return_mean").steps.tolist() == [float(row["time/total_timesteps"]) for row in rows]
    assert column(run, "return_mean").values.tolist() == [float(row["rollout/ep_rew_mean"]) for row in rows]
    with np.load(tmp_path / "evaluations.npz") as file:
        evaluations = file["timesteps"], file["results"].mean(axis=1)
    np.testing.assert_array_equal(column(run, "eval_return_mean"), evaluations)
    assert {"entropy", "kl", "clip_fraction", "explained_variance", "time_total"} <= run.tracks.keys()
    assert (column(run, "entropy").values > 0).all()  # its entropy_loss is negative
    # The same from the event files alone
    (tmp_path / "progress.csv").unlink()
    (tmp_path / "evaluations.npz").unlink()
    again = only(tmp_path)
    np.testing.assert_allclose(column(again, "return_mean"), column(run, "return_mean"), rtol=1e-6)
    np.testing.assert_allclose(column(again, "entropy").values, column(run, "entropy").values, rtol=1e-6)


def test_event_files_of_cleanrl(tmp_path):
    points = [(10, 10.0), (25, 15.0), (25, 7.0), (60, 35.0)]
    cleanrl(tmp_path / "CartPole-v1__ppo__3__1700000000", points, seed=3, explained_variance=[(128, 0.25)])
    run = only(tmp_path)
    assert (run.library, run.method, run.env, run.seeds) == ("CleanRL", "ppo", "CartPole-v1", ["3"])
    assert run.total == 1000
    assert run.notes == []
    assert run.settings["learning_rate"] == 2.5e-4
    assert list(zip(*column(run, "return_mean"), strict=True)) == points
    assert column(run, "explained_variance").values.tolist() == [0.25]
    assert run.unfinished


def test_a_cut_event_file_keeps_what_came_before(tmp_path):
    path = cleanrl(tmp_path / "run", [(k, float(k)) for k in range(50)])
    (file,) = path.iterdir()
    file.write_bytes(file.read_bytes()[:-700])
    run = only(path)
    kept = column(run, "return_mean").values
    assert 20 < len(kept) < 50
    assert kept.tolist() == list(range(len(kept)))
    assert "can be read up to byte" in run.notes[0]


def test_an_altered_event_file_keeps_what_came_before(tmp_path):
    path = cleanrl(tmp_path / "run", [(k, float(k)) for k in range(50)])
    (file,) = path.iterdir()
    data = bytearray(file.read_bytes())
    at = len(data) * 2 // 3
    data[at : at + 8] = b"\xff" * 8
    file.write_bytes(data)
    run = only(path)
    kept = column(run, "return_mean").values
    assert 10 < len(kept) < 50
    assert kept.tolist() == list(range(len(kept)))
    assert f"of {len(data):,}" in run.notes[0]


def test_our_own_event_files_without_the_folder(tmp_path):
    from telescope.runs import MetricsLog

    (tmp_path / "a").mkdir()
    with MetricsLog(tmp_path / "a", columns=["return_mean"]) as log:
        log.write([{"step": 10, "iteration": 0, "seed": s, "return_mean": 1.5 * s} for s in range(3)])
    run = only(tmp_path / "a" / "tensorboard")
    assert {seed: one.values.tolist() for seed, one in run.tracks["return_mean"].items()} == {
        "0": [0.0],
        "1": [1.5],
        "2": [3.0],
    }


def test_any_csv_with_a_mapping(tmp_path):
    for seed in range(2):
        (tmp_path / f"s{seed}.csv").write_text(
            "frames,score,name\n" + "".join(f"{10 * k},{k + seed},x\n" for k in range(3))
        )
    run = only(tmp_path, columns={"step": "frames", "return_mean": "score"})
    assert run.seeds == ["s0", "s1"]
    assert column(run, "return_mean", "s1").values.tolist() == [1, 2, 3]
    with pytest.raises(RunError, match=r"frames, score.*--columns step=COLUMN"):
        found([tmp_path])


def test_a_csv_with_a_column_of_seeds_and_one_without_a_last_newline(tmp_path):
    (tmp_path / "all.csv").write_text("step,seed,return\n1,7,1.5\n1,8,2.5\n2,7,3.5\n2,8,4.5")
    run = only(tmp_path / "all.csv")
    assert {seed: one.values.tolist() for seed, one in run.tracks["return_mean"].items()} == {
        "7": [1.5, 3.5],
        "8": [2.5, 4.5],
    }


def test_what_is_no_run_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RunError, match=r"holds notes.txt; expected a run folder"):
        found([tmp_path])
    with pytest.raises(RunError, match="nowhere does not exist; expected"):
        found([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty is empty; expected"):
        found([tmp_path / "empty"])
    with pytest.raises(RunError, match="has no values yet"):
        found([ours(tmp_path / "new", np.zeros((1, 0)))])


# Lines


def test_runs_that_differ_only_by_their_seed_share_a_line(tmp_path):
    for seed in range(3):
        ours(tmp_path / f"a{seed}", [[1.0, seed]], config=Config(seed=seed))
    ours(tmp_path / "b", [[5.0, 6.0]], config=Config(lam=0.5))
    some = lines(found([tmp_path]))
    assert [line.seeds for line in some] == [3, 1]
    assert [line.seeds for line in lines(found([tmp_path]), "none")] == [1, 1, 1, 1]
    assert [line.seeds for line in lines(found([tmp_path]), "methods")] == [4]


def test_the_same_run_twice_is_not_two_seeds(tmp_path):
    for name in ("a", "b"):
        ours(tmp_path / name, [[1.0, 2.0]])
    assert [line.seeds for line in lines(found([tmp_path]))] == [1, 1]
    assert [line.seeds for line in lines(found([f"mine={tmp_path}/*"]))] == [2]


def test_folders_of_other_names_are_told_apart_where_seeds_meet(tmp_path):
    for seed in range(3):  # in the order a0 a1 a2 b1 b2: b1 and b2 are no third and fourth seed of a
        for name in ("a", "b")[: 1 + (seed > 0)]:
            ours(tmp_path / f"{name}-seed{seed}", [[1.0, 2.0]], config=Config(seed=seed))
    some = lines(found([tmp_path / f"{name}-seed{seed}" for seed in (1, 2) for name in "ab"] + [tmp_path / "a-seed0"]))
    assert sorted((line.label, line.seeds) for line in some) == [("a", 3), ("b", 2)]


def test_names_and_wildcards(tmp_path):
    for name in ("x1", "x2", "y"):
        ours(tmp_path / name, [[1.0, 2.0]])
    some = lines(found([f"ours={tmp_path}/x*", f"theirs={tmp_path}/y"]))
    assert [(line.label, line.seeds) for line in some] == [("ours", 2), ("theirs", 1)]


def test_folders_of_cleanrl_are_seeds_of_one_line(tmp_path):
    for seed in range(3):
        cleanrl(tmp_path / f"CartPole-v1__ppo__{seed}__17000000{seed}0", [(10, 1.0), (20, float(seed))], seed=seed)
    (line,) = lines(found([tmp_path]))
    assert (line.label, line.env, line.seeds) == ("ppo", "CartPole-v1", 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ppo-seed3", "ppo"),
        ("ppo_s3", "ppo"),
        ("CartPole-v1__ppo__1__1700000000", "CartPole-v1__ppo"),
        ("run_12", "run"),
        ("seed1", "seed1"),
        ("Hopper-v5", "Hopper-v5"),
        ("lam95", "lam95"),
    ],
)
def test_the_name_without_the_seed(name, expected):
    assert without_seed(name) == expected


# Curves and scores


def test_curves_with_equal_steps_are_the_logged_numbers():
    rng = np.random.default_rng(0)
    steps, values = np.arange(1.0, 21), rng.normal(size=(6, 20))
    found = curves([[Track(steps, row) for row in values]])
    np.testing.assert_array_equal(found.steps, steps)
    np.testing.assert_array_equal(found.scores[0], values)
    around = band(found.scores[0])
    for t in range(20):
        assert around.middle[t] == iqm(values[:, t])
        assert (around.low[t], around.high[t]) == pytest.approx(interval(values[:, t]))


def test_curves_with_other_steps_meet_on_one_axis():
    """A straight line stays one wherever it was logged; before its first value and after its last there is none."""
    rng = np.random.default_rng(1)
    tracks = []
    for first, last, count in ((0, 1000, 7), (100, 800, 33), (0, 900, 50)):
        steps = np.sort(rng.choice(np.arange(first + 1, last), count - 2, replace=False)).astype(float)
        steps = np.concatenate([[first], steps, [last]])
        tracks.append(Track(steps, 3 * steps + 1))
    found = curves([tracks])
    for scores, track in zip(found.scores[0], tracks, strict=True):
        inside = (found.steps >= track.steps[0]) & (found.steps <= track.steps[-1])
        np.testing.assert_allclose(scores[inside], 3 * found.steps[inside] + 1)
        assert np.isnan(scores[~inside]).all()
    middle = band(found.scores[0]).middle
    assert np.isfinite(middle).tolist() == [100 <= step <= 800 for step in found.steps]


def test_many_points_are_averaged_not_picked():
    rng = np.random.default_rng(2)
    steps = np.arange(1.0, 30_001)
    values = rng.normal(size=30_000)
    found = curves([[Track(steps, values)]], 100)
    np.testing.assert_allclose(found.scores[0][0], values.reshape(100, 300).mean(axis=1))
    assert found.steps[-1] == 30_000


def test_several_values_at_one_step_count_alike():
    found = curves([[Track(np.array([1.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))]])
    assert found.scores[0].tolist() == [[2.0, 5.0]]


def test_the_final_score_is_the_mean_of_the_last_tenth_that_a_seed_reached(tmp_path):
    scores = np.arange(60.0).reshape(3, 20)
    (line,) = lines(found([ours(tmp_path / "run", scores)]))
    np.testing.assert_array_equal(final_scores(line, "return_mean", 0.1), scores[:, -2:].mean(axis=1))
    np.testing.assert_array_equal(final_scores(line, "return_mean", 1.0), scores.mean(axis=1))
    sparse = np.where(np.arange(20) == 3, scores, np.nan)
    (line,) = lines(found([ours(tmp_path / "sparse", sparse, eval_return_mean=scores)]))
    np.testing.assert_array_equal(final_scores(line, "return_mean", 0.1), scores[:, 3])


def test_the_column_is_one_that_all_runs_have(tmp_path):
    ours(tmp_path / "a", [[1.0, 2.0]], eval_return_mean=3.0)
    ours(tmp_path / "b", [[1.0, 2.0]])
    assert main_column(lines(found([tmp_path / "a"])), "auto") == "eval_return_mean"
    both = lines(found([tmp_path]))
    assert main_column(both, "auto") == "return_mean"
    with pytest.raises(ValueError, match=r"b has no values of 'eval_return_mean'; it has return_mean"):
        main_column(both, "eval_return_mean")
    assert main_column(both, "return") == main_column(both, "charts/episodic_return") == "return_mean"
    bare = types.SimpleNamespace(tracks=lambda column: [], columns=["fps"])
    with pytest.raises(ValueError, match="Found: fps"):
        main_column([bare], "auto")


def test_settings_that_change_no_result_do_not_part_a_line(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Wide(Config):
        threads: int = 0

    ours(tmp_path / "a", [[1.0, 2.0]], config=Wide(seed=0))
    ours(tmp_path / "b", [[1.0, 2.0]], config=Wide(seed=1, threads=2))
    assert [line.seeds for line in lines(found([tmp_path]))] == [2]
