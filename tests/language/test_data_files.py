"""Files of rows in every format: the same rows, their columns kept, and what is wrong said with row and field.

Leaves out how conversations become text (`test_chat.py`).
"""

import csv
import json

import pytest

from telescope.algorithms import grpo, meant
from telescope.cli import main
from telescope.language.data.files import is_data, read_rows
from telescope.language.data.inputs import inputs, resolved
from telescope.language.data.tasks import open_task

TEXTS = [{"prompt": f"{i}+1=", "answer": str(i + 1), "level": i % 3} for i in range(30)]
TALKS = [
    {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": f"{i + 1}"}], "level": i}
    for i in range(30)
]


def write(path, rows):
    """Write rows in the format of the path's ending; return the path as a text."""
    kind = path.suffix
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif kind == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif kind == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    else:
        datasets = pytest.importorskip("datasets")
        found = datasets.Dataset.from_list(rows)
        (datasets.DatasetDict({"train": found, "test": found}) if "splits" in path.name else found).save_to_disk(path)
    return str(path)


NAMES = ("rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "saved", "saved_splits")


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(name, tmp_path):
    path = write(tmp_path / name, TEXTS)
    assert is_data(path)
    expected = [{key: str(value) for key, value in row.items()} for row in TEXTS] if name == "rows.csv" else TEXTS
    assert read_rows(path, ("prompt",), alike=True) == expected
    task = open_task(path)
    assert task.metric == "exact_match"
    assert task.held_out == [row for row in expected if row not in task.rows or row in task.held_out]
    assert meant("ppo", path) == ("rlhf", {})
    assert meant("grpo", path) == ("grpo", {})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rows.csv"])
def test_conversations_survive_every_format(name, tmp_path):
    """Arrow gives every message the fields of all messages."""
    rows = [*TALKS, {"messages": [{"role": "tool", "content": "x", "name": "f"}, *TALKS[0]["messages"]], "level": 1}]
    found = read_rows(write(tmp_path / name, rows), ("prompt",), alike=True)
    assert [row["messages"] for row in found] == [row["messages"] for row in rows]
    assert found[0]["prompt"] == rows[0]["messages"][:1]
    assert found[0]["completion"] == rows[0]["messages"][1:]


def test_a_number_in_csv_stays_a_text_and_an_empty_field_is_none(tmp_path):
    (tmp_path / "d.csv").write_text('prompt,answer\n"say ""a"",\nb",007\nc,\n')
    assert read_rows(tmp_path / "d.csv", ("prompt",)) == [
        {"prompt": 'say "a",\nb', "answer": "007"},
        {"prompt": "c", "answer": None},
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("d.json", '[{"prompt": "a"}, 3]', "row 2 of .*d.json is a int; expected a JSON object"),
        ("d.json", '[{"prompt": ', "d.json is not JSON in UTF-8"),
        ("d.json", '{"prompt": "a"}\n{"promp": "b"}', "row 2 of .*d.json has no field 'prompt'"),
        ("d.csv", "prompt,answer\na,b,c\n", "row 1 of .*d.csv has more or fewer fields"),
        ("d.csv", "prompt,answer\na\n", "row 1 of .*d.csv has more or fewer fields"),
        ("d.csv", "question\na\n", "row 1 of .*d.csv has no field 'prompt'; it has 'question'"),
        ("d.parquet", "no", "d.parquet cannot be read as Parquet"),
        ("d.jsonl", '{"prompt": [{"from": "human"}]}', "prompt in row 1 of .* expected a string, or messages with a r"),
        ("d.jsonl", '{"prompt": []}', "prompt in row 1 of .* expected a string, or messages"),
        ("d.jsonl", '{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}', "the prompt in row 2 .* is a c"),
        ("d.jsonl", "", "d.jsonl has no rows"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_rows(tmp_path / name, ("prompt",), alike=True)


def test_splits_without_train_are_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_list(TEXTS)
    datasets.DatasetDict({"one": found, "two": found}).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match="splits one, two, but no train; name the folder of one"):
        read_rows(tmp_path / "d", ("prompt",))
    assert len(read_rows(tmp_path / "d" / "two", ("prompt",))) == 30


def test_a_text_answer_to_a_conversation_is_fine_and_the_reverse_is_not(tmp_path):
    talk = [{"role": "user", "content": "a"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": talk, "chosen": "b", "rejected": "c"}))
    assert read_rows(tmp_path / "d.jsonl", ("prompt", "chosen", "rejected"))
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a", "chosen": talk, "rejected": "c"}))
    with pytest.raises(ValueError, match=r"chosen in row 1 of .* is a conversation, but its prompt is a text"):
        read_rows(tmp_path / "d.jsonl", ("prompt", "chosen", "rejected"))


@pytest.mark.parametrize("name", ["rows.csv", "saved_splits"])
def test_data_are_known_by_their_bytes_and_found_from_anywhere(name, tmp_path, monkeypatch):
    write(tmp_path / name, TEXTS)
    monkeypatch.chdir(tmp_path)
    config = grpo.GRPO(task=name)
    assert resolved(config).task == str(tmp_path / name)
    before = inputs(config)["task"]
    assert inputs(resolved(config))["task"] == before
    file = next(path for path in sorted((tmp_path / name).rglob("*.arrow")) or [tmp_path / name])
    file.write_bytes(file.read_bytes() + b"\n")
    assert inputs(config)["task"] != before


def test_a_run_learns_from_csv_and_is_named_after_it(tmp_path, monkeypatch):
    write(tmp_path / "rows.csv", TEXTS)
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "tiny", "--prompts", "2", "--group", "2", "--minibatches", "1", "--warm-start", "0"]
    flags += ["--total-steps", "1", "--threads", "1", "--eval-prompts", "2", "--max-tokens", "3"]
    assert main(["train", "grpo", "rows.csv", *flags]) == 0
    assert next((tmp_path / "runs").iterdir()).name.startswith("grpo-rows-2")
