"""Whole episodes with a fixed way of acting."""

from collections.abc import Callable

from numpy.typing import NDArray

from rl_natgrad.envs.contract import Envs
from rl_natgrad.rollout.arrays import Array, copied, host, lib
from rl_natgrad.rollout.collector import Check

LIMIT = 108_000  # steps of an episode in an environment without a time limit: the longest that Gymnasium sets


def play(
    envs: Envs, act: Callable[[Array], Array], check: Check = lambda *rows: None,
    ended: Callable[[int], None] = lambda episodes: None, *, limit: int = LIMIT,
) -> tuple[NDArray, NDArray]:  # fmt: skip
    """The first episode of each environment: as many episodes, whatever their lengths, so none is favoured.

    Args:    act: observations (B, *O) ↦ actions (B, *A).  check: sees each step as a rollout of one row.
             ended: is told how many episodes have ended, at the start and whenever one does.
             limit: an episode that goes on for longer counts as far as it got.
    Returns: undiscounted returns (B,) float64, lengths (B,) int64; arrays.
    """
    obs = envs.reset()
    B, xp, at = envs.num_envs, lib(obs), {"device": obs.device}
    returns, open_ = xp.zeros(B, dtype=xp.float64, **at), xp.ones(B, dtype=xp.bool, **at)
    lengths, length = (xp.zeros(B, dtype=xp.int64, **at) for _ in range(2))
    ended(0)
    while open_.any() and lengths.max() < limit:
        before = copied(obs)  # the environments write into their arrays
        obs, reward, terminated, truncated = envs.step(act(before))
        done = terminated | truncated
        check(xp.stack((before, obs)), reward[None], done[None], length)
        length = xp.where(done, -1, length + 1)
        returns[open_] += reward[open_]
        lengths += open_
        if (open_ & done).any():
            open_ &= ~done
            ended(B - int(open_.sum()))
    return host(returns), host(lengths)
