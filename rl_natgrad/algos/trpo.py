"""Trust region policy optimisation: Schulman et al. 2015, appendix C."""

from functools import partial

from rl_natgrad.algos.problem import Problem, Update, kl_step_update
from rl_natgrad.optim.steps import Solver, backtrack, kl_constrained_step


def trpo(problem: Problem, *, solve: Solver, delta: float, max_backtracks: int, shrink: float) -> Update:
    """θ' = θ + shrinkʲ β d,  d = F⁻¹(−g),  ½β² dᵀFd = δ,  with the first j whose loss is lower and KL ≤ δ.

    Args: solve: (F, b) ↦ Solution.  delta: KL radius, nats, > 0.  shrink: in (0, 1).
    """
    grad = problem.grad()
    search = partial(
        backtrack, problem.evaluate, problem.theta, loss=problem.loss_old,
        delta=delta, shrink=shrink, max_backtracks=max_backtracks,
    )  # fmt: skip
    step, solution, kl_predicted = kl_constrained_step(problem.theta, grad, problem.fisher(), solve, delta, search)
    return kl_step_update(problem, grad, step, solution, kl_predicted)
