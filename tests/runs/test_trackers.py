"""Where metrics go besides metrics.csv: what each tracker gets is what the table has.

The packages' own tests are left out. Weights & Biases, MLflow and Trackio are asked for real where they are installed.
"""

import json

import pytest

import telescope
from telescope.algorithms.ppo import PPO
from telescope.cli import main
from telescope.runs import RunFolder, read_metrics, trackers
from telescope.runs.trackers import by_step, chosen

SMALL = PPO(
    env="CartPole-v1",
    seeds=2,
    total_steps=128,
    num_envs=2,
    num_steps=16,
    minibatch_size=16,
    epochs=1,
    hidden=(8,),
    compile="off",
    threads=1,
)


def of_table(path):
    """(step, name) → number, under the names that trackers use."""
    table = read_metrics(path)
    return {
        (int(step), f"{name}/seed_{seed}"): float(value)
        for name, column in table.items()
        if name not in ("step", "iteration", "seed")
        for step, seed, value in zip(table["step"], table["seed"], column, strict=True)
        if value == value
    }


def test_a_function_gets_the_rows_of_the_table(tmp_path):
    rows = []
    telescope.train(SMALL, tmp_path / "run", log=rows.extend)
    seen = {(step, name): value for step, numbers in by_step(rows) for name, value in numbers.items()}
    assert seen == of_table(tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_an_error_of_the_users_function_ends_the_run(tmp_path):
    def broken(rows):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        telescope.train(SMALL, tmp_path / "run", log=[broken])


class Faulty:
    """A tracker whose server goes away after the second iteration."""

    def __init__(self, folder, settings):
        self.written, self.closed = [], False
        self.settings = settings
        Faulty.latest = self

    def write(self, rows):
        if len(self.written) == 2:
            raise ConnectionError("no route to host")
        self.written.append(rows)

    def close(self):
        self.closed = True


@pytest.fixture
def faulty(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "json", Faulty)  # any module that is there


def test_a_tracker_that_fails_is_left_behind_and_the_run_goes_on(tmp_path, faulty, capsys):
    words = "train ppo CartPole-v1 --seeds 2 --total-steps 128 --num-envs 2 --num-steps 16 --minibatch-size 16"
    assert main([*words.split(), "--epochs", "1", "--log", "json", "--out", str(tmp_path / "run")]) == 0
    assert len(Faulty.latest.written) == 2
    assert not Faulty.latest.closed
    assert Faulty.latest.settings["num_steps"] == 16
    said = capsys.readouterr().err
    assert "json gets no more rows (ConnectionError: no route to host); metrics.csv has them all" in said
    assert len(read_metrics(tmp_path / "run")["step"]) == 8


def test_a_tracker_that_cannot_begin_says_so_before_the_first_row(tmp_path, monkeypatch, capsys):
    def refuses(folder, settings):
        raise PermissionError("not logged in")

    monkeypatch.setitem(trackers.TRACKERS, "json", refuses)
    words = "train ppo CartPole-v1 --total-steps 128 --num-envs 2 --num-steps 16 --minibatch-size 16 --log json --out"
    assert main([*words.split(), str(tmp_path / "run")]) == 1
    assert "json cannot begin (PermissionError: not logged in); --log csv trains without it" in capsys.readouterr().err


def test_a_resumed_run_logs_where_it_did_before(tmp_path, faulty):
    run = str(tmp_path / "run")
    words = "train ppo CartPole-v1 --seeds 2 --total-steps 64 --num-envs 2 --num-steps 16 --minibatch-size 16"
    assert main([*words.split(), "--epochs", "1", "--log", "json,csv", "--out", run]) == 0
    first = Faulty.latest
    assert first.closed
    assert RunFolder.open(run).log == ("json", "csv")
    assert main(["train", "--resume", run, "--total-steps", "96"]) == 0
    assert Faulty.latest is not first
    assert [row["step"] for rows in Faulty.latest.written for row in rows] == [96, 96]
    before = Faulty.latest
    assert main(["train", "--resume", run, "--total-steps", "128", "--log", "csv"]) == 0
    assert Faulty.latest is before


def test_runs_from_before_this_setting_have_tensorboard(tmp_path):
    telescope.train(SMALL, tmp_path / "run")
    assert (tmp_path / "run" / "tensorboard").is_dir()
    known = json.loads((tmp_path / "run" / "run.json").read_text())
    assert known["log"] == ["tensorboard"]


@pytest.mark.parametrize(
    ("log", "names"),
    [
        ("csv", ("csv",)),
        ("csv,tensorboard", ("csv", "tensorboard")),
        (["tensorboard", "tensorboard,csv"], ("tensorboard", "csv")),
        ([], ()),
    ],
)
def test_words_may_have_commas(log, names):
    assert chosen(log) == names


def test_unknown_trackers_are_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="log names 'tensorbord'; expected some of csv, tensorboard, wandb"):
        telescope.train(SMALL, tmp_path / "run", log=["tensorbord"])
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "no_such_tracker", Faulty)
    with pytest.raises(ImportError, match=r'not installed: pip install "telescope-rl\[no_such_tracker\]"'):
        telescope.train(SMALL, tmp_path / "run", log="no_such_tracker")
    assert not (tmp_path / "run").exists()


def test_mlflow_has_the_numbers_of_the_table(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    telescope.train(SMALL, tmp_path / "run", log=["mlflow"])
    assert main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "192"]) == 0
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("telescope").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["num_steps"] == "16"
    numbers = {
        (one.step, name): one.value
        for name in run.data.metrics
        for one in client.get_metric_history(run.info.run_id, name)
    }
    assert numbers == of_table(tmp_path / "run")


def test_wandb_keeps_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = telescope.train(SMALL, tmp_path / "run", log=["wandb"])
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (file,) = kept.glob(f"run-{folder.id}.wandb")
    assert b"return_mean/seed_1" in file.read_bytes()


def test_trackio_has_the_numbers_of_the_table(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="Trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio

    telescope.train(SMALL, tmp_path / "run", log=["trackio"])
    run = next(iter(trackio.Api().runs("telescope")))
    assert run.name == "run"
