"""Evaluation episodes: seeds of their own, and the same ones in the training process as in any later one."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from rl_natgrad.config.schema import Config
from rl_natgrad.envs.checks import Checks
from rl_natgrad.envs.make import make
from rl_natgrad.policy.noise import Rng
from rl_natgrad.policy.policy import Policy
from rl_natgrad.rollout.arrays import Array
from rl_natgrad.rollout.play import play
from rl_natgrad.training import build

MODES = ("deterministic", "stochastic")

Played = dict[str, tuple[NDArray, NDArray]]
"""Mode → undiscounted returns (episodes,) and lengths (episodes,)."""

Ended = Callable[[int, int], None]
"""Is told how many episodes have ended, of how many."""


def unheard(episodes: int, of: int) -> None:
    """For whom it may not concern."""


def evaluate(
    cfg: Config, policy: Policy, episodes: int | None = None, modes: Sequence[str] = MODES,
    later: ExitStack | None = None, ended: Ended = unheard,
) -> Played:  # fmt: skip
    """`episodes` (those of the config, unless given) episodes in each mode, from the same first states in both.

    Each episode has an environment of its own, so that none is favoured for being short; and no first state
    depends on how many there are.

    Args:    later: ends the environments; None for here and now.  ended: of both modes.
    Raises:  EnvError where an environment misbehaves.
    """
    backend = "sync" if cfg.env.backend in ("auto", "native") else cfg.env.backend
    env, played = cfg.env.model_copy(update={"backend": backend, "stagger": False}), {}  # whole episodes
    draws, seed = streams(cfg)
    rng = build.acting_generator(cfg, draws)
    each = episodes or cfg.eval.episodes

    def after(before: int) -> Callable[[int], None]:
        return lambda n: ended(before + n, len(modes) * each)

    for number, mode in enumerate(modes):
        with build.undisturbed(), ExitStack() as now:
            made = closing(make(env, each, seed, cfg.device))
            envs = (now if later is None else later).enter_context(made)
            check = Checks(cfg.env.id, envs.observation_space, envs.same_step)
            played[mode] = play(envs, acting(policy, mode, rng), check, after(number * each))
    return played


def acting(policy: Policy, mode: str, rng: Rng) -> Callable[[Array], Array]:
    """Observations (B, *O) ↦ actions (B, *A): the most likely ones, or drawn with the noise of `rng`."""
    if mode == "deterministic":
        return policy.act_greedily
    return lambda obs: policy.act(obs, policy.noise(rng, (len(obs),)))


def logged(played: Played) -> dict[str, float]:
    """What a run logs of its evaluations."""
    (returns, lengths), (sampled, _) = played["deterministic"], played["stochastic"]
    return {
        "eval/return": float(returns.mean()), "eval/return_std": float(returns.std()),
        "eval/length": float(lengths.mean()), "eval/return_stochastic": float(sampled.mean()),
    }  # fmt: skip


def streams(cfg: Config) -> tuple[np.random.Generator, int]:
    """The run's random numbers for sampling actions, and the seed of its evaluation environments."""
    rng = build.generator(cfg.seed, "evaluation")
    return rng, int.from_bytes(rng.bytes(16), "little")  # far from the small numbers that training seeds are
