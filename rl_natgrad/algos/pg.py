"""Policy gradient: Williams 1992, Sutton et al. 2000; one step of a first-order optimizer per batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from rl_natgrad.algos.problem import Problem, Update
from rl_natgrad.optim.first_order import load_optimizer_state, optimizer_state
from rl_natgrad.optim.steps import arrive, stay


class PG:
    """θ' = θ − optimizer(∇loss(θ)).  The surrogate's gradient at θ_old is the policy gradient.

    One flat θ is exact for all of torch's optimizers that act on each number alone.

    Args: theta (P,): only its shape, dtype and device count.  optimizer: [parameter] ↦ torch optimizer.
    """

    def __init__(self, theta: Tensor, optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]):
        self.param = torch.nn.Parameter(theta.detach().clone())
        self.optimizer = optimizer([self.param])

    def __call__(self, problem: Problem) -> Update:
        """The update of one step along −∇loss(θ_old)."""
        g, before, step = problem.grad(), self.state(), stay(problem, finite=False)
        if bool(g.isfinite().all()):
            with torch.no_grad():
                self.param.copy_(problem.theta)
            self.param.grad = g.clone()  # some optimizers add to it in place
            self.optimizer.step()
            step = arrive(problem, self.param.detach().clone())
            if not step.finite:
                self.load(before)  # the optimizer's state must not learn of it either
        return problem.update(step)

    def state(self) -> dict[str, Tensor]:
        """What the optimizer remembers of its past steps."""
        return optimizer_state(self.optimizer, self.param)

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from a `state`. Raises: ValueError where it is not one of this optimizer."""
        load_optimizer_state(self.optimizer, self.param, state)
