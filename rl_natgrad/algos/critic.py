"""State values V(s), regressed on returns: one critic, several ways to fit it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_natgrad.algos.problem import Batch
from rl_natgrad.optim.first_order import Adam
from rl_natgrad.optim.fisher import Linearization, outer
from rl_natgrad.optim.solvers import cg
from rl_natgrad.optim.steps import backtrack, kl_constrained_step


class Network(Protocol):
    """f(θ, x): (P,), (N, *X) → (N, 1)."""

    def forward(self, theta: Tensor, x: Tensor) -> Tensor: ...
    def linearize(self, theta: Tensor, x: Tensor) -> Linearization: ...
    def squared_error(self, theta: Tensor) -> Callable[[Tensor, Tensor], Tensor]: ...
    def last_layer(self, theta: Tensor) -> tuple[Tensor, Tensor]: ...


class Fit(Protocol):
    """One update's regression. Lowers E[(f(θ, x) − target)²]; target (N, 1)."""

    def __call__(self, net: Network, theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
        """The new θ (P,)."""

    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


class NoCritic:
    """V = 0."""

    def values(self, obs: Tensor) -> Tensor:
        return obs.new_zeros(len(obs), dtype=torch.get_default_dtype())

    def fit(self, batch: Batch) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


class Critic:
    """V(s) = f(θ, s), in units of the returns' running mean and deviation where `normalize` is set.

    As these move, the last layer moves against them and V stays what it was: what has been learned is kept
    (van Hasselt et al. 2016, Pop-Art).
    """

    def __init__(self, net: Network, theta: Tensor, regress: Fit, normalize: bool = True):
        self.net, self.theta, self.regress, self.normalize = net, theta, regress, normalize
        self.moments = np.zeros(3)  # of returns: count, mean, sum of squared deviations

    @torch.no_grad()
    def values(self, obs: Tensor) -> Tensor:
        """V(obs) (N,)."""
        mean, std = _scale(self.moments)
        return self.net.forward(self.theta, obs).squeeze(-1) * std + mean

    def fit(self, batch: Batch) -> dict[str, float]:
        """Regresses on the batch's returns. Returns error and explained variance from before the fit.

        Where the new parameters are not finite all stays as it was, and critic/not_finite is logged.
        """
        info = fit_info(batch.value, batch.ret)
        moments = merge_moments(self.moments, batch.ret) if self.normalize else self.moments
        mean, std = _scale(moments)
        start = self._in_units_of(mean, std)
        target = ((batch.ret - mean) / std).to(self.theta.dtype).unsqueeze(-1)
        if bool(target.isfinite().all()):
            before = self.regress.state()
            theta = self.regress(self.net, start, batch.obs, target)
            if bool(theta.isfinite().all()) and math.isfinite(info["critic/loss"]):
                self.moments, self.theta = moments, theta
                return info
            self.regress.load(before)
        return info | {"critic/not_finite": 1.0}

    def _in_units_of(self, mean: float, std: float) -> Tensor:
        """θ for the same V in new units; as it was before the first fit, where V is but its random start."""
        theta = self.theta.clone()
        if self.moments[0] > 0:
            old_mean, old_std = _scale(self.moments)
            W, b = self.net.last_layer(theta)
            W.mul_(old_std / std)
            b.mul_(old_std / std).add_((old_mean - mean) / std)
        return theta

    def state(self) -> dict[str, Any]:
        return {"theta": self.theta, "moments": self.moments, "fit": self.regress.state()}

    def load(self, state: dict[str, Any]) -> None:
        self.theta = torch.as_tensor(state["theta"]).to(self.theta.device)
        self.moments = state["moments"].copy()
        self.regress.load(state["fit"])


class AdamFit:
    """Minibatch Adam, `epochs` passes over the batch in an order that `rng` draws (Kingma & Ba 2015).

    Its rate falls from `lr` to 0 within each fit: what the last minibatches add by chance would be in V, and in
    every advantage of the next batch.
    """

    def __init__(self, theta: Tensor, rng: np.random.Generator, *, lr: float, epochs: int, minibatch: int):
        self.rng, self.lr, self.epochs, self.minibatch = rng, lr, epochs, minibatch
        self.adam = Adam(theta.detach().clone(), lr)

    def __call__(self, net: Network, theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
        adam, steps = self.adam, self.epochs * math.ceil(len(x) / self.minibatch)
        adam.theta.copy_(theta)
        gradient = net.squared_error(adam.theta)
        for k, (xs, ts) in enumerate(self._minibatches(x, target)):
            adam.lr = self.lr * (1 - k / steps)
            adam.step(gradient(xs, ts))
        return adam.theta.clone()

    def _minibatches(self, x: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.epochs):
            order = torch.from_numpy(self.rng.permutation(len(x))).to(x.device)
            x, target = x[order], target[order]
            yield from zip(x.split(self.minibatch), target.split(self.minibatch), strict=True)

    def state(self) -> dict[str, Any]:
        return {"adam": self.adam.state(), "rng": self.rng.bit_generator.state}

    def load(self, state: dict[str, Any]) -> None:
        self.adam.load(state["adam"])
        self.rng.bit_generator.state = state["rng"]


class Stateless:
    """A fit that remembers nothing from one update to the next."""

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class LBFGSFit(Stateless):
    """`max_iter` iterations of L-BFGS on the whole batch, with a strong Wolfe line search (Nocedal 1980)."""

    max_iter: int
    history: int

    def __call__(self, net: Network, theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
        param = torch.nn.Parameter(theta.detach().clone())
        optimizer = torch.optim.LBFGS(
            [param], max_iter=self.max_iter, history_size=self.history, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            lin = net.linearize(param, x)
            error = lin.z - target
            param.grad = lin.vjp(error * (2 / len(x)))
            return (error * error).mean()

        optimizer.step(loss)
        return param.detach()


@dataclass
class TrustRegionFit(Stateless):
    """The policy's own KL-constrained step, on V seen as the mean of a Gaussian of the fit's own error σ²:

        lower E[(V − R)²] / 2σ²   subject to   E[(V − V_old)²] / 2σ² ≤ δ

    Schulman et al. 2016 (GAE), section 5.  Differs: `steps` of them per batch, each with σ anew, and
    where delta is null each is a plain Gauss–Newton step, backtracked until the error is lower.
    """

    delta: float | None
    damping: float
    max_iter: int
    steps: int

    def __call__(self, net: Network, theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
        for _ in range(self.steps):
            theta = self._step(net, theta, x, target)
        return theta

    def _step(self, net: Network, theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
        lin = net.linearize(theta, x)
        error = lin.z - target
        precision = 1 / float((error * error).mean().clamp(min=1e-12))
        fisher = outer(lin, torch.full_like(lin.z, precision**0.5))

        @torch.no_grad()
        def evaluate(theta: Tensor) -> tuple[float, float]:
            z = net.forward(theta, x)
            loss, moved = ((z - target) ** 2).mean(), ((z - lin.z) ** 2).mean()
            return float(loss) * precision / 2, float(moved) * precision / 2

        step, _, _ = kl_constrained_step(
            theta, lin.vjp(error * (precision / len(x))), fisher,
            partial(cg, damping=self.damping, max_iter=self.max_iter, tol=0.0), self.delta or 1.0,
            partial(backtrack, evaluate, theta, loss=0.5, delta=self.delta or float("inf"),
                    shrink=0.5, max_backtracks=10),
            lr=1.0 if self.delta is None else None,
        )  # fmt: skip
        return step.theta


def fit_info(value: Tensor, target: Tensor) -> dict[str, float]:
    """critic/loss = E[(V − ret)²], critic/explained_variance = 1 − Var[ret − V] / Var[ret]."""
    error = target - value
    info = {"critic/loss": float((error * error).mean())}
    variance = float(target.var(correction=0))
    if variance > 0:
        info["critic/explained_variance"] = 1 - float(error.var(correction=0)) / variance
    return info


def merge_moments(moments: NDArray, x: Tensor) -> NDArray:
    """(count, mean, sum of squared deviations) with the samples x (N,) added (Chan et al. 1979)."""
    (n, mean, m2), k = moments, len(x)
    x_mean = float(x.mean())
    shift = x_mean - mean
    return np.array([
        n + k, mean + shift * k / (n + k), m2 + float(((x - x_mean) ** 2).sum()) + shift**2 * n * k / (n + k)
    ])  # fmt: skip


def _scale(moments: NDArray) -> tuple[float, float]:
    """Mean and deviation; 0 and 1 before the first sample, and 1 where nothing has varied."""
    count, mean, m2 = moments
    std = (m2 / count) ** 0.5 if count else 0.0
    return float(mean), float(std) if std > 1e-8 else 1.0
