"""`telescope train`: a new run, or one that is resumed.

Leaves out the loop itself (`runner.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from telescope.algorithms import CONFIGS, LANGUAGE, PRESETS, config_class, family, find, meant, subject_field
from telescope.checks import at_least_zero, missing_device
from telescope.commands.arguments import HELP, notes, parse, under_current_names, value_of
from telescope.renamed import current
from telescope.runner import DEFAULT_LOG, begin, draw_curve, follow, follows, run, wait_asleep

DEMONSTRATED = {"bc"}
"""Algorithms whose subject on the command line is a data set."""
AGENTS = {
    *("env", "env_kwargs", "time_limit", "wrap", "frame_stack", "backend", "seeds", "seed"),
    *("hidden", "activation", "shared_network", "network_module", "critic_observations"),
    *("memory", "memory_size", "shared_memory"),
    *("log_std", "action_bounds", "normalise_observations", "clip_observations"),
}
"""Settings that describe agents and their environment, which another algorithm takes over with --start."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Output options."""

    out: str | None = None
    """New folder for the run. Default: runs/ALGORITHM-ENV-DATE-TIME."""
    config: str | None = None
    """TOML file with settings, such as another run's config.toml. Flags override it."""
    start: str | None = None
    """Run folder whose agents to start from: parameters, statistics and settings. Flags override the settings."""
    trust: bool = False
    """With --start: run the code that the run names (an environment's module), even if somebody else began the run."""
    log: tuple[str, ...] = DEFAULT_LOG
    """Where metrics go besides metrics.csv: tensorboard, wandb, mlflow, trackio, or only csv."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, at most. A killed run loses only the work since its last checkpoint."""

    def __post_init__(self) -> None:
        at_least_zero(self, "checkpoint_seconds")


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Continue a run from its last checkpoint."""

    resume: str
    """Run folder to continue."""
    total_steps: int | None = None
    """New total number of steps (per seed); learning-rate and clip schedules are recomputed for it."""
    allow_inexact: bool = False
    """Continue even if versions, machine, data, reward or model have changed, or rows of a table are missing."""
    ray_address: str | None = None
    """Continue on the Ray cluster at this address, which may be another than before."""
    device: str | None = None
    """Continue on this device: cpu, cuda, cuda:1, … The last bits may differ from then on."""
    trust: bool = False
    """Run the code that the run names (an environment's module, a reward file), even if somebody else began the run."""
    log: tuple[str, ...] = ()
    """Where metrics go besides metrics.csv: tensorboard, wandb, mlflow, trackio, or only csv. Default: as before."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, at most."""

    def __post_init__(self) -> None:
        at_least_zero(self, "checkpoint_seconds")


def train(arguments: list[str]) -> int:
    """`telescope train ALGORITHM ENV [flags]` or `telescope train --resume RUN`."""
    if any(a == "--resume" or a.startswith("--resume=") for a in arguments):
        if not arguments[0].startswith("-") and not HELP & set(arguments):
            raise ValueError(
                f"{arguments[0]!r} comes before --resume, but the run folder says what it trains; leave it out"
            )
        return resume(arguments)
    from telescope.runs.folder import RunFolder

    wait_asleep()
    begun_from = value_of("start", arguments)
    if begun_from is not None and arguments[0].startswith("-") and not HELP & set(arguments):
        arguments = [RunFolder.open(begun_from).algorithm, *arguments]
    if not arguments or arguments[0].startswith("-"):
        known = ", ".join(dict.fromkeys((*CONFIGS, *PRESETS)))
        print(f"usage: telescope train ALGORITHM ENV|TASK [flags]\n"
              "       telescope train --start RUN [flags]\n"
              "       telescope train --resume RUN [--total-steps N] [--allow-inexact]\n"
              f"ALGORITHM is one of: {known}")  # fmt: skip
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    name, rest = arguments[0], arguments[1:]
    subject = rest.pop(0) if rest and not rest[0].startswith("-") else None
    config, options = train_arguments(name, subject, rest)
    more = {} if options.start is None else {"start": options.start}
    command = ["telescope", "train", *arguments]
    return begin(config, options.out, options.checkpoint_seconds, command=command, log=options.log, **more)[1]


def train_arguments(
    name: str,
    positional: str | None,
    flags: list[str],
    options: Any = TrainOptions,
    verb: str = "train",
    usual: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Config and options. The config is the preset of the environment or task with a command's `usual` settings,
    overridden by --config FILE, overridden by flags."""
    from telescope.runs.formats.config import from_mapping, read_toml, to_mapping

    file = value_of("config", flags)
    begun_from = value_of("start", flags)
    given = positional or value_of("task", flags) or value_of("env", flags)
    language = given is not None and meant(name, given)[0] in LANGUAGE
    settings = _settings_of(begun_from, name, trusted="--trust" in flags, language=language)
    settings |= {} if file is None else read_toml(file)
    algorithm, preset = meant(name, given or settings.get("task") or settings.get("env"))
    if positional is not None and algorithm in DEMONSTRATED and value_of("data", flags) is None:
        flags, positional = ["--data", positional, *flags], None
    if algorithm in LANGUAGE:
        preset["model"] = value_of("model", flags) or settings.get("model") or "tiny"
    cls = config_class(algorithm)
    with notes(DeprecationWarning):
        settings, flags = current(cls, settings), under_current_names(flags, cls)
    what, field = ("task", "task") if subject_field(cls) == "task" else ("environment", "env")
    subject = _one_subject(what, positional, value_of(field, flags)) or settings.get(field)
    if subject is None and not any(flag in flags for flag in ("-h", "--help")):
        example = "lm/addition" if field == "task" else "CartPole-v1"
        raise ValueError(f"the {what} is missing; it follows the algorithm: {verb} {name} {example}")
    if not isinstance(subject, str | None):
        raise ValueError(f"{field} is {subject!r} in {file}; expected a string")
    default = find(algorithm).preset(subject, **preset) if subject else cls()
    named = {field: subject} if subject else {}
    chosen = (
        {"processes": 0} if hasattr(default, "processes") else {}
    )  # the command line chooses; a Python script has one
    mapping = to_mapping(default) | chosen | dict(usual or {}) | settings | named
    default = from_mapping(cls, mapping, source=str(file or begun_from))
    arguments = dataclasses.make_dataclass("Arguments", [("config", cls), ("run", options)])
    title = f"telescope {verb} {name} {subject or field.upper()}"
    parsed = parse(arguments, flags, title, {"config": default, "run": options()})
    return parsed.config, parsed.run


def _settings_of(run: str | None, name: str, *, trusted: bool, language: bool) -> dict[str, Any]:
    """The settings of the run given by --start, for a new run of algorithm `name`; none without --start.

    Another algorithm takes those that describe environment and agents. `language`: whether it is for a language task.
    """
    from telescope.runs.folder import RunFolder
    from telescope.runs.formats.config import to_mapping

    if run is None:
        return {}
    folder = RunFolder.open(run)
    if folder.algorithm in LANGUAGE:
        raise ValueError(f"--start is for agents in environments; for a language model use --model {run}/model")
    algorithm, preset = meant(name, "an environment")
    settings = to_mapping(folder.config_to_use(config_class(folder.algorithm), trusted=trusted))
    if folder.algorithm != algorithm:
        if language or algorithm in LANGUAGE:
            raise ValueError(f"--start {run} is a run of {folder.algorithm}; {name} cannot start from its agents")
        known = config_class(algorithm).__dataclass_fields__
        return {field: value for field, value in settings.items() if field in AGENTS and field in known}
    return settings | ({"objective": preset["name"]} if "objective" in settings and preset else {})


def _one_subject(what: str, positional: str | None, flag: str | None) -> str | None:
    if positional is not None and flag is not None and positional != flag:
        raise ValueError(f"two {what}s are given, {positional} and {flag}; give one")
    return positional or flag


def resume(arguments: list[str]) -> int:
    """Continue a run from its checkpoint, or from its config if it has none yet."""
    from telescope.runs.folder import RunFolder

    options: ResumeOptions = parse(ResumeOptions, arguments, "telescope train --resume RUN")
    folder = RunFolder.open(options.resume)
    wait_asleep()
    with contextlib.nullcontext() if follows(folder.algorithm) else folder.lock():
        return _resume_locked(folder, options)


def _resume_locked(folder: Any, options: ResumeOptions) -> int:
    from telescope.language import parallel
    from telescope.runs.files import RunError
    from telescope.runs.trackers import chosen

    first = not follows(folder.algorithm)
    say = print if first else lambda *_, **__: None
    shared = family(folder.algorithm)
    folder.require_trust(options.trust)
    but = ("device",) if options.device or options.allow_inexact else ()
    config = folder.load_config(config_class(folder.algorithm), *but)
    state = folder.load_checkpoint()
    folder.require_tables(allow_inexact=options.allow_inexact)
    execution = None
    if options.total_steps is not None and options.total_steps != config.total_steps:
        config = dataclasses.replace(config, total_steps=options.total_steps)
        say(f"total_steps is now {config.total_steps:,}: schedules are recomputed for it", file=sys.stderr)
    if options.ray_address is not None:
        config = dataclasses.replace(config, ray_address=options.ray_address)
    moved = _moved(config, options)
    if moved is not None:
        say(f"device is now {moved}, before {config.device}: the last bits may differ from here on", file=sys.stderr)
        config = dataclasses.replace(config, device=moved)
        state = None if state is None else _on_device(state, shared.execution(config))
    done = state is not None and (
        state["iteration"] >= config.iterations or state["step"] >= config.total_steps or state.get("stopped")
    )
    if folder.algorithm in LANGUAGE and first and not done:
        from telescope.language.data.inputs import inputs

        folder.check_inputs(inputs(config), allow_inexact=options.allow_inexact)
    if state is None:
        if (begun_from := value_of("start", folder.command)) is not None:
            raise RunError(
                f"{options.resume} began with --start {begun_from} and has no checkpoint yet; begin it again"
            )
        say(f"{options.resume} has no checkpoint yet: starting from its config", file=sys.stderr)
        execution = shared.execution(config)
    elif done:
        at = f"{state['step']:,} steps done, total_steps is {config.total_steps:,}"
        say(f"{options.resume} is finished: {at}; a larger --total-steps extends it")
        if first and folder.status != "finished":  # killed after its last checkpoint
            folder.set_status("finished")
            draw_curve(folder, say)
        return 0
    else:
        now = parallel.now(state["execution"])
        inexact = options.allow_inexact or moved is not None
        if folder.check_execution(now, allow_inexact=inexact):
            execution = now  # from here on the run belongs to this machine
        if folder.algorithm not in LANGUAGE:
            _require_same_episodes(state, options)
    if not first:
        return follow(folder.algorithm, config, state)

    def resumed() -> None:
        if execution is not None:
            folder.set_execution(execution)

    more = {} if folder.algorithm in LANGUAGE else {"allow_inexact": options.allow_inexact}
    log = chosen(options.log or folder.log)
    return run(folder, config, state, options.checkpoint_seconds, resumed=resumed, log=log, **more)


def _require_same_episodes(state: dict[str, Any], options: ResumeOptions) -> None:
    """Raise a RunError if the current episodes cannot continue, unless --allow-inexact."""
    from telescope.control.starting import new_episodes
    from telescope.runs.files import RunError

    if (reason := new_episodes(state)) and not options.allow_inexact:
        raise RunError(
            f"{options.resume} would not continue bit for bit, because new episodes begin: {reason.rstrip('.')}; "
            "`--allow-inexact` continues anyway"
        )


def _moved(config: Any, options: ResumeOptions) -> str | None:
    """The device to continue on, if it is not the run's own. A ValueError if this machine does not have it."""
    device = options.device or config.device
    if (reason := missing_device(device)) and (options.device or not options.allow_inexact):
        raise ValueError(f"device {device!r} is not available on this machine ({reason}); use --device cpu")
    device = "cpu" if reason else device
    return None if device == config.device else device


def _on_device(state: dict[str, Any], execution: dict[str, Any]) -> dict[str, Any]:
    """The state with another execution mode. In a run with several processes, each share gets it."""
    execution = {**execution, "processes": state["execution"]["processes"]}
    shares = [share | {"execution": {**execution, "processes": 1}} for share in state.get("shares", [])]
    return state | {"execution": execution} | ({"shares": shares} if shares else {})
