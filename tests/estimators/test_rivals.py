"""The packages themselves: on one buffer, what they compute and what the lines of docs/switching.md compute.

Only those that are installed are run; `pip install "telescope-rl[rivals]"` gets them. The others have their
descriptions in `switching.py`, which are tested everywhere.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import switching
from switching import GAMMA, LAM, Case

Result = tuple[Any, Any]  # advantages, returns


def stable_baselines3(case: Case) -> Result:
    from gymnasium.spaces import Box
    from stable_baselines3.common.buffers import RolloutBuffer

    ours, space = case.names["buffer"], Box(-1, 1, (1,))
    steps, columns = ours.rewards.shape
    theirs = RolloutBuffer(steps, space, space, gae_lambda=LAM, gamma=GAMMA, n_envs=columns)
    theirs.rewards, theirs.values, theirs.episode_starts = ours.rewards, ours.values, ours.episode_starts
    theirs.compute_returns_and_advantage(case.names["last_values"], case.names["dones"])
    return theirs.advantages, theirs.returns


def torchrl(case: Case, variant: str = "generalized_advantage_estimate") -> Result:
    from torchrl.objectives.value import functional

    names = case.names
    arguments = [names[name] for name in ("state_value", "next_state_value", "reward", "done", "terminated")]
    return getattr(functional, variant)(GAMMA, LAM, *arguments)


def torchrl_vectorised(case: Case) -> Result:
    return torchrl(case, "vec_generalized_advantage_estimate")


def rlax(case: Case) -> Result:
    import jax.numpy as jnp
    import rlax

    rewards, discounts, values = (jnp.asarray(case.names[name]) for name in ("r_t", "discount_t", "values"))
    advantages = rlax.truncated_generalized_advantage_estimation(rewards, discounts, LAM, values)
    returns = rlax.lambda_returns(rewards, discounts, values[1:], LAM)
    return np.asarray(advantages), np.asarray(returns)


def tianshou(case: Case) -> Result:
    """A buffer of three environments, filled through its own door; the values are those of its rows."""
    from tianshou.data import Batch, VectorReplayBuffer
    from tianshou.policy import BasePolicy

    names, columns = case.names, switching.COLUMNS
    buffer = VectorReplayBuffer(len(names["indices"]), columns)
    rows = {
        "rew": names["batch"].rew,
        "terminated": names["batch"].terminated,
        "truncated": names["batch"].truncated,
        "obs": names["v_s"],
        "obs_next": names["v_s_"],
        "act": names["v_s"],
    }
    split = {name: array.reshape(columns, -1) for name, array in rows.items()}
    for t in range(switching.STEPS):
        buffer.add(Batch({name: array[:, t] for name, array in split.items()}))
    indices = buffer.sample_indices(0)
    batch = buffer[indices]
    np.testing.assert_array_equal(batch.rew, rows["rew"])
    returns, advantages = BasePolicy.compute_episodic_return(
        batch, buffer, indices, batch.obs_next, batch.obs, gamma=GAMMA, gae_lambda=LAM
    )
    return advantages, returns


# The package, its heading on the page, how to run it, and its precision: TorchRL forms γλ in float32 whatever comes.
RIVALS: list[tuple[str, str, Callable[[Case], Result], float]] = [
    ("stable_baselines3", "Stable-Baselines3", stable_baselines3, 1e-5),
    ("torchrl", "TorchRL", torchrl, 1e-5),
    ("torchrl", "TorchRL", torchrl_vectorised, 1e-5),
    ("rlax", "rlax", rlax, 1e-5),
    ("tianshou", "Tianshou", tianshou, 1e-12),
]
INSTALLED = [pytest.param(*row, id=row[1].__name__) for package, *row in RIVALS if find_spec(package)]


@pytest.mark.parametrize(("heading", "theirs", "precision"), INSTALLED)
@pytest.mark.filterwarnings("default")  # theirs are not ours to mend
def test_the_pages_lines_keep_the_packages_results(
    heading: str, theirs: Callable[[Case], Result], precision: float
) -> None:
    case = switching.CASES[heading]()
    (code,) = switching.blocks(heading)
    ours = switching.run(code, case.names)
    described = {"advantages": case.advantages, "returns": case.advantages + case.values}
    for name, array in zip(("advantages", "returns"), theirs(case), strict=True):
        np.testing.assert_allclose(described[name], array, rtol=precision, atol=precision)
        np.testing.assert_allclose(ours[name], array, rtol=precision, atol=precision)


@pytest.mark.filterwarnings("default")  # theirs are not ours to mend
@pytest.mark.skipif(find_spec("rlax") is None, reason="rlax is not installed")
def test_leaky_vtrace_is_vtrace_of_a_leaky_ratio() -> None:
    """The lines of docs/estimators.md. Kills: a recipe whose advantages are clipped, and so are not rlax's."""
    import jax.numpy as jnp
    import rlax

    import telescope

    random = np.random.default_rng(0)
    for _ in range(5):
        rewards, values, discounts = random.normal(size=(3, 7)).astype(np.float32)
        discounts, alpha = np.abs(np.tanh(discounts)), float(random.random())
        successors = np.append(values[1:], np.float32(0.3))
        rho = np.exp(random.normal(size=7)).astype(np.float32)
        theirs = rlax.leaky_vtrace_td_error_and_advantage(
            *map(jnp.asarray, (values, successors, rewards, discounts, rho)), alpha, 1.0
        )
        log_ratios = np.log(alpha * np.minimum(1, rho) + (1 - alpha) * rho)
        clips: dict[str, Any] = dict.fromkeys(("rho_clip", "c_clip", "pg_rho_clip"))
        ends: dict[str, Any] = dict.fromkeys(("terminated", "truncated"))
        ours = telescope.vtrace(rewards, values, successors, log_ratios=log_ratios, gamma=discounts, **clips, **ends)
        np.testing.assert_allclose(ours.targets - values, theirs.errors, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours.advantages, theirs.pg_advantage, rtol=1e-4, atol=1e-4)
