"""A model folder is what its files say, or it is refused by a sentence that names what is wrong; no code of it runs.

Leaves out architectures (`test_language_models.py`).
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from telescope.algorithms import grpo, sft
from telescope.cli import main
from telescope.language.experience.preferences import RewardModel
from telescope.language.models import causal as models
from telescope.language.models import pretrained
from telescope.language.models.heads import HEAD, save_head
from telescope.language.models.memory import memory
from telescope.language.models.states import require_tokens

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The built-in model as an ordinary folder."""
    folder = tmp_path_factory.mktemp("models") / "good"
    models.save(*models.load(models.TINY), folder)
    return folder


@pytest.fixture
def copy(good, tmp_path):
    """One to be damaged."""
    return shutil.copytree(good, tmp_path / "model")


def edited(name, change):
    """A change of a JSON file, by a function of what it holds."""

    def edit(folder):
        held = json.loads((folder / name).read_text())
        change(held)
        (folder / name).write_text(json.dumps(held))

    return edit


def config(**settings):
    return edited("config.json", lambda held: held.update(settings))


def ends(found):
    return edited("generation_config.json", lambda held: held.update(eos_token_id=found))


def weights(change):
    """A change of the weights, by a function of all of them."""

    def edit(folder):
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def number(value):
    def change(held):
        held[WEIGHT] = held[WEIGHT].clone()
        held[WEIGHT][3, 5] = value

    return weights(change)


def sharded(change):
    """The weights in two files with an index, and a change of the index."""

    def edit(folder):
        held = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        place = {name: "ab"[number % 2] + ".safetensors" for number, name in enumerate(sorted(held))}
        for file in ("a.safetensors", "b.safetensors"):
            save_file({n: held[n] for n in held if place[n] == file}, folder / file, metadata={"format": "pt"})
        index = {"metadata": {"total_size": 1}, "weight_map": place}
        change(index)
        (folder / pretrained.INDEX).write_text(json.dumps(index))

    return edit


def pointing(target):
    return sharded(lambda index: index["weight_map"].update({WEIGHT: target}))


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def shifted(by):
    def change(held):
        held["model"]["vocab"] = {token: i + by for token, i in held["model"]["vocab"].items()}

    return edited("tokenizer.json", change)


SPLIT = {"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False}
TOKENIZER_CODE = {"AutoTokenizer": ["own.Tokenizer", None]}
CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
REFUSED = {  # what is done to a folder, and what the sentence names
    "config is empty": (content("config.json", b""), "config.json"),
    "config is of another width": (config(hidden_size=64), "model.embed_tokens.weight has shape .*128.*config.json"),
    "config has too few layers": (config(num_hidden_layers=1), "holds model.layers.1"),
    "config has too many layers": (config(num_hidden_layers=3), "lacks model.layers.2"),
    "config has words for numbers": (config(vocab_size="x"), "vocab_size"),
    "config has another vocabulary": (config(vocab_size=999), "shape .99, 128"),
    "config is of another architecture": (config(model_type="gpt2"), "lacks lm_head.weight and 28 more of a GPT2"),
    "config of nobody": (config(model_type="nobody"), "nobody"),
    "config brings code": (config(model_type="own", auto_map=CODE), "--trust"),
    "config names kernels of the hub": (config(_attn_implementation="some/kernel"), "some/kernel.*--trust"),
    "config takes weights elsewhere": (config(transformers_weights="../other.safetensors"), "other.safetensors"),
    "config takes pickles": (config(transformers_weights="adapter_model.bin"), "adapter_model.bin"),
    "one tensor is missing": (weights(lambda held: held.pop(WEIGHT)), f"lacks {WEIGHT} "),
    "one tensor too many": (weights(lambda held: held.update(other=torch.ones(1))), "holds other"),
    "one tensor of half the size": (weights(lambda held: held.update({WEIGHT: held[WEIGHT][:256].clone()})), WEIGHT),
    "infinite": (number(math.inf), f"{WEIGHT} is not finite"),
    "NaN": (number(math.nan), f"{WEIGHT} is not finite"),
    "weights are cut": (cut("model.safetensors", -1), "(?i)incomplete"),
    "weights are missing": (lambda folder: (folder / "model.safetensors").unlink(), "expected weights as safetensors"),
    "weights are pickles": (pickled, r"only pickles \(pytorch_model.bin\)"),
    "index points out of the folder": (pointing("../good/model.safetensors"), "points to '../good"),
    "index points to nothing": (pointing("c.safetensors"), "points to 'c.safetensors'"),
    "index is no table": (sharded(lambda index: index.update(weight_map=[1])), "index.json"),
    "tokenizer is broken": (content("tokenizer.json", b'{"version": "1.0"}'), "its tokenizer"),
    "tokenizer is cut": (cut("tokenizer.json", 500), "its tokenizer"),
    "tokenizer has negative ids": (shifted(-3), "its tokenizer"),
    "tokenizer is of a larger model": (shifted(1000), "the id 1003 .96 such tokens., but its embedding has 99 rows"),
    "tokenizer has a bad expression": (edited("tokenizer.json", lambda t: t.update(pre_tokenizer=SPLIT)), "tokenizer"),
    "tokenizer brings code": (
        edited("tokenizer_config.json", lambda t: t.update(tokenizer_class="X", auto_map=TOKENIZER_CODE)),
        "--trust",
    ),
    "generation config is broken": (content("generation_config.json", b"{"), "generation_config.json"),
    "end tokens are negative": (ends([-5]), "eos_token_id is -5"),
    "end tokens are words": (ends("x"), "eos_token_id is 'x'"),
    "adapter without a base": (content("adapter_config.json", b"{}"), "names no base"),
}  # fmt: skip


def read(folder):
    model, tokenizer = models.load(str(folder))
    return model, tokenizer, models.ends_of(model, tokenizer)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_in_a_model_folder_is_named(copy, what):
    change, names = REFUSED[what]
    change(copy)
    with pytest.raises(ValueError, match=names) as caught:
        read(copy)
    assert str(copy) in str(caught.value) or "eos_token_id" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda folder: None, sharded(lambda index: None)])
