"""Proximal policy optimisation: Schulman et al. 2017; epochs of minibatch Adam on a surrogate that holds back."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_natgrad.algos.problem import Problem, Update
from rl_natgrad.optim.first_order import Adam
from rl_natgrad.optim.steps import arrive, stay

Slope = Callable[[Tensor, Tensor, float], Tensor]
"""r, A (n,), ε ↦ the slope in r of what each sample gains (n,), r = π_θ(a|s) / π_old(a|s). At r = 1 it is A."""


def clipped(ratio: Tensor, adv: Tensor, clip: float) -> Tensor:
    """Of min(r A, clip(r, 1 − ε, 1 + ε) A): A, but 0 once r has gone ε the way that A points.

    Schulman et al. 2017 (PPO), equation 7.
    """
    return torch.where((ratio - 1) * adv.sign() > clip, 0.0, adv)


def penalised(ratio: Tensor, adv: Tensor, clip: float) -> Tensor:
    """Of r A − |A| (r − 1)² / 2ε: A − |A| (r − 1) / ε, which leads back once r has gone ε the way that A points.

    Xie et al. 2025 (Simple Policy Optimization).
    """
    return adv - adv.abs() * (ratio - 1) / clip


def unclipped(ratio: Tensor, adv: Tensor, clip: float) -> Tensor:
    """Of r A, the policy gradient's own surrogate: only the number of steps holds it back."""
    return adv


class PPO:
    """θ' = θ after `epochs` passes of minibatch Adam down  −E[gain(r)] − c E[H(π_θ)],  r = π_θ(a|s) / π_old(a|s).

    Schulman et al. 2017 (PPO), algorithm 1.  Differs: the advantages are normalised, if at all, over the batch and
    not over each minibatch; the critic has an Adam of its own, so that its gradient shortens none of the policy's.

    Args: theta (P,): only its shape, dtype and device count.  rng: draws the order of the samples.
          total_steps: environment steps over which lr (decay_lr) and ε = clip (decay_clip) fall linearly to 0.
          target_kl: nats; the update ends before a minibatch on which the KL is estimated at more than 1.5 of it
          (as in stable-baselines3); None takes all epochs.  max_grad_norm: ‖g‖ at most; None for any.
          entropy_coef: c ≥ 0.  eps: of Adam; 1e-5 as in OpenAI's baselines (Huang et al. 2022, detail 3).
    """

    def __init__(
        self, theta: Tensor, rng: np.random.Generator, slope: Slope, *, total_steps: int, lr: float,
        decay_lr: bool, clip: float, decay_clip: bool, epochs: int, minibatch: int, target_kl: float | None,
        max_grad_norm: float | None, entropy_coef: float, eps: float = 1e-5,
    ):  # fmt: skip
        self.adam, self.rng, self.slope = Adam(theta.detach().clone(), eps=eps), rng, slope
        self.lr, self.decay_lr, self.clip, self.decay_clip = lr, decay_lr, clip, decay_clip
        self.epochs, self.minibatch, self.target_kl = epochs, minibatch, target_kl
        self.max_grad_norm, self.entropy_coef = max_grad_norm, entropy_coef
        self.total_steps, self.samples = total_steps, 0  # those of earlier batches: how far the training is

    def __call__(self, problem: Problem) -> Update:
        """The update of all passes over the batch."""
        left = max(1 - self.samples / self.total_steps, 1e-9)  # > 0: ε is divided by
        lr, clip = self.lr * (left if self.decay_lr else 1), self.clip * (left if self.decay_clip else 1)
        self.samples += len(problem.batch.obs)
        before, step, passes = self.state(), stay(problem, finite=False), 0.0
        if bool(problem.grad().isfinite().all()):
            self.adam.theta.copy_(problem.theta)
            passes = self._descend(problem, lr, clip)
            if bool(self.adam.v.isfinite().all()):  # θ may stay finite where a square of g was not
                step = arrive(problem, self.adam.theta.clone())
            if not step.finite:
                self.load(before)
        update = problem.update(step)
        log_ratio = _log_prob(problem, problem.model.forward(step.theta, problem.batch.obs)) - _log_prob(problem)
        outside = (log_ratio.exp() - 1).abs() > clip
        update.info.update({"policy/clip_fraction": float(outside.float().mean()), "policy/epochs": passes})
        return update

    def _descend(self, problem: Problem, lr: float, clip: float) -> float:
        """Adam's θ goes down the batch. Returns how many passes over it that took."""
        head, batch, count = problem.model.head, problem.batch, math.ceil(len(problem.batch.obs) / self.minibatch)
        tape = problem.model.net.tape(self.adam.theta)
        steps = self._minibatches(count, batch.obs, batch.action, batch.adv, _log_prob(problem))
        for k, (obs, action, adv, log_prob_old) in enumerate(steps):
            z = tape.forward(obs)
            log_ratio = head.log_prob(z, action) - log_prob_old
            ratio = log_ratio.exp()
            if self.target_kl is not None and (ratio - 1 - log_ratio).mean().item() > 1.5 * self.target_kl:
                return k / count  # E_old[r − 1 − log r] = KL(π_old ‖ π_θ), and no sample's part is negative
            # ∂loss/∂z of each sample: by hand, as autograd took four times as long on so few
            u = (self.slope(ratio, adv, clip) * ratio).unsqueeze(-1) * head.score(z, action)
            if self.entropy_coef:
                u += self.entropy_coef * head.entropy_slope(z)
            g = tape.backward(u / -len(u))
            if self.max_grad_norm is not None and (norm := float(g.norm())) > self.max_grad_norm:
                g *= self.max_grad_norm / norm
            self.adam.step(g, lr)
        return float(self.epochs)

    def _minibatches(self, count: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """`count` parts of the samples in a new order for each epoch, as equal as can be."""
        for _ in range(self.epochs):
            order = torch.from_numpy(self.rng.permutation(len(tensors[0]))).to(tensors[0].device)
            yield from zip(*(t[order].tensor_split(count) for t in tensors), strict=True)

    def state(self) -> dict[str, Any]:
        """Adam's moments, the order's generator, and how many samples there were."""
        samples = torch.tensor(self.samples)
        return {"adam": self.adam.state(), "rng": self.rng.bit_generator.state, "samples": samples}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`. Raises: ValueError where it is not one of this many parameters."""
        samples = torch.as_tensor(state["samples"])
        if samples.shape != () or samples.dtype != torch.int64 or samples < 0:
            raise ValueError(f"the samples so far must be a whole number >= 0, got {samples.tolist()}")
        self.adam.load(state["adam"])
        self.rng.bit_generator.state = state["rng"]
        self.samples = int(samples)


def _log_prob(problem: Problem, z: Tensor | None = None) -> Tensor:
    """log π(a|s) (N,) of the batch's actions, at z or at the old policy's."""
    return problem.model.head.log_prob(problem.lin.z if z is None else z, problem.batch.action)
