"""Whole episodes with a fixed way of acting."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rl_natgrad.envs.contract import Envs
from rl_natgrad.rollout.collector import Check

LIMIT = 108_000  # steps of an episode in an environment without a time limit: the longest that Gymnasium sets


def play(
    envs: Envs, act: Callable[[NDArray], NDArray], check: Check = lambda *rows: None,
    ended: Callable[[int], None] = lambda episodes: None, *, limit: int = LIMIT,
) -> tuple[NDArray, NDArray]:  # fmt: skip
    """The first episode of each environment: as many episodes, whatever their lengths, so none is favoured.

    Args:    act: observations (B, *O) ↦ actions (B, *A).  check: sees each step as a rollout of one row.
             ended: is told how many episodes have ended, at the start and whenever one does.
             limit: an episode that goes on for longer counts as far as it got.
    Returns: undiscounted returns (B,) float64, lengths (B,) int64.
    """
    obs, open_ = envs.reset(), np.ones(envs.num_envs, bool)
    returns, lengths, length = np.zeros(envs.num_envs), *np.zeros((2, envs.num_envs), np.int64)
    ended(0)
    while open_.any() and lengths.max() < limit:
        before = obs.copy()  # the environments write into their arrays
        obs, reward, terminated, truncated = envs.step(act(before))
        done = terminated | truncated
        check(np.stack((before, obs)), reward[None], done[None], length)
        length = np.where(done, -1, length + 1)
        returns[open_] += reward[open_]
        lengths[open_] += 1
        if (open_ & done).any():
            open_ &= ~done
            ended(envs.num_envs - int(open_.sum()))
    return returns, lengths
