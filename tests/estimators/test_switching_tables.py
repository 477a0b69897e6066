"""The tables for those who come from Stable-Baselines3 are compared with the package itself, and with our fields."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch

from telescope.algorithms.ppo import PPO
from telescope.commands.arguments import known_flags
from telescope.commands.flags import unknown_flag
from telescope.losses import squared_value_loss

stable_baselines3 = pytest.importorskip("stable_baselines3")

PAGE = (Path(__file__).parents[2] / "docs" / "switching.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split("Coming from Stable-Baselines3: settings")[1].split("###")[0].splitlines()
    if line.startswith("| `")
]
FIELDS = {field.name for field in dataclasses.fields(PPO)}


def theirs():
    """Name → default of everything that the first column may name."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.vec_env import VecNormalize

    found = {}
    for what in (stable_baselines3.PPO, stable_baselines3.PPO.learn, VecNormalize, make_vec_env, ActorCriticPolicy):
        found |= {name: parameter.default for name, parameter in inspect.signature(what).parameters.items()}
    return found | {n: p.default for n, p in inspect.signature(stable_baselines3.PPO).parameters.items()}


def name_of(cell):
    return re.search(r"\w+(?=`|\)|\"\])", cell.split("(")[-1].split("[")[-1])[0]


def test_every_row_names_a_setting_of_each():
    known = theirs()
    assert len(ROWS) > 20
    for cell, default, ours, _ in ROWS:
        name = name_of(cell)
        assert name in known, cell
        if name not in ("net_arch", "activation_fn", "total_timesteps"):
            assert default.strip("'") == str(known[name]) or float(default) == known[name], cell
        assert not ours or ours.strip("`") in FIELDS, ours


@pytest.mark.parametrize("row", ROWS, ids=lambda row: name_of(row[0]))
def test_their_name_as_a_flag_is_answered_with_ours(row):
    flag, ours = name_of(row[0]).replace("_", "-"), row[2].strip("`").replace("_", "-")
    if ours and flag != ours:
        assert f"did you mean --{ours}?" in unknown_flag(flag, known_flags(PPO), "telescope train ppo")


def test_the_value_coefficient_doubles():
    values, returns = torch.randn(7), torch.randn(7)
    ours = squared_value_loss(values, returns).mean()
    torch.testing.assert_close(2 * ours, torch.nn.functional.mse_loss(returns, values))
