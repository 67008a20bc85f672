"""Fishers F (P, P), and Hessians, as products v ↦ F v: means over N samples, undamped: damping is the solve's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rl_natgrad.optim.linearization import Linearization


class Fisher(Protocol):
    """A symmetric (P, P) operator; positive semi-definite, unless it is the Hessian of a loss."""

    def mv(self, v: Tensor) -> Tensor:
        """F v: (P,) → (P,), done in F's precision and given in v's."""

    def shape(self) -> tuple[int | None, int]:
        """(M, P): rows of R where F = RᵀR (None where it has no such factor), parameters."""

    def rows(self) -> Tensor | None:
        """R (M, P) with F = RᵀR, or None where there is no such factor."""

    def dense(self) -> Tensor:
        """F (P, P)."""


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
        """F v = Jᵀ M (J v) / N."""
        Jv = self.lin.jvp(v.to(self.lin.z.dtype))
        return self.lin.vjp(self.metric(Jv) / len(Jv)).to(v.dtype)

    def shape(self) -> tuple[int, int]:
        """(N·R, P)."""
        N, _, R = self.root().shape
        return N * R, self.lin.size

    def rows(self) -> Tensor:
        """Bᵀ J / √N, (N·R, P)."""
        root, J = self.root(), self.lin.jacobian()
        return torch.einsum("nkr,nkp->nrp", root, J).flatten(0, 1) / len(J) ** 0.5

    def dense(self) -> Tensor:
        """F (P, P)."""
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
class Mean:
    """The mean of several Fishers, of which one is here: `mean` makes it of what each gives. It has no rows."""

    own: Fisher
    mean: Callable[[Tensor], Tensor]

    def mv(self, v: Tensor) -> Tensor:
        """F v."""
        return self.mean(self.own.mv(v))

    def shape(self) -> tuple[None, int]:
        """(None, P)."""
        return None, self.own.shape()[1]

    def rows(self) -> None:
        """None."""

    def dense(self) -> Tensor:
        """F (P, P)."""
        return self.mean(self.own.dense())


@dataclass(frozen=True)
class Hessian:
    """H = ∇² f at θ_old of a scalar f(θ), by differentiating twice; of the KL it is the Fisher.

    Pearlmutter 1994; Schulman et al. 2015 (TRPO), appendix C.1.

    Args: gradient: ∇f at θ_old (P,), still attached to its graph.  theta: the leaf it was taken at (P,).
    """

    gradient: Tensor
    theta: Tensor

    @classmethod
    def of(cls, f: Callable[[Tensor], Tensor], theta: Tensor) -> "Hessian":
        """The Hessian of f(θ) at `theta`, whose graph is built once, here."""
        leaf = theta.detach().requires_grad_()
        return cls(torch.autograd.grad(f(leaf), leaf, create_graph=True)[0], leaf)

    def mv(self, v: Tensor) -> Tensor:
        """H v = ∇(∇f · v)."""
        u = v.to(self.theta.dtype)
        return torch.autograd.grad(self.gradient, self.theta, u, retain_graph=True)[0].to(v.dtype)

    def shape(self) -> tuple[None, int]:
        """(None, P): a Hessian has no rows."""
        return None, self.theta.numel()

    def rows(self) -> None:
        """None."""

    def dense(self) -> Tensor:
        """H (P, P), a product a column."""
        eye = torch.eye(self.theta.numel(), dtype=self.theta.dtype, device=self.theta.device)
        return torch.stack([self.mv(column) for column in eye])
