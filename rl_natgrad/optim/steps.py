"""The KL-constrained step of NPG, TRPO and the critic: a direction to its radius, and how much of it is taken."""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rl_natgrad.optim.fisher import Fisher
from rl_natgrad.optim.solvers import Solution


class Objective(Protocol):
    """A loss to lower near the θ_old that its KL is measured from."""

    @property
    def theta(self) -> Tensor:
        """θ_old (P,)."""

    @property
    def loss_old(self) -> float:
        """loss(θ_old)."""

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss, and KL(π_old ‖ π_θ) in nats, at θ (P,)."""


@dataclass(frozen=True)
class FullStep:
    """length · d, and the length β at which the quadratic model of the KL reaches δ along d (0: nowhere)."""

    d: Tensor
    length: float
    beta: float = 0.0
    delta: float = 0.0

    def kl(self, fraction: float) -> float:
        """What the model predicts for a fraction of the step, δ (fraction · length / β)², in nats."""
        return self.delta * (fraction * self.length / self.beta) ** 2 if self.beta > 0 else 0.0


@dataclass(frozen=True)
class Step:
    """A new θ (P,), loss and KL measured there, the KL predicted, the trials it took, whether one was accepted.

    Where none was, theta is the old one, bit for bit, and both KLs are 0; `finite` says whether the last trial
    (the shortest) was.
    """

    theta: Tensor
    loss: float
    kl: float
    kl_predicted: float
    tries: int
    accepted: bool
    finite: bool = True


def to_radius(d: Solution, F: Fisher, delta: float, *, lr: float | None = None) -> FullStep | None:
    """β d, which moves the policy δ nats along d, to second order:  ½ β² dᵀF d = δ.

    Schulman et al. 2015 (TRPO), appendix C.  Differs: F is undamped here, so δ is the predicted KL.

    Args:    d: x (P,) with F x = −g, or H x = −g.  F: of the KL, mean over samples.  delta: KL radius, nats, > 0.
             lr: a fixed length instead of β, which then serves the prediction alone.
    Returns: None where there is no step: the solve failed, or dᵀF d is 0, negative or not finite.
    """
    dFd = float(d.x @ F.mv(d.x)) if d.ok else math.nan
    if lr is not None and dFd == 0:
        return FullStep(d.x, lr)
    if not 0 < dFd < math.inf:
        return None
    beta = math.sqrt(2 * delta / dFd)
    return FullStep(d.x, beta if lr is None else lr, beta, delta)


def newton(d: Solution) -> FullStep | None:
    """d itself, for an F that is the Hessian of the loss; None where the solve failed."""
    return FullStep(d.x, 1.0) if d.ok else None


def backtrack(
    problem: Objective, full: FullStep | None, *, delta: float | None, shrink: float, max_backtracks: int
) -> Step:
    """First θ + shrinkʲ·β d, j = 0 … max_backtracks, that is finite, has a lower loss, and KL ≤ δ.

    Schulman et al. 2015 (TRPO), appendix C.

    Args: full: None takes no step, and no trial.  delta: nats, > 0, or None for any KL.  shrink: in (0, 1).
    """
    if full is None:
        return stay(problem)
    step = full.length * full.d
    for j in range(max_backtracks + 1):
        fraction = shrink**j
        trial = problem.theta.add(step, alpha=fraction)
        loss, kl = problem.evaluate(trial)
        finite = is_finite(trial, loss, kl)
        if finite and loss < problem.loss_old and (delta is None or kl <= delta):
            return Step(trial, loss, kl, full.kl(fraction), j + 1, True)
    return stay(problem, max_backtracks + 1, finite)


def full_step(problem: Objective, full: FullStep | None) -> Step:
    """θ + β d, whatever its loss and KL; θ where that is not finite or there is no step."""
    if full is None:
        return stay(problem)
    return arrive(problem, problem.theta + full.length * full.d, full.kl(1.0))


def arrive(problem: Objective, theta: Tensor, kl_predicted: float = 0.0) -> Step:
    """The step to `theta`, whatever its loss and KL as long as they are finite; else to θ_old."""
    loss, kl = problem.evaluate(theta)
    if is_finite(theta, loss, kl):
        return Step(theta, loss, kl, kl_predicted, 1, True)
    return stay(problem, 1, finite=False)


def stay(problem: Objective, tries: int = 0, finite: bool = True) -> Step:
    """No step: θ_old, bit for bit, after so many trials."""
    return Step(problem.theta, problem.loss_old, 0.0, 0.0, tries, False, finite)


def is_finite(theta: Tensor, loss: float, kl: float) -> bool:
    """Whether parameters and what was measured there are; a saturated unit hides an infinite weight from both."""
    return math.isfinite(loss) and math.isfinite(kl) and bool(theta.isfinite().all())
