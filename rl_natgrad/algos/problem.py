"""The local picture of one batch that every learner works from. Every average, over samples and ranks, is here."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from rl_natgrad.algos.among import ALONE, Among
from rl_natgrad.optim.fisher import Fisher, GaussNewton, Hessian, Mean, outer
from rl_natgrad.optim.linearization import Linearization
from rl_natgrad.optim.solvers import Solution
from rl_natgrad.optim.steps import Step
from rl_natgrad.policy.heads import Head
from rl_natgrad.policy.model import Model
from rl_natgrad.policy.policy import Policy


@dataclass(frozen=True)
class Data:
    """N samples of a model's inputs, and of what was seen there: a policy's actions, a likelihood's labels y."""

    obs: Tensor  # (N, *O), as the networks see it
    action: Tensor  # (N, *A)

    def take(self, rows: Tensor) -> "Data":
        """The samples `rows` (M,)."""
        return type(self)(*(t[rows] for t in vars(self).values()))


@dataclass(frozen=True)
class Batch(Data):
    """N samples. adv is what the surrogate weighs actions with, ret what the critic regresses on."""

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


Loss = Callable[[Tensor], Tensor]
"""z (N, K) ↦ a scalar, the mean over samples, to be lowered."""


def surrogate(head: Head, z_old: Tensor, batch: Batch, *, entropy_coef: float = 0.0) -> Loss:
    """z ↦ −E[ π_z(a|s)/π_old(a|s) · A ] − c · E[ H(π_z(·|s)) ], c = entropy_coef ≥ 0.

    Schulman et al. 2015 (TRPO), equation 14.
    """
    log_prob_old = head.log_prob(z_old, batch.action)

    def loss(z: Tensor) -> Tensor:
        ratio = torch.exp(head.log_prob(z, batch.action) - log_prob_old)
        loss = -(ratio * batch.adv).mean()
        if entropy_coef:
            loss = loss - entropy_coef * head.entropy(z).mean()
        return loss

    return loss


def negative_log_likelihood(head: Head, z_old: Tensor, data: Data) -> Loss:
    """z ↦ −E[ log p_z(y|x) ]."""
    return lambda z: -head.log_prob(z, data.action).mean()


def gauss_newton(at: "Problem") -> GaussNewton:
    """The true Fisher, E[Jᵀ M J] with M the Fisher information of the head."""
    head, z = at.model.head, at.lin.z
    if head.rank == 1:
        return outer(at.lin, head.root(z).squeeze(-1))
    return GaussNewton(at.lin, head.metric(z), lambda: head.root(z))


def empirical(at: "Problem") -> GaussNewton:
    """The second moment of the scores of what was seen, E[∇log π(a|s) ∇log π(a|s)ᵀ]; see `outer`."""
    z = at.lin.z.detach().requires_grad_()
    return outer(at.lin, torch.autograd.grad(at.model.head.log_prob(z, at.batch.action).sum(), z)[0])


def kl_hessian(at: "Problem") -> Hessian:
    """The true Fisher as ∇² E[KL(π_old ‖ π_θ)] at θ_old."""
    return Hessian.of(at.kl, at.theta)


def hessian(at: "Problem") -> Hessian:
    """No Fisher: ∇²loss at θ_old, for a Newton step, whose radius is still the true Fisher's."""
    return at.hessian()


