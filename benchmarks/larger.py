"""Peak memory and processor time of one gradient with each way to save memory: `python -m benchmarks.larger`.

The model is a random Llama; a third of each completion is common to its group. Prints a table, in a few minutes.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

LAYERS, WIDTH, VOCABULARY = 8, 256, 8192
PROMPTS, GROUP, ASKED, OWN = 16, 8, 24, 48
WAYS: dict[str, dict[str, Any]] = {
    "padding, the whole batch": {},
    "gradient checkpointing": {"checkpointing": True},
    "8 completions at a time": {"budget": 24 + 8 * 48},
    "both": {"checkpointing": True, "budget": 24 + 8 * 48},
    "packing": {"packed": True},
    "packing and gradient checkpointing": {"packed": True, "checkpointing": True},
}


def gradient(*, checkpointing: bool = False, packed: bool = False, budget: int = 10**9) -> dict[str, float]:
    """The peak of memory above that of the loaded model in MiB, and seconds of the processor."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from telescope.language.log_probs import token_log_probs
    from telescope.language.micro_batches import by_tokens, sizes_of
    from telescope.language.models.checkpointing import checkpoint_layers
    from telescope.language.models.states import completion_states, head_of, trunk_of

    torch.set_num_threads(1)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": 4 * WIDTH}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=8, **shape)).eval()
    if checkpointing:
        checkpoint_layers(model)
    rng = torch.Generator().manual_seed(0)
    asked = torch.randint(VOCABULARY, (PROMPTS, ASKED), generator=rng)
    own = torch.randint(VOCABULARY, (PROMPTS, GROUP, OWN), generator=rng)
    own[:, :, : OWN // 3] = own[:, :1, : OWN // 3]
    live = torch.arange(OWN) < torch.randint(OWN // 2, OWN + 1, (PROMPTS, GROUP, 1), generator=rng)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).fill_(0.0)  # zeros would take no memory yet
    before, began = peak(), time.process_time()
    seen = torch.ones_like(asked, dtype=torch.bool)
    for rows in by_tokens(sizes_of(seen, live.flatten(0, 1), GROUP), slice(0, PROMPTS), budget):
        prompts, some = (asked[rows], seen[rows]), (own[rows].flatten(0, 1), live[rows].flatten(0, 1))
        states = completion_states(trunk_of(model), prompts, some, group=GROUP, packed=packed)
        token_log_probs(states, tokens=some[0], mask=some[1], **head_of(model)).log_probs.sum().backward()
    return {"memory": peak() - before, "seconds": time.process_time() - began}


def peak() -> float:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(gradient(**WAYS[sys.argv[1]])))
        return
    print("| | memory beside model and gradient | processor time |\n| --- | ---: | ---: |")
    for way in WAYS:
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.larger", way]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {way} | {found['memory']:,.0f} MiB | {found['seconds']:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
