"""docs/switching.md as a table: a random buffer of each codebase, its result by its own description, and our lines.

The descriptions are written from what each codebase documents its function to do, in float64 and in our words; they
share one loop, and no code with the package.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

import telescope
from telescope.estimators import conventions

PAGE = (Path(__file__).parents[1] / "docs" / "switching.md").read_text(encoding="utf-8")
STEPS, COLUMNS, GAMMA, LAM = 40, 3, 0.9, 0.8


class Case(NamedTuple):
    """The names that a codebase's buffer has, and what its function makes of them."""

    names: dict[str, Any]
    advantages: np.ndarray
    values: np.ndarray
    counts: Any = True  # where the codebase looks at the result


def blocks(heading: str) -> list[str]:
    """The code under a heading of the page."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None, heading
    return re.findall(r"```python\n(.*?)```", section[1], re.DOTALL)


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """Our lines on those names."""
    space = {"np": np, "telescope": telescope, "conventions": conventions, **names}
    exec(code, space)
    return space


def backwards(delta: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """A[t] = delta[t] + keep[t] · A[t+1], time first."""
    result, later = np.zeros_like(delta), np.zeros(delta.shape[1:])
    for t in reversed(range(len(delta))):
        later = result[t] = delta[t] + keep[t] * later
    return result


def randoms(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) for shape in shapes]


def flags(seed: int, shape: tuple[int, ...], share: float = 0.15) -> np.ndarray:
    return np.random.default_rng([seed, 1]).random(shape) < share


def stable_baselines3() -> Case:
    """An end is known one row later, as the start of the next episode; the last row's comes beside the buffer."""
    rewards, values, last = (x.astype("f4") for x in randoms(0, (STEPS, COLUMNS), (STEPS, COLUMNS), (COLUMNS,)))
    starts, dones = flags(0, (STEPS, COLUMNS)), flags(1, (COLUMNS,), 0.5)
    goes_on = 1.0 - np.concatenate([starts[1:], dones[None]])
    delta = rewards + GAMMA * np.concatenate([values[1:], last[None]]) * goes_on - values
    buffer = SimpleNamespace(
        rewards=rewards, values=values, episode_starts=starts.astype("f4"), gamma=GAMMA, gae_lambda=LAM
    )
    names = {"buffer": buffer, "last_values": torch.from_numpy(last)[:, None], "dones": dones}
    return Case(names, backwards(delta, GAMMA * LAM * goes_on), values)


def cleanrl() -> Case:
    """The same with tensors; `dones[t]` belongs to the observation of row t."""
    rewards, values, last = randoms(2, (STEPS, COLUMNS), (STEPS, COLUMNS), (1, COLUMNS))
    dones, next_done = flags(2, (STEPS, COLUMNS)), flags(3, (COLUMNS,), 0.5)
    goes_on = 1.0 - np.concatenate([dones[1:], next_done[None]])
    delta = rewards + GAMMA * np.concatenate([values[1:], last]) * goes_on - values
    arrays = {
        "rewards": rewards,
        "values": values,
        "next_value": last,
        "dones": 1.0 * dones,
        "next_done": 1.0 * next_done,
    }
    names = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Case(names | {"gamma": GAMMA, "gae_lambda": LAM}, backwards(delta, GAMMA * LAM * goes_on), values)


def torchrl() -> Case:
    """Two gates: the bootstrap closes at `terminated`, the trace at `done`. [B, T, 1]."""
    shape = (COLUMNS, STEPS, 1)
    reward, value, following = randoms(4, shape, shape, shape)
    terminated = flags(4, shape)
    done = terminated | flags(5, shape)
    delta = reward + GAMMA * following * ~terminated - value
    advantages = backwards(delta.swapaxes(0, 1), GAMMA * LAM * (1.0 - done).swapaxes(0, 1)).swapaxes(0, 1)
    arrays = {"reward": reward, "state_value": value, "next_state_value": following, "done": done}
    names = {name: torch.from_numpy(array) for name, array in (arrays | {"terminated": terminated}).items()}
    return Case(names | {"gamma": GAMMA, "lmbda": LAM}, advantages, value)


def rlax() -> Case:
    """The discount of each step is both gates at once; values are one longer."""
    rewards, values = (x.astype("f4") for x in randoms(6, (STEPS,), (STEPS + 1,)))
    discounts = np.where(flags(6, (STEPS,)), 0.0, GAMMA).astype("f4")
    delta = rewards + discounts * values[1:] - values[:-1]
    names = {"r_t": rewards, "discount_t": discounts, "values": values, "lambda_": LAM}
    return Case(names, backwards(delta, LAM * discounts), values[:-1])