@dataclass(frozen=True)
class Problem:
    """Loss, KL, gradient and Fisher of one batch around the model's θ_old, whose outputs are frozen here.

        loss(θ) =  objective(z(θ))                          a policy's surrogate, or any other loss of the outputs
        kl(θ)   =  E[ KL(π_old(·|s) ‖ π_θ(·|s)) ]           nats

    Args: objective: (head, z_old, batch) ↦ loss(z).  curvature: gauss_newton, kl_hessian, empirical or hessian.
          rows: indices (M,) of the samples that serve the curvature; None for all.
          float64: the curvature's products are.
          among: where the batch stands among those of all ranks, over which all that is asked here is a mean; but
          for `loss` and `kl`, which can be differentiated, of the samples here.
    """

    model: Model | Policy
    batch: Any  # Data, of the kind that the objective reads
    objective: Callable[[Head, Tensor, Any], Loss] = surrogate
    curvature: Callable[["Problem"], Fisher] = gauss_newton
    rows: Tensor | None = None
    float64: bool = False
    among: Among = ALONE

    @property
    def theta(self) -> Tensor:
        """θ_old (P,)."""
        return self.model.theta

    @cached_property
    def lin(self) -> Linearization:
        """z + J dθ around θ_old; lin.z are the old policy's outputs (N, K)."""
        return self.model.linearize(self.theta, self.batch.obs)

    @cached_property
    def _loss(self) -> Loss:
        return self.objective(self.model.head, self.lin.z, self.batch)

    def loss(self, theta: Tensor) -> Tensor:
        """loss(θ), differentiable."""
        return self._loss(self.model.forward(theta, self.batch.obs))

    def kl(self, theta: Tensor) -> Tensor:
        """kl(θ), differentiable."""
        return self._kl(self.model.forward(theta, self.batch.obs))

    @torch.no_grad()
    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """(loss, kl) at θ, from one forward."""
        z = self.model.forward(theta, self.batch.obs)
        loss, kl = self.among.mean(torch.stack([self._loss(z), self._kl(z)])).tolist()
        return loss, kl

    @cached_property
    def _at_old(self) -> tuple[float, Tensor]:
        """loss(θ_old), and ∇_z of it (N, K)."""
        z = self.lin.z.detach().requires_grad_()
        loss = self._loss(z)
        return self.among.mean(loss.detach()).item(), torch.autograd.grad(loss, z)[0]

    @property
    def loss_old(self) -> float:
        """loss(θ_old)."""
        return self._at_old[0]

    @cached_property
    def _grad(self) -> Tensor:
        return self.among.mean(self.lin.vjp(self._at_old[1]))

    def grad(self) -> Tensor:
        """∇loss(θ_old) = Jᵀ ∇_z loss (P,)."""
        return self._grad

    def entropy(self) -> float:
        """E[H(π_old)], nats."""
        return float(self.among.mean(self.model.head.entropy(self.lin.z).mean()))

    def hessian(self) -> Hessian:
        """∇²loss(θ_old), by differentiating twice; it may be indefinite."""
        return Hessian.of(self.loss, self.theta)

    @cached_property
    def _sample(self) -> "Problem":
        """The same on the curvature's samples, in its precision."""
        model, batch, among = self.model, self.batch, self.among
        if self.rows is not None:
            rows, among = among.take(self.rows)
            batch = batch.take(rows)
        if self.float64:
            model = Model(model.net, model.head, model.theta.double())
            batch = replace(batch, obs=batch.obs.double())
        if batch is self.batch:
            return self
        return replace(self, model=model, batch=batch, rows=None, float64=False, among=among)

    @cached_property
    def _system(self) -> Fisher:
        return self._mean_of(self.curvature(self._sample))

    @cached_property
    def _fisher(self) -> Fisher:
        return self._mean_of(gauss_newton(self._sample)) if self.curvature is hessian else self._system

    def system(self) -> Fisher:
        """A of A d = −g: F itself, or with curvature=hessian that of the loss, for a Newton step."""
        return self._system

    def fisher(self) -> Fisher:
        """F at θ_old, the curvature of the KL, as a mean over the curvature's samples."""
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
            if d.indefinite:
                info["solver/indefinite"] = 1.0
            # No step to try: the F of a policy that is sure of its actions is 0 or indefinite to rounding, which
            # is no fault; an F that is not finite is one.
            sound = step.tries > 0 or bool((self.system().mv(g) + self.fisher().mv(g)).isfinite().all())
            finite = finite and sound
        return Update(step.theta, info, finite)

    def _mean_of(self, own: Fisher) -> Fisher:
        return own if self.among is ALONE else Mean(own, self._sample.among.mean)

    def _kl(self, z: Tensor) -> Tensor:
        return self.model.head.kl(self.lin.z, z).mean()


def likelihood(
    model: Model | Policy, x: Tensor, y: Tensor, curvature: Callable[[Problem], Fisher] = gauss_newton,
    rows: Tensor | None = None, float64: bool = False,
) -> Problem:
    """The problem of fitting p_θ(y|x):  loss(θ) = −E[log p_θ(y|x)],  kl(θ) = E[KL(p_old(·|x) ‖ p_θ(·|x))], nats.

    Args: x (N, *X).  y (N, *A): as the model's head has its actions, such as labels (N,) int64 of a Categorical.
          The others: of `Problem`.
    """
    return Problem(model, Data(x, y), negative_log_likelihood, curvature, rows, float64)
