"""The run folder: a run's config, versions, metrics, checkpoints and curves; one writer at a time.

Leaves out where each file lies (`layout.py`), the formats (`formats/`), what makes a folder doubtful (`identity/`), and
when anything is written (the caller).
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from telescope.runs.files import RunError, explained, held, join, remove, remove_leftovers, replace_folder, shown
from telescope.runs.formats import checkpoint
from telescope.runs.formats.config import from_mapping, to_mapping, write_config, write_mapping
from telescope.runs.formats.log import METRICS
from telescope.runs.identity import record, seal, verify
from telescope.runs.layout import CHECKPOINT, Layout
from telescope.runs.lock import LOCK, locked

Status = Literal["running", "finished", "stopped"]


class RunFolder(Layout):
    """A folder that holds one run; made by `create` or `open`. Usable wherever a path is."""

    def __init__(self, path: Path, known: dict[str, Any]) -> None:
        self._path = path
        self._record = known
        self._descriptor: int | None = None  # of the folder itself, while it is locked
        self.marks: dict[str, Any] = {}
        """What the checkpoint that was loaded remembers of the tables beside it: name → size and SHA-256."""

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: Any,
        *,
        algorithm: str,
        execution: Mapping[str, Any],
        command: list[str],
        inputs: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """Make a new run folder (and its parents) and write config.toml and run.json.

        config: the algorithm's dataclass. execution: what decides the last bits of a run besides its config
        (compile mode, threads, device, backend), kept for `check_execution`. command: the command line that
        started the run. inputs: fields of the configuration that name files, each with their SHA-256.

        RunError if the folder exists and is not empty, or the disk refuses.
        """
        path = Path(path)
        verify.unused(path)
        with explained("create the run folder", path):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            verify.unused(path)  # by another process, since the look above
            remove_leftovers(path)
            folder = cls(path, record.new(to_mapping(config), algorithm, execution, command))
            folder._record["inputs"] = dict(inputs or {})
            try:
                folder._write_record()  # first: from this file alone the run can be begun
                write_config(folder.config_path, config)
            except BaseException:  # what is half made would only stand in the way of the next try
                for half in (folder.config_path, path / record.NAME):
                    half.unlink(missing_ok=True)
                raise
        return folder

    def discard(self) -> None:
        """Remove a folder in which nothing has been trained: what `create` made, and no more."""
        if not self.metrics_path.exists():
            for made in (self.config_path, self.path / record.NAME, self.path / LOCK):
                made.unlink(missing_ok=True)
            remove_leftovers(self.path)
            with contextlib.suppress(OSError):  # somebody else's file is in it
                remove(self.tensorboard_path)  # opened before metrics.csv, whose first write may have failed
                self.path.rmdir()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open an existing run folder; RunError if it is none, or one of another format version."""
        path = Path(path)
        if not os.path.lexists(path / record.NAME):
            what = "has no run.json, so it is not a run folder" if path.is_dir() else "is not a folder"
            raise RunError(f"{path} {what}; name the folder that was given to `telescope train --out`")
        return cls(path, record.read_record(path / record.NAME))

    @property
    def path(self) -> Path:
        """Where the folder is; while it is locked also after it was moved."""
        if self._descriptor is None:
            return self._path
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                return self._path
        return Path(shown(held(self._descriptor, self._path)))

    @property
    def place(self) -> Path:
        """What its files are reached by: while it is locked the folder that was locked, whatever is at its path now."""
        return self._path if self._descriptor is None else held(self._descriptor, self._path)

    def __fspath__(self) -> str:
        return os.fspath(self.place)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r}, algorithm={self.algorithm!r}, status={self.status!r})"

    # What run.json says.

    @property
    def algorithm(self) -> str:
        """The name of the algorithm, such as `ppo`."""
        return str(self._record["algorithm"])

    @property
    def method(self) -> str:
        """The algorithm as its user calls it: `gspo` is a row of what `grpo` trains, and `ppo` has two loops."""
        usual = {"rlhf": "ppo"}.get(self.algorithm, self.algorithm)
        return str(self.config_mapping().get("objective", usual))

    @property
    def id(self) -> str:
        """A random name that its checkpoints bear too."""
        return str(self._record["id"])

    @property
    def execution(self) -> dict[str, Any]:
        """What was decided once for the whole run: compile mode, threads, device, backend."""
        return dict(self._record["execution"])

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and the packages that a run's bits depend on, as they were at its creation."""
        return dict(self._record["versions"])

    @property
    def seeds(self) -> list[int]:
        """The seeds of the run's agents."""
        return list(self._record["seeds"])

    @property
    def status(self) -> Status:
        """`running` (or killed), `stopped` (by a signal or an error), or `finished`."""
        status: Status = self._record["status"]
        return status

    def set_status(self, status: Status) -> None:
        """Record in run.json how the run stands."""
        self._record["status"] = status
        self._write_record()

    def set_execution(self, execution: Mapping[str, Any]) -> None:
        """Record that the run begins (again) here and now: execution, versions and machine are this process's."""
        self._record |= {"execution": record.as_json(execution), **record.here()}
        self._write_record()

    def check_execution(self, current: Mapping[str, Any], *, allow_inexact: bool) -> list[str]:
        """Compare how the run was executed with how it would be now; return the differences as words.

        current: as `execution` of `create`. Compared with it are the stored execution, the package versions
        and the processor: each may change the last bits of a float. RunError listing every difference, unless
        allow_inexact.
        """
        differences = verify.executed_otherwise(self._record, current)
        if differences and not allow_inexact:
            raise RunError(
                f"{self.path} would not continue bit for bit: {join(differences)}; `--allow-inexact` continues anyway"
            )
        return differences

    def changed_inputs(self, current: Mapping[str, str]) -> list[str]:
        """What the run was made from and is something else by now, in words. current: as `inputs` of `create`."""
        return verify.made_otherwise(self._record, current)

    def check_inputs(self, current: Mapping[str, str], *, allow_inexact: bool) -> None:
        """RunError naming what the run was made from and has changed since, unless allow_inexact: it is kept then."""
        if not (differences := self.changed_inputs(current)):
            return
        if not allow_inexact:
            raise RunError(
                f"{self.path} would not continue as the run that it was: {join(differences)} since it began; bring it "
                "back, or `--allow-inexact` continues with what is there now"
            )
        self._record["inputs"] = dict(current)
        self._write_record()

    # Config and checkpoints.

    def config_mapping(self) -> dict[str, Any]:
        """The configuration as a plain dict, as run.json has it; config.toml is a copy for the reader."""
        return dict(self._record["config"])

    def require_unedited(self, *but: str) -> None:
        """RunError naming every change of config.toml, but of these fields: a run goes on as it began."""
        verify.unedited(self.config_path, self._record, but)

    def require_trust(self, trusted: bool = False) -> None:
        """RunError naming the code that the configuration names, unless the user began this run, or says trusted."""
        verify.trusted(self.path, verify.on_disk(self.config_path, self._record), self._record, trusted)

    def config_to_use(self, cls: type[Any], *, trusted: bool = False, runs_code: bool = True) -> Any:
        """The configuration for reading only: on whatever device, and as it was edited where the user trusts that.

        runs_code: whether the caller goes on to run what it names without asking `require_trust` again.
        """
        if not trusted:
            try:
                self.require_unedited("device")
            except RunError:
                self.require_trust()  # the graver of two faults
                raise
        if runs_code:
            self.require_trust(trusted)
        settings, source = verify.on_disk(self.config_path, self._record), str(self.path / "config.toml")
        return from_mapping(cls, settings, source=source, told=True)

    def load_config(self, cls: type[Any], *but: str) -> Any:
        """The configuration as the dataclass `cls`; RunError where config.toml says something else, but of fields."""
        self.require_unedited(*but)
        return from_mapping(cls, self.config_mapping(), source=str(self.path / record.NAME), told=True)

    def save_config(self, config: Any) -> None:
        """Replace the configuration, as for a run that is resumed with another number of steps.

        A run that began with other fields, or other names for them, keeps those: its checkpoint is tied to them.
        """
        mapping, known = to_mapping(config), self._record["config"]
        if mapping.keys() != known.keys():
            mapping = known | {name: mapping[name] for name in mapping.keys() & record.MAY_CHANGE}
        if mapping != known:
            self._record |= {"config": mapping, "before": known}
            self._write_record()
        write_mapping(self.config_path, mapping)

    def save_checkpoint(self, state: dict[str, Any], marks: Mapping[str, Any] | None = None) -> None:
        """Replace the checkpoint that the run resumes from; call `MetricsLog.sync` first.

        marks: of the tables, by their file's name, so that a resumed run finds them as they are now.
        """
        about = {"run": self.id, "config": record.fingerprint(self._record["config"]), "tables": dict(marks or {})}
        checkpoint.save(self.checkpoint_path, state, kind=f"{self.algorithm} checkpoint", about=about)
        self._record |= {"saved": True, "tables": about["tables"]}
        self._write_record()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to resume from, or None if there is none yet.

        RunError if it cannot be trusted, is missing although the run had one, or belongs to another run.
        """
        if not os.path.lexists(self.checkpoint_path):
            if self._record.get("saved"):
                raise RunError(
                    f"{self.path / CHECKPOINT} is missing, although the run had one; bring it back, or begin the run "
                    f"anew elsewhere: `telescope train {self._command()} --config {shlex.quote(str(self.path))}"
                    "/config.toml --out FOLDER`"
                )
            return None
        state, about = self._load(self.checkpoint_path, "checkpoint")
        if about.get("config") != record.fingerprint(self._record["config"]):
            raise RunError(f"{self.path / CHECKPOINT} was written with another configuration than {record.NAME} has")
        self.marks = about.get("tables", {})
        return state

    def save_best(self, state: dict[str, Any] | None) -> None:
        """Replace the state that evaluated best; None removes it."""
        if state is None:
            self.best_path.unlink(missing_ok=True)
            return
        checkpoint.save(self.best_path, state, kind=f"{self.algorithm} best", about={"run": self.id})

    def load_best(self) -> dict[str, Any] | None:
        """The state that evaluated best, or None if none was saved; RunError if it cannot be trusted."""
        return self._load(self.best_path, "best")[0] if os.path.lexists(self.best_path) else None

    def save_model(self, write: Callable[[Path], None]) -> None:
        """Have `write` fill the folder of the language model anew, and seal it."""
        self._save_folder(self.model_path, write)

    def save_adapter(self, write: Callable[[Path], None]) -> None:
        """The same with the folder of its adapter."""
        self._save_folder(self.adapter_path, write)

    def _save_folder(self, path: Path, write: Callable[[Path], None]) -> None:
        def sealed(new: Path) -> None:
            write(new)
            seal.close(new, self.id)

        replace_folder(path, sealed)

    def require_model(self) -> Path:
        """The folder of the language model; RunError if there is none yet, or its files are not those of this run."""
        if not self.model_path.is_dir():
            raise RunError(f"{self.path} has no model yet; `telescope train --resume` continues the run")
        seal.check(self.model_path, self.id)
        return self.model_path

    def require_tables(self, *, allow_inexact: bool = False) -> None:
        """RunError if a table is shorter than the checkpoint that was loaded, or was changed before its step."""
        for name, mark in self.marks.items():
            complaint = verify.table(self.place / name, mark)
            if complaint and not allow_inexact:
                raise RunError(f"{complaint}; `--allow-inexact` continues with the rows that can be read")

    def require_metrics(self) -> None:
        """RunError if metrics.csv is not what it was at the latest checkpoint, with rows behind it perhaps."""
        mark = self._record.get("tables", {}).get(METRICS)
        if mark and (complaint := verify.table(self.metrics_path, mark)):
            raise RunError(complaint)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Be the only writer for the block; RunError naming the process that is, if there is one already.

        The lock is the operating system's: it ends with the process, however that ends. What a killed writer
        left half written is removed.
        """
        return self._locked_and_swept()

    @contextlib.contextmanager
    def _locked_and_swept(self) -> Iterator[None]:
        with locked(self._path) as descriptor:
            self._descriptor = descriptor
            try:
                remove_leftovers(self.place)
                yield
            finally:
                self._path, self._descriptor = self.path, None

    def _load(self, path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
        state, about = checkpoint.load_about(path, kind=f"{self.algorithm} {kind}")
        if about.get("run") != self.id:
            raise RunError(f"{self.path / path.name} belongs to another run; nothing of it was loaded")
        return state, about

    @property
    def command(self) -> list[str]:
        """The command line that began the run."""
        return list(self._record["command"])

    def _command(self) -> str:
        return shlex.quote("ppo" if self.algorithm == "rlhf" else self.method)

    def _write_record(self) -> None:
        record.write(self.place / record.NAME, self._record)
