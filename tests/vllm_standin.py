"""A stand-in for vLLM: as much of its interface as telescope uses, over transformers; its log-probabilities may be off.

Written into a folder as a package named `vllm`, see `installed`. It refuses arguments that vLLM would not know.
"""

from __future__ import annotations

import inspect
from pathlib import Path

SOURCE = '''
import importlib
from typing import NamedTuple

import torch

OFF = {off}


class SamplingParams:
    def __init__(self, *, n=1, temperature=1.0, top_p=1.0, top_k=0, max_tokens=16, seed=None, logprobs=None,
                 detokenize=True, stop_token_ids=None):
        self.__dict__.update({{name: value for name, value in locals().items() if name != "self"}})


class Logprob(NamedTuple):
    logprob: float


class CompletionOutput(NamedTuple):
    token_ids: tuple
    logprobs: list
    finish_reason: str


class RequestOutput(NamedTuple):
    outputs: list


class Model:
    """vLLM's own model has other names inside; `load_weights` takes those of the checkpoint."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM

        self.plain = AutoModelForCausalLM.from_pretrained(folder).eval()

    def load_weights(self, weights):
        self.plain.load_state_dict(dict(weights), strict=False)


class LLM:
    def __init__(self, model, *, dtype, seed, skip_tokenizer_init, logprobs_mode,
                 gpu_memory_utilization, worker_extension_cls):
        assert skip_tokenizer_init and logprobs_mode == "processed_logprobs" and 0 < gpu_memory_utilization < 1
        module, name = worker_extension_cls.rsplit(".", 1)
        worker = type("Worker", (getattr(importlib.import_module(module), name),), {{}})()
        worker.model_runner = type("Runner", (), {{"model": Model(model)}})()
        self.worker, self.stale = worker, False

    def collective_rpc(self, method, args=()):
        self.stale = True
        return [getattr(self.worker, method)(*args)]

    def reset_prefix_cache(self):
        self.stale = False

    @torch.no_grad()
    def generate(self, prompts, params, use_tqdm=True):
        assert not self.stale, "keys and values of older weights"
        return [self._request(prompt["prompt_token_ids"], each) for prompt, each in zip(prompts, params, strict=True)]

    def _request(self, ids, params):
        assert params.logprobs == 0 and not params.detokenize
        generator = torch.Generator().manual_seed(params.seed)
        return RequestOutput([self._completion(ids, params, generator) for _ in range(params.n)])

    def _completion(self, ids, params, generator):
        tokens, logprobs = [], []
        while len(tokens) < params.max_tokens:
            logits = self.worker.model_runner.model.plain(torch.tensor([ids + tokens])).logits[0, -1]
            scores = (logits / params.temperature).log_softmax(-1)
            token = int(torch.multinomial(scores.exp(), 1, generator=generator))
            tokens.append(token)
            logprobs.append({{token: Logprob(float(scores[token]) + OFF)}})
            if token in params.stop_token_ids:
                return CompletionOutput(tuple(tokens), logprobs, "stop")
        return CompletionOutput(tuple(tokens), logprobs, "length")
'''


def installed(folder: Path, off: float = 0.0) -> Path:
    """Write the package; return the folder that sys.path needs. off: what its log-probabilities are off by, in nats."""
    package = folder / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(inspect.cleandoc(SOURCE.format(off=off)) + "\n")
    return folder
