"""No field of a language configuration is ignored: each acts, is refused by name, or is told in a note.

One list of fields for all algorithms; a new field joins it. Leaves out what each of them does.
"""

import dataclasses
import time

import pytest
import torch

from narrow import narrow
from telescope.algorithms import grpo, reward_model, rlhf, sft
from telescope.language.execution import execution, try_out
from telescope.language.experience import sampling
from telescope.language.models import causal as models
from telescope.language.models import packing, states

SMALL = {"total_steps": 2, "eval_every": 1, "eval_prompts": 4, "threads": 1}
ROLLOUTS = {"prompts": 4, "group": 2, "minibatches": 2, "epochs": 2, "warm_start_steps": 2}
ROLLOUTS["reward"] = lambda completions: [float(sum(map(ord, text)) % 7) for text in completions]
BASES = {
    "grpo": (grpo, grpo.GRPO(task="lm/reverse", **SMALL, **ROLLOUTS)),
    "rloo": (grpo, grpo.GRPO(task="lm/reverse", objective="rloo", **SMALL, **ROLLOUTS)),
    "ppo": (rlhf, rlhf.RLHF(task="lm/reverse", seed=2, **SMALL, **ROLLOUTS)),
    "ppo, by length": (
        rlhf,
        rlhf.RLHF(task="lm/reverse", seed=2, lam_rule="length_adaptive", lam_alpha=0.5, **SMALL, **ROLLOUTS),
    ),
    "ppo, by segment": (rlhf, rlhf.RLHF(task="lm/reverse", seed=2, lam_rule="per_segment", **SMALL, **ROLLOUTS)),
    "ppo, head": (rlhf, rlhf.RLHF(task="lm/reverse", value_model="head", beta=0.0, **SMALL, **ROLLOUTS)),
    "sft": (sft, sft.SFT(task="lm/reverse", batch_size=4, **SMALL)),
    "sft, no answer is right": (sft, sft.SFT(task="lm/taste", batch_size=4, **SMALL)),
    "reward_model": (reward_model, reward_model.RewardModelling(batch_size=4, **SMALL)),
}
OTHER = {
    "task": "lm/sort",
    "model": "FOLDER",
    "digits": 3,
    "seed": 1,
    "total_steps": 1,
    "learning_rate": 1e-2,
    "lr_warmup": 0,
    "min_lr_ratio": 0.5,
    "weight_decay": 0.1,
    "max_grad_norm": 1e-3,
    "lora_rank": 2,
    "max_tokens": 2,
    "micro_batch": 1,
    "micro_tokens": 5,
    "packing": "off",
    "gradient_checkpointing": True,
    "eval_every": 0,
    "eval_prompts": 3,
    "device": "nowhere",
    "dtype": "bfloat16",
    "threads": 2,
    "sharding": "fsdp",
    "reward": lambda completions: [float(len(completion)) for completion in completions],
    "reward_seconds": 0.01,
    "normalise_each": True,
    "environment": dict,
    "turns": 3,
    "overlong_cache": 1,
    "prompts": 6,
    "group": 3,
    "minibatches": 1,
    "epochs": 1,
    "temperature": 2.0,
    "top_k": 3,
    "top_p": 0.5,
    "sampler": "vllm",
    "off_policy": "truncate",
    "off_policy_cap": 4.0,
    "warm_start": 0.0,
    "warm_start_steps": 3,
    "warm_start_learning_rate": 1e-2,
    "objective": "gspo",
    "clip": 1e-6,
    "clip_high": 1e-6,
    "beta": 0.5,
    "resample": 2,
    "gamma": 0.5,
    "lam": 0.5,
    "lam_rule": "end_corrected",
    "gae_over": "turns",
    "lam_alpha": 0.9,
    "lam_border": 1e-6,
    "returns_lam": 0.5,
    "value_clip": 1e-9,
    "value_model": "head",
    "value_warmup": 1,
    "value_start": "FOLDER",
    "value_learning_rate": 1e-2,
    "value_coefficient": 0.5,
    "whiten": False,
    "kl_limit": 1e-9,
    "kl_horizon": 10,
    "truncation": "drop",
    "truncation_penalty": 0.5,
    "batch_size": 3,
    "loss_on": "assistant",
    "stop_at": 0.5,
    "seeds": 2,
}
"""Another value for each field."""
TELLING = {
    "grpo": set(OTHER),
    "rloo": {"clip", "clip_high", "beta"},
    "ppo": {field.name for field in dataclasses.fields(rlhf.RLHF)}
    - {field.name for field in dataclasses.fields(grpo.GRPO)},
    "ppo, by length": {"lam", "lam_rule", "lam_alpha", "returns_lam"},
    "ppo, by segment": {"lam", "lam_rule", "lam_border", "returns_lam"},
    "ppo, head": {"value_coefficient", "lora_rank", "micro_batch", "micro_tokens"},
    "sft": {"batch_size", "loss_on", "stop_at", "lora_rank", "max_tokens", "micro_batch", "micro_tokens", "packing"},
    "sft, no answer is right": {"stop_at"},
    "reward_model": {"batch_size", "lora_rank", "max_tokens", "micro_batch", "micro_tokens", "packing"}
    | {"digits", "eval_prompts"},
}
"""What is not the same code as in the algorithm before."""
CASES = [
    pytest.param(name, field.name, marks=[] if field.name in TELLING[name] else pytest.mark.slow)
    for name, (_, config) in BASES.items()
    for field in dataclasses.fields(config)
]


