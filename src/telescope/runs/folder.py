"""The run folder: a run's config, versions, metrics, checkpoints and curves; one writer at a time.

Leaves out the paths of files (`layout.py`), the formats (`formats/`), checks of identity (`identity/`), and when to
write (the caller).
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from telescope.runs.chunks import with_chunks
from telescope.runs.files import RunError, explained, held, join, remove, remove_leftovers, replace_folder, shown
from telescope.runs.formats import checkpoint
from telescope.runs.formats.config import from_mapping, to_mapping, write_config, write_mapping
from telescope.runs.formats.log import METRICS
from telescope.runs.identity import record, seal, verify
from telescope.runs.layout import CHECKPOINT, REPLAY, Layout
from telescope.runs.lock import LOCK, locked

Status = Literal["running", "finished", "stopped"]


class RunFolder(Layout):
    """A folder that holds one run, made by `create` or `open`. It can be used as a path."""

    def __init__(self, path: Path, known: dict[str, Any]) -> None:
        self._path = path
        self._record = known
        self._descriptor: int | None = None  # of the folder itself, while it is locked
        self.marks: dict[str, Any] = {}
        """The marks of tables in the loaded checkpoint: name → size and SHA-256."""

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
        log: Sequence[str] = ("tensorboard",),
        spaces: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """Make a new run folder (and its parents) and write config.toml and run.json.

        config: the algorithm's dataclass. execution: settings besides the config that affect the last bits of a run
        (compile mode, threads, device, backend); `check_execution` compares them. command: the command line that
        started the run. inputs: fields of the configuration that name files, each with its SHA-256. log: where metrics
        go besides metrics.csv, also when the run is resumed. spaces: what agents see and do, as plain data.

        A RunError if the folder exists and is not empty, or cannot be written.
        """
        path = Path(path)
        verify.unused(path)
        with explained("create the run folder", path):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            verify.unused(path)  # again: another process may have created it since
            remove_leftovers(path)
            folder = cls(path, record.new(to_mapping(config), algorithm, execution, command))
            folder._record["inputs"] = dict(inputs or {})
            folder._record |= {"log": list(log), "spaces": None if spaces is None else record.as_json(spaces)}
            try:
                folder._write_record()  # first: a run can begin from this file alone
                write_config(folder.config_path, config)
            except BaseException:  # a half-made folder would block the next try
                for half in (folder.config_path, path / record.NAME):
                    half.unlink(missing_ok=True)
                raise
        return folder

    def discard(self) -> None:
        """Remove a folder without any training: only the files that `create` made."""
        if not self.metrics_path.exists():
            for made in (self.config_path, self.path / record.NAME, self.path / LOCK):
                made.unlink(missing_ok=True)
            remove_leftovers(self.path)
            with contextlib.suppress(OSError):  # somebody else's file is in it
                remove(self.tensorboard_path)  # opened before metrics.csv, whose first write may fail
                self.path.rmdir()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open an existing run folder. A RunError if it is not one, or has another format version."""
        path = Path(path)
        if not os.path.lexists(path / record.NAME):
            what = "has no run.json, so it is not a run folder" if path.is_dir() else "is not a folder"
            raise RunError(f"{path} {what}; name the folder that was given to `telescope train --out`")
        return cls(path, record.read_record(path / record.NAME))

    @property
    def path(self) -> Path:
        """The path of the folder. While it is locked, also after it was moved."""
        if self._descriptor is None:
            return self._path
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                return self._path
        return Path(shown(held(self._descriptor, self._path)))

    @property
    def place(self) -> Path:
        """The folder to access files in. While it is locked, the locked folder, even if its path now names another."""
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
        """The name that a user types: `gspo` for a row of `grpo`, `ppo` for `rlhf`."""
        usual = {"rlhf": "ppo"}.get(self.algorithm, self.algorithm)
        return str(self.config_mapping().get("objective", usual))

    @property
    def id(self) -> str:
        """A random name, which its checkpoints contain too."""
        return str(self._record["id"])

    @property
    def log(self) -> tuple[str, ...]:
        """Where metrics go besides metrics.csv; runs from before this setting have TensorBoard."""
        return tuple(self._record.get("log", ("tensorboard",)))

    @property
    def spaces(self) -> dict[str, Any] | None:
        """The observation and the action space of agents, as plain data; None in a run from before this entry."""
        return self._record.get("spaces")

    @property
    def execution(self) -> dict[str, Any]:
        """The settings that were decided once for the whole run: compile mode, threads, device, backend."""
        return dict(self._record["execution"])

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of packages that affect a run's bits, at its creation."""
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
        """Write the status of the run to run.json."""
        self._record["status"] = status
        self._write_record()

    def set_execution(self, execution: Mapping[str, Any]) -> None:
        """Write this process's execution, versions and machine to run.json, when the run begins or continues."""
        self._record |= {"execution": record.as_json(execution), **record.here()}
        self._write_record()

    def check_execution(self, current: Mapping[str, Any], *, allow_inexact: bool) -> list[str]:
        """Compare the stored execution, package versions and processor with the current ones; return the differences.

        Each of them may change the last bits of a float. current: as `execution` of `create`. A RunError that lists the
        differences, unless allow_inexact.
        """
        differences = verify.executed_otherwise(self._record, current)
        if differences and not allow_inexact:
            raise RunError(
                f"{self.path} would not continue bit for bit: {join(differences)}; `--allow-inexact` continues anyway"
            )
        return differences

    def changed_inputs(self, current: Mapping[str, str]) -> list[str]:
        """Sentences about inputs of the run that have changed. current: as `inputs` of `create`."""
        return verify.made_otherwise(self._record, current)

    def check_inputs(self, current: Mapping[str, str], *, allow_inexact: bool) -> None:
        """Raise a RunError that names changed inputs; with allow_inexact, accept them instead."""
        if not (differences := self.changed_inputs(current)):
            return
        if not allow_inexact:
            raise RunError(
                f"{self.path} would not continue as the same run: {join(differences)} since it began; restore it, or "
                "`--allow-inexact` continues with the current files"
            )
        self._record["inputs"] = dict(current)
        self._write_record()

    # Config and checkpoints.

    def config_mapping(self) -> dict[str, Any]:
        """The configuration as a plain dict, from run.json. config.toml is a copy for readers."""
        return dict(self._record["config"])

    def require_unedited(self, *but: str) -> None:
        """Raise a RunError that names every change in config.toml, except in these fields: a run keeps its settings."""
        verify.unedited(self.config_path, self._record, but)

    def require_trust(self, trusted: bool = False) -> None:
        """Raise a RunError that names the configuration's code, unless the user began this run or passes trusted."""
        verify.trusted(self.path, verify.on_disk(self.config_path, self._record), self._record, trusted)

    def config_to_use(self, cls: type[Any], *, trusted: bool = False, runs_code: bool = True) -> Any:
        """The configuration for evaluation: any device is accepted, and edits too if the user trusts them.

        runs_code: whether the caller will run its code without calling `require_trust` again.
        """
        if not trusted:
            try:
                self.require_unedited("device")
            except RunError:
                self.require_trust()  # the more serious of two problems
                raise
        if runs_code:
            self.require_trust(trusted)
        settings, source = verify.on_disk(self.config_path, self._record), str(self.path / "config.toml")
        return from_mapping(cls, settings, source=source, told=True)

    def load_config(self, cls: type[Any], *but: str) -> Any:
        """The configuration as the dataclass `cls`. A RunError if config.toml differs, except in `fields`."""
        self.require_unedited(*but)
        return from_mapping(cls, self.config_mapping(), source=str(self.path / record.NAME), told=True)

    def save_config(self, config: Any) -> None:
        """Replace the configuration, for example when a run is resumed with another number of steps.

        A run that began with other fields, or other names for them, keeps them, because its checkpoint depends on them.
        """
        mapping, known = to_mapping(config), self._record["config"]
        if mapping.keys() != known.keys():
            mapping = known | {name: mapping[name] for name in mapping.keys() & record.MAY_CHANGE}
        if mapping != known:
            self._record |= {"config": mapping, "before": known}
            self._write_record()
        write_mapping(self.config_path, mapping)

    def save_checkpoint(self, state: dict[str, Any], marks: Mapping[str, Any] | None = None) -> None:
        """Replace the checkpoint that the run resumes from. Call `MetricsLog.sync` first.

        marks: the current marks of the tables, by file name, so that a resumed run can check them.
        """
        about = {"run": self.id, "config": record.fingerprint(self._record["config"]), "tables": dict(marks or {})}
        checkpoint.save(self.checkpoint_path, state, kind=f"{self.algorithm} checkpoint", about=about)
        self._record |= {"saved": True, "tables": about["tables"]}
        self._write_record()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to resume from, or None if there is none yet.

        A RunError if it is damaged, is missing although the run had one, or belongs to another run.
        """
        if not os.path.lexists(self.checkpoint_path):
            if self._record.get("saved"):
                raise RunError(
                    f"{self.path / CHECKPOINT} is missing, although the run had one; restore it, or begin a new run "
                    f"elsewhere: `telescope train {self._command()} --config {shlex.quote(str(self.path))}"
                    "/config.toml --out FOLDER`"
                )
            return None
        state, about = self._load(self.checkpoint_path, "checkpoint")
        if about.get("config") != record.fingerprint(self._record["config"]):
            raise RunError(f"{self.path / CHECKPOINT} was written with another configuration than {record.NAME} has")
        self.marks = about.get("tables", {})
        return with_chunks(state, self.path / REPLAY, self.id)

    def save_best(self, state: dict[str, Any] | None) -> None:
        """Replace the best state. None removes it."""
        if state is None:
            self.best_path.unlink(missing_ok=True)
            return
        checkpoint.save(self.best_path, state, kind=f"{self.algorithm} best", about={"run": self.id})

    def load_best(self) -> dict[str, Any] | None:
        """The best state, or None if none was saved. A RunError if it is damaged."""
        return self._load(self.best_path, "best")[0] if os.path.lexists(self.best_path) else None

    def save_model(self, write: Callable[[Path], None]) -> None:
        """Let `write` fill a new folder of the language model, and seal it."""
        self._save_folder(self.model_path, write)

    def save_adapter(self, write: Callable[[Path], None]) -> None:
        """Let `write` fill a new folder of its adapter, and seal it."""
        self._save_folder(self.adapter_path, write)

    def save_critic(self, write: Callable[[Path], None]) -> None:
        """Let `write` fill a new folder of its critic, and seal it."""
        self._save_folder(self.critic_path, write)

    def _save_folder(self, path: Path, write: Callable[[Path], None]) -> None:
        def sealed(new: Path) -> None:
            write(new)
            seal.close(new, self.id)

        replace_folder(path, sealed)

    def require_model(self) -> Path:
        """The folder of the language model. A RunError if there is none yet, or its files do not belong to this run."""
        if not self.model_path.is_dir():
            raise RunError(f"{self.path} has no model yet; `telescope train --resume` continues the run")
        seal.check(self.model_path, self.id)
        return self.model_path

    def require_tables(self, *, allow_inexact: bool = False) -> None:
        """Raise a RunError if a table is shorter than at the loaded checkpoint, or its earlier rows were changed."""
        for name, mark in self.marks.items():
            complaint = verify.table(self.place / name, mark)
            if complaint and not allow_inexact:
                raise RunError(f"{complaint}; `--allow-inexact` continues with the rows that can be read")

    def require_metrics(self) -> None:
        """Raise a RunError if the rows of metrics.csv up to the latest checkpoint were changed."""
        mark = self._record.get("tables", {}).get(METRICS)
        if mark and (complaint := verify.table(self.metrics_path, mark)):
            raise RunError(complaint)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer during the block. A RunError that names the process if there is another writer.

        The lock belongs to the operating system and ends with the process, however that ends. Half-written files of a
        killed writer are removed.
        """
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
            raise RunError(
                f"{self.path / path.name} belongs to another run, so it was not loaded; restore this run's file"
            )
        return state, about

    @property
    def command(self) -> list[str]:
        """The command line that began the run."""
        return list(self._record["command"])

    def _command(self) -> str:
        return shlex.quote("ppo" if self.algorithm == "rlhf" else self.method)

    def _write_record(self) -> None:
        record.write(self.place / record.NAME, self._record)
