"""From a configuration to vector environments: by name, or one line that says why not."""

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from rl_natgrad.envs.contract import Envs
from rl_natgrad.envs.device import DeviceEnvs
from rl_natgrad.envs.envpool import EnvpoolEnvs
from rl_natgrad.envs.episode import Recipe
from rl_natgrad.envs.errors import EnvError, EnvSetupError, one_line, theirs, unmade
from rl_natgrad.envs.native import NativeEnvs, is_native
from rl_natgrad.envs.sync import SyncEnvs
from rl_natgrad.envs.workers import AsyncEnvs


def make(cfg: Any, num_envs: int, seed: int, device: str = "cpu", first: int = 0) -> Envs:
    """The environments that `cfg`, as of schema.Env, asks for; of a run's, those from number `first` on.

    device: where those of the backend `device` are.
    Raises: EnvSetupError, one line, where they cannot be used at all.
    """
    if cfg.backend not in BACKENDS:
        raise EnvSetupError(f"env.backend must be one of {', '.join(BACKENDS)}; got {cfg.backend!r}")
    try:
        # ids on envpool are its own
        spec = EnvSpec(cfg.id) if cfg.backend == "envpool" else find(cfg.id, cfg.allow_import)
        kwargs = dict(cfg.kwargs)
        recipe = Recipe(cfg.id, spec, kwargs, seed, cfg.timeout, cfg.frame_stack, cfg.action_mask, first)
        if cfg.backend == "device":
            return DeviceEnvs(recipe, num_envs, device, cfg.stagger)
        return BACKENDS[cfg.backend](recipe, num_envs)
    except EnvSetupError:
        raise
    except EnvError as error:
        raise EnvSetupError(str(error)) from error
    except BaseException as error:
        if not theirs(error):
            raise
        raise EnvSetupError(unmade(cfg.id, error)) from error


def auto(recipe: Recipe, num_envs: int) -> Envs:
    """native where dynamics and episode ends equal the scalar environment's, else sync; whatever is installed."""
    return (NativeEnvs if is_native(recipe) else SyncEnvs)(recipe, num_envs)


def one_generator(cfg: Any) -> bool:
    """Whether all environments of a run draw from one generator, so that they cannot be shared out."""
    recipe = Recipe(cfg.id, EnvSpec(cfg.id), dict(cfg.kwargs), 0, cfg.timeout)
    return cfg.backend == "native" or (cfg.backend == "auto" and is_native(recipe))


BACKENDS: dict[str, Callable[[Recipe, int], Envs]] = {
    "auto": auto,
    "sync": SyncEnvs,
    "async": AsyncEnvs,
    "split": partial(AsyncEnvs, split=True),
    "native": NativeEnvs,
    "envpool": EnvpoolEnvs,
    "device": DeviceEnvs,
}


def find(id: str, allow_import: bool) -> EnvSpec:
    """The registered environment of that id; `module:Id` imports the module first, which runs its code."""
    module, _, name = id.rpartition(":")
    if module and not allow_import:
        raise EnvSetupError(f"env.id={id} runs the code of {module}: needs env.allow_import=true")
    if not module and name.startswith("ALE/"):
        module = "ale_py"  # registers the Atari games
    if module and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it; a console script does not
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(name)
    except BaseException as error:
        if not theirs(error):
            raise
        if module == "ale_py" and isinstance(error, ImportError):
            raise EnvSetupError(f'{id} needs an extra: pip install "rl-natgrad[atari]"') from error
        raise EnvSetupError(f"env.id={id}: {one_line(error)}") from error
