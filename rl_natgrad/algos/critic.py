"""State values V(s), regressed on returns: one critic, several ways to fit it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rl_natgrad.algos.among import ALONE, Among
from rl_natgrad.algos.learner import Remembering, Stateless
from rl_natgrad.algos.problem import Batch
from rl_natgrad.optim.first_order import Adam
from rl_natgrad.optim.fisher import Fisher, Mean, outer
from rl_natgrad.optim.solvers import cg
from rl_natgrad.optim.steps import backtrack, newton, to_radius
from rl_natgrad.policy.networks import ValueNetwork
from rl_natgrad.rollout.normalize import RunningMoments

NOT_FINITE = {"critic/not_finite": 1.0}


class Regression(Remembering, Protocol):
    """One update's fit. Lowers E[(f(θ, x) − target)²]; target (N, 1)."""

    def __call__(
        self, net: ValueNetwork, theta: Tensor, x: Tensor, target: Tensor, among: Among = ALONE
    ) -> Tensor:
        """The new θ (P,), the same in all ranks that have a part of the samples."""


Start = Callable[[Regression, ValueNetwork, Tensor, Tensor, Tensor, Among], Callable[[], Tensor]]
"""Starts a regression of (net, θ, x, target, among). The function it returns waits for the new θ, and by then the
regression has learned too."""


class NoCritic(Stateless):
    """V = 0."""

    def values(self, obs: Tensor) -> Tensor:
        """0 (N,)."""
        return obs.new_zeros(len(obs), dtype=torch.get_default_dtype())

    def fit(self, batch: Batch, among: Among = ALONE) -> dict[str, float]:
        """Nothing."""
        return {}

    def begin(self, batch: Batch, among: Among = ALONE) -> Callable[[], dict[str, float]]:
        """Nothing to wait for, and nothing to say."""
        return dict


