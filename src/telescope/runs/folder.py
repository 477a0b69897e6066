"""The run folder: a run's config, versions, metrics, checkpoints and curves; one writer at a time.

Leaves out the formats (`checkpoint.py`, `config.py`, `log.py`, `curves.py`) and when anything is written (the
caller).

    run.json config.toml metrics.csv checkpoint.safetensors best.safetensors curves.png tensorboard/ .lock
    of a language model: model/ samples.csv health.csv
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from telescope import __version__
from telescope.runs import checkpoint
from telescope.runs.config import read_config, read_toml, write_config
from telescope.runs.files import RunError, explained, join, remove_leftovers, write_atomic
from telescope.runs.lock import LOCK, locked
from telescope.runs.log import METRICS, TENSORBOARD

FORMAT = 1
PACKAGES = ("numpy", "numba", "torch", "gymnasium", "mujoco", "envpool", "transformers", "tokenizers", "peft")

Status = Literal["running", "finished", "stopped"]


class RunFolder:
    """A folder that holds one run; made by `create` or `open`. Usable wherever a path is."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self._record = record

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: Any,
        *,
        algorithm: str,
        execution: Mapping[str, Any],
        command: list[str],
    ) -> RunFolder:
        """Make a new run folder (and its parents) and write config.toml and run.json.

        config: the algorithm's dataclass. execution: what decides the last bits of a run besides its config
        (compile mode, threads, device, backend), kept for `check_execution`. command: the command line that
        started the run.

        RunError if the folder exists and is not empty, or the disk refuses.
        """
        path = Path(path)
        _refuse_used(path)
        with explained("create the run folder", path):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            _refuse_used(path)  # by another process, since the look above
            folder = cls(path, _new_record(config, algorithm, execution, command))
            try:
                folder.save_config(config)
                folder._write_record()
            except BaseException:  # what is half made would only stand in the way of the next try
                for half in (folder.config_path, path / "run.json"):
                    half.unlink(missing_ok=True)
                raise
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open an existing run folder; RunError if it is none, or one of another format version."""
        path = Path(path)
        if not (path / "run.json").is_file():
            what = "has no run.json, so it is not a run folder" if path.is_dir() else "is not a folder"
            raise RunError(f"{path} {what}; name the folder that was given to `telescope train --out`")
        with explained("read", path / "run.json"):
            data = (path / "run.json").read_bytes()
        try:
            record = json.loads(data)
            version = record["format"]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path / 'run.json'} is damaged, or was not written by telescope") from error
        if version != FORMAT:
            raise RunError(f"{path} is a run folder of format {version}, but this version of telescope reads {FORMAT}")
        return cls(path, record)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

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
        self._record |= {
            "execution": _as_json(execution),
            "versions": installed_versions(),
            "platform": _platform(),
        }
        self._write_record()

    def check_execution(self, current: Mapping[str, Any], *, allow_inexact: bool) -> list[str]:
        """Compare how the run was executed with how it would be now; return the differences as words.

        current: as `execution` of `create`. Compared with it are the stored execution, the package versions
        and the processor: each may change the last bits of a float. RunError listing every difference, unless
        allow_inexact.
        """
        then = self._record["execution"] | self.versions | {"processor": self._record["platform"]["processor"]}
        now = _as_json(current) | installed_versions() | {"processor": _platform()["processor"]}
        differences = [
            f"{name} was {then.get(name, 'absent')} and is {now.get(name, 'absent')}"
            for name in sorted(then | now)
            if then.get(name) != now.get(name)
        ]
        if differences and not allow_inexact:
            raise RunError(
                f"{self.path} would not continue bit for bit: {join(differences)}; `--allow-inexact` continues anyway"
            )
        return differences

    # Config and checkpoints.

    def config_mapping(self) -> dict[str, Any]:
        """config.toml as a plain dict."""
        return read_toml(self.config_path)

    def load_config(self, cls: type[Any]) -> Any:
        """config.toml as the dataclass `cls`."""
        return read_config(self.config_path, cls)

    def save_config(self, config: Any) -> None:
        """Replace config.toml, as for a run that is resumed with another number of steps."""
        write_config(self.config_path, config)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint that the run resumes from; call `MetricsLog.sync` first."""
        checkpoint.save(self.checkpoint_path, state, kind=f"{self.algorithm} checkpoint")

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state to resume from, or None if there is none yet; RunError if it cannot be trusted."""
        return self._load(self.checkpoint_path, "checkpoint")

    def save_best(self, state: dict[str, Any] | None) -> None:
        """Replace the state that evaluated best; None removes it."""
        if state is None:
            self.best_path.unlink(missing_ok=True)
            return
        checkpoint.save(self.best_path, state, kind=f"{self.algorithm} best")

    def load_best(self) -> dict[str, Any] | None:
        """The state that evaluated best, or None if none was saved; RunError if it cannot be trusted."""
        return self._load(self.best_path, "best")

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Be the only writer for the block; RunError naming the process that is, if there is one already.

        The lock is the operating system's: it ends with the process, however that ends. What a killed writer
        left half written is removed.
        """
        return _locked_and_swept(self.path)

    # Where things are.

    @property
    def config_path(self) -> Path:
        """config.toml."""
        return self.path / "config.toml"

    @property
    def checkpoint_path(self) -> Path:
        """checkpoint.safetensors, the state to resume from."""
        return self.path / "checkpoint.safetensors"

    @property
    def best_path(self) -> Path:
        """best.safetensors, the state that evaluated best."""
        return self.path / "best.safetensors"

    @property
    def metrics_path(self) -> Path:
        """metrics.csv, one row per iteration and seed."""
        return self.path / METRICS

    @property
    def samples_path(self) -> Path:
        """samples.csv, some completions of a language model with their scores."""
        return self.path / "samples.csv"

    @property
    def health_path(self) -> Path:
        """health.csv, what looked wrong in the training of a language model."""
        return self.path / "health.csv"

    @property
    def model_path(self) -> Path:
        """The folder of a language model as `from_pretrained` loads it."""
        return self.path / "model"

    @property
    def curves_path(self) -> Path:
        """curves.png, the learning curve."""
        return self.path / "curves.png"

    @property
    def tensorboard_path(self) -> Path:
        """The folder of TensorBoard event files."""
        return self.path / TENSORBOARD

    def _load(self, path: Path, kind: str) -> dict[str, Any] | None:
        return checkpoint.load(path, kind=f"{self.algorithm} {kind}") if path.exists() else None

    def _write_record(self) -> None:
        write_atomic(self.path / "run.json", (json.dumps(self._record, indent=2) + "\n").encode())


