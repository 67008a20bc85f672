"""Policy gradient: Williams 1992, Sutton et al. 2000; one step of a first-order optimizer per batch."""

import torch
from torch import Tensor

from rl_natgrad.algos.problem import Problem, Update, step_info
from rl_natgrad.optim.first_order import OPTIMIZERS, load_optimizer_state, optimizer_state
from rl_natgrad.optim.steps import is_finite


class PG:
    """θ' = θ − optimizer(∇loss(θ)).  The surrogate's gradient at θ_old is the policy gradient.

    One flat θ is exact for all of these optimizers, which act on each number alone.

    Args: theta (P,): only its shape, dtype and device count.  optimizer: a name of OPTIMIZERS.
          options: that optimizer's own, lr among them.
    """

    def __init__(self, theta: Tensor, optimizer: str, **options):
        self.param = torch.nn.Parameter(theta.detach().clone())
        self.optimizer = OPTIMIZERS[optimizer]([self.param], **options)

    def __call__(self, problem: Problem) -> Update:
        grad, before = problem.grad(), self.state()
        if bool(grad.isfinite().all()):
            with torch.no_grad():
                self.param.copy_(problem.theta)
            self.param.grad = grad
            self.optimizer.step()
            theta = self.param.detach().clone()
            loss, kl = problem.evaluate(theta)
            if is_finite(theta, loss, kl):
                return Update(theta, step_info(problem, grad, theta, loss, kl))
            self.load(before)  # the optimizer's state must not learn of it either
        return Update(problem.theta, step_info(problem, grad, problem.theta, problem.loss_old, 0.0), finite=False)

    def state(self) -> dict[str, Tensor]:
        return optimizer_state(self.optimizer, self.param)

    def load(self, state: dict[str, Tensor]) -> None:
        load_optimizer_state(self.optimizer, self.param, state)
