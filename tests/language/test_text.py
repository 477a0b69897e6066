"""From text to tokens: nothing is added that the text has, nothing slips in between prompt and answer, one end.

Leaves out what a model makes of the tokens (`test_sampling.py`).
"""

import json
import types

import pytest
import torch

from small_tokenizers import KINDS, kind, metaspace
from telescope.language.data.tasks import from_file, without_ends
from telescope.language.data.text import answer_ids, end_texts, following_texts, prompt_ids
from telescope.language.experience.sampling import Completions, decode, encode
from telescope.language.experience.supervised import demonstrations
from telescope.language.models import causal as models

PROMPTS = ("Add 3+4=", "Add 3+4= ", "say so:\n", "so")
ANSWERS = ("7", " 7", "so it", "\n7", "fine. so", "  so", "=7", "fine . so")


def tokens_of(tokenizer, prompt, answer):
    rows = [{"prompt": prompt, "answer": answer}]
    batch = demonstrations(tokenizer, rows, tokenizer.eos_token_id, "cpu")
    return batch.prompts.tokens[0].tolist(), batch.tokens[0].tolist()


def text_of(tokenizer, tokens):
    return tokenizer.decode(tokens, clean_up_tokenization_spaces=False).removeprefix("<s>")


@pytest.mark.parametrize("name", KINDS)
def test_prompt_and_answer_joined_are_the_joined_text(name):
    """A space that a tokenizer puts before every text would stand between the two."""
    tokenizer = kind(name)
    own = len(text_of(tokenizer, prompt_ids(tokenizer, ["so"])[0])) - len("so")  # a space before the whole text
    for prompt in PROMPTS:
        for answer in ANSWERS:
            asked, (*said, end) = tokens_of(tokenizer, prompt, answer)
            assert end == tokenizer.eos_token_id
            assert text_of(tokenizer, asked + said)[own:] == prompt + answer


def test_no_space_slips_in_where_the_tokenizer_strips_texts():
    """A line's end as an anchor would be stripped together with what it is for."""
    from tokenizers import normalizers

    tokenizer = metaspace("always")
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    asked, said = tokens_of(tokenizer, "Add 3+4=", "7")
    assert text_of(tokenizer, asked + said[:-1]).lstrip() == "Add 3+4=7"


@pytest.mark.parametrize("name", KINDS)
def test_a_completion_is_the_text_that_its_tokens_add_to_the_prompt(name):
    """What the model says is scored as it was taught: with its first space, and without one of the decoder's."""
    tokenizer = kind(name)
    said = answer_ids(tokenizer, ANSWERS, tokenizer.eos_token_id)
    width = max(map(len, said))
    tokens = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in said])
    mask = torch.arange(width) < torch.tensor([[len(ids)] for ids in said])
    zeros = torch.zeros(tokens.shape)
    completions = Completions(tokens, mask, zeros, zeros, torch.ones(len(said), dtype=torch.bool), None)
    assert decode(tokenizer, completions, [tokenizer.eos_token_id]) == list(ANSWERS)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "characters"])
def test_a_prompt_begins_with_one_bos_and_nothing_follows_it(name):
    """Also where the text is a rendered chat template, which has its BOS already."""
    tokenizer = kind(name)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for text in ("Add 3+4=", "<s>Add 3+4=", "<s>Add</s>3+4="):
        [ids] = encode(tokenizer, [text]).tokens.tolist()
        assert ids[0] == begin
        assert ids.count(begin) == 1
        assert ids.count(end) == text.count("</s>")
        assert ids[-1] != end


