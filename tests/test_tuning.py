"""The search for settings: resumable without a trace, judged by seeds, beginning with the preset.

Leaves out Optuna's own sampler and pruner.
"""

import csv
import dataclasses
import tomllib

import numpy as np
import pytest

from telescope.algorithms import config_class, find
from telescope.algorithms.ppo import PPO
from telescope.algorithms.reinforce import Reinforce
from telescope.algorithms.spaces import SPACES, Choice, Range
from telescope.cli import main
from telescope.metrics import iqm
from telescope.tuning import flag, suggested, tune

SMALL = PPO(
    env="CartPole-v1",
    seeds=3,
    total_steps=256,
    num_envs=2,
    num_steps=32,
    minibatch_size=32,
    epochs=1,
    hidden=(8,),
    eval_episodes=1,
    compile="off",
    threads=1,
)
SPACE = {
    "learning_rate": Range(1e-4, 1e-2, log=True),
    "gamma": Range(0.9, 0.999, below_one=True),
    "hidden": Choice(((8,), (4, 4))),
    "clip": Choice((0.1, 0.2)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tune(SMALL, tmp_path_factory.mktemp("whole") / "search", trials=8, space=SPACE)


def without_times(trials):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in trials]


def test_a_search_that_was_stopped_goes_on_as_if_nothing_had_happened(whole, tmp_path):
    for trials in (3, 3, 8):
        found = tune(SMALL, tmp_path / "search", trials=trials, space=SPACE)
    assert without_times(found.trials) == without_times(whole.trials)
    assert found.config == whole.config


def test_a_trial_that_a_killed_process_left_is_closed(whole, tmp_path):
    import optuna

    from telescope.tuning import STUDY

    tune(SMALL, tmp_path / "search", trials=2, space=SPACE)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "search" / STUDY))
    study = optuna.load_study(study_name="ppo CartPole-v1", storage=optuna.storages.JournalStorage(backend))
    study.ask()
    found = tune(SMALL, tmp_path / "search", trials=4, space=SPACE)
    assert [row["state"] for row in found.trials[:3]] == ["complete", "complete", "fail"]
    assert len(found.trials) == 4


def test_the_first_trial_has_the_settings_of_the_config(whole):
    first = whole.trials[0]
    assert {name: first[name] for name in SPACE} == {
        "learning_rate": SMALL.learning_rate,
        "gamma": SMALL.gamma,
        "hidden": [8],
        "clip": SMALL.clip,
    }


def test_the_score_of_a_trial_is_the_mean_over_seeds_of_the_last_evaluation(whole):
    config = dataclasses.replace(SMALL, eval_every=26)  # a tenth of the steps
    *_, last = find("ppo").train(config)
    scores = [row["eval_return_mean"] for row in last.rows]
    assert whole.trials[0]["score"] == float(iqm(scores))
    assert (whole.trials[0]["low"], whole.trials[0]["high"]) == (min(scores), max(scores))


def test_seeds_with_clocks_of_their_own_are_judged_by_their_latest_evaluations(tmp_path):
    config = Reinforce(
        env="CartPole-v1", seeds=3, total_steps=400, num_envs=2, episodes=2, hidden=(8,), eval_episodes=1
    )
    found = tune(config, tmp_path / "search", trials=1, space={"learning_rate": SPACE["learning_rate"]})
    latest = {}
    for iteration in find("reinforce").train(dataclasses.replace(config, eval_every=40)):
        latest |= {
            row["seed"]: row["eval_return_mean"] for row in iteration.rows if row["eval_return_mean"] is not None
        }
    assert found.trials[0]["score"] == float(iqm(list(latest.values())))


def test_the_best_trial_is_returned_and_kept_as_a_config_file(whole):
    complete = [row for row in whole.trials if row["score"] is not None]
    best = max(complete, key=lambda row: row["score"])
    assert whole.score == best["score"]
    assert whole.settings["learning_rate"] == best["learning_rate"]
    assert whole.config == dataclasses.replace(SMALL, eval_every=26, **whole.settings)
    kept = tomllib.loads((whole.path / "best.toml").read_text())
    assert kept["learning_rate"] == whole.config.learning_rate
    with open(whole.path / "trials.csv") as file:
        assert [float(row["score"]) for row in csv.DictReader(file) if row["score"]] == [
            row["score"] for row in complete
        ]
    assert (whole.path / "importance.png").read_bytes()[:4] == b"\x89PNG"


def test_the_space_is_widened_to_what_the_config_has(tmp_path):
    config = dataclasses.replace(SMALL, clip=0.15, learning_rate=0.5)
    space = {"clip": Choice((0.1, 0.2)), "learning_rate": Range(1e-4, 1e-2, log=True)}
    space["entropy_coefficient"] = Range(1e-4, 1e-2, log=True)  # cannot be widened to 0
    found = tune(config, tmp_path / "search", trials=1, space=space)
    assert found.settings == {"clip": 0.15, "learning_rate": 0.5, "entropy_coefficient": 0.0}
    kept = tomllib.loads((tmp_path / "search" / "search.toml").read_text())["space"]
    assert kept["clip"] == "Choice(values=(0.1, 0.2, 0.15))"
    assert kept["learning_rate"] == "Range(low=0.0001, high=0.5, log=True, below_one=False, whole=False)"


