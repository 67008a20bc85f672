"""Environments that step thousands at once on a device, as tensors; what comes of them stays there."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rl_natgrad.envs.contract import Rows
from rl_natgrad.envs.episode import Recipe, episode_seed
from rl_natgrad.envs.errors import EnvError, EnvSetupError, RaisedEnvError, note, one_line, theirs
from rl_natgrad.envs.positions import check_kind
from rl_natgrad.envs.spaces import ObservationMap, brief
from rl_natgrad.envs.torch_control import TASKS
from rl_natgrad.envs.view import WithSpaces
from rl_natgrad.envs.warp_mujoco import WALKERS, Mujoco

MODES = {AutoresetMode.NEXT_STEP: False, AutoresetMode.SAME_STEP: True}


@runtime_checkable
class Saves(Protocol):
    """A vector environment that can be saved; others begin new episodes when a run goes on."""

    def save(self) -> dict[str, Tensor]:
        """Where it stands: always the same names, shapes and dtypes."""

    def load(self, saved: dict[str, Tensor]) -> Tensor:
        """Goes on from there. Returns the observations (B, *O)."""


@runtime_checkable
class Staggers(Protocol):
    """A vector environment whose episodes may end at different times from the first on."""

    def stagger(self) -> None:
        """To be called after `reset`: the episodes now have any age."""


class DeviceEnvs(WithSpaces):
    """See `contract.Envs`. Tasks of our own, or any vector environment that shows tensors.

    device: where its tensors must be, and what it is given as `device` where it asks for that.
    stagger: whether episodes begin at any age, where the environment knows how.
    """

    backend = "device"

    def __init__(self, recipe: Recipe, num_envs: int, device: str = "cpu", stagger: bool = False) -> None:
        self.id, self.seed, self.num_envs, self.calls = recipe.id, recipe.seed, num_envs, 0
        if recipe.action_mask or recipe.frame_stack is not None:
            key = "action_mask" if recipe.action_mask else "frame_stack"
            raise EnvSetupError(f"env.{key} is not for env.backend=device; use sync")
        self.device = torch.empty(0, device=device).device  # cuda is cuda:0 by then
        self.env = _build(recipe, num_envs, device)
        self.restorable = isinstance(self.env, Saves)
        mode = self.env.metadata.get("autoreset_mode")
        if mode not in MODES:
            raise EnvSetupError(f"{self.id}: metadata[autoreset_mode] must be NEXT_STEP or SAME_STEP, got {mode}")
        self.same_step, raw = MODES[mode], self.env.single_observation_space
        if not isinstance(raw, spaces.Box):
            raise EnvSetupError(f"observation space {raw} is not supported on env.backend=device; a Box is")
        super().__init__(raw, self.env.single_action_space)
        if isinstance(self.env, Mujoco):
            self.note = self.env.note
        self._stagger = stagger
        if stagger and not isinstance(self.env, Staggers):
            self.note = f"{self.id} has no `stagger`: its episodes all begin at once"
        self.axes, self._to_env = ObservationMap(raw).axes, _actions(self.raw_action_space, self.device)
        self._shape, self._dtype = (num_envs, *raw.shape), _dtype(raw)

    def reset(self) -> Tensor:
        """The first observations (B, *O)."""
        self.calls = 0
        try:
            result = self.env.reset(seed=episode_seed(self.seed, 0, 0))
            if self._stagger and isinstance(self.env, Staggers):
                self.env.stagger()
        except Exception as error:
            if not theirs(error):
                raise
            raise self._raised("reset", error) from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._error(f"reset returned {brief(result)}, expected (observation, info)")
        return self._see(result[0], "observation")

    def step(self, action: Tensor) -> Rows:
        """What comes of action (B, *A)."""
        self.calls += 1
        try:
            result = self.env.step(self._to_env(action))
        except Exception as error:
            if not theirs(error):
                raise
            raise self._raised("step", error) from error
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._error(
                f"step returned {brief(result)}, expected (observation, reward, terminated, truncated, info)"
            )
        obs, reward, *flags, info = result
        reward = self._right(reward, "reward", (self.num_envs,)).to(torch.float64)
        for flag, name in zip(flags, ("terminated", "truncated"), strict=True):
            self._right(flag, name, (self.num_envs,), torch.bool)
        if self.same_step:
            self.last = self._last(info, flags[0] | flags[1])
        return self._see(obs, "observation"), reward, *flags

    def state(self) -> dict[str, Any]:
        """The environment's own tensors. Raises: NotImplementedError where it has no `save`."""
        if not isinstance(self.env, Saves):
            raise NotImplementedError(f"{self.id} cannot save its state")
        return {"kind": "device", **self.env.save()}

    def load(self, state: dict[str, Any]) -> tuple[Tensor, list[int]]:
        """Puts the environments there; their observations. None is compared with what it was."""
        check_kind(state, "device")
        if not isinstance(self.env, Saves):
            raise NotImplementedError(f"{self.id} cannot load a state")
        self.reset()
        try:
            obs = self.env.load({name: part for name, part in state.items() if name != "kind"})
        except Exception as error:
            raise ValueError(f"the environments' state does not fit these: {one_line(error)}") from error
        return self._see(obs, "observation"), []

    def close(self) -> None:
        """Ends the environments."""
        try:
            self.env.close()
        except Exception as error:
            note(f"{self.id}: close raised {one_line(error)}")

    def _see(self, obs: Any, field: str) -> Tensor:
        """Observations as the policy sees them."""
        obs = self._right(obs, field, self._shape, self._dtype)
        if self.axes is not None:
            return obs.permute(0, *(1 + axis for axis in self.axes))
        return obs.reshape(self.num_envs, -1).to(torch.float32)

    def _last(self, info: Any, done: Tensor) -> Tensor:
        """The last observations of who is done; of anything where nobody is."""
        final = info.get("final_obs") if isinstance(info, dict) else None
        if final is None and not done.any():
            return torch.zeros(self.num_envs, *self.observation_space.shape, device=self.device)
        return self._see(final, "info['final_obs']")

    def _right(self, value: Any, field: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """`value` where it is a tensor of this shape on our device, and of this dtype, or any real one."""
        if not isinstance(value, Tensor):
            raise self._error(f"{field} is {brief(value)}, expected a tensor of shape {shape}")
        if value.shape != shape:
            raise self._error(f"{field} has shape {tuple(value.shape)}, expected {shape}")
        if value.device != self.device:
            raise self._error(f"{field} is on {value.device}, expected {self.device} (device)")
        if value.dtype != dtype if dtype else value.is_complex():
            raise self._error(f"{field} has dtype {value.dtype}, expected {dtype or 'a real one'}")
        return value.detach()  # of simulators that can be differentiated

    def _where(self) -> str:
        return f"{self.id}, environments 0 to {self.num_envs - 1}, step {self.calls} since their reset"

    def _error(self, what: str) -> EnvError:
        return EnvError(f"{self._where()}: {what}")

    def _raised(self, method: str, error: BaseException) -> RaisedEnvError:
        return RaisedEnvError(f"{self._where()}: {method} raised {one_line(error)}")


def _build(recipe: Recipe, num_envs: int, device: str) -> VectorEnv:
    """Classic control of our own, MuJoCo's tasks on Warp; or what the id's vector_entry_point makes."""
    spec = recipe.spec
    limit = spec.max_episode_steps or 2**31
    if recipe.id in TASKS:
        return TASKS[recipe.id](num_envs, limit, device, **recipe.kwargs)
    if recipe.id in WALKERS:
        return WALKERS[recipe.id](recipe.build().unwrapped, num_envs, limit, device)
    entry: Any = spec.vector_entry_point
    if entry is None or str(entry).startswith("gymnasium."):
        known = ", ".join([*TASKS, *WALKERS])
        raise EnvSetupError(
            f"{recipe.id} is not one of tensors: env.backend=device has {known}, and what is registered with a "
            "vector_entry_point that shows tensors; use env.backend=sync"
        )
    creator = entry if callable(entry) else load_env_creator(entry)
    asks = "device" in inspect.signature(creator).parameters
    kwargs = {**({"device": device} if asks else {}), **recipe.kwargs}
    return gym.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **kwargs)


def _dtype(space: spaces.Space) -> torch.dtype:
    return torch.from_numpy(np.empty(0, space.dtype)).dtype


def _actions(space: spaces.Space, device: torch.device) -> Callable[[Tensor], Tensor]:
    """`spaces.action_map` for tensors."""
    dtype, shape = _dtype(space), space.shape or ()
    if not isinstance(space, spaces.Box):
        starts = space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else 0
        shift = torch.as_tensor(np.asarray(starts), device=device)
        return lambda action: (action.reshape(-1, *shape) + shift).to(dtype)
    low, high = (torch.as_tensor(bound.astype(np.float64), device=device) for bound in (space.low, space.high))
    finite, symmetric = bool((low.isfinite() & high.isfinite()).all()), torch.equal(low, -high)

    def to_env(action: Tensor) -> Tensor:
        action = action.reshape(-1, *shape).double()
        if finite:
            action = action.clamp(-1.0, 1.0)
            action = high * action if symmetric else low * (0.5 - 0.5 * action) + high * (0.5 + 0.5 * action)
        action = action.clamp(low, high)
        return (action if dtype.is_floating_point else action.round()).to(dtype)

    return to_env
