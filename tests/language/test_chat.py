"""Conversations: the text is `apply_chat_template`'s, and what is prompt, answer, learned or given to a reward.

Leaves out files (`test_data_files.py`).
"""

import json

import pytest
import torch

from small_models import save, tokenizer_of
from telescope.algorithms import config_class, find, grpo, sft
from telescope.cli import main
from telescope.language.checks import readable
from telescope.language.data.chat import Template, as_completion, parted, source
from telescope.language.data.rewards import score
from telescope.language.data.tasks import exact_match, is_held_out
from telescope.language.data.text import answer_ids, end_texts, prompt_ids
from telescope.language.experience.sampling import encode
from telescope.language.experience.supervised import demonstrations
from telescope.rewards import text_of
from telescope.runs import RunFolder

USER, ASSISTANT, SYSTEM = ({"role": role, "content": ""} for role in ("user", "assistant", "system"))
ASKED = [{**SYSTEM, "content": "Add."}, {**USER, "content": "What is 1 + 2?"}]
LONGER = [*ASKED, {**ASSISTANT, "content": "3"}, {**USER, "content": "And 4 + 5?"}]
PROMPTS = {"one turn": ASKED, "two turns": LONGER, "no system": ASKED[1:]}
KINDS = ("qwen3", "thinking", "llama")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROMPTS)
def test_the_text_is_that_of_apply_chat_template(kind, name):
    tokenizer, messages = tokenizer_of(kind), PROMPTS[name]
    row = Template(tokenizer, kind).render({"prompt": messages, "level": 1}, ())
    assert row["prompt"] == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert source(row)["prompt"] == messages
    answer = [{**ASSISTANT, "content": "<think>\nhm\n</think>\n\n9" if kind == "thinking" else "9"}]
    row = Template(tokenizer, kind).render({"prompt": messages, "completion": answer}, ("completion", "answer"))
    whole = tokenizer.apply_chat_template([*messages, *answer], tokenize=False)
    assert row["prompt"] + row["completion"] == whole
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert encode(tokenizer, [row["prompt"]]).tokens[0].tolist() == list(asked), "BOS once"
    [ids] = answer_ids(tokenizer, [row["completion"]], tokenizer.eos_token_id)
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode([*asked, *ids]) == whole.rstrip("\n")


def test_tools_and_settings_of_a_template_are_those_of_the_row():
    tokenizer = tokenizer_of("thinking")
    row = {"prompt": ASKED, "chat_template_kwargs": {"enable_thinking": False}}
    text = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    assert Template(tokenizer, "x").render(row, ())["prompt"] == text


@pytest.mark.parametrize(
    ("kind", "row", "prefill"),
    [
        ("qwen3", {}, ""),
        ("llama", {}, ""),
        ("thinking", {}, "<think>\n"),
        ("thinking", {"chat_template_kwargs": {"enable_thinking": False}}, ""),  # the template closes the thought
        ("thinking", {"chat_template_kwargs": {"opened": False}}, ""),
        ("qwen3", {"prompt": [*ASKED, {**ASSISTANT, "content": "It is "}]}, "It is "),
        ("llama", {"prompt": [*ASKED, {**ASSISTANT, "content": "It is "}]}, "It is"),  # which strips contents
    ],
)
def test_what_the_prompt_already_says_for_the_assistant_is_prompt_and_reaches_the_reward(kind, row, prefill):
    template = Template(tokenizer_of(kind), kind)
    found = template.render({"prompt": ASKED, **row}, ())
    assert found["prompt"].prefill == prefill
    assert found["prompt"].endswith(prefill)
    assert as_completion(found, "9") == [{"role": "assistant", "content": f"{prefill}9"}]
    seen = []
    score(lambda prompts, completions: seen.append((prompts, completions)) or [1.0], [found], ["9"], name="f")
    assert seen == [([source(found)["prompt"]], [[{"role": "assistant", "content": f"{prefill}9"}]])]