def installed_versions() -> dict[str, str]:
    """Versions of telescope, Python and those `PACKAGES` that are installed, read without importing them."""
    versions = {"telescope": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


@contextlib.contextmanager
def _locked_and_swept(path: Path) -> Iterator[None]:
    with locked(path):
        remove_leftovers(path)
        yield


def _refuse_used(path: Path) -> None:
    """RunError unless nothing is there, or a folder that is empty but for a lock file."""
    if not os.path.lexists(path):
        return
    with explained("look into", path):
        used = any(name != LOCK for name in os.listdir(path))
    if (path / "run.json").exists():
        raise RunError(
            f"{path} already holds a run; resume it with `telescope train --resume {shlex.quote(str(path))}` "
            "or choose another --out"
        )
    if used:
        raise RunError(f"{path} exists and is not empty; choose another --out")


def _new_record(config: Any, algorithm: str, execution: Mapping[str, Any], command: list[str]) -> dict[str, Any]:
    first_seed, seeds = getattr(config, "seed", 0), getattr(config, "seeds", 1)
    return {
        "format": FORMAT,
        "algorithm": algorithm,
        "status": "running",
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": list(command),
        "seeds": list(range(first_seed, first_seed + seeds)),
        "execution": _as_json(execution),
        "versions": installed_versions(),
        "platform": _platform(),
    }


def _as_json(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as it is after a trip through a file, so that a tuple equals the list it became."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(mapping)))
    return plain


def _platform() -> dict[str, Any]:
    """System, processor model and number of cores."""
    return {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
