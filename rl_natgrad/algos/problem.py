"""The local picture of one batch that every learner works from. Every average over samples is here."""

from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from rl_natgrad.optim import fisher as fishers
from rl_natgrad.optim.fisher import Fisher, Linearization
from rl_natgrad.optim.solvers import Solution
from rl_natgrad.optim.steps import Step


class Head(Protocol):
    """What a problem needs of a policy's head; z (N, K), actions (N, *A)."""

    rank: int

    def log_prob(self, z: Tensor, action: Tensor) -> Tensor: ...
    def entropy(self, z: Tensor) -> Tensor: ...
    def kl(self, z: Tensor, z_new: Tensor) -> Tensor: ...
    def metric(self, z: Tensor): ...
    def root(self, z: Tensor) -> Tensor: ...


class Policy(Protocol):
    theta: Tensor
    head: Head

    def forward(self, theta: Tensor, obs: Tensor) -> Tensor: ...
    def linearize(self, theta: Tensor, obs: Tensor) -> Linearization: ...


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
class Problem:
    """Loss, KL, gradient and Fisher of one batch around the policy's θ_old, whose outputs are frozen here.

        loss(θ) = −E[ π_θ(a|s)/π_old(a|s) · A ] − c · E[ H(π_θ(·|s)) ]      surrogate, to be lowered
        kl(θ)   =  E[ KL(π_old(·|s) ‖ π_θ(·|s)) ]                           nats

    Args: fisher: "gauss_newton", "kl_hessian" or "empirical".  rows: indices (M,) of the samples that
          serve the Fisher; None for all.  entropy_coef: c ≥ 0.  float64: the Fisher's products are.
    """

    policy: Policy
    batch: Batch
    fisher_name: str = "gauss_newton"
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
        return self._loss(self.policy.forward(theta, self.batch.obs))

    def kl(self, theta: Tensor) -> Tensor:
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
        return self._at_old[0]

    def grad(self) -> Tensor:
        """∇loss(θ_old) = Jᵀ ∇_z loss (P,)."""
        return self.lin.vjp(self._at_old[1])

    def entropy(self) -> float:
        """E[H(π_old)], nats."""
        return float(self.policy.head.entropy(self.lin.z).mean())

    def fisher(self) -> Fisher:
        """F at θ_old, as a mean over the Fisher's samples."""
        obs, action = self.batch.obs, self.batch.action
        if self.rows is not None:
            obs, action = obs[self.rows], action[self.rows]
        if self.float64:
            return fishers.InDouble(self._fisher(self.theta.double(), obs.double(), action))
        return self._fisher(self.theta, obs, action, self.lin if self.rows is None else None)

    def _fisher(self, theta: Tensor, obs: Tensor, action: Tensor, lin: Linearization | None = None) -> Fisher:
        head, lin = self.policy.head, lin or self.policy.linearize(theta, obs)
        z_old = lin.z
        match self.fisher_name:
            case "gauss_newton":
                if head.rank == 1:
                    return fishers.outer(lin, head.root(z_old).squeeze(-1))
                return fishers.GaussNewton(lin, head.metric(z_old), lambda: head.root(z_old))
            case "empirical":
                z = z_old.detach().requires_grad_()
                score = torch.autograd.grad(head.log_prob(z, action).sum(), z)[0]
                return fishers.outer(lin, score)
            case "kl_hessian":
                def kl(theta: Tensor) -> Tensor:
                    return head.kl(z_old, self.policy.forward(theta, obs)).mean()

                return fishers.kl_hessian(kl, theta)
        raise ValueError(f"fisher {self.fisher_name!r} is none of gauss_newton, kl_hessian, empirical")

    def _loss(self, z: Tensor) -> Tensor:
        ratio = torch.exp(self.policy.head.log_prob(z, self.batch.action) - self.log_prob)
        loss = -(ratio * self.batch.adv).mean()
        if self.entropy_coef:
            loss = loss - self.entropy_coef * self.policy.head.entropy(z).mean()
        return loss

    def _kl(self, z: Tensor) -> Tensor:
        return self.policy.head.kl(self.lin.z, z).mean()


def kl_step_update(problem: Problem, grad: Tensor, step: Step, solution: Solution, kl_predicted: float) -> Update:
    """The update that a KL-constrained step makes, with its log."""
    info = step_info(problem, grad, step.theta, step.loss, step.kl) | {
        "policy/kl_predicted": kl_predicted,
        "solver/iterations": solution.iterations,
        "solver/residual": solution.residual,
        "search/accepted": float(step.accepted),
        "search/tries": step.tries,
    }
    old = isfinite(problem.loss_old) and isfinite(info["policy/grad_norm"])
    return Update(step.theta, info, finite=old and step.finite)


def step_info(problem: Problem, grad: Tensor, theta: Tensor, loss: float, kl: float) -> dict[str, float]:
    """What every learner logs of its step to `theta`, where `loss` and `kl` were measured."""
    step = theta - problem.theta
    return {
        "policy/loss_before": problem.loss_old,
        "policy/loss_after": loss,
        "policy/gain": problem.loss_old - loss,
        "policy/gain_predicted": -float(grad @ step),
        "policy/kl": kl,
        "policy/entropy": problem.entropy(),
        "policy/grad_norm": float(grad.norm()),
        "policy/step_norm": float(step.norm()),
    }
