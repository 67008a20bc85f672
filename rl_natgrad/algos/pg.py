"""Policy gradient: Williams 1992, Sutton et al. 2000; one step of a first-order optimizer per batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from rl_natgrad.algos.problem import Problem, Update
from rl_natgrad.optim.first_order import load_optimizer_state, optimizer_state
from rl_natgrad.optim.steps import arrive, stay


class PG:
    """θ' = θ − optimizer(∇loss(θ)).  The surrogate's gradient at θ_old is the policy gradient.

    One flat θ is exact for all of torch's optimizers that act on each number alone; AdamP is told its tensors.

    Args: theta (P,): only its shape, dtype and device count.  optimizer: [parameter] ↦ torch optimizer.
          warmup: steps over which the rate rises linearly to the optimizer's own, ≥ 0.
    """

    def __init__(
        self, theta: Tensor, optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
        warmup: int = 0,
    ):  # fmt: skip
        self.param = torch.nn.Parameter(theta.detach().clone())
        self.optimizer, self.warmup, self.steps = optimizer([self.param]), warmup, 0

    def __call__(self, problem: Problem) -> Update:
        """The update of one step along −∇loss(θ_old)."""
        g, before, step = problem.grad(), self.state(), stay(problem, finite=False)
        if bool(g.isfinite().all()):
            with torch.no_grad():
                self.param.copy_(problem.theta)
            self.param.grad = g.clone()  # some optimizers add to it in place
            self.steps += 1
            if self.warmup:
                rate = self.optimizer.defaults["lr"] * min(1.0, self.steps / self.warmup)
                self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.step()
            step = arrive(problem, self.param.detach().clone())
            if not step.finite:
                self.load(before)  # the optimizer's state must not learn of it either
        return problem.update(step)

    def state(self) -> dict[str, Tensor]:
        """What the optimizer remembers of its past steps, and how many there were where there is a warm-up."""
        state = optimizer_state(self.optimizer, self.param)
        return state | ({"steps": torch.tensor(self.steps)} if self.warmup and (state or self.steps) else {})

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from a `state`. Raises: ValueError where it is not one of this optimizer."""
        state, steps = dict(state), 0
        if self.warmup and state:
            counted = torch.as_tensor(state.pop("steps", -1))
            if counted.shape != () or counted.dtype != torch.int64 or counted < 0:
                raise ValueError("the optimizer's steps are not a whole number >= 0, which a warm-up needs")
            steps = int(counted)
        load_optimizer_state(self.optimizer, self.param, state)
        self.steps = steps
