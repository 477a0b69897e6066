"""The command line: `telescope train`, `eval` and `plot`, and how what goes wrong becomes one sentence.

Leaves out the commands themselves (`commands/`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from telescope.commands.evaluate import evaluate
from telescope.commands.plot import plot
from telescope.commands.train import train

USAGE = """usage: telescope COMMAND …

  telescope train ALGORITHM ENV [flags]     train a population of seeds: telescope train ppo CartPole-v1 --seeds 8
  telescope train ALGORITHM TASK [flags]    train a language model: telescope train grpo lm/addition
  telescope train --resume RUN [flags]      continue a run where it stopped, bit for bit
  telescope eval RUN [flags]                evaluate the agents of a run
  telescope plot RUN [RUN …] --out FILE     draw learning curves
  telescope --version

Each command explains its flags with --help (telescope train ppo CartPole-v1 --help shows that environment's preset).
Training needs more packages than the estimators: pip install "telescope-rl[control]", or [language]
"""

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""How threads wait for each other where language models are trained: some microseconds awake, then asleep.

Always awake, as torch has it, they take the processors from other work and steps last many times as long; asleep at
once, small steps spend much of their time on waking them. PPO on environments leaves threads as torch has them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a run that failed, 2 for a command that makes no sense."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(word.startswith("lm/") or word.endswith(".jsonl") for word in arguments):
        for name, value in WAITING.items():  # before torch is loaded
            os.environ.setdefault(name, value)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import telescope

        print(f"telescope {telescope.__version__}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {"train": train, "eval": evaluate, "plot": plot}
    if arguments[0] not in commands:
        return _fail(f"there is no command {arguments[0]!r}; expected train, eval or plot", 2)
    return _explained(commands[arguments[0]], arguments[1:])


def _explained(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Turn what can go wrong into one sentence on standard error."""
    try:
        return command(arguments)
    except ImportError as error:
        return _fail(f"{error}", 1)
    except FloatingPointError as error:
        return _fail(f"{error}", 1)
    except ValueError as error:
        return _fail(f"{error}", 2)
    except OSError as error:
        return _fail(f"{error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; what was trained since the last checkpoint is lost", 130)


def _fail(sentence: str, status: int) -> int:
    rank = os.environ.get("RANK", "0")
    print(f"telescope{'' if rank == '0' else f' (rank {rank})'}: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
