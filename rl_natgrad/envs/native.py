"""Gymnasium's own vectorised CartPole. One RNG serves all environments: its state is copied, not replayed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from rl_natgrad.envs.errors import EnvError, one_line
from rl_natgrad.envs.snapshot import expect
from rl_natgrad.envs.spaces import ObservationMap, action_map

# The ids whose vectorised dynamics and episode ends equal the scalar environment's (tests/test_envs.py), and
# the arguments both take. The JAX ones of Gymnasium do not qualify: they keep their state out of reach.
NATIVE = {"CartPole-v0": {"sutton_barto_reward"}, "CartPole-v1": {"sutton_barto_reward"}}


class Unchecked:
    """A space that takes any action: heads sample whole numbers that are in it by construction, and asking
    Gymnasium's space each time takes a quarter of CartPole's whole step."""

    @staticmethod
    def contains(action: np.ndarray) -> bool:
        return True


class NativeEnvs:
    """See `make.Envs` for the contract."""

    backend, restorable, note = "native", True, None

    def __init__(self, id: str, limit: int, num_envs: int, seed: int, kwargs: dict[str, Any]) -> None:
        self.id, self.num_envs, self.seed = id, num_envs, seed
        self.env = CartPoleVectorEnv(num_envs, limit, **kwargs)
        self.observation_space = ObservationMap(self.env.single_observation_space).space
        self.action_space, self.to_env = action_map(self.env.single_action_space)
        self.env.action_space = Unchecked()

    def reset(self) -> np.ndarray:
        self.env.np_random = np.random.default_rng(np.random.SeedSequence([self.seed, self.num_envs]))
        return self.env.reset()[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        try:
            obs, reward, terminated, truncated, _ = self.env.step(self.to_env(action))
        except Exception as error:
            raise EnvError(f"{self.id}, native environments: step raised {one_line(error)}") from error
        return obs, reward.astype(np.float64), terminated, truncated

    def snapshot(self) -> dict[str, Any]:
        return {
            "kind": "CartPole",
            "state": self.env.state.copy(),
            "steps": self.env.steps.copy(),
            "prev_done": self.env.prev_done.copy(),
            "rng": json.dumps(self.env.np_random.bit_generator.state),
        }

    def restore(self, snapshot: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
        expect(snapshot, "CartPole")
        self.reset()
        for name in ("state", "steps", "prev_done"):
            here, stored = getattr(self.env, name), snapshot[name]
            if stored.shape != here.shape or stored.dtype != here.dtype:
                raise ValueError(f"environment snapshot does not fit: {name} is {stored.shape}")
            setattr(self.env, name, stored.copy())
        self.env.np_random.bit_generator.state = json.loads(snapshot["rng"])
        return self.env.state.T.astype(np.float32), []

    def close(self) -> None:
        self.env.close()