def test_what_a_text_has_of_several_tokens_before_it_is_not_added_again():
    """GLM begins with [gMASK] and <sop>, templates with both or with the second alone."""
    front = {"": [8, 9], "[gMASK]": [8], "[gMASK]<sop>": [8, 9], "<sop>": [9]}

    def tokenizer(texts, add_special_tokens=True):
        def ids(text):
            given = next(key for key in sorted(front, key=len, reverse=True) if text.startswith(key))
            plain = [*(front[given] if given else []), *(ord(letter) for letter in text.removeprefix(given))]
            return [8, 9, *plain] if add_special_tokens else plain

        return {"input_ids": ids(texts) if isinstance(texts, str) else [ids(text) for text in texts]}

    wanted = [8, 9, ord("x")]
    for text in ("x", "[gMASK]<sop>x", "<sop>x"):
        assert prompt_ids(tokenizer, [text]) == [wanted], text


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_ends_once(name):
    """With its own end where it has one, also where a template has put a line's end behind it."""
    tokenizer = kind(name)
    end, name = tokenizer.eos_token_id, tokenizer.eos_token
    [plain] = answer_ids(tokenizer, ["7"], end)
    for answer in (f"7{name}", f"7{name}\n"):
        assert answer_ids(tokenizer, [answer], end) == [plain], answer
    assert plain.count(end) == 1
    assert answer_ids(tokenizer, [""], end) == [[end]]


def test_an_answer_may_end_with_another_end_than_the_one_that_is_taught():
    tokenizer = kind("byte level")
    taught, other = tokenizer.eos_token_id, tokenizer.pad_token_id
    [seven] = answer_ids(tokenizer, ["7"], [taught, other])
    assert seven[-1] == taught
    assert answer_ids(tokenizer, ["7<pad>"], [taught, other]) == [[*seven[:-1], other]]


@pytest.mark.parametrize(
    ("tokenizer", "config", "wanted"),
    [(5, None, [5]), (5, 3, [5, 3]), (5, [3, 4, 5], [5, 3, 4]), (None, [3, 4], [3, 4]), (5, 5, [5]), (0, 3, [0, 3])],
)
def test_ends_are_those_of_tokenizer_and_model_and_the_tokenizers_is_taught(tokenizer, config, wanted):
    """The first is what SFT and the reward model write; Llama 3 lists its end of text first, its end of turn last."""
    head = types.SimpleNamespace(weight=torch.zeros(9, 2))
    generation = types.SimpleNamespace(eos_token_id=config)
    model = types.SimpleNamespace(generation_config=generation, get_output_embeddings=lambda: head)
    assert models.ends_of(model, types.SimpleNamespace(eos_token_id=tokenizer)) == wanted


def test_an_answer_that_is_closed_in_the_file_is_matched_by_the_completion_without_its_end(tmp_path):
    tokenizer = kind("byte level")
    rows = [{"prompt": f"Add {i}+1=", "answer": f"{i + 1}</s>\n"} for i in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ends = end_texts(tokenizer, [tokenizer.eos_token_id])
    task = without_ends(from_file(str(tmp_path / "data.jsonl")), ends)
    assert task.reward(["Add 1+1="] * 2, ["2", "2</s>"], answer=["2</s>\n"] * 2) == [1.0, 0.0]


def test_a_run_says_that_prompts_end_in_an_end(tmp_path):
    """A completion would begin behind the end of a text: the template was rendered without its generation prompt."""
    from telescope.language.checks import remarks
    from telescope.language.config import RolloutConfig

    tokenizer = kind("byte level")
    ends = end_texts(tokenizer, [tokenizer.eos_token_id])
    found = []
    for closing in ("", "</s>", "</s>\n"):
        rows = [{"prompt": f"Add {i}+1={closing if i % 2 else ''}", "answer": "2"} for i in range(20)]
        (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        path = str(tmp_path / "data.jsonl")
        found.append(" ".join(remarks(RolloutConfig(task=path), from_file(path), tokenizer, ends)))
    assert "end token" not in found[0]
    assert all("50% of the prompts" in said and "add_generation_prompt" in said for said in found[1:])


def test_texts_of_no_tokens_are_empty():
    """A batch of nothing is none, and an empty completion is an empty text in its place."""
    for name in KINDS:
        tokenizer = kind(name)
        assert following_texts(tokenizer, []) == []
        [seven] = answer_ids(tokenizer, ["7"], tokenizer.eos_token_id)
        assert following_texts(tokenizer, [(), seven[:-1], ()]) == ["", "7", ""]
