"""Running mean and variance, in float64, updated between rollouts and never within one."""

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from rl_natgrad.rollout.arrays import Array, host, lib


class RunningMoments:
    """Mean and variance of all samples so far, of `shape` S each; arrays, also where the samples are tensors.

    Chan et al. 1979: merging (n, mean, M₂) of batches is exact, and keeps its precision where a sum of
    squares loses it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count, self.mean, self.m2 = 0.0, np.zeros(shape), np.zeros(shape)

    def update(self, x: Array) -> None:
        """Adds the samples x (N, *S), of which sums come here."""
        if len(x) == 0:
            return
        x = lib(x).asarray(x, dtype=lib(x).float64)
        mean = x.mean(0)
        self.merge(len(x), host(mean), host(((x - mean) ** 2).sum(0)))

    def merge(self, n: int, mean: NDArray, m2: NDArray) -> None:
        """Adds n > 0 samples with that mean (*S) and sum of squared deviations (*S)."""
        total, shift = self.count + n, mean - self.mean
        m2 = self.m2 + m2 + shift**2 * (self.count * n / total)
        # arrays also of shape (), of which arithmetic makes numbers: what is saved keeps its kind
        self.m2, self.mean = np.asarray(m2), np.asarray(self.mean + shift * (n / total))
        self.count = total

    @property
    def std(self) -> NDArray:
        """Population standard deviation; 1 before the first sample and where nothing has varied."""
        if self.count == 0:
            return np.ones_like(self.mean)
        std = np.sqrt(self.m2 / self.count)
        return np.where(std > 1e-8, std, 1.0)

    def state(self) -> dict[str, NDArray]:
        """count (), mean (*S) and m2 (*S), the sum of squared deviations."""
        return {"count": np.array(self.count), "mean": self.mean, "m2": self.m2}

    def load(self, state: dict[str, NDArray]) -> None:
        """Goes on from what `state` gave."""
        self.count, self.mean, self.m2 = float(state["count"]), state["mean"].copy(), state["m2"].copy()


class ObservationNormalizer:
    """(obs − mean) / std, clipped to ±10, with the moments as they were at the last `update`; in `dtype`.

    masked: so many last entries are an action mask, and stay as they are.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32, masked: int = 0) -> None:
        self.moments, self.dtype, self.masked = RunningMoments(shape), dtype, masked
        self._there: list[torch.Tensor] = []  # mean and scale on the device of observations that are tensors
        self._freeze()

    def __call__(self, obs: Array) -> Array:
        """The observations (B, *S) in `dtype`, in an array of their own."""
        if lib(obs) is torch:
            if not self._there:  # once per update
                self._there = [torch.as_tensor(x, device=obs.device) for x in (self._mean, self._scale)]
            mean, scale = self._there
            return ((obs - mean) * scale).clamp_(-10, 10)
        out = obs - self._mean
        out *= self._scale
        # np.clip costs twice as much on the few numbers of one step
        return np.minimum(np.maximum(out, -10, out=out), 10, out=out)

    def update(self, obs: Array) -> None:
        """Adds observations (N, *S); to be called between rollouts, after the policy's step."""
        self.moments.update(obs[:, : -self.masked] if self.masked else obs)
        self._freeze()

    def merge(self, n: int, mean: NDArray, m2: NDArray) -> None:
        """The same of n observations with that mean and sum of squared deviations."""
        seen = slice(len(mean) - self.masked) if self.masked else ...
        self.moments.merge(n, mean[seen], m2[seen])
        self._freeze()

    def state(self) -> dict[str, NDArray]:
        """The moments."""
        return self.moments.state()

    def load(self, state: dict[str, NDArray]) -> None:
        """Goes on from what `state` gave."""
        self.moments.load(state)
        self._freeze()

    def _freeze(self) -> None:
        self._mean = np.pad(self.moments.mean, (0, self.masked)).astype(self.dtype)
        self._scale = np.pad(1 / self.moments.std, (0, self.masked), constant_values=1).astype(self.dtype)
        self._there = []


class Unchanged:
    """An ObservationNormalizer that does nothing, for images and for those who want none."""

    def __call__(self, obs: Array) -> Array:
        """The observations themselves."""
        return obs

    def update(self, obs: Array) -> None:
        """Learns nothing."""

    def merge(self, n: int, mean: NDArray, m2: NDArray) -> None:
        """Learns nothing."""

    def state(self) -> dict[str, NDArray]:
        """Nothing."""
        return {}

    def load(self, state: dict[str, NDArray]) -> None:
        """Goes on from nothing. Raises: ValueError where there is something."""
        if state:
            raise ValueError(f"observe holds {', '.join(map(str, state))[:60]}; observations are not normalised")
