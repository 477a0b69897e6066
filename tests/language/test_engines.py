"""vLLM as the sampler, by a stand-in that speaks its interface: weights arrive, the mismatch is measured and weighed.

Leaves out vLLM itself, which needs a GPU.
"""

import importlib.metadata
import math
import sys

import pytest
import torch

from telescope.algorithms import grpo, rlhf
from telescope.language.execution import try_out
from telescope.language.experience.engines import Engine
from telescope.language.experience.sampling import encode
from telescope.language.models import causal as models
from telescope.language.models.tokenizer import EOS, characters
from vllm_standin import installed

SMALL = {"total_steps": 2, "eval_every": 0, "eval_prompts": 4, "threads": 1, "prompts": 3, "group": 3}
SMALL |= {"minibatches": 1, "warm_start": 0.0, "max_tokens": 4, "learning_rate": 1e-2, "lr_warmup": 0}


def reward(completions):
    return [float(sum(map(ord, text)) % 7) for text in completions]


@pytest.fixture
def standin(tmp_path, monkeypatch):
    def install(off=0.0):
        monkeypatch.syspath_prepend(str(installed(tmp_path, off)))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")

    return install


def config(**more):
    return grpo.GRPO(task="lm/reverse", reward=reward, sampler="vllm", **{**SMALL, **more})


def test_without_vllm_it_is_refused_before_the_run():
    if "vllm" in {name.name for name in importlib.metadata.distributions()}:
        pytest.skip("vLLM is installed")
    with pytest.raises(ValueError, match="sampler is 'vllm', but vLLM is not installed here"):
        try_out(config())


def test_completions_are_of_the_weights_that_were_pushed(standin):
    standin()
    model, prompts = models.tiny(1).eval(), encode(characters(), ["1+2=", "hello|"])
    engine = Engine(model, characters(), dtype="float32", seed=0)
    settings = {"ends": [EOS], "max_tokens": 5, "group": 4, "temperature": 0.7, "seeds": [3, 4]}
    for _ in range(2):
        found = engine.sample(prompts, **settings)
        for i, (tokens, mask) in enumerate(zip(found.tokens, found.mask, strict=True)):
            asked = prompts.tokens[i // 4][prompts.mask[i // 4]]
            with torch.no_grad():
                logits = model(torch.cat([asked, tokens[mask]])[None]).logits[0, len(asked) - 1 : -1]
            expected = (logits / 0.7).log_softmax(-1).gather(1, tokens[mask][:, None])[:, 0]
            torch.testing.assert_close(found.log_probs[i][mask], expected, rtol=1e-4, atol=1e-5)
            assert bool(found.terminated[i]) == (int(tokens[mask][-1]) == EOS)
            assert int(mask.sum()) == 5 or found.terminated[i]
            assert (tokens[~mask] == 0).all()
        torch.testing.assert_close(found.entropy, -found.log_probs)
        assert torch.equal(engine.sample(prompts, **settings).tokens, found.tokens)
        assert not torch.equal(found.tokens[:4], found.tokens[4:])
        with torch.no_grad():  # the next ones are those of other weights
            for parameter in model.parameters():
                parameter.mul_(0.5)
    engine.close()


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_mismatch_is_measured_and_weighed(standin, lora_rank):
    standin(off=0.5)
    steps = list(grpo.train(config(lora_rank=lora_rank)))
    for step in steps[1:]:
        row = step.rows[0]
        assert row["sampler_mismatch"] == pytest.approx(0.5, abs=1e-3)
        assert row["off_policy_weight"] == pytest.approx(math.exp(-0.5), rel=1e-3)
        assert row["off_policy_bounded"] == 0
        assert row["entropy"] > 0


def test_weights_above_the_cap_are_bounded(standin):
    standin(off=-1.0)  # a weight of e
    *_, last = rlhf.train(
        rlhf.RLHF(task="lm/reverse", reward=reward, sampler="vllm", off_policy_cap=1.5, **{**SMALL, "total_steps": 1})
    )
    assert last.rows[0]["off_policy_weight"] == pytest.approx(1.5, rel=1e-4)
    assert last.rows[0]["off_policy_bounded"] == 1


def test_what_goes_wrong_in_vllm_is_said(standin):
    standin()
    engine = Engine(models.tiny(1), characters(), dtype="float32", seed=0)
    with pytest.raises(RuntimeError, match=r"vLLM: AttributeError: .*nothing"):
        engine._call("nothing")
    engine.close()
    with pytest.raises(OSError, match="closed"):
        engine.push()


def test_its_process_ends_with_the_engine(standin):
    standin()
    engine = Engine(models.tiny(1), characters(), dtype="float32", seed=0)
    engine.push()
    close, room = engine.close, engine.room.name
    del engine
    assert not close.alive
    with pytest.raises(FileNotFoundError):
        next(iter(__import__("pathlib").Path(room).iterdir()))


def test_other_weights_than_truncated_ones_stay_as_they_are():
    assert config().off_policy == "truncate"
    assert config(off_policy="mask").off_policy == "mask"
    assert "vllm" not in sys.modules


@pytest.mark.parametrize("rule", [{"top_k": 3}, {"top_p": 0.5}])
def test_supports_that_vllm_does_not_report_are_refused(rule):
    with pytest.raises(ValueError, match=f"{next(iter(rule))} is .*vLLM does not say"):
        config(**rule)


def test_conversations_are_sampled_by_the_trainer():
    with pytest.raises(ValueError, match="sampler is 'vllm'"):
        grpo.GRPO(task="lm/guess", sampler="vllm").open_task()
