"""Sampling by vLLM in a process of its own, which gets the trainer's weights before every rollout.

Its kernels round otherwise than the trainer's, so its log-probabilities differ; `off_policy.py` measures and weighs the
difference. Leaves out vLLM itself (`vllm_worker.py` speaks to it).
"""

# N prompts, B = N · group completions of T tokens
from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.language.experience.sampling import Completions, Prompts
from telescope.language.models import causal as models
from telescope.language.randomness import TOKENS

WORKER = "telescope.language.experience.vllm_worker"
SHARE = 0.4
"""vLLM's share of a device's memory, which the trainer uses too."""
MEMORY = Path("/dev/shm")
"""Where weights pass from one process to the other, if the system has such a folder in memory."""


def require_vllm() -> None:
    """Raise a ValueError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "sampler is 'vllm', but vLLM is not installed here; pip install vllm (it needs a GPU that it supports), or "
            "leave sampler out"
        )


class Engine:
    """vLLM in a process of its own, with the weights of one policy."""

    def __init__(self, policy: Any, tokenizer: Any, *, dtype: str, seed: int) -> None:
        """Start its process. The first `push` loads the model."""
        require_vllm()
        self.policy, self.tokenizer, self.started = policy, tokenizer, False
        self.room = tempfile.TemporaryDirectory(prefix="telescope-vllm-", dir=MEMORY if MEMORY.is_dir() else None)
        self.settings = {
            "dtype": dtype,
            "seed": seed,
            "skip_tokenizer_init": True,
            "logprobs_mode": "processed_logprobs",  # at the temperature; since vLLM 0.10.2
            "gpu_memory_utilization": SHARE,
        }
        key = secrets.token_bytes(32)
        with Listener(authkey=key) as listener:
            words = [sys.executable, "-m", WORKER, str(listener.address), key.hex()]
            paths = os.pathsep.join(filter(None, sys.path))  # as this process finds telescope and vLLM
            environment = os.environ | {"PYTHONPATH": paths}
            process = subprocess.Popen(words, env=environment, stdout=sys.stderr)
            self.line = listener.accept()
        self.close = weakref.finalize(self, _stop, self.line, process, self.room)

    def push(self) -> None:
        """Send the policy's weights; an adapter is merged into them."""
        folder = self.room.name
        models.save(self.policy, self.tokenizer, folder)
        if self.started:
            self._call("weights", folder)
        else:
            self._call("start", folder, self.settings)
            self.started = True

    def sample(
        self,
        prompts: Prompts,
        *,
        ends: Sequence[int],
        max_tokens: int,
        group: int,
        temperature: float,
        seeds: Sequence[int],
    ) -> Completions:
        """Sample `group` completions of each prompt. Their entropy is estimated from each token alone: −log p."""
        self.push()
        ids = [row[live].tolist() for row, live in zip(prompts.tokens, prompts.mask, strict=True)]
        settings = {"n": group, "temperature": temperature, "max_tokens": max_tokens, "stop_token_ids": list(ends)}
        found = self._call("sample", ids, list(seeds), settings | {"top_p": 1.0, "top_k": -1})
        if any(len(one) != group for one in found) or len(found) != len(ids):
            raise RuntimeError(f"vLLM gave {list(map(len, found))} completions; expected {group} of each prompt")
        return _padded([one for several in found for one in several], prompts.tokens.device)

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            self.line.send((name, arguments))
            done, result = self.line.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError("vLLM's process ended; its own messages above say why") from error
        if not done:
            raise RuntimeError(f"vLLM: {result}")
        return result


def sampled(session: Any, prompts: Prompts, part: int) -> Completions:
    """Completions of a rollout by vLLM with the weights of this step. Each prompt has a seed of its own."""
    config = session.config
    if session.engine is None:
        session.engine = Engine(session.policy, session.tokenizer, dtype=config.dtype, seed=config.seed)
    seeds = session.generator(TOKENS, part).integers(2**31, size=len(prompts.tokens)).tolist()
    settings = {"max_tokens": session.max_tokens, "group": config.group, "temperature": config.temperature}
    return session.engine.sample(prompts, ends=session.ends, seeds=seeds, **settings)  # type: ignore[no-any-return]


def _stop(line: Any, process: subprocess.Popen[bytes], room: tempfile.TemporaryDirectory[str]) -> None:
    line.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
    room.cleanup()


def _padded(found: Sequence[tuple[list[int], list[float], bool]], device: torch.device) -> Completions:
    width = max((len(tokens) for tokens, _, _ in found), default=0)
    tokens, log_probs = np.zeros((len(found), width), dtype=np.int64), np.zeros((len(found), width), dtype=np.float32)
    for row, (own, their, _) in enumerate(found):
        tokens[row, : len(own)], log_probs[row, : len(own)] = own, their
    lengths = torch.tensor([len(own) for own, _, _ in found], dtype=torch.long)
    mask = torch.arange(width) < lengths[:, None]
    values: Tensor = torch.from_numpy(log_probs)
    ended = torch.tensor([stopped for _, _, stopped in found], dtype=torch.bool)
    return Completions(torch.from_numpy(tokens), mask, values, -values, ended, None).to(device)