def test_a_whole_folder_gives_its_very_weights(good, copy, change):
    change(copy)
    wanted = models.load(models.TINY)[0].state_dict()
    found = read(copy)[0].state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_code_of_a_model_folder_runs_for_those_who_trust_it_alone(copy, tmp_path, monkeypatch):
    (copy / "own.py").write_text(
        "import pathlib\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    config(model_type="own", auto_map=CODE)(copy)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a command never asks"))
    for ask in (models.load, models.require):
        with pytest.raises(ValueError, match="--trust"):
            ask(str(copy))
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert type(models.load(str(copy), trust=True)[0]).__name__ == "Model"


def test_tied_weights_and_a_dtype_as_saved_are_fine(good, tmp_path):
    model, tokenizer = models.load(str(good))
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    models.save(model.to(torch.bfloat16), tokenizer, tmp_path / "half")
    assert models.load(str(tmp_path / "half"), dtype=None)[0].dtype == torch.bfloat16
    assert models.load(str(tmp_path / "half"))[0].dtype == torch.float32


def test_tokens_that_were_added_to_the_tokenizer_alone_are_named_with_their_text(good, tmp_path):
    model, tokenizer = models.load(str(good))
    tokenizer.add_tokens(["<think>"])
    models.save(model, tokenizer, tmp_path / "model")
    model, tokenizer = models.load(str(tmp_path / "model"))  # nobody has used them yet
    pretrained.require_known("m", tokenizer, 99, ["1+1="])
    with pytest.raises(ValueError, match=r"'1<think>' has the token '<think>'.*id 99.*99 rows.*resize_token_emb"):
        pretrained.require_known("m", tokenizer, 99, ["1+1=", "1<think>"])
    with pytest.raises(ValueError, match="the token 99, but the embedding"):
        require_tokens(model, torch.tensor(tokenizer("1<think>")["input_ids"]))


# What goes through a run comes out as it was


