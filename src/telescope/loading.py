"""`telescope.load`: one door to what a run has trained, agents in environments or a language model.

Leaves out what comes back: `policy.py` and `answers.py`.
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
    """What a run has trained: a Policy where it trained agents, Answers where it trained a language model.

    `telescope.load("runs/cartpole").act(observation)`, `telescope.load("runs/grpo").complete(["37+58="])`. The folder
    says which kind of run it is.

    Args:
        run: the run folder.
        best: agents only: each seed as it was at its best evaluation during training, instead of at the end.
        network: agents only: the network of the run, if it was not built from the config.
        trust: run the code that the folder names (an environment's module, a reward file), though somebody else began
            the run; without it that is a RunError.
        device: where networks and models live. The default is where they were trained, or the CPU, with a warning, if
            there is no such device here.

    Raises:
        ValueError: an option does not fit the kind of run.
        RunError: there is no run, nothing was saved yet, or what was saved cannot be trusted.
    """
    algorithm = RunFolder.open(run).algorithm
    find(algorithm)  # what it needs and is not installed is named
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
