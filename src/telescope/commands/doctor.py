"""`telescope doctor`: find mistakes in a rollout, or say what this installation has.

Leaves out how mistakes are found (`telescope.lab.doctor`).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
from typing import Any, Literal

from telescope.commands.arguments import parse, positionals

LIBRARIES = ("numpy", "numba", "torch", "triton", "jax", "gymnasium", "mujoco", "envpool", "transformers", "peft")


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """Find what is wrong in a rollout that any library made. Without a file: report what is installed.

    The file has rewards [T, ...], and any of values, next_values, terminated, truncated, mask, advantages, returns,
    gamma and lam; `telescope.lab.record` writes one from a running program.
    """

    convention: Literal["telescope", "sb3", "cleanrl", "torchrl", "rlax", "tianshou", "trl", "verl"] = "telescope"
    """The library whose names, time axis and flags the file has."""
    json: bool = False
    """Print the findings as JSON."""


def doctor(arguments: list[str]) -> int:
    """`telescope doctor [rollout.npz]`: exit status 1 if something is wrong."""
    paths, flags = positionals(arguments, DoctorOptions)
    options: DoctorOptions = parse(DoctorOptions, flags, "telescope doctor [rollout.npz]")
    if len(paths) > 1:
        raise ValueError(f"telescope doctor takes one file, got {len(paths)}: {' '.join(paths)}")
    if not paths:
        _print_installation(as_json=options.json)
        return 0
    from telescope.lab.doctor import examine
    from telescope.lab.files import load, rollout, unread

    arrays = load(paths[0])
    report = examine(rollout(arrays, options.convention))
    if names := unread(arrays, options.convention):
        report.notes.append(
            f"not read, because the convention {options.convention} has no such names: {', '.join(names)}"
        )
    if options.json:
        findings = [finding._asdict() for finding in report.findings]
        print(json.dumps({"findings": findings, "notes": report.notes}, indent=2, ensure_ascii=False))
        return int(bool(report.findings))
    for finding in report.findings:
        print(finding.text)
    for note in report.notes:
        print(f"note: {note}")
    if not report.findings:
        print("nothing wrong was found")
    return int(bool(report.findings))


def _print_installation(*, as_json: bool) -> None:
    facts = installation()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:<14} {value}")


def installation() -> dict[str, Any]:
    """Versions, processors, threads, devices and caches of this installation."""
    from telescope import __version__
    from telescope.processors import most_threads, processors

    facts: dict[str, Any] = {
        "telescope": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for name in LIBRARIES:
        found = importlib.util.find_spec(name) is not None
        facts[name] = importlib.metadata.version(name) if found else "not installed"
    facts |= {"processors": processors(), "threads": most_threads()}
    if facts["torch"] != "not installed":
        import torch

        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        facts["devices"] = ", ".join(["cpu", *names])
    for name in ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TELESCOPE_NUM_THREADS", "OMP_NUM_THREADS"):
        if name in os.environ:
            facts[name] = os.environ[name]
    return facts
