"""A network's outputs to first order, z + J dθ: all that gradients and Fisher products need to know of it."""

from typing import Protocol

import torch
from torch import Tensor


class Linearization(Protocol):
    """A network's outputs z(θ) (N, K) to first order around one θ, on one batch: z + J dθ."""

    @property
    def z(self) -> Tensor:
        """z at that θ, (N, K)."""

    @property
    def size(self) -> int:
        """P."""

    def jvp(self, v: Tensor) -> Tensor:
        """J v: (P,) → (N, K)."""

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ u, summed over samples: (N, K) → (P,)."""

    def along(self, b: Tensor) -> "Linearization":
        """The one output bᵀz: (N, 1), for weights b (N, K) that do not move with θ."""

    def jacobian(self) -> Tensor:
        """J itself: (N, K, P)."""


class Along:
    """bᵀz (N, 1) + bᵀJ dθ, of any linearisation."""

    def __init__(self, lin: Linearization, b: Tensor):
        self.lin, self.b, self.size = lin, b, lin.size
        self.z = (b * lin.z).sum(-1, keepdim=True)

    def jvp(self, v: Tensor) -> Tensor:
        """bᵀJ v: (P,) → (N, 1)."""
        return (self.b * self.lin.jvp(v)).sum(-1, keepdim=True)

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ b u: (N, 1) → (P,)."""
        return self.lin.vjp(self.b * u)

    def along(self, b: Tensor) -> "Along":
        """The same output, weighted by b (N, 1)."""
        return type(self)(self.lin, b * self.b)

    def jacobian(self) -> Tensor:
        """bᵀJ (N, 1, P)."""
        return torch.einsum("nk,nkp->np", self.b, self.lin.jacobian()).unsqueeze(1)