def test_settings_that_are_no_config_are_pruned_with_the_reason(tmp_path):
    said = []
    space = {"minibatch_size": Choice((32, 1_000_000))}
    found = tune(SMALL, tmp_path / "search", trials=8, space=space, say=said.append)
    refused = [row for row in found.trials if row["minibatch_size"] == 1_000_000]
    assert refused
    assert all(row["state"] == "pruned" for row in refused)
    assert any("minibatch_size is 1000000" in sentence for sentence in said)


def test_a_trial_below_the_median_is_pruned(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, step, value, finished):
            self.step, self.finished = step, finished
            self.rows = [{"seed": seed, "eval_return_mean": value} for seed in range(3)]

    scores = iter([*[float(n) for n in range(10, 20)], 0.0])

    def train(config):
        score = next(scores)
        for step in (128, 256):
            yield Fake(step, score, step == 256)

    monkeypatch.setattr("telescope.algorithms.ppo.train", train)
    found = tune(SMALL, tmp_path / "search", trials=11, space=SPACE)
    assert [row["state"] for row in found.trials] == ["complete"] * 10 + ["pruned"]


@pytest.mark.parametrize("algorithm", SPACES)
def test_every_space_names_settings_and_admits_each_preset(algorithm):
    module, cls = find(algorithm), config_class(algorithm)
    fields = {field.name for field in dataclasses.fields(cls)}
    assert fields >= SPACES[algorithm].keys()
    for preset in (cls(), *module.PRESETS.values()):
        for name, values in SPACES[algorithm].items():
            one = values.values[0] if isinstance(values, Choice) else values.low
            kind = type(getattr(preset, name))
            assert isinstance(one, kind | int | float), name


def test_a_range_of_discounts_is_searched_by_the_distance_from_one():
    class Trial:
        def suggest_float(self, name, low, high, *, log):
            self.asked = name, low, high, log
            return low

    trial = Trial()
    assert suggested(trial, "gamma", Range(0.9, 0.999, below_one=True)) == 0.999
    assert trial.asked[0] == "1 - gamma"
    np.testing.assert_allclose(trial.asked[1:3], [0.001, 0.1])
    assert trial.asked[3] is True


def test_whole_numbers_stay_whole():
    class Trial:
        def suggest_int(self, name, low, high, *, log):
            return high

    value = suggested(Trial(), "epochs", Range(1, 20, whole=True))
    assert value == 20
    assert isinstance(value, int)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"learning_rat": Choice((1,))}, "space names 'learning_rat', which is no setting of ppo"),
        ({"clip": Choice(())}, "no values for 'clip'"),
        ({"clip": Range(0.3, 0.1)}, "expected low < high"),
        ({"learning_rate": Range(0.0, 0.1, log=True)}, "above 0 for log"),
        ({"gamma": Range(0.9, 1.0, below_one=True)}, "below 1 for below_one"),
        ({"clip": [0.1, 0.2]}, "expected a Choice or a Range"),
        ({}, "space is empty"),
    ],
)
def test_a_wrong_space_is_refused_before_any_trial(space, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        tune(SMALL, tmp_path / "search", trials=1, space=space)
    assert not (tmp_path / "search").exists()


def test_another_search_does_not_go_into_the_same_folder(whole):
    with pytest.raises(ValueError, match=r"other settings \(epochs\)"):
        tune(dataclasses.replace(SMALL, epochs=2), whole.path, trials=9, space=SPACE)
    with pytest.raises(ValueError, match="another space"):
        tune(SMALL, whole.path, trials=9, space={"clip": SPACE["clip"]})


def test_what_does_not_act_cannot_be_tuned():
    from telescope.algorithms.td_lambda import TDLambda

    with pytest.raises(ValueError, match="td_lambda cannot be tuned"):
        tune(TDLambda(env="CartPole-v1"), trials=1)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("clip", 0.2, "--clip 0.2"),
        ("double", True, "--double"),
        ("double", False, "--no-double"),
        ("hidden", (64, 64), "--hidden 64 64"),
        ("target_kl", None, "--target-kl none"),
    ],
)
def test_settings_are_printed_as_flags(name, value, words):
    assert flag(name, value) == words


def test_the_command_searches_and_says_what_to_run_next(tmp_path, capsys):
    space = tmp_path / "space.toml"
    space.write_text("clip = [0.1, 0.2]\nlearning_rate = {low = 1e-4, high = 1e-2, log = true}\n")
    small = "--seeds 2 --total-steps 128 --num-envs 2 --num-steps 32 --minibatch-size 32 --epochs 1 --compile off"
    out = str(tmp_path / "search")
    words = ["tune", "ppo", "CartPole-v1", "--trials", "3", *small.split(), "--space", str(space), "--out", out]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "best of 3 trials: " in said.out
    assert f"telescope train ppo CartPole-v1 --config {out}/best.toml --seeds 8 --seed 1000" in said.out
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["trial 0", "trial 1", "trial 2"]
    assert main([*words, "--only", "gamma"]) == 2
    assert "--only names 'gamma'; expected some of clip, learning_rate" in capsys.readouterr().err
