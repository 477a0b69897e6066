"""Environments of the package verifiers, with the package itself: prompts, turns, rewards, ends, whole runs.

Skipped where it is not installed: it needs newer versions of some packages than the other tests.
"""

import json

import pytest

from small_models import save
from telescope.algorithms import meant
from telescope.cli import main
from telescope.language.data import verifiers
from telescope.language.data.tasks import is_held_out, open_task
from telescope.runs import RunFolder
from telescope.runs.identity.trust import code_in

DOUBLING = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str

class Double(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.5)
    async def right(self, trace) -> float:
        return 2.0 * (trace.last_reply.strip() == self.data.answer)

class Settings(vf.TasksetConfig):
    count: int = 30

class Doubling(vf.Taskset[Double, Settings]):
    def load(self):
        for i in range(self.config.count):
            data = Data(prompt=f"double {i}", system_prompt="Be brief.", answer=str(2 * i))
            yield Double(data, self.config.task)

__all__ = ["Doubling"]
"""
FINDING = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    secret: int

class Find(vf.Task[Data, vf.State, vf.TaskConfig]):
    pass

class Roles(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()

class Finding(vf.Env[Roles]):
    async def run(self, task, agents):
        found = 0.0
        async with agents.player.interaction(task) as talk:
            segment = await talk.turn()
            while not segment.terminated:
                if segment.last_reply == "fail":
                    raise KeyError("secret")
                if segment.last_reply == str(task.data.secret):
                    found = 1.0
                    break
                segment = await talk.turn("no, " + segment.last_reply)
        talk.trace.record_reward("found", found, 1.0)

class Secrets(vf.Taskset[Find, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        i = 0
        while True:
            yield Find(Data(prompt=f"find {i}", secret=i), self.config.task)
            i += 1

__all__ = ["Secrets", "Finding"]
"""
PAIR = FINDING.replace(
    "    player: vf.AgentConfig", "    other: vf.AgentConfig = vf.AgentConfig()\n    player: vf.AgentConfig"
)


@pytest.fixture(scope="module", autouse=True)
def games(tmp_path_factory):
    pytest.importorskip("verifiers.v1", reason="verifiers is not installed")
    folder = tmp_path_factory.mktemp("games")
    for name, text in (("doubling", DOUBLING), ("finding", FINDING), ("pair", PAIR)):
        (folder / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def talk(name):
    return verifiers.Conversation(verifiers.stage(name))


def test_a_single_turn_is_asked_with_its_system_prompt_and_scored_with_its_weights():
    for answer, score in (("14", 1.0), ("15", 0.0)):
        game = talk("verifiers:doubling")
        assert game.reset({"index": 7}) == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "double 7"},
        ]
        assert game.step(answer) == ([], score, True)


def test_turns_hear_what_the_environment_says_until_it_ends():
    game, other = talk("verifiers:finding"), talk("verifiers:finding")
    assert game.reset({"index": 5}) == [{"role": "user", "content": "find 5"}]
    other.reset({"index": 3})
    assert game.step("4") == ([{"role": "user", "content": "no, 4"}], 0.0, False)
    assert other.step("3") == ([], 1.0, True), "conversations do not mix"
    assert game.step("6") == ([{"role": "user", "content": "no, 6"}], 0.0, False)
    assert game.step("5") == ([], 1.0, True)


def test_an_error_of_the_environment_is_told():
    game = talk("verifiers:finding")
    game.reset({"index": 0})
    with pytest.raises(ValueError, match="KeyError"):
        game.step("fail")


def test_a_conversation_that_nobody_goes_on_with_ends():
    game = talk("verifiers:finding")
    game.reset({"index": 0})
    game.close()
    assert game.playing.cancelled()


def test_tasks_are_held_out_and_endless_ones_cut_and_settings_taken(monkeypatch):
    monkeypatch.setattr(verifiers, "MOST", 50)
    task = open_task('verifiers:doubling={"count": 40}')
    assert len(task.rows) == 40
    assert all(is_held_out(row["prompt"]) for row in task.held_out)
    assert {row["prompt"] for row in task.held_out} < {f"double {i}" for i in range(40)}
    verifiers.stage.cache_clear()
    assert len(open_task("verifiers:finding").rows) == 50
    verifiers.stage.cache_clear()


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(ValueError, match="has the agents other, player"):
        open_task("verifiers:pair")
    with pytest.raises(ValueError, match="digits is 2"):
        open_task("verifiers:doubling", 2)
    assert meant("ppo", "verifiers:doubling")[0] == "rlhf"
    assert code_in({"task": "verifiers:doubling"})


@pytest.mark.parametrize(("algorithm", "task"), [("grpo", "doubling"), ("ppo", "finding")])
def test_a_run_learns_resumes_and_is_evaluated(algorithm, task, tmp_path, capsys, monkeypatch):
    base, out = save("qwen3", tmp_path / "base"), str(tmp_path / "run")
    flags = ["--prompts", "2", "--group", "2", "--minibatches", "1", "--max-tokens", "12", "--turns", "2"]
    flags += ["--eval-prompts", "2", "--threads", "1", "--total-steps", "1", "--out", out]
    monkeypatch.setattr(verifiers, "MOST", 40)
    verifiers.stage.cache_clear()
    assert main(["train", algorithm, f"verifiers:{task}", "--model", base, *flags]) == 0
    assert main(["train", "--resume", out, "--total-steps", "2"]) == 0
    samples = (RunFolder.open(out).path / "samples.csv").read_text()
    assert ("double" if task == "doubling" else "find") in samples
    capsys.readouterr()
    assert main(["eval", out, "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["reward"] <= 1
    verifiers.stage.cache_clear()