def test_an_answer_continues_the_assistants_last_message():
    row = {"prompt": [*ASKED, {**ASSISTANT, "content": "It is "}], "completion": "9"}
    for kind in ("qwen3", "llama"):
        found = Template(tokenizer_of(kind), kind).render(row, ("completion",))
        assert (found["prompt"] + found["completion"]).count("It is 9") == 1


def test_exact_match_reads_a_message_without_its_thoughts():
    said = [[{**ASSISTANT, "content": text}] for text in ("9", "<think>\n8\n</think>\n\n9\n", "<think>9")]
    assert exact_match(["p"] * 3, said, answer=["9"] * 3) == [1.0, 1.0, 0.0]
    assert exact_match(["p"], ["</think>9"], answer=["9"]) == [0.0], "a text is compared as it is"


@pytest.mark.parametrize("kind", KINDS)
def test_every_turn_of_the_assistant_is_learned_up_to_its_end_token(kind):
    tokenizer = tokenizer_of(kind)
    end = tokenizer.eos_token_id
    row = {"prompt": LONGER, "completion": [{**ASSISTANT, "content": "9"}]}
    found = Template(tokenizer, kind).render(row, ("completion", "answer"), end_texts(tokenizer, [end]))
    batch = demonstrations(tokenizer, [found], end, "cpu")
    tokens, learned = batch.tokens[0], batch.learned[0]
    assert batch.mask.all()
    whole = tokenizer.apply_chat_template([*LONGER, *row["completion"]], tokenize=False)
    together = [*batch.prompts.tokens[0].tolist(), *tokens.tolist()]
    assert tokenizer.decode(together) == whole.rstrip("\n")
    last = "\n</think>\n\n9" if kind == "thinking" else "9"
    name = tokenizer.eos_token
    assert tokenizer.decode(tokens[learned]) == f"3{name}{last}{name}"
    alone = demonstrations(tokenizer, [Template(tokenizer, kind).render(row, ("completion",))], end, "cpu")
    assert tokenizer.decode(alone.tokens[0][alone.learned[0]]) == f"{last}{name}"


def test_messages_are_split_before_the_last_answer_and_pairs_where_they_differ():
    whole = [*LONGER, {**ASSISTANT, "content": "9"}]
    row = parted({"messages": whole})
    assert (row["prompt"], row["completion"]) == (LONGER, whole[-1:])
    assert parted({"messages": LONGER})["prompt"] == LONGER
    worse = [*LONGER, {**ASSISTANT, "content": "8"}]
    row = parted({"chosen": whole, "rejected": worse})
    assert (row["prompt"], row["chosen"], row["rejected"]) == (LONGER, whole[-1:], worse[-1:])
    row = parted({"chosen": "Q: 1?\nA: nine", "rejected": "Q: 1?\nA: eight"})
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("Q: 1?\nA:", " nine", " eight")


def test_the_same_conversations_are_held_out_for_every_model():
    rows = [{"prompt": [{**USER, "content": f"What is {i}?"}]} for i in range(60)]
    held = [is_held_out(row["prompt"]) for row in rows]
    assert 0 < sum(held) < 20
    for kind in KINDS:
        template = Template(tokenizer_of(kind), kind)
        assert [is_held_out(template.render(row, ())["prompt"]) for row in rows] == held


def test_a_model_without_a_template_is_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": ASKED, "answer": "3"}) + "\n")
    config = sft.SFT(task=str(tmp_path / "d.jsonl"))
    with pytest.raises(ValueError, match="the tokenizer of tiny has no chat template"):
        list(sft.train(config))


