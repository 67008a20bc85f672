"""Environments stepped one after another in this process."""

from __future__ import annotations

from typing import Any

import numpy as np

from rl_natgrad.envs.episode import Episodes, Recipe
from rl_natgrad.envs.positions import Positions, differing
from rl_natgrad.envs.spaces import action_map
from rl_natgrad.envs.watchdog import Watchdog


class SyncEnvs:
    """See `make.Envs` for the contract. The arrays returned are overwritten by the next step."""

    backend, restorable = "sync", True

    def __init__(self, recipe: Recipe, num_envs: int) -> None:
        self.num_envs = num_envs
        self.episodes = Episodes(recipe, range(num_envs))
        first = self.episodes.all[0]
        self.observation_space, self.note = first.observation.space, first.observation.note
        self.raw_action_space = first.env.action_space
        self.action_space, self.to_env = action_map(self.raw_action_space)
        self.obs = np.zeros((num_envs, *self.observation_space.shape), self.observation_space.dtype)
        self.reward = np.zeros(num_envs)
        self.terminated = np.zeros(num_envs, bool)
        self.truncated = np.zeros(num_envs, bool)
        self.episodes.attach(self.obs, self.reward, self.terminated, self.truncated, np.zeros(1, np.int64))
        self.watchdog = Watchdog(self.episodes, recipe.timeout)

    def reset(self) -> np.ndarray:
        with self.watchdog:
            self.episodes.reset()
        return self.obs

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        with self.watchdog:
            self.episodes.step(self.to_env(action))
        return self.obs, self.reward, self.terminated, self.truncated

    def state(self) -> dict[str, Any]:
        """Where every environment stands."""
        return self.episodes.state().state(self.obs)

    def load(self, state: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
        """Replays fresh environments to there; their observations, and who came back different."""
        positions = Positions.of(state, self.obs, self.raw_action_space)
        with self.watchdog:
            self.episodes.load(positions)
        return self.obs, differing(self.obs, state["obs"])

    def close(self) -> None:
        self.watchdog.close()
        self.episodes.close()
