"""Whose a run folder is: nothing of another run is mixed in, no code of a stranger's runs, no link leads out.

Kills: a checkpoint of another run taken, an edited configuration continued, a missing checkpoint started over, rows
lost without a word, a module imported that a downloaded folder names, a link written through.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from telescope.runs import MetricsLog, RunError, RunFolder
from telescope.runs.files import replace_folder
from telescope.runs.formats.log import METRICS
from telescope.runs.formats.tables import GrowingTable
from telescope.runs.identity import trust


@dataclasses.dataclass(frozen=True)
class Config:
    env: str = "CartPole-v1"
    gamma: float = 0.99
    total_steps: int = 1000
    device: str = "cpu"
    reward: str | None = None


@pytest.fixture(autouse=True)
def key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def create(path, config=Config(), algorithm="ppo"):
    return RunFolder.create(path, config, algorithm=algorithm, execution={}, command=[])


@pytest.fixture
def run(tmp_path):
    return create(tmp_path / "run")


# One run


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path):
    other = create(tmp_path / "other")
    for folder in (run, other):
        folder.save_checkpoint({"step": 1})
        folder.save_best({"step": 1})
    shutil.copy(other.checkpoint_path, run.checkpoint_path)
    shutil.copy(other.best_path, run.best_path)
    for read in (run.load_checkpoint, run.load_best):
        with pytest.raises(RunError, match="belongs to another run, so it was not loaded"):
            read()


def test_a_checkpoint_of_another_configuration_is_refused_but_for_length_and_device(run):
    run.save_checkpoint({"step": 1})
    run.save_config(Config(total_steps=5, device="cuda"))
    assert RunFolder.open(run).load_checkpoint() == {"step": 1}
    run.save_config(Config(gamma=0.5))
    with pytest.raises(RunError, match="written with another configuration"):
        RunFolder.open(run).load_checkpoint()


@pytest.mark.parametrize(
    ("line", "told"),
    [("gamma = 0.5", "gamma is 0.5 and was 0.99"), ("", "gamma is 'absent' and was 0.99"),
     ("gamma = 0.99\nnew = 1", "new is 1 and was 'absent'")],
)  # fmt: skip
def test_edits_of_the_configuration_are_named(run, line, told):
    run.config_path.write_text(run.config_path.read_text().replace("gamma = 0.99", line))
    with pytest.raises(RunError, match=told) as caught:
        run.load_config(Config)
    assert "--total-steps" in str(caught.value)
    assert run.config_to_use(Config, trusted=True).gamma == (0.5 if "0.5" in line else 0.99) if "new" not in line else 1


def test_the_configuration_is_also_in_the_record(run):
    run.config_path.unlink()
    assert run.load_config(Config) == Config()


def test_a_kill_between_two_writes_of_the_configuration_is_no_edit(run):
    old = run.config_path.read_bytes()
    run.save_config(Config(total_steps=5))
    run.config_path.write_bytes(old)
    assert RunFolder.open(run).load_config(Config).total_steps == 5


def test_a_missing_checkpoint_is_not_started_over(run):
    assert run.load_checkpoint() is None
    run.save_checkpoint({"step": 1})
    run.checkpoint_path.unlink()
    with pytest.raises(RunError, match="is missing, although the run had one"):
        RunFolder.open(run).load_checkpoint()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"null", b'{"format": 2}', b'{"format": 2, "sha256": null}'])
def test_a_record_that_cannot_be_read_is_a_sentence(run, content):
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        RunFolder.open(run)


@pytest.mark.parametrize("name", ["id", "seeds", "config", "algorithm", "saved", "execution", "versions", "platform"])
@pytest.mark.parametrize("change", ["missing", "null"])
def test_keys_of_the_record_that_are_missing_or_null_are_a_sentence(run, name, change):
    record = json.loads((run.path / "run.json").read_text())
    record.pop(name) if change == "missing" else record.update({name: None})
    (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="damaged"):
        RunFolder.open(run)


def test_what_a_kill_leaves_while_a_folder_is_made_is_no_obstacle(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.0badf00d.tmp").write_text("{")
    (tmp_path / "run" / ".lock").touch()
    assert create(tmp_path / "run").status == "running"


# Tables


def log(folder, steps, **more):
    with MetricsLog(folder, columns=["x"], tensorboard=False, **more) as table:
        for step in steps:
            table.write([{"step": step, "iteration": step, "seed": 0, "x": 0.5}])
        return table.mark


def test_a_resumed_table_goes_on_with_the_very_bytes_of_the_checkpoint(run):
    mark = log(run, [1, 2])
    run.save_checkpoint({"step": 2}, {METRICS: mark})
    log(run, [3], resume_step=2, mark=mark)
    assert run.load_checkpoint() == {"step": 2}
    run.require_tables()
    log(run, [], resume_step=2, mark=run.marks[METRICS])
    assert run.metrics_path.read_text().splitlines()[1:] == ["1,1,0,0.5", "2,2,0,0.5"]


@pytest.mark.parametrize(
    ("change", "told"),
    [(lambda text: text[:-20], "rows are missing"), (lambda text: text.replace("0.5", "0.6", 1), "was changed"),
     (lambda text: text.replace("1,1,0", "1,x,0", 1), "was changed"), (None, "rows are missing")],
)  # fmt: skip
def test_lost_and_changed_rows_are_told(run, change, told):
    run.save_checkpoint({"step": 3}, {METRICS: log(run, [1, 2, 3])})
    if change is None:
        run.metrics_path.unlink()
    else:
        run.metrics_path.write_text(change(run.metrics_path.read_text()))
    again = RunFolder.open(run)
    again.load_checkpoint()
    with pytest.raises(RunError, match=told):
        again.require_tables()
    with pytest.raises(RunError, match=told):
        again.require_metrics()
    again.require_tables(allow_inexact=True)


def test_one_damaged_row_does_not_take_the_others_along(run):
    log(run, [1, 2, 3])
    run.metrics_path.write_text(run.metrics_path.read_text().replace("2,2,0", "2;2", 1))
    log(run, [], resume_step=3)
    assert [line[0] for line in run.metrics_path.read_text().splitlines()[1:]] == ["1", "3"]


def test_samples_go_on_by_their_mark(run):
    table = GrowingTable(run.samples_path, resume_step=None)
    table.write(1, [{"prompt": "a\rb", "score": 1.0}])
    mark, before = table.mark, run.samples_path.read_bytes()
    table.write(2, [{"prompt": "x" * 200_000, "score": 1.0}])
    table.close()
    GrowingTable(run.samples_path, resume_step=1, mark=mark).close()
    assert run.samples_path.read_bytes() == before


# Code


def strangers(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))


@pytest.mark.parametrize(
    ("config", "told"),
    [(Config(env="evil.sub:Id-v0"), "imports evil.sub"), (Config(env="..x:Y"), "imports ..x"),
     (Config(reward="evil.py:score"), "runs evil.py")],
)  # fmt: skip
def test_the_code_of_a_strangers_run_is_named_and_does_not_run(tmp_path, monkeypatch, config, told):
    run = create(tmp_path / "run", config)
    run.require_trust()  # its user's own
    strangers(tmp_path, monkeypatch)
    with pytest.raises(RunError, match=told) as caught:
        run.require_trust()
    assert "--trust" in str(caught.value)
    run.require_trust(trusted=True)
    assert not (tmp_path / "another user").exists()  # who only reads makes no key


def test_registered_environments_and_reward_models_are_no_code(tmp_path):
    (tmp_path / "judge").mkdir()
    assert trust.code_in({"env": "CartPole-v1", "reward": str(tmp_path / "judge")}) == {}


def test_a_reward_file_that_changed_needs_a_word(tmp_path):
    file = tmp_path / "reward.py"
    file.write_text("score = len")
    run = create(tmp_path / "run", Config(reward=f"{file}:score"))
    run.require_trust()
    file.write_text("import os")
    with pytest.raises(RunError, match="the code has changed since"):
        run.require_trust()


def test_an_edited_configuration_is_no_way_around_the_signature(run):
    run.config_path.write_text(run.config_path.read_text().replace("CartPole-v1", "evil:CartPole-v1"))
    with pytest.raises(RunError, match="imports evil"):
        run.config_to_use(Config)


def test_the_key_is_the_users_alone_and_a_home_without_place_is_no_obstacle(tmp_path, monkeypatch):
    create(tmp_path / "run", Config(env="mine:Id-v0")).require_trust()
    assert (tmp_path / "state" / "telescope" / "key").stat().st_mode & 0o77 == 0
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    run = create(tmp_path / "unsigned", Config(env="mine:Id-v0"))
    with pytest.raises(RunError, match="--trust"):
        run.require_trust()


# Places


def test_links_are_not_written_through(run, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("my only copy")
    for name in (".lock", "metrics.csv", "samples.csv", "checkpoint.safetensors", "config.toml"):
        (run.path / name).unlink(missing_ok=True)
        (run.path / name).symlink_to(victim)
    with run.lock():
        log(run, [1])
        table = GrowingTable(run.samples_path, resume_step=None)
        table.write(1, [{"prompt": "a"}])
        table.close()
        run.save_config(Config())
        run.save_checkpoint({"step": 1})
    assert victim.read_text() == "my only copy"
    assert not any(path.is_symlink() for path in run.path.iterdir())


def test_a_linked_model_is_replaced_and_the_run_can_be_resumed_after_that(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights").write_text("old")
    run.model_path.symlink_to(tmp_path / "elsewhere")
    run.save_model(lambda new: (new / "weights").write_text("new"))
    assert (run.require_model() / "weights").read_text() == "new"
    assert (tmp_path / "elsewhere" / "weights").read_text() == "old"
    with run.lock():
        assert not list(run.path.glob(".*.tmp"))


def test_events_are_not_written_to_where_a_link_leads(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    run.tensorboard_path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="it is a link"):
        MetricsLog(run, columns=["x"])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_fails_half_way_leaves_the_old_one(run):
    run.save_model(lambda new: (new / "weights").write_text("old"))

    def fail(new):
        (new / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="the disk is full"):
        replace_folder(run.model_path, fail)
    assert (run.require_model() / "weights").read_text() == "old"
    assert not list(run.path.glob(".*.tmp"))


def test_a_changed_model_is_named(run):
    run.save_model(lambda new: (new / "weights").write_text("mine"))
    (run.model_path / "weights").write_text("mind")
    with pytest.raises(RunError, match="weights is missing, or is not what the run wrote"):
        run.require_model()


def test_the_lock_does_not_hang_on_a_file(run):
    with run.lock():
        (run.path / ".lock").unlink()
        with pytest.raises(RunError, match="is being written by another process"), RunFolder.open(run.path).lock():
            pass


def test_a_folder_that_is_moved_while_its_run_goes_on_keeps_its_run(run, tmp_path):
    with run.lock():
        run.path.rename(tmp_path / "moved")
        create(tmp_path / "run")  # somebody else's, at the old place
        run.save_checkpoint({"step": 7})
        assert run.path == tmp_path / "moved"
        assert RunFolder.open(tmp_path / "moved").load_checkpoint() == {"step": 7}
        assert RunFolder.open(tmp_path / "run").load_checkpoint() is None
    run.set_status("finished")
    assert RunFolder.open(tmp_path / "moved").status == "finished"


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "run.json", "config.toml", "metrics.csv"])
def test_a_pipe_in_the_place_of_a_file_is_a_sentence_not_a_wait(run, name):
    run.save_checkpoint({"step": 1}, {METRICS: log(run, [1])})
    (run.path / name).unlink()
    os.mkfifo(run.path / name)
    with pytest.raises(RunError, match="is not an ordinary file"):
        read_all(run.path)


def read_all(path):
    again = RunFolder.open(path)
    again.load_config(Config)
    again.load_checkpoint()
    again.require_tables()


def test_paths_in_errors_are_those_of_the_user(run):
    with run.lock():
        Path(run.path / "checkpoint.safetensors").mkdir()
        with pytest.raises(RunError) as caught:
            run.save_checkpoint({"step": 1})
    assert str(run.path) in str(caught.value)
    assert "/proc/" not in str(caught.value)
