"""Help that is read without torch is the help that is read with it.

Leaves out how long either takes.
"""

import subprocess
import sys

import pytest

FULL = "import sys; from telescope.cli import main; sys.exit(main(sys.argv[1:]))"
QUICK = """
import sys
from telescope import cli
try:
    cli.main()
finally:
    import telescope.algorithms.ppo
    assert not hasattr(telescope.algorithms.ppo.torch, "__file__")
"""


def printed(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, "train", *arguments, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout


@pytest.mark.parametrize("what", [("ppo", "CartPole-v1"), ("ppo", "Hopper-v5"), ("grpo", "lm/addition")])
def test_help_is_the_same_with_stand_ins(what: tuple[str, str]) -> None:
    assert "--total-steps" in (quick := printed(QUICK, *what))
    assert quick == printed(FULL, *what)


def test_what_a_stand_in_cannot_do_is_done_by_the_library() -> None:
    broken = "from telescope.commands import standins; standins.Anything = None\n"
    assert printed(broken + QUICK.replace("assert not", "assert"), "ppo", "CartPole-v1") == printed(
        FULL, "ppo", "CartPole-v1"
    )