@pytest.fixture(autouse=True, scope="module")
def smaller():
    """A built-in model of one narrow layer, which is all that is needed to see a field act."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "tiny_config", lambda: narrow(16))
        patch.setattr("telescope.language.experience.preferences.STEPS", 2)
        patch.setattr("telescope.language.data.tasks.HELD_OUT", 20)
        yield


@pytest.fixture(scope="module")
def folder(smaller, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model"
    models.save(models.tiny(3), models.characters(), path)
    return str(path)


def plain(x):
    """Something that compares by its bits."""
    if isinstance(x, torch.Tensor):
        return (str(x.dtype), x.float().flatten().tolist())
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items() if key != "elapsed" and not str(key).startswith("time_")}
    return [plain(value) for value in x] if isinstance(x, list | tuple) else x


def watched(module, config):
    """All that a run shows: metrics, the final state, and how many texts went through the model at a time."""
    calls = []
    run, step, rows = states._run, sampling.stepped, packing.packed_states
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "_run", lambda trunk, tokens, *a: (calls.append(tokens.shape), run(trunk, tokens, *a))[1])
        patch.setattr(
            packing,
            "packed_states",
            lambda trunk, asked, own, *a, **b: (calls.append(own[0].shape), rows(trunk, asked, own, *a, **b))[1],
        )
        patch.setattr(
            sampling, "stepped", lambda model, tokens, *a: (calls.append(tokens.shape), step(model, tokens, *a))[1]
        )
        try_out(config)
        steps = list(module.train(config))
    notes = steps[0].notes
    return plain([step.rows for step in steps]), plain(steps[-1].state), [tuple(shape) for shape in calls], notes


@pytest.fixture(scope="module")
def bases():
    return {}


@pytest.mark.parametrize(("name", "field"), CASES)
def test_each_field_acts_or_is_refused_or_told(name, field, bases, folder, monkeypatch):
    """`--lora-rank` of a reward model trained all weights, `--digits` of a file meant nothing, without a word."""
    module, config = BASES[name]
    value = folder if OTHER[field] == "FOLDER" else OTHER[field]
    if field == "threads":  # a second one may wait long for its turn on a busy machine
        assert execution(dataclasses.replace(config, threads=value))["threads"] == value
        return
    if field == "value_model" and config.value_model == "head":
        value = "own"
    if field == "task" and name == "reward_model":
        value = "lm/sort"  # which has no pairs
    if field == "reward_seconds":  # which only shows where a function is slow
        config = dataclasses.replace(config, reward=lambda completions: time.sleep(0.5))
    if field == "stop_at":
        monkeypatch.setattr(sft, "held_out", lambda session: {"exact_match": 0.75})
    if name not in bases:
        bases[name] = watched(module, config)
    try:
        found = watched(module, dataclasses.replace(config, **{field: value}))
    except ValueError as error:
        assert field in str(error), error  # noqa: PT017
        return
    if field == "gradient_checkpointing":  # not a number changes; `test_larger_models.py` counts what is kept
        assert found[:3] == bases[name][:3]
        assert any(field in note for note in found[3])
    told = any(field in note for note in found[3] if note not in bases[name][3])
    assert told or found[:3] != bases[name][:3]


@pytest.mark.parametrize("field", ["warm_start", "warm_start_steps", "warm_start_learning_rate"])
def test_a_warm_start_that_there_is_not_is_told(field, folder):
    """Of a model that was given; its own settings are then without effect."""
    module, config = BASES["grpo"]
    value = {"warm_start": 0.5, "warm_start_steps": 3, "warm_start_learning_rate": 0.1}[field]
    told = watched(module, dataclasses.replace(config, **{"model": folder, "warm_start_steps": 2000, field: value}))[3]
    assert any(f"{field} has no effect: a model was given" in note for note in told)
    silent = watched(module, dataclasses.replace(config, model=folder, warm_start_steps=2000))[3]
    assert not any("has no effect" in note for note in silent)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: grpo.GRPO(objective="rloo", clip=0.2), "clip is .* rloo"),
        (lambda: rlhf.RLHF(kl_horizon=10), "kl_horizon is 10, but kl_limit is none"),
        (lambda: rlhf.RLHF(lam_alpha=0.5), "lam_alpha is 0.5, but lam_rule is 'constant'"),
        (lambda: rlhf.RLHF(lam_border=0.5, lam_rule="end_corrected"), "lam_border is 0.5, but lam_rule is 'end_corr"),
        (lambda: rlhf.RLHF(lam=0.5, lam_rule="length_adaptive"), "lam is 0.5, but lam_rule is 'length_adaptive'"),
        (lambda: rlhf.RLHF(value_coefficient=0.5), "value_coefficient is 0.5, but value_model is 'own'"),
        (lambda: rlhf.RLHF(truncation_penalty=0.5), "truncation_penalty is 0.5, but truncation is 'terminal'"),
        (lambda: grpo.GRPO(off_policy_cap=4.0), "off_policy_cap is 4.0, but off_policy is 'none'"),
        (lambda: reward_model.RewardModelling(max_tokens=3), "max_tokens is 3, but a reward model"),
        (lambda: reward_model.RewardModelling(digits=3).open_task(), "digits is 3, but lm/taste has none"),
        (lambda: sft.SFT(task="lm/reverse", digits=1).open_task(), "digits is 1, but lm/reverse then has no"),
        (lambda: sft.SFT(stop_at=0.5, eval_every=0), "stop_at is 0.5, but eval_every is 0"),
        (lambda: sft.SFT(task="lm/taste", stop_at=0.5).open_task(), "stop_at is 0.5, but lm/taste has no correct"),
    ],
)
def test_what_nobody_would_read_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("kind", [sft.SFT, reward_model.RewardModelling])
def test_digits_of_a_file_are_refused(kind, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "answer": "b", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(ValueError, match=r"digits is 3, but .*data\.jsonl has none"):
        kind(task=str(tmp_path / "data.jsonl"), digits=3).open_task()
