"""Trust region policy optimisation: Schulman et al. 2015, appendix C."""

from rl_natgrad.algos.problem import Problem, Update
from rl_natgrad.optim.solvers import Solver
from rl_natgrad.optim.steps import backtrack, to_radius


def trpo(problem: Problem, *, solve: Solver, delta: float, max_backtracks: int, shrink: float) -> Update:
    """θ' = θ + shrinkʲ β d,  d = F⁻¹(−g),  ½β² dᵀFd = δ,  with the first j whose loss is lower and KL ≤ δ.

    Args: solve: (F, b) ↦ Solution.  delta: KL radius, nats, > 0.  shrink: in (0, 1).
    """
    A, F, g = problem.system(), problem.fisher(), problem.grad()
    d = solve(A, -g)  # A d = −g;  A is F, but for a Newton step
    full = to_radius(d, F, delta)  # ½ β² dᵀF d = δ
    step = backtrack(problem, full, delta=delta, shrink=shrink, max_backtracks=max_backtracks)
    return problem.update(step, d)
