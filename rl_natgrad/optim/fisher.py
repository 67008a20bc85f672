"""Fisher operators F (P, P), as products v ↦ F v.

All average over N samples, and none is damped: damping belongs to the solve.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Linearization(Protocol):
    """A network's outputs z(θ) (N, K) to first order around one θ, on one batch: z + J dθ."""

    z: Tensor
    size: int
    """P"""

    def jvp(self, v: Tensor) -> Tensor:
        """J v: (P,) → (N, K)."""

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ u, summed over samples: (N, K) → (P,)."""

    def along(self, b: Tensor) -> "Linearization":
        """The one output bᵀz: (N, 1), for weights b (N, K) that do not move with θ."""

    def jacobian(self) -> Tensor:
        """J itself: (N, K, P)."""


@dataclass(frozen=True)
class Along:
    """bᵀz + bᵀJ dθ, of any linearisation."""

    lin: Linearization
    b: Tensor

    @property
    def z(self) -> Tensor:
        return (self.b * self.lin.z).sum(-1, keepdim=True)

    @property
    def size(self) -> int:
        return self.lin.size

    def jvp(self, v: Tensor) -> Tensor:
        return (self.b * self.lin.jvp(v)).sum(-1, keepdim=True)

    def vjp(self, u: Tensor) -> Tensor:
        return self.lin.vjp(self.b * u)

    def along(self, b: Tensor) -> "Along":
        return Along(self.lin, b * self.b)

    def jacobian(self) -> Tensor:
        return torch.einsum("nk,nkp->np", self.b, self.lin.jacobian()).unsqueeze(1)


class Fisher(Protocol):
    """A symmetric positive semi-definite (P, P) operator."""

    def mv(self, v: Tensor) -> Tensor:
        """F v: (P,) → (P,)."""

    def shape(self) -> tuple[int | None, int]:
        """(M, P): rows of R where F = RᵀR (None where it has no such factor), parameters."""

    def rows(self) -> Tensor | None:
        """R (M, P) with F = RᵀR, or None where there is no such factor."""

    def dense(self) -> Tensor:
        """F (P, P)."""


@dataclass(frozen=True)
class InDouble:
    """A Fisher whose products are done in float64, for vectors of any precision."""

    F: Fisher

    def mv(self, v: Tensor) -> Tensor:
        return self.F.mv(v.double()).to(v.dtype)

    def shape(self) -> tuple[int | None, int]:
        return self.F.shape()

    def rows(self) -> Tensor | None:
        return self.F.rows()

    def dense(self) -> Tensor:
        return self.F.dense()


@dataclass(frozen=True)
class GaussNewton:
    """F = E[Jᵀ M J]: the metric M of the distribution's parameters z, pulled back to θ.

    With M the Fisher matrix of the head this is the true Fisher of the policy, exactly (Martens 2020,
    "New insights and perspectives on the natural gradient method", section 9).

    Args: lin: z(θ) linearised at θ_old.  metric: v ↦ M v, (N, K) → (N, K).
          root: () ↦ B (N, K, R) with B Bᵀ = M.
    """

    lin: Linearization
    metric: Callable[[Tensor], Tensor]
    root: Callable[[], Tensor]

    def mv(self, v: Tensor) -> Tensor:
        Jv = self.lin.jvp(v)
        return self.lin.vjp(self.metric(Jv) / len(Jv))

    def shape(self) -> tuple[int, int]:
        N, _, R = self.root().shape
        return N * R, self.lin.size

    def rows(self) -> Tensor:
        root, J = self.root(), self.lin.jacobian()
        return torch.einsum("nkr,nkp->nrp", root, J).flatten(0, 1) / len(J) ** 0.5

    def dense(self) -> Tensor:
        R = self.rows()
        return R.T @ R


def outer(lin: Linearization, b: Tensor) -> GaussNewton:
    """F = E[g gᵀ], g = Jᵀ b: Gauss–Newton for a metric of rank one, M = b bᵀ with b (N, K).

    With b = ∇_z log π(a|s) this is the empirical Fisher, the second moment of the scores of the *sampled* actions.
    Its mean over actions is the true Fisher; on one sample of actions it is noisier, and biased as a
    curvature once advantages are weighted in (Kunstner et al. 2019).
    """
    return GaussNewton(lin.along(b), lambda v: v, lambda: torch.ones_like(b[:, :1, None]))


@dataclass(frozen=True)
class KLHessian:
    """F = ∇² KL(π_old ‖ π_θ) at θ_old, by differentiating twice: the reference, and what others do.

    Pearlmutter 1994; Schulman et al. 2015 (TRPO), appendix C.1.

    Args: gradient: ∇KL at θ_old (P,), still attached to its graph.  theta: the leaf it was taken at (P,).
    """

    gradient: Tensor
    theta: Tensor

    def mv(self, v: Tensor) -> Tensor:
        return torch.autograd.grad(self.gradient, self.theta, v, retain_graph=True)[0]

    def shape(self) -> tuple[None, int]:
        return None, self.theta.numel()

    def rows(self) -> None:
        return None

    def dense(self) -> Tensor:
        eye = torch.eye(self.theta.numel(), dtype=self.theta.dtype, device=self.theta.device)
        return torch.stack([self.mv(column) for column in eye])


def kl_hessian(kl: Callable[[Tensor], Tensor], theta: Tensor) -> KLHessian:
    """The Hessian of kl(θ) at θ = theta, whose graph is built once, here."""
    leaf = theta.detach().requires_grad_()
    gradient = torch.autograd.grad(kl(leaf), leaf, create_graph=True)[0]
    return KLHessian(gradient, leaf)
