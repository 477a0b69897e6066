"""The critic of PPO: it warms up alone, is saved beside the model, and another run takes it up.

Leaves out what it learns from (`test_token_lambdas.py`).
"""

import dataclasses
import json

import pytest
import torch

from small_models import save
from telescope.algorithms import rlhf
from telescope.cli import main
from telescope.language.data.inputs import inputs
from telescope.language.experience.critic import Critic
from telescope.language.experience.rollout import RolloutSession
from telescope.runs import RunFolder

QUICK = {"prompts": 4, "group": 2, "minibatches": 2, "total_steps": 2, "eval_prompts": 4, "threads": 1, "eval_every": 0}
QUICK |= {"max_tokens": 4, "learning_rate": 1e-2, "value_learning_rate": 1e-2}
REWARD = "length_window:1,3"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models and conversations."""
    folder = tmp_path_factory.mktemp("critics")
    talks = [{"prompt": [{"role": "user", "content": f"What is {i} + 1?"}]} for i in range(30)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, talks)))
    save("qwen3", folder / "base")
    save("llama", folder / "other")
    return folder


def config(folders, **more):
    settings = {"task": str(folders / "d.jsonl"), "model": str(folders / "base"), "reward": REWARD}
    return rlhf.RLHF(**settings | QUICK | more)


def weights(state, name):
    return state["models"][name]


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "more", [{}, {"value_model": "head"}, {"lora_rank": 2}, {"value_model": "head", "lora_rank": 2}]
)
def test_only_the_critic_learns_in_the_warm_up(more, folders):
    states = [step.state for step in rlhf.train(config(folders, value_warmup=1, **more))]
    assert equal(weights(states[0], "policy"), weights(states[1], "policy"))
    assert not equal(weights(states[0], "value"), weights(states[1], "value"))
    assert not equal(weights(states[1], "policy"), weights(states[2], "policy"))
    again = [step.state for step in rlhf.train(config(folders, value_warmup=1, **more), resume=states[1])]
    assert equal(weights(again[-1], "policy"), weights(states[-1], "policy"))


@pytest.mark.parametrize("more", [{}, {"value_model": "head"}, {"lora_rank": 2}, {"dtype": "bfloat16"}])
def test_a_critic_is_saved_and_taken_up(more, folders, tmp_path):
    flags = ["--model", str(folders / "base"), "--reward", REWARD, "--out", str(tmp_path / "run")]
    for name, value in (QUICK | more).items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    assert main(["train", "ppo", str(folders / "d.jsonl"), *flags]) == 0
    run = RunFolder.open(tmp_path / "run")
    assert (run.path / "critic" / "head.safetensors").is_file()
    assert (run.path / "critic" / "config.json").is_file() == ("value_model" not in more)
    saved = run.load_checkpoint()

    def values(settings, state):
        """Of the same texts: by the first run's critic at its end, and by the one that took it up."""
        session = RolloutSession(settings, rlhf.row(settings), state, rlhf.STATISTICS)
        critic = Critic(session)
        session.begin({"policy": session.policy, "value": critic.network}, state)
        torch.manual_seed(0)
        rollout = session.collect()
        return critic, rollout

    first, rollout = values(config(folders, **more), saved)
    own = first.values_of(rollout)
    settings = config(folders, value_start=str(run.path), **more)
    session = RolloutSession(settings, rlhf.row(settings), None, rlhf.STATISTICS)
    if more.get("value_model") == "head":  # on the states of the same policy
        session.policy = first.session.policy
    second = Critic(session)
    torch.testing.assert_close(second.values_of(rollout), own, rtol=2e-2 if "dtype" in more else 1e-4, atol=1e-4)
    assert own.abs().max() > 0
    before = inputs(settings)["value_start"]
    (run.path / "critic" / "head.safetensors").write_bytes(b"")
    assert inputs(settings)["value_start"] != before


def test_a_reward_model_is_a_start_for_a_critic(folders, tmp_path):
    pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    flags = ["--model", str(folders / "base"), "--total-steps", "1", "--batch-size", "4", "--threads", "1"]
    flags += ["--out", str(tmp_path / "rm"), "--eval-prompts", "4"]
    assert main(["train", "reward_model", str(tmp_path / "pairs.jsonl"), *flags]) == 0
    states = [step.state for step in rlhf.train(config(folders, value_start=str(tmp_path / "rm"), total_steps=1))]
    assert weights(states[0], "value")["head.weight"].abs().max() > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"value_start": "base"}, "holds no critic"),
        ({"value_start": "run", "value_model": "head"}, "holds a network of its own; use value_model own"),
        ({"value_start": "run", "model": "other"}, "whose tokens are others than those of"),
    ],
)
def test_a_critic_that_does_not_suit_is_refused(change, named, folders, tmp_path):
    *_, last = rlhf.train(config(folders, total_steps=1))
    last.save_critic(folders / "run" / "critic")
    paths = {name: str(folders / value) for name, value in change.items() if name in ("value_start", "model")}
    found = config(folders, **change | paths)
    with pytest.raises(ValueError, match=named):
        list(rlhf.train(dataclasses.replace(found, total_steps=1)))
