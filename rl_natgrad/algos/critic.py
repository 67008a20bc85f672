"""State values V(s), regressed on returns."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_natgrad.algos.problem import Batch
from rl_natgrad.optim.first_order import load_optimizer_state, optimizer_state
from rl_natgrad.optim.fisher import Linearization


class Network(Protocol):
    """f(θ, x): (P,), (N, *X) → (N, 1)."""

    def forward(self, theta: Tensor, x: Tensor) -> Tensor: ...
    def linearize(self, theta: Tensor, x: Tensor) -> Linearization: ...


class NoCritic:
    """V = 0."""

    def values(self, obs: Tensor) -> Tensor:
        return obs.new_zeros(len(obs), dtype=torch.get_default_dtype())

    def fit(self, batch: Batch) -> dict[str, float]:
        return {}


@dataclass
class AdamCritic:
    """Minibatch Adam on the squared error, `epochs` passes over the batch.

    Args: net, theta: f and its parameters.  rng: of the minibatches' order.
          normalize: f's targets are returns shifted and scaled by their running moments.
    """

    net: Network
    theta: Tensor
    rng: np.random.Generator
    lr: float
    epochs: int
    minibatch: int
    normalize: bool = True

    def __post_init__(self) -> None:
        self.param = torch.nn.Parameter(self.theta.detach().clone())
        self.optimizer = torch.optim.Adam([self.param], lr=self.lr, fused=True)
        self.moments = np.zeros(3)  # of returns: count, mean, sum of squared deviations

    @torch.no_grad()
    def values(self, obs: Tensor) -> Tensor:
        """V(obs) (N,)."""
        mean, std = self._scale()
        return self.net.forward(self.param, obs).squeeze(-1) * std + mean

    def fit(self, batch: Batch) -> dict[str, float]:
        """Lowers E[(V(s) − ret)²]. Returns the error and explained variance from before the fit."""
        info = fit_info(self.values(batch.obs).double(), batch.ret)
        if self.normalize:
            self.moments = merge_moments(self.moments, batch.ret)
        mean, std = self._scale()
        target = ((batch.ret - mean) / std).to(self.param.dtype)
        for _ in range(self.epochs):
            order = torch.from_numpy(self.rng.permutation(len(target))).to(target.device)
            for rows in order.split(self.minibatch):
                lin = self.net.linearize(self.param, batch.obs[rows])
                error = lin.z - target[rows].unsqueeze(-1)
                self.param.grad = lin.vjp((2 / len(rows)) * error)
                self.optimizer.step()
        return info

    def state(self) -> dict[str, Any]:
        return {
            "theta": self.param.detach(),
            "moments": self.moments,
            "optimizer": optimizer_state(self.optimizer, self.param),
            "rng": self.rng.bit_generator.state,
        }

    def load(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.param.copy_(state["theta"])
        self.moments = state["moments"].copy()
        load_optimizer_state(self.optimizer, self.param, state["optimizer"])
        self.rng.bit_generator.state = state["rng"]

    def _scale(self) -> tuple[float, float]:
        count, mean, m2 = self.moments
        std = (m2 / count) ** 0.5 if count else 0.0
        return float(mean), float(std) if std > 1e-8 else 1.0


def merge_moments(moments: NDArray, x: Tensor) -> NDArray:
    """(count, mean, sum of squared deviations) with the samples x (N,) added (Chan et al. 1979)."""
    (n, mean, m2), k = moments, len(x)
    x_mean = float(x.mean())
    shift = x_mean - mean
    return np.array([
        n + k, mean + shift * k / (n + k), m2 + float(((x - x_mean) ** 2).sum()) + shift**2 * n * k / (n + k)
    ])  # fmt: skip


def fit_info(value: Tensor, target: Tensor) -> dict[str, float]:
    """critic/loss = E[(V − ret)²], critic/explained_variance = 1 − Var[ret − V] / Var[ret]."""
    error = target - value
    info = {"critic/loss": float((error * error).mean())}
    variance = float(target.var(correction=0))
    if variance > 0:
        info["critic/explained_variance"] = 1 - float(error.var(correction=0)) / variance
    return info
