"""What a run is without flags: step sizes by the model, and data files of another kind refused with what to do.

Leaves out what the settings do.
"""

import pytest

from telescope.algorithms import grpo, meant, reward_model, rlhf, sft
from telescope.commands.train import train_arguments
from telescope.language.data.tasks import open_task
from telescope.language.models import causal as models

GIVEN = {"sft": 2e-5, "reward_model": 1e-5, "grpo": 1e-6, "gspo": 1e-6, "rlhf": 1e-6}
BUILT_IN = 1e-3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder of the user's own, and what a run has made of the built-in model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("models")
    config = models.tiny_config()
    LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "hidden_size": 32})).save_pretrained(path / "own")
    models.tiny().save_pretrained(path / "run" / "model")
    (path / "run" / "run.json").write_text("{}")
    return path


def configs(model):
    return {
        "sft": sft.SFT(model=model),
        "reward_model": reward_model.RewardModelling(model=model),
        "grpo": grpo.GRPO(model=model),
        "gspo": grpo.GRPO(objective="gspo", model=model),
        "rlhf": rlhf.RLHF(model=model),
    }


def test_a_model_that_was_given_has_the_step_sizes_that_people_use(folders):
    """Those of the toy, a thousand times as large, destroy it in the first steps."""
    for model in (str(folders / "own"), "somebody/their-model"):
        assert {name: config.learning_rate for name, config in configs(model).items()} == GIVEN
        assert rlhf.RLHF(model=model).value_learning_rate == 1e-5


def test_the_built_in_model_keeps_its_own_also_after_a_run(folders):
    for model in ("tiny", str(folders / "run"), str(folders / "run" / "model")):
        assert {config.learning_rate for config in configs(model).values()} == {BUILT_IN}
        assert rlhf.RLHF(model=model).value_learning_rate == BUILT_IN


def test_what_is_said_is_taken(folders):
    assert sft.SFT(model=str(folders / "own"), learning_rate=3e-4).learning_rate == 3e-4
    assert rlhf.RLHF(value_learning_rate=3e-4).value_learning_rate == 3e-4


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("sft", sft.preset("x.jsonl")),
        ("reward_model", reward_model.preset("x.jsonl")),
        ("grpo", grpo.preset("x.jsonl")),
        ("gspo", grpo.preset("x.jsonl", "gspo")),
        ("rlhf", rlhf.preset("x.jsonl")),
    ],
)
def test_the_preset_of_a_file_is_for_a_model_of_the_users_own(name, preset):
    assert preset.learning_rate == GIVEN[name]
    assert getattr(preset, "value_learning_rate", 1e-5) == 1e-5


@pytest.mark.parametrize("task", ["lm/taste", "x.jsonl"])
@pytest.mark.parametrize("name", ["sft", "reward_model", "gspo", "ppo"])
def test_the_command_line_goes_by_the_model(name, task, folders):
    *_, given, _ = train_arguments(name, task, ["--model", str(folders / "own")])
    assert given.learning_rate == GIVEN["rlhf" if name == "ppo" else name]
    assert given.model == str(folders / "own")
    *_, tiny, _ = train_arguments(name, task, [])
    assert (tiny.learning_rate, tiny.model) == (BUILT_IN, "tiny")
    *_, said, _ = train_arguments(name, task, ["--model", str(folders / "own"), "--learning-rate", "0.5"])
    assert said.learning_rate == 0.5


@pytest.mark.parametrize("name", ["data/x.tsv", "x.xlsx", "x.jsonl.gz", "x.txt"])
def test_a_file_of_another_kind_is_a_task_and_refused_with_what_to_do(name):
    """Not an environment that nobody has heard of."""
    assert meant("ppo", name)[0] == "rlhf"
    with pytest.raises(ValueError, match=r"expected a file of rows.*to_json"):
        open_task(name)


def test_a_folder_of_data_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"expected a file of rows"):
        open_task(str(tmp_path))


def test_an_environment_is_none():
    assert meant("ppo", "CartPole-v1")[0] == "ppo"
