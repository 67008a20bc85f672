"""C++ environments stepped on all cores by envpool: asked for by name, as its state cannot be saved."""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rl_natgrad.envs.contract import Rows
from rl_natgrad.envs.cores import cores
from rl_natgrad.envs.episode import Recipe
from rl_natgrad.envs.errors import EnvSetupError, RaisedEnvError, one_line
from rl_natgrad.envs.spaces import ObservationMap
from rl_natgrad.envs.view import WithSpaces


class EnvpoolEnvs(WithSpaces):
    """See `contract.Envs`. Episodes after the first of each environment depend on history."""

    backend, restorable = "envpool", False

    def __init__(self, recipe: Recipe, num_envs: int) -> None:
        self.id, self.num_envs = recipe.id, num_envs
        if recipe.action_mask or recipe.frame_stack is not None:
            key = "action_mask" if recipe.action_mask else "frame_stack"
            raise EnvSetupError(f"env.{key} is not for env.backend=envpool; use sync")
        try:
            import envpool
        except ImportError as error:
            line = 'env.backend=envpool needs an extra: pip install "rl-natgrad[envpool]"'
            raise EnvSetupError(line) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # float64 bounds rounded to float32, for each environment
            try:
                self.env = envpool.make(
                    self.id.removeprefix("ALE/"),
                    env_type="gymnasium",
                    num_envs=num_envs,
                    num_threads=min(num_envs, cores()),
                    env_seed=[recipe.episode_seed(i, 0) for i in range(num_envs)],
                    **recipe.kwargs,
                )
            except Exception as error:
                raise EnvSetupError(f"{self.id} on envpool: {one_line(error)}") from error
            raw, action = self.env.observation_space, self.env.action_space
        if not isinstance(raw, spaces.Box):
            raise EnvSetupError(f"observation space {raw} is not supported on envpool; use env.backend=sync")
        # envpool's own bounds are often wrong
        right = spaces.Box(-np.inf, np.inf, raw.shape, raw.dtype) if raw.dtype.kind == "f" else raw
        super().__init__(right, action)
        self.raw_observation_space = raw
        self.rows, self.axes = self.observation_space.shape, ObservationMap(right).axes
        # envpool's own step() spends 40 to 80 µs in Python around these two calls into C++, a third of a step of
        # 8 HalfCheetahs; its version is pinned.
        keys = self.env._state_keys
        (obs,) = (key for key in keys if key.partition(":")[0] == "obs")
        self.fields = [keys.index(key) for key in (obs, "reward", "done", "trunc")]
        ids = self.env.all_env_ids
        known = {"env_id": ids, "players.env_id": ids}
        self.ids = [known[key] for key in self.env._spec._action_keys[:-1]]
        self.action_dtype = self.env._spec._action_spec[-1][0]

    def reset(self) -> NDArray:
        """The first observations (B, *O)."""
        return self._see(self.env.reset()[0])

    def step(self, action: NDArray) -> Rows:
        """What comes of action (B, *A)."""
        try:
            self.env._send([*self.ids, self.to_env(action).astype(self.action_dtype, order="C", copy=False)])
            state = self.env._recv()
        except Exception as error:
            raise RaisedEnvError(f"{self.id}, envpool's environments: step raised {one_line(error)}") from error
        obs, reward, done, truncated = (state[i] for i in self.fields)
        return self._see(obs), reward.astype(np.float64), done & ~truncated, truncated

    def _see(self, obs: NDArray) -> NDArray:
        if self.axes is not None:
            return obs.transpose(0, *(1 + axis for axis in self.axes))
        return obs.reshape(self.num_envs, *self.rows).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Raises NotImplementedError: envpool has no way to."""
        raise NotImplementedError("envpool cannot save its environments' state")

    def load(self, state: dict[str, Any]) -> tuple[NDArray, list[int]]:
        """Raises NotImplementedError: envpool has no way to."""
        raise NotImplementedError("envpool cannot load its environments' state")

    def close(self) -> None:
        """Ends the environments."""
        self.env.close()
