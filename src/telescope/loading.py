"""`telescope.load`: load what a run has trained, agents in environments or a language model.

Leaves out the objects that it returns (`policy.py` and `answers.py`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from telescope.algorithms import LANGUAGE, find
from telescope.runs.folder import RunFolder

if TYPE_CHECKING:
    from telescope.answers import Answers
    from telescope.control.agents.networks import Network
    from telescope.policy import Policy


def load(
    run: str | os.PathLike[str],
    *,
    best: bool = False,
    network: Network | None = None,
    trust: bool = False,
    device: str | None = None,
) -> Policy | Answers:
    """Load what a run has trained: a Policy for agents, Answers for a language model. The folder says which.

    `telescope.load("runs/cartpole").act(observation)`, `telescope.load("runs/grpo").complete(["37+58="])`.

    Args:
        run: the run folder.
        best: agents only: load each seed's agent with the best evaluation during training, instead of the final one.
        network: agents only: the network of the run, if it was not built from the config.
        trust: run the code that the folder names (an environment's module, a reward file), even if somebody else began
            the run. Otherwise that is a RunError.
        device: device of networks and models. The default is the one they were trained on, or the CPU, with a warning,
            if this machine lacks it.

    Raises:
        ValueError: an option does not fit the kind of run.
        RunError: there is no run, nothing was saved yet, or a file is damaged or not trusted.
    """
    algorithm = RunFolder.open(run).algorithm
    find(algorithm)  # raises an error that names a missing package
    if algorithm not in LANGUAGE:
        from telescope.policy import load as agents

        return agents(run, best=best, network=network, trust=trust, device=device)
    for name, given in {"best": best, "network": network is not None}.items():
        if given:
            raise ValueError(
                f"{name} is for agents in environments, but {os.fspath(run)} is a run of {algorithm}, a language "
                f"model; leave {name} out"
            )
    from telescope.answers import load as language_model

    return language_model(run, trust=trust, device=device)