def test_padding_side_and_generation_config_come_out_as_they_went_in(copy, tmp_path):
    edited("tokenizer_config.json", lambda held: held.update(padding_side="right"))(copy)
    settings = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "eos_token_id": [1, 2]}  # transformers warns here
    edited("generation_config.json", lambda held: held.update(settings))(copy)
    models.save(*models.load(str(copy)), tmp_path / "again")
    for name in ("tokenizer_config.json", "generation_config.json", "tokenizer.json", "config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (copy, tmp_path / "again"))
        for added in ("is_local", "local_files_only"):
            after.pop(added, None)
        assert after == before, name


# Sealed folders


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_flipped_bit_in_what_a_run_has_written_is_noticed_wherever_the_folder_is_read(copy, name):
    """The sum of one weight by 0.001 or another letter of the tokenizer: such a folder would load, as another model."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in copy.iterdir()}
    (copy / pretrained.SEAL).write_text(json.dumps({"run": "x", "files": files}))
    read(copy)
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is changed since the run wrote it.*delete seal.json"):
        read(copy)
    (copy / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is gone"):
        read(copy)


# Reward models


@pytest.fixture
def judge(good, tmp_path):
    """The run folder of a reward model."""
    shutil.copytree(good, tmp_path / "judge" / "model")
    save_head({"weight": torch.ones(1, 128), "bias": torch.zeros(1)}, tmp_path / "judge" / "model")
    return tmp_path / "judge"


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ({"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}, r"'weight': \[1, 32\].*needs.*\[1, 128\]"),
        ({"weight": torch.zeros(1, 128)}, "needs.*'bias'"),
        ({"weight": torch.full((1, 128), torch.inf), "bias": torch.zeros(1)}, "weight is not finite"),
        (b"xx", "head.safetensors.*cannot load"),
    ],
)
def test_a_head_that_is_cut_or_of_another_width_is_named(judge, head, names):
    assert float(RewardModel.load(str(judge), "cpu").network.head.weight.sum()) == 128
    path = judge / "model" / HEAD
    save_file(head, path) if isinstance(head, dict) else path.write_bytes(head)
    with pytest.raises(ValueError, match=names):
        RewardModel.load(str(judge), "cpu")


def test_a_reward_model_that_cannot_read_the_policys_texts_is_told(judge, tmp_path):
    rows = [{"prompt": f"{number}é"} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = grpo.GRPO(task=str(tmp_path / "rows.jsonl"), reward=str(judge), prompts=2, group=2, minibatches=1)
    config = dataclasses.replace(config, total_steps=1, eval_prompts=2, max_tokens=2, threads=1)
    notes = next(iter(grpo.train(config))).notes
    assert any(f"the tokenizer of {judge} does not know" in note for note in notes)


# The built-in model


def test_the_built_in_model_is_its_seeds_alone_whatever_other_threads_do():
    before = torch.get_rng_state()
    alone = {seed: models.tiny(seed).state_dict() for seed in range(4)}
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda seed: models.tiny(seed).state_dict(), [*range(4)] * 2))
    for seed, found in zip([*range(4)] * 2, together, strict=True):
        assert all(torch.equal(found[name], alone[seed][name]) for name in found)
    assert not torch.equal(alone[0]["lm_head.weight"], alone[1]["lm_head.weight"])
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's numbers are moved


def test_half_precision_leaves_what_is_no_parameter_alone(good):
    built, saved = (models.load(source, dtype=torch.bfloat16)[0] for source in (models.TINY, str(good)))
    tokens = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(built(tokens).logits, saved(tokens).logits)


# Late refusals, and memory


def test_a_model_that_is_refused_late_leaves_no_folder(copy, tmp_path, capsys):
    """Weights are read when training begins, behind all that is looked at beforehand."""
    number(math.nan)(copy)
    out = tmp_path / "run"
    command = ["train", "sft", "lm/addition", "--model", str(copy), "--out", str(out), "--total-steps", "1"]
    assert main(command) == 2
    assert f"{WEIGHT} is not finite" in capsys.readouterr().err
    assert not out.exists()
    shutil.copytree(tmp_path / "model", out)  # what somebody else has put there stays
    assert main(command) == 1
    assert (out / "config.json").is_file()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        MemoryError(),
    ],
)
def test_where_memory_runs_out_it_is_said_what_reduces_it(error, tmp_path, monkeypatch, capsys):
    names = {"__name__": "telescope.trains", "error": error}  # else it is the user's, and shown with its traceback
    exec("def train(config, resume=None):\n    raise error\n    yield", names)
    monkeypatch.setattr(sft, "train", names["train"])
    out = str(tmp_path / "run")
    assert main(["train", "sft", "lm/addition", "--out", out, "--total-steps", "1"]) == 1
    said = capsys.readouterr().err
    assert "out of memory (" in said
    assert "--micro-batch" in said
    assert "--max-tokens" in said
    assert "Traceback" not in said
    with pytest.raises(RuntimeError, match="another error"), memory():
        raise RuntimeError("another error")


@pytest.mark.parametrize("place", ["runs/none/model", "./none", "/none", "runs/none"])
def test_a_path_to_nothing_is_no_name_on_the_hub(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match=r"but there is no such folder$"):
        models.load(place)
