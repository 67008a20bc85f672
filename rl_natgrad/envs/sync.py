"""Environments stepped one after another in this process."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl_natgrad.envs.contract import Rows
from rl_natgrad.envs.episode import Episodes, Recipe
from rl_natgrad.envs.positions import Positions, differing
from rl_natgrad.envs.view import WithSpaces
from rl_natgrad.envs.watchdog import Watchdog


class SyncEnvs(WithSpaces):
    """See `contract.Envs`. The arrays returned are overwritten by the next step."""

    backend, restorable = "sync", True

    def __init__(self, recipe: Recipe, num_envs: int) -> None:
        self.num_envs, self.episodes = num_envs, Episodes(recipe, range(num_envs))
        self.watchdog = Watchdog(self.episodes, recipe.timeout)
        try:
            with self.watchdog:
                self.episodes.build()
            env = self.episodes.all[0].env
            super().__init__(env.observation_space, env.action_space, recipe.stack, recipe.action_mask)
        except BaseException:
            self.close()
            raise
        self.obs = np.zeros((num_envs, *self.observation_space.shape), self.observation_space.dtype)
        self.reward = np.zeros(num_envs)
        self.terminated, self.truncated = np.zeros((2, num_envs), bool)
        self.episodes.attach(self.obs, self.reward, self.terminated, self.truncated, np.zeros(1, np.int64))

    def reset(self) -> NDArray:
        """The first observations (B, *O)."""
        with self.watchdog:
            self.episodes.reset()
        return self.obs

    def step(self, action: NDArray) -> Rows:
        """What comes of action (B, *A)."""
        with self.watchdog:
            self.episodes.step(self.to_env(action))
        return self.obs, self.reward, self.terminated, self.truncated

    def state(self) -> dict[str, Any]:
        """Where every environment stands."""
        return self.episodes.state().state(self.obs)

    def load(self, state: dict[str, Any]) -> tuple[NDArray, list[int]]:
        """Replays fresh environments to there; their observations, and who came back different."""
        positions = Positions.of(state, self.obs, self.raw_action_space)
        with self.watchdog:
            self.episodes.load(positions)
        return self.obs, differing(self.obs, state["obs"])

    def close(self) -> None:
        """Ends the environments and their watchdog."""
        if self.episodes.all:
            with self.watchdog:
                self.episodes.close()
        self.watchdog.close()
