"""What is saved is what was trained: an adapter on its own, the merged model in float32, and a run that begins from it.

Leaves out how well an adapter learns.
"""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from telescope.algorithms import sft
from telescope.cli import main
from telescope.language.models import causal as models

peft = pytest.importorskip("peft")
TOKENS = torch.randint(3, 90, (8, 12), generator=torch.Generator().manual_seed(0))
SMALL = {"batch_size": 8, "total_steps": 2, "eval_prompts": 2, "eval_every": 0, "threads": 1, "lr_warmup": 0}


@torch.no_grad()
def log_probs(model):
    return model.float().eval()(TOKENS).logits.log_softmax(-1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model whose weights are those of bfloat16, as published ones are, and which does not move by itself."""
    folder = tmp_path_factory.mktemp("base") / "base"
    model, tokenizer = models.load(models.TINY, dtype=torch.bfloat16)
    models.save(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """By dtype: the trained policy, where its merged model is and where its adapter."""
    made = {}
    for dtype in ("float32", "bfloat16"):
        folder = tmp_path_factory.mktemp(dtype)
        config = sft.SFT(model=str(base), lora_rank=4, dtype=dtype, learning_rate=1e-5, **SMALL)
        *_, iteration = sft.train(config)
        iteration.save_model(folder / "model")
        iteration.save_adapter(folder / "adapter")
        made[dtype] = iteration._session.policy, folder / "model", folder / "adapter"
    return made


def kept(found, base, policy):
    """⟨found − base, policy − base⟩ / |policy − base|² of log-probabilities: 1 where all of the update is there."""
    return float(((found - base) * (policy - base)).sum() / (policy - base).square().sum())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_model_and_the_adapter_hold_all_of_the_update(trained, base, dtype):
    """Merged in bfloat16, whose neighbours are 0.4 % apart, most of an update at 1e-5 would be rounded away."""
    policy, merged, adapter = trained[dtype]
    start, end = log_probs(models.load(str(base))[0]), log_probs(policy)
    saved = models.load(str(merged), dtype=None)[0]
    assert saved.dtype == torch.float32
    assert kept(log_probs(saved), start, end) == pytest.approx(1, abs=0.01)
    assert kept(log_probs(models.load(str(adapter))[0]), start, end) == pytest.approx(1, abs=0.01)
    theirs = peft.PeftModel.from_pretrained(models.load(str(base))[0], str(adapter))
    assert kept(log_probs(theirs), start, end) == pytest.approx(1, abs=0.01)


def test_an_adapter_in_bfloat16_says_how_much_of_it_is_kept(trained, base):
    _, merged, adapter = trained["bfloat16"]
    with pytest.warns(UserWarning, match=r"keeps -?\d+% of its update; float32 keeps all") as caught:
        models.load(str(adapter), dtype=torch.bfloat16)
    start, policy = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    left = whole = 0.0
    for name in [name for name in start if "proj" in name]:
        update = policy[name] - start[name].float()
        left += float(((policy[name].bfloat16().float() - start[name].float()) * update).sum())
        whole += float(update.square().sum())
    assert f"keeps {left / whole:.0%} of" in str(caught[0].message)
    assert left / whole < 0.9


def test_an_adapter_of_the_built_in_model_brings_its_base(tmp_path):
    config = dataclasses.replace(sft.preset("lm/addition"), lora_rank=2, **SMALL)
    *_, iteration = sft.train(config)
    iteration.save_adapter(tmp_path / "adapter")
    shutil.move(tmp_path / "adapter", tmp_path / "moved")
    found = models.load(str(tmp_path / "moved"))[0]
    torch.testing.assert_close(log_probs(found), log_probs(iteration._session.policy), rtol=0, atol=1e-4)


def test_a_run_with_an_adapter_leaves_it_and_another_begins_from_it(base, tmp_path, capsys):
    flags = [str(word) for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = ["train", "sft", "lm/addition", *flags, "--learning-rate", "1e-3", "--lora-rank", "2"]
    assert main([*command, "--model", str(base), "--out", str(tmp_path / "one")]) == 0
    assert main([*command, "--model", str(tmp_path / "one" / "adapter"), "--out", str(tmp_path / "two")]) == 0
    assert main(["eval", str(tmp_path / "two"), "--prompts", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kl_completion"] is not None
    one, two = (log_probs(models.load(str(tmp_path / run / "adapter"))[0]) for run in ("one", "two"))
    assert not torch.equal(one, two)
    again = log_probs(models.load(str(tmp_path / "two" / "model"))[0])
    torch.testing.assert_close(again, two, rtol=0, atol=1e-4)


def changed(name, change):
    def edit(folder):
        held = json.loads((folder / name).read_text())
        change(held)
        (folder / name).write_text(json.dumps(held))

    return edit


def without_one(folder):
    held = load_file(folder / "adapter_model.safetensors")
    del held[min(held)]
    save_file(held, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "without adapter_model.safetensors"),
        (without_one, "an adapter that lacks base_model.model.model.layers.0"),
        (changed("adapter_config.json", lambda c: c.update(base_model_name_or_path="/away/base")), "/away/base"),
        (changed("adapter_config.json", lambda c: c.update(base_model_name_or_path=None)), "names no base"),
        (changed("adapter_config.json", lambda c: c.update(peft_type="IA3")), "of type 'IA3'"),
        (changed("adapter_config.json", lambda c: c.update(megatron_config={}, megatron_core="os")), "megatron_core"),
        (changed("adapter_config.json", lambda c: c.update(r=8)), "cannot load the adapter on its base.*size mismatch"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_named(trained, tmp_path, change, names):
    folder = shutil.copytree(trained["float32"][2], tmp_path / "adapter")
    change(folder)
    with pytest.raises(ValueError, match=names):
        models.load(str(folder))


def test_an_adapter_is_not_its_own_base(trained, tmp_path):
    folder = shutil.copytree(trained["float32"][2], tmp_path / "adapter")
    changed("adapter_config.json", lambda held: held.update(base_model_name_or_path=str(folder)))(folder)
    with pytest.raises(ValueError, match="an adapter that is its own base"):
        models.require(str(folder))


def test_without_an_adapter_there_is_none_to_save(tmp_path):
    iteration = next(iter(sft.train(dataclasses.replace(sft.preset("lm/addition"), **SMALL))))
    assert not iteration.has_adapter
    with pytest.raises(ValueError, match="lora_rank is 0"):
        iteration.save_adapter(tmp_path / "adapter")
