"""Gymnasium's SyncVectorEnv with a shorter step, for environments whose infos hold an action mask or nothing.

Gymnasium merges infos, copies and stacks at every step, which takes nearly as long as a MuJoCo step. Seeding, resets,
spaces and the three autoreset modes are Gymnasium's.
"""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class BriefSyncVectorEnv(SyncVectorEnv):
    """Environments wrapped in `Recorder`, with Box or Discrete observations. Later steps overwrite the arrays."""

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Like SyncVectorEnv, but infos holds only "action_mask" [N, A] and "final_obs" (N observations or None)."""
        observations: Any = self._observations
        masks: list[Any] = []
        finals: dict[str, Any] = {}
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            if self._autoreset_envs[i] and self.autoreset_mode == AutoresetMode.NEXT_STEP:
                (observation, info), outcome = env.reset(), (0.0, False, False)
            else:
                observation, *outcome, info = env.step(action)  # type: ignore[assignment]
            reward, terminated, truncated = outcome
            if (terminated or truncated) and self.autoreset_mode == AutoresetMode.SAME_STEP:
                finals.setdefault("final_obs", np.full(self.num_envs, None, object))[i] = observation
                observation, info = env.reset()
            observations[i] = self._env_obs[i] = observation  # a partial reset reads the others from _env_obs
            self._rewards[i], self._terminations[i], self._truncations[i] = reward, terminated, truncated
            if info:
                masks.append(info["action_mask"])
        self._autoreset_envs = self._terminations | self._truncations
        infos = {**finals, "action_mask": np.array(masks)} if masks else finals
        return observations, self._rewards, self._terminations, self._truncations, infos
