"""The local picture of one batch that every learner works from. Every average over samples is here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

from rl_natgrad.optim.fisher import Fisher, GaussNewton, KLHessian, outer
from rl_natgrad.optim.linearization import Linearization
from rl_natgrad.optim.solvers import Solution
from rl_natgrad.optim.steps import Step
from rl_natgrad.policy.policy import Policy


@dataclass(frozen=True)
class Batch:
    """N samples. adv is what the surrogate weighs actions with, ret what the critic regresses on."""

    obs: Tensor  # (N, *O), as the networks see it
    action: Tensor  # (N, *A)
    adv: Tensor  # (N,)
    ret: Tensor  # (N,) float64
    value: Tensor  # (N,) float64, V(obs) as adv and ret were made with


@dataclass(frozen=True)
class Update:
    """A new θ (P,), and what there is to log about how it came about."""

    theta: Tensor
    info: dict[str, float] = field(default_factory=dict)
    finite: bool = True
    """False where something in the maths was not finite; theta is then the old one."""


@dataclass(frozen=True)
class Samples:
    """What a Fisher is made from: θ_old, M of the batch's samples, and the policy linearised there."""

    policy: Policy
    theta: Tensor
    obs: Tensor
    action: Tensor
    lin: Linearization


def gauss_newton(at: Samples) -> GaussNewton:
    """The true Fisher, E[Jᵀ M J] with M the Fisher information of the head."""
    head, z = at.policy.head, at.lin.z
    if head.rank == 1:
        return outer(at.lin, head.root(z).squeeze(-1))
    return GaussNewton(at.lin, head.metric(z), lambda: head.root(z))


def empirical(at: Samples) -> GaussNewton:
    """The second moment of the scores of the sampled actions, E[∇log π(a|s) ∇log π(a|s)ᵀ]; see `outer`."""
    z = at.lin.z.detach().requires_grad_()
    return outer(at.lin, torch.autograd.grad(at.policy.head.log_prob(z, at.action).sum(), z)[0])


def kl_hessian(at: Samples) -> KLHessian:
    """The true Fisher as ∇² E[KL(π_old ‖ π_θ)] at θ_old."""
    head, z = at.policy.head, at.lin.z
    return KLHessian.of(lambda theta: head.kl(z, at.policy.forward(theta, at.obs)).mean(), at.theta)


@dataclass(frozen=True)
class Problem:
    """Loss, KL, gradient and Fisher of one batch around the policy's θ_old, whose outputs are frozen here.

        loss(θ) = −E[ π_θ(a|s)/π_old(a|s) · A ] − c · E[ H(π_θ(·|s)) ]      surrogate, to be lowered
        kl(θ)   =  E[ KL(π_old(·|s) ‖ π_θ(·|s)) ]                           nats

    Schulman et al. 2015 (TRPO), equations 13 and 14.

    Args: curvature: gauss_newton, kl_hessian or empirical.  rows: indices (M,) of the samples that serve the
          Fisher; None for all.  entropy_coef: c ≥ 0.  float64: the Fisher's products are.
    """

    policy: Policy
    batch: Batch
    curvature: Callable[[Samples], Fisher] = gauss_newton
    rows: Tensor | None = None
    entropy_coef: float = 0.0
    float64: bool = False

    @property
    def theta(self) -> Tensor:
        """θ_old (P,)."""
        return self.policy.theta

    @cached_property
    def lin(self) -> Linearization:
        """z + J dθ around θ_old; lin.z are the old policy's outputs (N, K)."""
        return self.policy.linearize(self.theta, self.batch.obs)

    @cached_property
    def log_prob(self) -> Tensor:
        """log π_old(a|s) (N,)."""
        return self.policy.head.log_prob(self.lin.z, self.batch.action)

    def loss(self, theta: Tensor) -> Tensor:
        """loss(θ), differentiable."""
        return self._loss(self.policy.forward(theta, self.batch.obs))

    def kl(self, theta: Tensor) -> Tensor:
        """kl(θ), differentiable."""
        return self._kl(self.policy.forward(theta, self.batch.obs))

    @torch.no_grad()
    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """(loss, kl) at θ, from one forward."""
        z = self.policy.forward(theta, self.batch.obs)
        return float(self._loss(z)), float(self._kl(z))

    @cached_property
    def _at_old(self) -> tuple[float, Tensor]:
        """loss(θ_old), and ∇_z of it (N, K)."""
        z = self.lin.z.detach().requires_grad_()
        loss = self._loss(z)
        return loss.item(), torch.autograd.grad(loss, z)[0]

    @property
    def loss_old(self) -> float:
        """loss(θ_old)."""
        return self._at_old[0]

    @cached_property
    def _grad(self) -> Tensor:
        return self.lin.vjp(self._at_old[1])

    def grad(self) -> Tensor:
        """∇loss(θ_old) = Jᵀ ∇_z loss (P,)."""
        return self._grad

    def entropy(self) -> float:
        """E[H(π_old)], nats."""
        return float(self.policy.head.entropy(self.lin.z).mean())

    @cached_property
    def _fisher(self) -> Fisher:
        theta, obs, action, lin = self.theta, self.batch.obs, self.batch.action, self.lin
        if self.rows is not None:
            obs, action = obs[self.rows], action[self.rows]
        if self.float64:
            theta, obs = theta.double(), obs.double()
        if self.rows is not None or self.float64:
            lin = self.policy.linearize(theta, obs)
        return self.curvature(Samples(self.policy, theta, obs, action, lin))

    def fisher(self) -> Fisher:
        """F at θ_old, as a mean over the Fisher's samples."""
        return self._fisher

    def update(self, step: Step, d: Solution | None = None) -> Update:
        """The update that a step makes, with its log; d: the natural direction that it went along, if any."""
        g, moved = self.grad(), step.theta - self.theta
        info = {
            "policy/loss_before": self.loss_old, "policy/loss_after": step.loss,
            "policy/gain": self.loss_old - step.loss, "policy/gain_predicted": -float(g @ moved),
            "policy/kl": step.kl, "policy/entropy": self.entropy(),
            "policy/grad_norm": float(g.norm()), "policy/step_norm": float(moved.norm()),
        }  # fmt: skip
        finite = step.finite and isfinite(self.loss_old) and isfinite(info["policy/grad_norm"])
        if d is not None:
            info |= {
                "policy/kl_predicted": step.kl_predicted,
                "solver/iterations": d.iterations, "solver/residual": d.residual,
                "line_search/accepted": float(step.accepted), "line_search/tries": step.tries,
            }  # fmt: skip
            # No step to try: the F of a policy that is sure of its actions is 0 or indefinite to rounding, which
            # is no fault; an F that is not finite is one.
            finite = finite and (step.tries > 0 or bool(self.fisher().mv(g).isfinite().all()))
        return Update(step.theta, info, finite)

    def _loss(self, z: Tensor) -> Tensor:
        ratio = torch.exp(self.policy.head.log_prob(z, self.batch.action) - self.log_prob)
        loss = -(ratio * self.batch.adv).mean()
        if self.entropy_coef:
            loss = loss - self.entropy_coef * self.policy.head.entropy(z).mean()
        return loss

    def _kl(self, z: Tensor) -> Tensor:
        return self.policy.head.kl(self.lin.z, z).mean()
