"""Gymnasium's own vectorised CartPole. One RNG serves all environments: its state is copied, not replayed."""

import json
import sys
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from numpy.typing import NDArray

from rl_natgrad.envs.contract import Rows
from rl_natgrad.envs.episode import Recipe
from rl_natgrad.envs.errors import EnvSetupError, RaisedEnvError, one_line
from rl_natgrad.envs.positions import check_kind
from rl_natgrad.envs.view import WithSpaces

# The ids whose vectorised dynamics and episode ends equal the scalar environment's (tests/test_envs.py), and
# the arguments both take. The JAX ones of Gymnasium do not qualify: they keep their state out of reach.
NATIVE = {"CartPole-v0": {"sutton_barto_reward"}, "CartPole-v1": {"sutton_barto_reward"}}
ARRAYS = ("state", "steps", "prev_done")  # where Gymnasium's environments stand


def is_native(recipe: Recipe) -> bool:
    """Whether there is a vectorised environment of this id that takes these arguments."""
    plain = recipe.stack == 1 and not recipe.action_mask
    return recipe.id in NATIVE and recipe.kwargs.keys() <= NATIVE[recipe.id] and plain


class Unchecked(spaces.Space):
    """A space that takes any action: heads sample whole numbers that are in it by construction, and asking
    Gymnasium's space each time takes a quarter of CartPole's whole step."""

    def contains(self, x: Any) -> bool:
        """True."""
        return True


class NativeEnvs(WithSpaces):
    """See `contract.Envs`. Their episodes depend on how many there are."""

    backend, restorable = "native", True

    def __init__(self, recipe: Recipe, num_envs: int) -> None:
        id, seed, limit = recipe.id, recipe.seed, recipe.spec.max_episode_steps or sys.maxsize
        if not is_native(recipe):
            what = " with these env.kwargs, env.frame_stack and env.action_mask" if id in NATIVE else ""
            raise EnvSetupError(f"{id} has no vectorised environment{what}; use env.backend=sync")
        self.id, self.num_envs, self.seed = id, num_envs, seed
        self.env = CartPoleVectorEnv(num_envs, limit, **recipe.kwargs)
        super().__init__(self.env.single_observation_space, self.env.single_action_space)
        self.env.action_space = Unchecked()

    def reset(self) -> NDArray:
        """The first observations (B, *O)."""
        self.env.np_random = np.random.default_rng(np.random.SeedSequence([self.seed, self.num_envs]))
        return self.env.reset()[0]

    def step(self, action: NDArray) -> Rows:
        """What comes of action (B, *A)."""
        try:
            obs, reward, terminated, truncated, _ = self.env.step(self.to_env(action))
        except Exception as error:
            raise RaisedEnvError(f"{self.id}, native environments: step raised {one_line(error)}") from error
        return obs, reward.astype(np.float64), terminated, truncated

    def state(self) -> dict[str, Any]:
        """Gymnasium's own arrays, and the state of their generator as JSON."""
        arrays = {name: vars(self.env)[name].copy() for name in ARRAYS}
        return {"kind": "CartPole", **arrays, "rng": json.dumps(self.env.np_random.bit_generator.state)}

    def load(self, state: dict[str, Any]) -> tuple[NDArray, list[int]]:
        """Puts the environments there; their observations. None ever comes back different."""
        check_kind(state, "CartPole")
        self.reset()
        own = vars(self.env)
        for name in ARRAYS:
            if state[name].shape != own[name].shape or state[name].dtype != own[name].dtype:
                raise ValueError(f"the environments' state does not fit these: {name} is {state[name].shape}")
            own[name] = state[name].copy()
        self.env.np_random.bit_generator.state = json.loads(state["rng"])
        return own["state"].T.astype(np.float32), []

    def close(self) -> None:
        """Ends the environments."""
        self.env.close()
