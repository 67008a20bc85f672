"""From a configuration to vector environments: by name, or one line that says why not."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from rl_natgrad.envs.contract import Envs
from rl_natgrad.envs.envpool import EnvpoolEnvs
from rl_natgrad.envs.episode import Recipe
from rl_natgrad.envs.errors import EnvSetupError, one_line
from rl_natgrad.envs.native import NATIVE, NativeEnvs
from rl_natgrad.envs.sync import SyncEnvs
from rl_natgrad.envs.workers import AsyncEnvs

E = TypeVar("E", bound=Envs)


def make(cfg: Any, num_envs: int, seed: int) -> Envs:
    """The environments that `cfg` (id, backend, allow_import, timeout, kwargs) asks for.

    Raises: EnvSetupError, one line, where they cannot be used at all.
    """
    if cfg.backend not in BACKENDS:
        raise EnvSetupError(f"env.backend must be one of {', '.join(BACKENDS)}; got {cfg.backend!r}")
    return BACKENDS[cfg.backend](cfg, num_envs, seed)


def auto(cfg: Any, num_envs: int, seed: int) -> Envs:
    """native where dynamics and episode ends equal the scalar environment's, else sync; whatever is installed."""
    return (native if _has_native(cfg) else sync)(cfg, num_envs, seed)


def sync(cfg: Any, num_envs: int, seed: int) -> SyncEnvs:
    """Environments in this process, where one can get at them."""
    return _seeded(SyncEnvs, cfg, num_envs, seed)


def workers(cfg: Any, num_envs: int, seed: int) -> AsyncEnvs:
    """async or split: environments in worker processes, or in this one too."""
    return _seeded(partial(AsyncEnvs, split=cfg.backend == "split"), cfg, num_envs, seed)


def native(cfg: Any, num_envs: int, seed: int) -> NativeEnvs:
    """Gymnasium's own vectorised environments."""
    spec = find(cfg.id, cfg.allow_import)
    if not _has_native(cfg):
        what = " with these env.kwargs" if cfg.id in NATIVE else ""
        raise EnvSetupError(f"{cfg.id} has no vectorised environment{what}; use env.backend=sync")
    return NativeEnvs(cfg.id, spec.max_episode_steps or sys.maxsize, num_envs, seed, dict(cfg.kwargs))


def envpool(cfg: Any, num_envs: int, seed: int) -> EnvpoolEnvs:
    """C++ environments, which have ids of their own."""
    return EnvpoolEnvs(cfg.id, num_envs, seed, dict(cfg.kwargs))


BACKENDS: dict[str, Callable[[Any, int, int], Envs]] = {
    "auto": auto, "sync": sync, "async": workers, "split": workers, "native": native, "envpool": envpool,
}  # fmt: skip


def _has_native(cfg: Any) -> bool:
    return cfg.id in NATIVE and set(cfg.kwargs) <= NATIVE[cfg.id]


def _seeded(kind: Callable[[Recipe, int], E], cfg: Any, num_envs: int, seed: int) -> E:
    """Environments whose every reset is seeded; whatever goes wrong in making them is one line."""
    recipe = Recipe(cfg.id, find(cfg.id, cfg.allow_import), dict(cfg.kwargs), seed, cfg.timeout)
    try:
        return kind(recipe, num_envs)
    except EnvSetupError:
        raise
    except Exception as error:
        raise EnvSetupError(f"{cfg.id}: {missing_extra(cfg.id, error) or one_line(error)}") from error


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
    except Exception as error:
        if module == "ale_py" and isinstance(error, ImportError):
            raise EnvSetupError(f'{id} needs an extra: pip install "rl-natgrad[atari]"') from error
        raise EnvSetupError(f"env.id={id}: {one_line(error)}") from error


def missing_extra(id: str, error: Exception) -> str | None:
    """The line that installs what an environment lacks, where that is why it failed."""
    if not isinstance(error, gym.error.DependencyNotInstalled | ImportError):
        return None
    found = re.search(r"gymnasium\[(box2d|mujoco)\]", str(error))
    extra = "atari" if id.startswith("ALE/") else found and found[1]
    return f'needs an extra: pip install "rl-natgrad[{extra}]"' if extra else None
