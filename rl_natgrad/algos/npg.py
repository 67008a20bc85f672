"""Natural policy gradient: Kakade 2001; scaled to a KL radius as in Peters & Schaal 2008."""

from functools import partial

from rl_natgrad.algos.problem import Problem, Update, kl_step_update
from rl_natgrad.optim.steps import Solver, full_step, kl_constrained_step


def npg(problem: Problem, *, solve: Solver, delta: float, lr: float | None = None) -> Update:
    """θ' = θ + β d,  d = F⁻¹(−g),  ½β² dᵀFd = δ;  or θ' = θ + lr · d where lr is given.

    The whole step is taken, whatever KL it turns out to have; only one that is not finite is put back.

    Args: solve: (F, b) ↦ Solution.  delta: predicted KL, nats, > 0.  lr: Kakade's fixed learning rate.
    """
    grad, fisher = problem.grad(), problem.fisher()
    take = partial(full_step, problem.evaluate, problem.theta, loss=problem.loss_old)
    step, solution, kl_predicted = kl_constrained_step(problem.theta, grad, fisher, solve, delta, take, lr=lr)
    return kl_step_update(problem, grad, step, solution, kl_predicted)
