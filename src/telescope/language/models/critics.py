"""Save a critic beside its model, as reward models are saved.

Leaves out its use (`experience/critic.py`).
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from torch import nn

from telescope.language.models import causal as models
from telescope.language.models.heads import Scalar, save_head
from telescope.language.models.states import trunk_of


def save_critic(policy: nn.Module, tokenizer: Any, network: Scalar, path: str | os.PathLike[str]) -> None:
    """Write the head; a network of its own also as a transformers folder, as reward models are saved."""
    Path(path).mkdir(parents=True, exist_ok=True)
    if network.trunk is not None:
        known: Any = {id(trunk_of(policy)): network.trunk}
        whole: Any = copy.deepcopy(policy, known)  # the policy, with the critic's trunk in place of its own
        getattr(whole, "get_base_model", lambda: whole)().tie_weights()
        models.save(whole, tokenizer, path)
    save_head(models.weights_of(network.head), path)
