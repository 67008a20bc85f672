"""The KL-constrained step that NPG and TRPO share: solve, scale to the KL radius, search the line."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from rl_natgrad.optim.fisher import Fisher
from rl_natgrad.optim.solvers import Solution

Evaluate = Callable[[Tensor], tuple[float, float]]
"""θ (P,) ↦ (surrogate loss, KL(π_old ‖ π_θ) in nats)."""


Solver = Callable[[Fisher, Tensor], Solution]
"""(F, b (P,)) ↦ x with (F + λI) x = b."""


@dataclass(frozen=True)
class Step:
    """A new θ (P,), the loss and KL measured there, the trials it took, whether one was accepted.

    `fraction` of the full step was taken. Where nothing was accepted, theta is the old one, bit for bit,
    and kl and fraction are 0; `finite` then says whether the last trial (the shortest) was.
    """

    theta: Tensor
    loss: float
    kl: float
    tries: int
    accepted: bool
    fraction: float
    finite: bool = True


def kl_radius(d: Tensor, fisher: Fisher, delta: float) -> float:
    """Step length β that moves the policy δ nats along d, to second order:  ½ β² dᵀF d = δ.

    Schulman et al. 2015 (TRPO), appendix C.  Differs: F is undamped here, so δ is the predicted KL.

    Args:    d (P,) direction.  fisher: F, mean over samples.  delta: KL radius, nats, > 0.
    Returns: β ≥ 0; 0 where dᵀFd is 0; nan where it is negative or not finite, which no step accepts.
    """
    dFd = float(d @ fisher.mv(d))
    if dFd == 0:
        return 0.0
    return math.sqrt(2 * delta / dFd) if 0 < dFd < math.inf else math.nan


def backtrack(
    evaluate: Evaluate, theta: Tensor, step: Tensor, loss: float, *,
    delta: float, shrink: float, max_backtracks: int,
) -> Step:
    """First θ + shrinkʲ·step, j = 0 … max_backtracks, that is finite, has a lower loss, and KL ≤ δ.

    Schulman et al. 2015 (TRPO), appendix C.

    Args: step (P,), the full step.  loss: at theta.  delta: nats, > 0.  shrink: in (0, 1).
    """
    for j in range(max_backtracks + 1):
        fraction = shrink**j
        trial = theta.add(step, alpha=fraction)
        trial_loss, kl = evaluate(trial)
        finite = is_finite(trial, trial_loss, kl)
        if finite and trial_loss < loss and kl <= delta:
            return Step(trial, trial_loss, kl, j + 1, True, fraction)
    return Step(theta, loss, 0.0, max_backtracks + 1, False, 0.0, finite)


def full_step(evaluate: Evaluate, theta: Tensor, step: Tensor, loss: float) -> Step:
    """θ + step, whatever its loss and KL are as long as they are finite; else θ."""
    trial = theta + step
    trial_loss, kl = evaluate(trial)
    if is_finite(trial, trial_loss, kl):
        return Step(trial, trial_loss, kl, 1, True, 1.0)
    return Step(theta, loss, 0.0, 1, False, 0.0, finite=False)


def kl_constrained_step(
    theta: Tensor, grad: Tensor, fisher: Fisher, solve: Solver,
    delta: float, search: Callable[[Tensor], Step], *, lr: float | None = None,
) -> tuple[Step, Solution, float]:
    """d = solve(F, −g), scaled to KL = δ by the quadratic model; `search` decides how much of it is taken.

    Args:    theta, grad (P,): of the loss to lower.  search: full step (P,) ↦ Step.
             lr: a fixed length for the step instead, lr · d.
    Returns: the step, the solution, and the KL that the quadratic model predicts for what was taken.
    """
    solution = solve(fisher, -grad)
    beta = kl_radius(solution.x, fisher, delta) if solution.ok else math.nan
    length = beta if lr is None or math.isnan(beta) else lr
    step = search(length * solution.x)
    if math.isnan(beta):
        # No step to take. The F of a policy that is sure of its actions is 0 or indefinite to rounding, which
        # is no fault; an F or a gradient that is not finite is one.
        step = replace(step, finite=bool(fisher.mv(grad).isfinite().all()))
    return step, solution, delta * (step.fraction * length / beta) ** 2 if beta > 0 else 0.0


def is_finite(theta: Tensor, loss: float, kl: float) -> bool:
    """Whether parameters and what was measured there are; a saturated unit hides an infinite weight from both."""
    return math.isfinite(loss) and math.isfinite(kl) and bool(theta.isfinite().all())
