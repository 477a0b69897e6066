"""Nothing that a user reads on the terminal is deprecated: in either world, to train, evaluate and plot.

Leaves out warnings of other kinds, which pytest makes errors in every test.
"""

import subprocess
import sys

import pytest

# Python shows FutureWarnings to everybody, and DeprecationWarnings to those who wrote the line: here it is ours.
COMMANDS = """
import sys, warnings
warnings.filterwarnings("default", category=DeprecationWarning, module="telescope")
from telescope.cli import main
run = sys.argv[-1]
assert main(sys.argv[1:]) == main(["eval", run]) == main(["plot", run]) == 0
"""
TOY = ["--total-steps", "2", "--max-tokens", "4", "--eval-prompts", "4"]
TRAININGS = {
    "ppo": ["CartPole-v1", "--seeds", "2", "--processes", "2", "--num-steps", "32", "--total-steps", "256"],
    "grpo": ["lm/addition", "--prompts", "2", "--group", "2", "--minibatches", "1", "--warm-start", "0", *TOY],
    "sft": ["lm/addition", "--batch-size", "4", "--lora-rank", "2", *TOY],
}


@pytest.mark.parametrize("name", TRAININGS)
def test_nothing_on_the_terminal_is_deprecated(name, tmp_path):
    arguments = ["train", name, *TRAININGS[name], "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", COMMANDS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "deprecat" not in (done.stdout + done.stderr).lower(), done.stderr