class Critic:
    """V(s) = f(θ, s), in units of the returns' running mean and deviation where `normalize` is set.

    As these move, the last layer moves against them and V stays what it was: what has been learned is kept
    (van Hasselt et al. 2016, Pop-Art).

    start: `partial` fits where θ is asked for; training/overlap.py does in another process meanwhile.
    """

    start: Start = partial

    def __init__(self, net: ValueNetwork, theta: Tensor, regress: Regression, normalize: bool = True):
        self.net, self.theta, self.regress, self.normalize = net, theta, regress, normalize
        self.returns = RunningMoments(())

    @torch.no_grad()
    def values(self, obs: Tensor) -> Tensor:
        """V(obs) (N,)."""
        return self.net.forward(self.theta, obs).squeeze(-1) * float(self.returns.std) + float(self.returns.mean)

    def fit(self, batch: Batch, among: Among = ALONE) -> dict[str, float]:
        """Regresses on the returns of the batches of all ranks. Returns error and explained variance from before.

        Where the new parameters are not finite all stays as it was, and critic/not_finite is logged.
        """
        return self.begin(batch, among)()

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is noticed below
    def begin(self, batch: Batch, among: Among = ALONE) -> Callable[[], dict[str, float]]:
        """The same in two halves: until the function it returns is called, V is as before."""
        info = fit_info(batch.value, batch.ret, among)
        returns = RunningMoments(())
        returns.load(self.returns.state())
        if self.normalize:
            among.learn(returns, batch.ret)
        start = self._in_units_of(returns)
        target = ((batch.ret - float(returns.mean)) / float(returns.std)).to(self.theta.dtype).unsqueeze(-1)
        not_finite = float(among.mean((~target.isfinite()).double().mean()))  # a share
        if not_finite or not math.isfinite(info["critic/loss"]):
            return lambda: info | NOT_FINITE
        theta = self.start(self.regress, self.net, start, batch.obs, target, among)
        return lambda: info | self._become(theta, returns)

    @np.errstate(over="ignore", invalid="ignore")
    def _become(self, fitted: Callable[[], Tensor], returns: RunningMoments) -> dict[str, float]:
        """Takes over a fit that is finite; says so where it is not."""
        before = self.regress.state()
        theta = fitted()
        if bool(theta.isfinite().all()):
            self.returns, self.theta = returns, theta
            return {}
        self.regress.load(before)
        return NOT_FINITE

    def _in_units_of(self, new: RunningMoments) -> Tensor:
        """θ for the same V in new units; as it was before the first fit, where V is but its random start."""
        theta, old = self.theta.clone(), self.returns
        if old.count > 0:
            W, b = self.net.last_layer(theta)
            W.mul_(float(old.std / new.std))
            b.mul_(float(old.std / new.std)).add_(float((old.mean - new.mean) / new.std))
        return theta

    def state(self) -> dict[str, Any]:
        """θ (P,), the returns' count, mean and sum of squared deviations (3,), and the regression's state."""
        moments = np.array([self.returns.count, self.returns.mean, self.returns.m2], np.float64)
        return {"theta": self.theta, "moments": moments, "fit": self.regress.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self.theta = torch.as_tensor(state["theta"]).to(self.theta.device)
        count, mean, m2 = (np.array(moment) for moment in state["moments"])
        self.returns.load({"count": count, "mean": mean, "m2": m2})
        self.regress.load(state["fit"])


class AdamFit:
    """Minibatch Adam, `epochs` passes over the batch in an order that `rng` draws (Kingma & Ba 2015).

    Minibatches have `minibatch` samples; or there are `minibatches` of them a pass, whatever the batch's size.

    Its rate falls from `lr` to 0 within each fit: what the last minibatches add by chance would be in V, and in
    every advantage of the next batch.
    """

    def __init__(
        self, theta: Tensor, rng: np.random.Generator, *,
        lr: float, epochs: int, minibatch: int, minibatches: int | None = None,
    ):  # fmt: skip
        self.rng, self.lr, self.epochs, self.minibatch, self.minibatches = rng, lr, epochs, minibatch, minibatches
        self.adam = Adam(theta.detach().clone())

    def __call__(
        self, net: ValueNetwork, theta: Tensor, x: Tensor, target: Tensor, among: Among = ALONE
    ) -> Tensor:
        """The new θ (P,)."""
        N = among.count(len(x))
        size = math.ceil(N / self.minibatches) if self.minibatches else self.minibatch
        adam, steps = self.adam, self.epochs * math.ceil(N / size)
        adam.theta.copy_(theta)
        gradient = net.squared_error(adam.theta)
        for k, (xs, ts, n) in enumerate(self._split(x, target, size, among)):
            g = gradient(xs, ts) if len(xs) else torch.zeros_like(theta)
            adam.step(among.part(g, len(xs), n), self.lr * (1 - k / steps))
        return adam.theta.clone()

    def _split(
        self, x: Tensor, target: Tensor, size: int, among: Among
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """What is here of each minibatch, and how many samples it has in all."""
        N = among.count(len(x))
        order = torch.arange(N, device=x.device)
        for _ in range(self.epochs):
            order = order[torch.from_numpy(self.rng.permutation(N)).to(x.device)]
            here, sizes, whole = among.split(order, size)
            yield from zip(x[here].split(sizes), target[here].split(sizes), whole, strict=True)

    def state(self) -> dict[str, Any]:
        """Adam's moments, and the order's generator."""
        return {"adam": self.adam.state(), "rng": self.rng.bit_generator.state}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self.adam.load(state["adam"])
        self.rng.bit_generator.state = state["rng"]


@dataclass
class LBFGSFit(Stateless):
    """`max_iter` iterations of L-BFGS on the whole batch, with a strong Wolfe line search (Nocedal 1980)."""

    max_iter: int
    history: int

    def __call__(
        self, net: ValueNetwork, theta: Tensor, x: Tensor, target: Tensor, among: Among = ALONE
    ) -> Tensor:
        """The new θ (P,)."""
        param = torch.nn.Parameter(theta.detach().clone())
        optimizer = torch.optim.LBFGS(
            [param], max_iter=self.max_iter, history_size=self.history, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            lin = net.linearize(param, x)
            error = lin.z - target
            param.grad = among.mean(lin.vjp(error * (2 / max(len(x), 1))))
            return among.mean((error * error).mean())

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

    def __call__(
        self, net: ValueNetwork, theta: Tensor, x: Tensor, target: Tensor, among: Among = ALONE
    ) -> Tensor:
        """The new θ (P,)."""
        for _ in range(self.steps):
            problem = GaussianFit(net, theta, x, target, among)
            F, g = problem.fisher(), problem.grad()
            d = cg(F, -g, damping=self.damping, max_iter=self.max_iter, tol=0.0)
            full = newton(d) if self.delta is None else to_radius(d, F, self.delta)
            theta = backtrack(problem, full, delta=self.delta, shrink=0.5, max_backtracks=10).theta
        return theta


class GaussianFit:
    """The local picture of a regression around θ_old: loss E[(V − R)²] / 2σ², which is ½ there.

    lin: V + J dθ around θ_old.  precision: 1/σ², σ² the mean squared error at θ_old.  Means as of a Problem.
    """

    loss_old = 0.5

    def __init__(self, net: ValueNetwork, theta: Tensor, x: Tensor, target: Tensor, among: Among = ALONE):
        self.net, self.theta, self.x, self.target, self.among = net, theta, x, target, among
        self.lin = net.linearize(theta, x)
        self.precision = 1 / float(among.mean(((self.lin.z - target) ** 2).mean()).clamp(min=1e-12))

    def grad(self) -> Tensor:
        """∇loss(θ_old) (P,)."""
        here = self.lin.vjp((self.lin.z - self.target) * (self.precision / max(len(self.x), 1)))
        return self.among.mean(here)

    def fisher(self) -> Fisher:
        """F = E[Jᵀ J] / σ²."""
        here = outer(self.lin, torch.full_like(self.lin.z, self.precision**0.5))
        return here if self.among is ALONE else Mean(here, self.among.mean)

    @torch.no_grad()
    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss, and KL = E[(V − V_old)²] / 2σ², at θ."""
        z = self.net.forward(theta, self.x)
        means = torch.stack([((z - self.target) ** 2).mean(), ((z - self.lin.z) ** 2).mean()])
        loss, moved = self.among.mean(means).tolist()
        return loss * self.precision / 2, moved * self.precision / 2


def fit_info(value: Tensor, target: Tensor, among: Among = ALONE) -> dict[str, float]:
    """critic/loss = E[(V − ret)²], critic/explained_variance = 1 − Var[ret − V] / Var[ret]."""
    error = target - value
    info = {"critic/loss": float(among.mean((error * error).mean()))}
    variance = float(among.variance(target))
    if variance > 0:
        info["critic/explained_variance"] = 1 - float(among.variance(error)) / variance
    return info
