"""The process in which vLLM samples for a run: `engines.py` starts it and sends it weights and prompts.

It holds no other part of telescope, so that vLLM may take this process's device and threads. Leaves out what the
answers are used for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any


class Weights:
    """What vLLM's own workers can do besides: read weights from a folder (its `worker_extension_cls`)."""

    model_runner: Any

    def read_weights(self, folder: str) -> None:
        """Replace the weights of the model that this worker runs."""
        self.model_runner.model.load_weights(_tensors(Path(folder)))


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors.torch import load_file

    for file in sorted(folder.glob("*.safetensors")):
        yield from load_file(file).items()


class Sampler:
    """vLLM with one model."""

    def __init__(self, folder: str, settings: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self.params = SamplingParams
        self.engine = LLM(model=folder, worker_extension_cls=f"{Weights.__module__}.{Weights.__name__}", **settings)

    def weights(self, folder: str) -> None:
        """Take new weights, and forget the keys and values of the old ones."""
        self.engine.collective_rpc("read_weights", args=(folder,))
        self.engine.reset_prefix_cache()

    def sample(
        self, prompts: Iterable[list[int]], seeds: Iterable[int], settings: dict[str, Any]
    ) -> list[list[tuple[list[int], list[float], bool]]]:
        """Completions of each prompt: tokens, their log-probabilities, and whether an end token ended them."""
        params = [self.params(seed=seed, logprobs=0, detokenize=False, **settings) for seed in seeds]
        found = self.engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [[_plain(completion) for completion in request.outputs] for request in found]


def _plain(completion: Any) -> tuple[list[int], list[float], bool]:
    tokens = list(completion.token_ids)
    log_probs = [float(known[token].logprob) for token, known in zip(tokens, completion.logprobs, strict=True)]
    return tokens, log_probs, completion.finish_reason == "stop"


def main(address: str, key: str) -> None:
    """Answer (method, arguments) with (True, result) or (False, error), until the other side hangs up."""
    sampler: Any = None
    with Client(address, authkey=bytes.fromhex(key)) as line:
        while True:
            try:
                name, arguments = line.recv()
            except EOFError:
                return
            try:
                if name == "start":
                    sampler = Sampler(*arguments)
                    result = None
                else:
                    result = getattr(sampler, name)(*arguments)
                line.send((True, result))
            except Exception as error:  # the trainer says it
                line.send((False, f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main(*sys.argv[1:])
