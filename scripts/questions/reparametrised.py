"""The same policy in other parameters: a tanh network as a sigmoid network, log σ as σ, σ² or 1/σ²."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rl_natgrad.optim.fisher import Fisher
from rl_natgrad.optim.linearization import Along, Linearization
from rl_natgrad.policy.heads import Head
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.networks import Network, WithFree
from rl_natgrad.policy.policy import Policy


def to_sigmoid(policy: Policy, theta: Tensor) -> Tensor:
    """θ' (P,) of the sigmoid network that is the same function of x as `policy`'s tanh network at θ (P,).

    tanh(a) = 2 sigmoid(2a) − 1, so that a tanh unit is h = 2h' − 1:  h' = sigmoid(2(W h + b)).  Affine in θ.
    """
    body, theta = policy.net.net if isinstance(policy.net, WithFree) else policy.net, theta.clone()
    assert isinstance(body, MLP)
    layers = body.layers(theta)  # views; the log σ behind them stays
    for k, (W, b) in enumerate(layers):
        if k > 0:  # its inputs are 2h' − 1
            b.sub_(W.sum(1))
            W.mul_(2)
        if k < len(layers) - 1:  # its output goes into a sigmoid
            W.mul_(2)
            b.mul_(2)
    return theta


# Coordinates of a Gaussian's spread: u of log σ, log σ of u, and d log σ / du.
SPREADS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "log σ": (lambda s: s, lambda u: u, torch.ones_like),
    "σ": (torch.exp, torch.log, lambda u: 1 / u),
    "σ²": (lambda s: torch.exp(2 * s), lambda u: torch.log(u) / 2, lambda u: 0.5 / u),
    "1/σ²": (lambda s: torch.exp(-2 * s), lambda u: -torch.log(u) / 2, lambda u: -0.5 / u),
}


@dataclass
class Spread:
    """A Gaussian policy whose last n parameters are another coordinate u of σ. Args: theta (P,), with u."""

    net: Network
    head: Head
    theta: Tensor
    n: int
    coordinate: str

    @classmethod
    def of(cls, policy: Policy, coordinate: str) -> "Spread":
        """The policy, with u for its log σ."""
        n, (into, _, _) = policy.head.free, SPREADS[coordinate]
        return cls(policy.net, policy.head, torch.cat([policy.theta[:-n], into(policy.theta[-n:])]), n, coordinate)

    def forward(self, theta: Tensor, obs: Tensor) -> Tensor:
        """z (N, K), as any policy's."""
        return self.net.forward(self._with_log(theta), obs)

    def linearize(self, theta: Tensor, obs: Tensor) -> "Scaled":
        """z + J dθ around θ."""
        slope = SPREADS[self.coordinate][2](theta[-self.n :])
        scale = torch.cat([torch.ones_like(theta[: -self.n]), slope])
        return Scaled(self.net.linearize(self._with_log(theta), obs), scale)

    def _with_log(self, theta: Tensor) -> Tensor:
        return torch.cat([theta[: -self.n], SPREADS[self.coordinate][1](theta[-self.n :])])


@dataclass(frozen=True)
class Scaled:
    """z + J diag(scale) dθ of a linearisation z + J dθ."""

    lin: Linearization
    scale: Tensor  # (P,)

    @property
    def z(self) -> Tensor:
        """z (N, K)."""
        return self.lin.z

    @property
    def size(self) -> int:
        """P."""
        return self.lin.size

    def jvp(self, v: Tensor) -> Tensor:
        """J v: (P,) → (N, K)."""
        return self.lin.jvp(self.scale * v)

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ u, summed over samples: (N, K) → (P,)."""
        return self.scale * self.lin.vjp(u)

    def along(self, b: Tensor) -> Along:
        """The one output bᵀz."""
        return Along(self, b)

    def jacobian(self) -> Tensor:
        """J (N, K, P)."""
        return self.lin.jacobian() * self.scale


@dataclass(frozen=True)
class Kept:
    """A Fisher whose rows and matrix are made once, for many solvers in a row."""

    of: Fisher

    def mv(self, v: Tensor) -> Tensor:
        """F v."""
        return self.of.mv(v)

    def shape(self) -> tuple[int | None, int]:
        """(M, P)."""
        return self.of.shape()

    @cached_property
    def _rows(self) -> Tensor | None:
        return self.of.rows()

    @cached_property
    def _dense(self) -> Tensor:
        return self._rows.T @ self._rows

    def rows(self) -> Tensor | None:
        """R (M, P)."""
        return self._rows

    def dense(self) -> Tensor:
        """F (P, P), the caller's own."""
        return self._dense.clone()


def divergence(head: Head, z: Tensor, z_new: Tensor) -> float:
    """E KL(π_z ‖ π_z_new), nats; by its second order ½ E[Δᵀ M Δ] where that is tiny.

    The exact formula takes the difference of numbers near 1, and so has nothing to say of what is below 1e-16; the
    second order is right to a relative error of the size of Δ, 1e-4 and less where it is used.
    """
    step = z_new - z
    second = float((step * head.metric(z)(step)).sum(-1).mean()) / 2
    return second if second < 1e-9 else float(head.kl(z, z_new).mean())


def distance(head: Head, old: Tensor, a: Tensor, b: Tensor) -> float | None:
    """D = √(E KL(π_a ‖ π_b) / E KL(π_old ‖ π_a)): how far apart two new policies are, in lengths of the step.

    None where a is the old policy, or something is not finite.
    """
    apart, length = divergence(head, a, b), divergence(head, old, a)
    ratio = apart / length if length > 0 else float("nan")
    return ratio**0.5 if 0 <= ratio < float("inf") else None


def apart(head: Head, z: Tensor, a: Tensor, b: Tensor) -> float:
    """D as δ goes to 0, of changes a and b (N, K) of the outputs z: √(E ‖a − b‖²_M / E ‖a‖²_M)."""
    metric, change = head.metric(z), a - b
    ratio = float((change * metric(change)).sum() / (a * metric(a)).sum())
    return max(ratio, 0.0) ** 0.5  # the same direction leaves a rounding of either sign
