"""One line in a program of another library that keeps its rollouts for `telescope doctor`: the latest one, in a file.

    model.learn(100_000, callback=recorders.sb3("rollout.npz"))

Every file is in our convention, so the doctor needs no flag. A library is imported only by the function that serves
it. Leaves out files themselves (`files.py`), and libraries without a hook, which `lab.record` serves.
"""

# T time, B environments, N completions
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from telescope.lab import files


def sb3(path: str | Path) -> Any:
    """A callback for every algorithm of Stable-Baselines3 and sb3-contrib that has a rollout buffer.

    It keeps the environment's own rewards, both kinds of ends, and the value of a truncated episode's last observation,
    which Stable-Baselines3 adds to the reward and does not store.
    """
    from stable_baselines3.common.callbacks import BaseCallback

    class Recorder(BaseCallback):  # type: ignore[misc]
        def _on_training_start(self) -> None:
            buffer = getattr(self.model, "rollout_buffer", None)
            if buffer is None:
                raise ValueError(
                    f"recorders.sb3 records algorithms with a rollout buffer, such as PPO and A2C; "
                    f"{type(self.model).__name__} has none"
                )
            compute = type(buffer).compute_returns_and_advantage

            def kept(last_values: Any, dones: Any) -> None:  # not every algorithm shows its last values to callbacks
                self.last_values = files.as_array(last_values).reshape(1, -1)
                compute(buffer, last_values=last_values, dones=dones)

            buffer.compute_returns_and_advantage = kept

        def _on_rollout_start(self) -> None:
            self.steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

        def _on_step(self) -> bool:
            rewards, dones, infos = (self.locals[name] for name in ("rewards", "dones", "infos"))
            limits = [
                bool(info.get("TimeLimit.truncated")) and info.get("terminal_observation") is not None for info in infos
            ]
            cut = np.asarray(dones, bool) & limits
            self.steps.append((np.array(rewards), np.asarray(dones, bool) & ~cut, cut))  # rewards change afterwards
            return True

        def _on_rollout_end(self) -> None:
            buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
            rewards, terminated, truncated = (np.stack(x) for x in zip(*self.steps, strict=True))  # [T, B]
            values = buffer.values
            following = np.concatenate([values[1:], self.last_values])
            added = (buffer.rewards - rewards) / (buffer.gamma or 1.0)  # V(last observation), where it was truncated
            successors = np.where(terminated, 0.0, np.where(truncated, added, following)).astype(values.dtype)
            files.record(
                path,
                rewards=rewards.astype(buffer.rewards.dtype),
                values=values,
                next_values=successors if buffer.gamma else None,
                terminated=terminated,
                truncated=truncated,
                advantages=buffer.advantages,
                returns=buffer.returns,
                gamma=buffer.gamma,
                lam=buffer.gae_lambda,
            )

    return Recorder()


def sb3_buffer(path: str | Path, buffer: Any, *, last_values: Any = None, dones: Any = None) -> Path:
    """Record a full RolloutBuffer of Stable-Baselines3, also after training has flattened it.

    `last_values` and `dones` are what `compute_returns_and_advantage` got. Without `dones` the last row is left out,
    because only it says whether that row ended an episode.

    Raises:
        ValueError: the buffer is not full.
    """
    if not buffer.full:
        raise ValueError(f"the buffer holds {buffer.pos} of {buffer.buffer_size} steps; record it when it is full")
    shape = buffer.buffer_size, buffer.n_envs
    names = ("rewards", "values", "episode_starts", "advantages", "returns")
    arrays: dict[str, Any] = {}
    for name in names:
        x = np.asarray(getattr(buffer, name))
        arrays[name] = x if x.shape == shape else x.reshape(shape[::-1]).T  # flattened: environment by environment
    more = {"last_values": last_values, "dones": dones, "gamma": buffer.gamma, "gae_lambda": buffer.gae_lambda}
    return _translated(path, arrays | more, "sb3")


def torchrl(path: str | Path) -> Callable[[Any, Any, Any], None]:
    """A forward hook of TorchRL's GAE: `advantage_module.register_forward_hook(recorders.torchrl("rollout.npz"))`."""

    def hook(module: Any, inputs: Any, output: Any) -> None:
        keys, axis = module.tensor_keys, _time_axis(module, output)
        places = {
            "rewards": ("next", keys.reward),
            "values": keys.value,
            "next_values": ("next", keys.value),
            "terminated": ("next", keys.terminated),
            "done": ("next", keys.done),
            "advantages": keys.advantage,
            "returns": keys.value_target,
        }
        found = {name: output.get(place, None) for name, place in places.items()}
        arrays = {name: _time_first(x, axis, output.batch_dims) for name, x in found.items() if x is not None}
        done = arrays.pop("done")
        terminated = arrays.setdefault("terminated", done)
        arrays["truncated"] = done & ~terminated
        scalars = {"gamma": module.gamma, "lam": module.lmbda}
        files.record(path, **arrays, **{name: x for name, x in scalars.items() if x.numel() == 1})

    return hook


def _time_axis(module: Any, tensordict: Any) -> int:
    """Which axis of a tensordict is time: the module's, the one called so, or the last."""
    if module.time_dim is not None:
        return int(module.time_dim) % tensordict.batch_dims
    names = list(tensordict.names or [])
    return names.index("time") if "time" in names else tensordict.batch_dims - 1


def _time_first(x: Any, axis: int, batch_dims: int) -> np.ndarray:
    """[*batch, T, *batch, 1] → [T, *batch, *batch]."""
    array = files.as_array(x)
    if array.ndim == batch_dims + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    return np.moveaxis(array, axis, 0)


def trl(path: str | Path, trainer: Any) -> Any:
    """A callback for TRL's GRPOTrainer and RLOOTrainer: `trainer.add_callback(recorders.trl("rollout.npz", trainer))`.

    Keeps the scores and advantages of the latest batch of completions, [N], as the trainer logs them.
    """
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            logs = getattr(trainer, "_logs", None)
            if logs is None or "advantages" not in logs or "rewards" not in logs:
                raise ValueError(
                    f"{type(trainer).__name__} keeps no scores that recorders.trl knows; write them yourself with "
                    "telescope.lab.record(path, rewards=…, advantages=…, group=…)"
                )
            scores = np.array([list(column) for column in logs["rewards"].values()], np.float64)  # [functions, N]
            weights = files.as_array(trainer.reward_weights).astype(np.float64)
            files.record(
                path,
                rewards=np.nansum(weights[:, None] * scores, 0).astype(np.float32),
                advantages=np.array(logs["advantages"], np.float32),
                group=trainer.num_generations,
            )

    return Recorder()


def verl(path: str | Path, data: Any, *, gamma: float, lam: float) -> Path:
    """Record a DataProto of verl after `compute_advantage`: `recorders.verl("rollout.npz", batch, gamma=…, lam=…)`."""
    batch = getattr(data, "batch", data)
    names = ("token_level_rewards", "values", "response_mask", "advantages", "returns")
    arrays = {name: batch[name] for name in names if name in batch.keys()}  # noqa: SIM118 — a TensorDict's `in` differs
    return _translated(path, arrays | {"gamma": gamma, "lam": lam}, "verl")


def _translated(path: str | Path, arrays: dict[str, Any], convention: str) -> Path:
    return files.record(path, **files.rollout(arrays, convention)._asdict())
