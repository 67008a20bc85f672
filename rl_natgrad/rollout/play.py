"""Whole episodes with a fixed way of acting."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def play(envs, act: Callable[[NDArray], NDArray]) -> tuple[NDArray, NDArray]:
    """The first episode of each environment: as many episodes, whatever their lengths, so none is favoured.

    Args:    act: observations (B, *O) ↦ actions (B, *A).
    Returns: undiscounted returns (B,) float64, lengths (B,) int64.
    """
    obs, open_ = envs.reset(), np.ones(envs.num_envs, bool)
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
    while open_.any():
        obs, reward, terminated, truncated = envs.step(act(obs))
        returns[open_] += reward[open_]
        lengths[open_] += 1
        open_ &= ~(terminated | truncated)
    return returns, lengths
