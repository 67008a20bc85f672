"""The numbers of a rollout, looked at once before anything is learned from them."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rl_natgrad.envs.errors import EnvError

# Their float bounds are nominal: flown at full throttle, LunarLander is 23 above its 2.5, and BipedalWalker's
# hull turns 0.8 past its π. (The other classic-control and Box2D environments stay inside theirs.)
NOMINAL = ("LunarLander", "BipedalWalker")
MOST = float(np.finfo(np.float32).max)  # training is in float32; and sums of such rewards are finite
ROUNDING = 1e-4  # of the bound: float32 casts and solvers' slack


class Checks:
    """Raises EnvError, naming environment, step and field, where a rollout is not finite or not in its space.

    Two reductions over time per field find whether; only then it is looked up where.  same_step: see `Envs`.

    first: which of the run's environments is number 0 here.
    """

    def __init__(self, id: str, space: spaces.Box, same_step: bool = False, first: int = 0) -> None:
        self.id, self.row_of_reset, self.first = id, int(not same_step), first
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if id.rpartition(":")[2].startswith(NOMINAL):
            low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
        self.any_byte = space.dtype == np.uint8 and not low.any() and bool((high == 255).all())
        self.bounds = low, high
        # What is not bounded must still be finite.
        self.low = np.maximum(low - ROUNDING * np.maximum(1.0, abs(low)), -MOST)
        self.high = np.minimum(high + ROUNDING * np.maximum(1.0, abs(high)), MOST)

    def __call__(self, obs: Any, reward: Any, done: Any, length: Any) -> None:
        """See `rollout.collector.Check`; of tensors only the extremes leave their device, if all is well."""
        if not isinstance(obs, np.ndarray):
            extremes = (extreme.cpu().numpy() for extreme in (obs.amin((0, 1)), obs.amax((0, 1))))
            if (abs(reward) <= MOST).all() and (self.any_byte or self._inside(*extremes)):
                return
            obs, reward, done, length = (tensor.cpu().numpy() for tensor in (obs, reward, done, length))
        if not (abs(reward) <= MOST).all():
            t, i = np.argwhere(~(abs(reward) <= MOST))[0]
            beyond = f", beyond ±{MOST:.2g}" if np.isfinite(reward[t, i]) else ""
            raise self._error(t, i, done, length, f"reward is {reward[t, i]}{beyond}")
        if not self.any_byte and not self._inside(obs.min((0, 1)), obs.max((0, 1))):
            t, i, *k = np.argwhere(~((obs >= self.low) & (obs <= self.high)))[0]
            value, (low, high) = obs[(t, i, *k)], (bound[tuple(k)] for bound in self.bounds)
            what = f"observation[{', '.join(map(str, k))}] is {value:.7g}"
            outside = f", outside its space's [{low:.6g}, {high:.6g}]" if np.isfinite(value) else ""
            raise self._error(t - 1, i, done, length, what + outside)

    def _inside(self, least: NDArray, most: NDArray) -> bool:
        # NaN fails every comparison, and min and max keep it
        return bool(((least >= self.low) & (most <= self.high)).all())

    def _error(self, t: int, i: int, done: NDArray, length: NDArray, what: str) -> EnvError:
        ends = np.flatnonzero(done[: max(t, 0), i])
        # the row after an end is the reset, step 0
        step = t - ends[-1] - self.row_of_reset if len(ends) else length[i] + t + 1
        return EnvError(f"{self.id}, environment {self.first + i}, step {step}: {what}")