def tianshou() -> Case:
    """Environments one below the other; `obs_next` is the true successor; an unfinished part ends like an episode."""
    n = STEPS * COLUMNS
    rew, v_s, following = randoms(7, (n,), (n,), (n,))
    terminated, truncated = flags(7, (n,)), flags(8, (n,))
    unfinished = np.arange(1, COLUMNS + 1) * STEPS - 1
    stops = terminated | truncated
    stops[unfinished] = True
    delta = rew + GAMMA * following * ~terminated - v_s
    buffer = SimpleNamespace(unfinished_index=lambda: unfinished)
    names = {"batch": SimpleNamespace(rew=rew, terminated=terminated, truncated=truncated), "buffer": buffer}
    names |= {"indices": np.arange(n), "v_s": v_s, "v_s_": following, "gamma": GAMMA, "gae_lambda": LAM}
    return Case(names, backwards(delta, GAMMA * LAM * ~stops), v_s)


def completions(seed: int, multi_turn: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, values and a response mask [B, T]: padded on the right, with holes where tools spoke."""
    rewards, values = randoms(seed, (COLUMNS, STEPS), (COLUMNS, STEPS))
    lengths = np.array([STEPS, STEPS // 2, 1])
    mask = np.arange(STEPS) < lengths[:, None]
    if multi_turn:
        mask &= ~((np.arange(STEPS) % 7 > 3) & (np.arange(STEPS) < lengths[:, None] - 1))
    return rewards, values, mask


def decayed(rewards: np.ndarray, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What does not count is a step of reward 0 and value 0; beyond the end all is 0."""
    rewards, values = (rewards * mask).T, (values * mask).T
    delta = rewards + GAMMA * np.concatenate([values[1:], np.zeros_like(values[:1])]) - values
    return backwards(delta, np.full_like(delta, GAMMA * LAM)).T


def tokens(case: tuple[np.ndarray, np.ndarray, np.ndarray], *called: str) -> dict[str, Any]:
    names = dict(zip(called, map(torch.from_numpy, case), strict=True))
    return names | {"everyone": torch.ones(COLUMNS, dtype=torch.bool), "gamma": GAMMA, "lam": LAM, "lambd": LAM}


def trl() -> Case:
    rewards, values, mask = completions(9, multi_turn=False)
    names = tokens((rewards * mask, values * mask, ~mask), "rewards", "values", "padding_mask_p1")
    return Case(names, decayed(rewards, values, mask), values * mask)


def openrlhf() -> Case:
    rewards, values, mask = completions(10, multi_turn=True)
    names = tokens((rewards, values, mask), "rewards", "values", "action_mask")
    return Case(names, decayed(rewards, values, mask), values * mask)


def verl() -> Case:
    """A token that does not count hands on what it was given, undecayed: value and trace."""
    rewards, values, mask = completions(11, multi_turn=True)
    advantages = np.zeros_like(rewards)
    for row in range(COLUMNS):
        live = np.flatnonzero(mask[row])
        following = np.append(values[row, live[1:]], 0.0)
        delta = rewards[row, live] + GAMMA * following - values[row, live]
        advantages[row, live] = backwards(delta, np.full(len(live), GAMMA * LAM))
    names = tokens((rewards, values, mask.astype(float)), "token_level_rewards", "values", "response_mask")
    return Case(names, advantages, values, mask)


def pufferlib() -> Case:
    """Row t + 1 holds the reward and the end that the action of row t led to."""
    rewards, values = randoms(12, (STEPS,), (STEPS,))
    dones = flags(12, (STEPS,))
    delta = rewards[1:] + GAMMA * values[1:] * ~dones[1:] - values[:-1]
    names = {"rewards": rewards, "values": values, "dones": dones, "gamma": GAMMA, "gae_lambda": LAM}
    return Case(names, backwards(delta, GAMMA * LAM * ~dones[1:]), values[:-1])


CASES: dict[str, Callable[[], Case]] = {
    "Stable-Baselines3": stable_baselines3,
    "CleanRL": cleanrl,
    "TorchRL": torchrl,
    "rlax": rlax,
    "Tianshou": tianshou,
    "TRL": trl,
    "verl": verl,
    "OpenRLHF": openrlhf,
    "PufferLib": pufferlib,
}