# What a run does with them


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sums as conversations, for every algorithm."""
    folder = tmp_path_factory.mktemp("data")
    sums = [(a, b) for a in range(6) for b in range(10)]
    asked = [[{**USER, "content": f"What is {a} + {b}?"}] for a, b in sums]
    said = [[{**ASSISTANT, "content": str(a + b)}] for a, b in sums]
    tables = {
        "talks": [
            {"messages": [*LONGER, {**ASSISTANT, "content": "9"}, *p, *c]} for p, c in zip(asked, said, strict=True)
        ],
        "sums": [{"prompt": p, "answer": c[0]["content"], "level": 1} for p, c in zip(asked, said, strict=True)],
        "pairs": [
            {"chosen": [*p, *c], "rejected": [*p, {**ASSISTANT, "content": "no"}]}
            for p, c in zip(asked, said, strict=True)
        ],
    }
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(
        "def right(prompts, completions, answer, level):\n"
        "    assert prompts[0][-1]['role'] == 'user' and completions[0][0]['role'] == 'assistant'\n"
        "    return [float(c[0]['content'].endswith(a)) for c, a in zip(completions, answer)]\n"
    )
    return folder


QUICK = ["--threads", "1", "--eval-prompts", "4", "--micro-batch", "4"]


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_folder_goes_through_every_algorithm(kind, data, tmp_path, capsys):
    """SFT on every turn, a reward model, PPO and GRPO with LoRA, resume bit for bit, eval, and transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = save(kind, tmp_path / "base")

    def run(*arguments):
        assert main([*map(str, arguments)]) == 0, capsys.readouterr().err

    learned = ["--model", base, "--batch-size", 8, "--total-steps", 2, *QUICK]
    run("train", "sft", data / "talks.jsonl", "--loss-on", "assistant", "--out", tmp_path / "sft", *learned)
    run("train", "reward_model", data / "pairs.jsonl", "--out", tmp_path / "rm", *learned)
    rollouts = ["--model", tmp_path / "sft", "--prompts", 4, "--group", 2, "--minibatches", 2, "--max-tokens", 5]
    rollouts += ["--lora-rank", 2, *QUICK]
    for name, reward in (("ppo", tmp_path / "rm"), ("grpo", f"{data / 'mine.py'}:right")):
        out = tmp_path / name
        flags = ["--reward", reward, "--out", out, "--eval-every", 1, "--learning-rate", 1e-2, *rollouts]
        run("train", name, data / "sums.jsonl", "--total-steps", 3, *flags)
        whole = RunFolder.open(out)
        module = find(whole.algorithm)
        config = whole.load_config(config_class(whole.algorithm))
        first = next(step.state for step in module.train(config) if step.step == 1)
        *_, last = module.train(config, resume=first)
        saved = whole.load_checkpoint()["models"]["policy"]
        assert all(torch.equal(saved[name], tensor) for name, tensor in last.state["models"]["policy"].items())
        capsys.readouterr()
        run("eval", out, "--json", "--prompts", 3)
        found = json.loads(capsys.readouterr().out)
        assert found.keys() >= {"exact_match", "reward", "kl_completion"}
        model = AutoModelForCausalLM.from_pretrained(out / "model")
        tokenizer = AutoTokenizer.from_pretrained(out / "model")
        assert tokenizer.chat_template == tokenizer_of(kind).chat_template
        text = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert model.generate(**text, max_new_tokens=2).shape[0] == 1


def test_show_prints_what_the_model_reads(data, tmp_path, capsys):
    base = save("qwen3", tmp_path / "base")
    tokenizer = tokenizer_of("qwen3")
    assert main(["show", str(data / "talks.jsonl"), "--model", base, "--loss-on", "assistant", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = json.loads((data / "talks.jsonl").read_text().splitlines()[0])
    assert found["text"] == tokenizer.apply_chat_template(row["messages"], tokenize=False).rstrip("\n")
    assert "".join(token["text"] for token in found["tokens"]) == found["text"]
    assert "".join(t["text"] for t in found["tokens"] if t["loss"]) == "3<|im_end|>9<|im_end|>0<|im_end|>"
    assert main(["show", str(data / "pairs.jsonl"), "--model", base, "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("row 2, ") == 2
    assert "row 1, chosen: " in said
    assert main(["show", str(data / "pairs.jsonl"), str(data)]) == 2
    assert "telescope show takes one" in capsys.readouterr().err


def test_a_text_file_is_read_as_before(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3"}\n')
    config = grpo.GRPO(task=str(tmp_path / "d.jsonl"))
    task = config.open_task()
    assert readable(config, task, None, ()) is task
    assert text_of("2") == "2"
    assert prompt_ids(tokenizer_of("qwen3"), ["a"])
