"""Natural policy gradient: Kakade 2001; scaled to a KL radius as in Peters & Schaal 2008."""

from rl_natgrad.algos.problem import Problem, Update
from rl_natgrad.optim.solvers import Solver
from rl_natgrad.optim.steps import full_step, to_radius


def npg(problem: Problem, *, solve: Solver, delta: float, lr: float | None = None) -> Update:
    """θ' = θ + β d,  d = F⁻¹(−g),  ½β² dᵀFd = δ;  or θ' = θ + lr · d where lr is given.

    The whole step is taken, whatever KL it turns out to have; only one that is not finite is put back.

    Args: solve: (F, b) ↦ Solution.  delta: predicted KL, nats, > 0.  lr: Kakade's fixed learning rate.
    """
    A, F, g = problem.system(), problem.fisher(), problem.grad()
    d = solve(A, -g)  # A d = −g;  A is F, but for a Newton step
    full = to_radius(d, F, delta, lr=lr)  # ½ β² dᵀF d = δ
    return problem.update(full_step(problem, full), d)
