"""Networks whose inputs have an action mask behind them: [x, mask], along the first axis."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rl_natgrad.optim.linearization import Linearization
from rl_natgrad.policy.networks import AutogradTape, Forward, Network, ValueNetwork

FORBIDDEN = -1e30
"""The logit of an action that is not allowed. Its probability is exactly 0, and so is that times its logarithm,
which is finite in float32 too: −∞ would make it NaN."""


class Masked:
    """`net` at x, with the logits of actions that the mask does not allow at FORBIDDEN, whatever θ is.

    Categorical heads make of it the log-probabilities, entropy, KL and Fisher information of the distribution over
    allowed actions, π(a) = softmax(z)ₐ among those: others have p = 0 in each sum, and no derivative.
    Huang & Ontañón 2022 ("A closer look at invalid action masking"), section 3.

    Args: rows: of x along its first axis.  width: zeros and ones in the mask, K.
    """

    def __init__(self, net: Network, rows: int, width: int):
        self.net, self.rows, self.width = net, rows, width
        self.size, self.tensors, self.init = net.size, net.tensors, net.init

    def _allowed(self, x: Tensor) -> Tensor:
        """The masks (N, K)."""
        return x[:, self.rows :].flatten(1)[:, : self.width] > 0

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """z (N, K), differentiable in θ."""
        return self.net.forward(theta, x[:, : self.rows]).masked_fill(~self._allowed(x), FORBIDDEN)

    def linearize(self, theta: Tensor, x: Tensor) -> "LinearizedMasked":
        """z + J dθ around θ."""
        return LinearizedMasked(self.net.linearize(theta, x[:, : self.rows]), self._allowed(x))

    def tape(self, theta: Tensor) -> AutogradTape:
        """Forward and backward passes at a θ that is moved in place."""
        return AutogradTape(self.forward, theta)

    def compile(self, theta: Tensor) -> Forward:
        """x ↦ f(θ, x) on arrays, for a θ that stays."""
        f = self.net.compile(theta)

        def forward(x: NDArray) -> NDArray:
            allowed = x[:, self.rows :].reshape(len(x), -1)[:, : self.width] > 0
            return np.where(allowed, f(x[:, : self.rows]), FORBIDDEN)

        return forward


class LinearizedMasked:
    """z + J dθ of a `Masked`: forbidden logits do not move."""

    def __init__(self, lin: Linearization, allowed: Tensor):
        self.lin, self.allowed, self.size = lin, allowed, lin.size
        self.z = lin.z.masked_fill(~allowed, FORBIDDEN)

    def jvp(self, v: Tensor) -> Tensor:
        """J v: (P,) → (N, K)."""
        return self.lin.jvp(v) * self.allowed

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ u, summed over samples: (N, K) → (P,)."""
        return self.lin.vjp(u * self.allowed)

    def along(self, b: Tensor) -> Linearization:
        """The one output bᵀz, but for what is constant in it."""
        return self.lin.along(b * self.allowed)

    def jacobian(self) -> Tensor:
        """J (N, K, P)."""
        return self.lin.jacobian() * self.allowed.unsqueeze(-1)


class Unmasked:
    """`net` at x, which the mask does not change: a critic's."""

    def __init__(self, net: ValueNetwork, rows: int):
        self.net, self.rows = net, rows
        self.size, self.tensors, self.init, self.last_layer = net.size, net.tensors, net.init, net.last_layer

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """z (N, K), differentiable in θ."""
        return self.net.forward(theta, x[:, : self.rows])

    def linearize(self, theta: Tensor, x: Tensor) -> Linearization:
        """z + J dθ around θ."""
        return self.net.linearize(theta, x[:, : self.rows])

    def squared_error(self, theta: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) ↦ ∇_θ E[‖f(θ, x) − t‖²] (P,), for a θ that is moved in place."""
        gradient = self.net.squared_error(theta)
        return lambda x, t: gradient(x[:, : self.rows], t)

    def tape(self, theta: Tensor) -> AutogradTape:
        """Forward and backward passes at a θ that is moved in place."""
        return AutogradTape(self.forward, theta)

    def compile(self, theta: Tensor) -> Forward:
        """x ↦ f(θ, x) on arrays, for a θ that stays."""
        f = self.net.compile(theta)
        return lambda x: f(x[:, : self.rows])
