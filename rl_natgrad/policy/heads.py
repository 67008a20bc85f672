"""Action distributions, as stateless functions of the network's outputs z (N, K).

Each head knows its log-probability, entropy, KL, and the Fisher information of z:

    metric(z)   M = ∇²_z KL(π_z ‖ π_z') at z' = z = Cov[∇_z log π(a|z)]     as a product v ↦ M v
    root(z)     B (N, K, R) with B Bᵀ = M

Sums run over action dimensions, never means: the KL of a product of distributions is the sum of theirs.

Sampling is a function of z and of noise drawn for a whole rollout at once. It speaks numpy, because
environments do: `sample(z, noise)` and `mode(z)` take and return arrays (B, …).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

Product = Callable[[Tensor], Tensor]


class Head(Protocol):
    """z (N, K) → a distribution over actions (N, *A)."""

    size: int
    """K, distribution parameters per state."""
    free: int
    """The last `free` of them do not depend on the state: they are parameters in θ, not network outputs."""
    rank: int
    """R, columns of the metric's root."""

    def log_prob(self, z: Tensor, action: Tensor) -> Tensor: ...  # (N,)
    def entropy(self, z: Tensor) -> Tensor: ...  # (N,) nats
    def kl(self, z: Tensor, z_new: Tensor) -> Tensor: ...  # (N,) nats, KL(π_z ‖ π_z_new)
    def metric(self, z: Tensor) -> Product: ...  # (N, K) → (N, K)
    def root(self, z: Tensor) -> Tensor: ...  # (N, K, R)
    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray: ...  # (*shape, …)
    def sample(self, z: NDArray, noise: NDArray) -> NDArray: ...  # (B, *A)
    def mode(self, z: NDArray) -> NDArray: ...  # (B, *A)


@dataclass(frozen=True)
class Categorical:
    """π(a) = softmax(z)_a over n actions; action (N,) int64."""

    n: int
    free = 0

    @property
    def size(self) -> int:
        return self.n

    @property
    def rank(self) -> int:
        return 1 if self.n == 2 else self.n

    def log_prob(self, z, action):
        return z.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, z):
        logp = z.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def kl(self, z, z_new):
        logp = z.log_softmax(-1)
        return (logp.exp() * (logp - z_new.log_softmax(-1))).sum(-1)

    def metric(self, z):
        p = z.softmax(-1)  # M = diag(p) − p pᵀ

        def product(v: Tensor) -> Tensor:
            pv = p * v
            return pv - p * pv.sum(-1, keepdim=True)

        return product

    def root(self, z):
        p = z.softmax(-1)
        if self.n == 2:  # M = p₀p₁ [1, −1]ᵀ[1, −1]
            one = p.prod(-1, keepdim=True).sqrt()
            return torch.cat([one, -one], -1).unsqueeze(-1)
        # B = diag(√p) − p √pᵀ, since √pᵀ√p = 1
        return torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)

    def noise(self, rng, shape):
        return rng.gumbel(size=(*shape, self.n)).astype(np.float32)

    def sample(self, z, noise):
        return (z + noise).argmax(-1)  # the Gumbel-max trick: exact

    def mode(self, z):
        return z.argmax(-1)


@dataclass(frozen=True)
class MultiDiscrete:
    """Independent categoricals with nvec[d] choices each; action (N, D) int64; z holds their logits in a row."""

    nvec: tuple[int, ...]
    free = 0

    @property
    def size(self) -> int:
        return sum(self.nvec)

    @property
    def rank(self) -> int:
        return sum(c.rank for c in map(Categorical, self.nvec))

    def _parts(self, *zs: Tensor):
        """(Categorical, its slice of each z), one per dimension."""
        return zip(map(Categorical, self.nvec), *(z.split(self.nvec, -1) for z in zs), strict=True)

    def log_prob(self, z, action):
        return sum(c.log_prob(zd, a) for (c, zd), a in zip(self._parts(z), action.unbind(-1), strict=True))

    def entropy(self, z):
        return sum(c.entropy(zd) for c, zd in self._parts(z))

    def kl(self, z, z_new):
        return sum(c.kl(zd, zd_new) for c, zd, zd_new in self._parts(z, z_new))

    def metric(self, z):
        products = [c.metric(zd) for c, zd in self._parts(z)]

        def product(v: Tensor) -> Tensor:
            return torch.cat([m(vd) for m, vd in zip(products, v.split(self.nvec, -1), strict=True)], -1)

        return product

    def root(self, z):
        root = z.new_zeros(*z.shape, self.rank)
        row = column = 0
        for c, zd in self._parts(z):
            root[..., row : row + c.n, column : column + c.rank] = c.root(zd)
            row, column = row + c.n, column + c.rank
        return root

    def noise(self, rng, shape):
        return rng.gumbel(size=(*shape, self.size)).astype(np.float32)

    def sample(self, z, noise):
        return self.mode(z + noise)

    def mode(self, z):
        ends = np.cumsum(self.nvec)[:-1]
        return np.stack([zd.argmax(-1) for zd in np.split(z, ends, axis=-1)], axis=-1)


@dataclass(frozen=True)
class Bernoulli:
    """n independent coins, P(a_d = 1) = σ(z_d); action (N, n) of 0 and 1, int64."""

    n: int
    free = 0

    @property
    def size(self) -> int:
        return self.n

    @property
    def rank(self) -> int:
        return self.n

    def log_prob(self, z, action):
        return torch.where(action > 0, logsigmoid(z), logsigmoid(-z)).sum(-1)

    def entropy(self, z):
        p = z.sigmoid()
        return -(p * logsigmoid(z) + (1 - p) * logsigmoid(-z)).sum(-1)

    def kl(self, z, z_new):
        p = z.sigmoid()
        one, zero = logsigmoid(z) - logsigmoid(z_new), logsigmoid(-z) - logsigmoid(-z_new)
        return (p * one + (1 - p) * zero).sum(-1)

    def metric(self, z):
        variance = z.sigmoid() * (-z).sigmoid()
        return lambda v: variance * v

    def root(self, z):
        return torch.diag_embed((z.sigmoid() * (-z).sigmoid()).sqrt())

    def noise(self, rng, shape):
        return rng.logistic(size=(*shape, self.n)).astype(np.float32)

    def sample(self, z, noise):
        return (z + noise > 0).astype(np.int64)

    def mode(self, z):
        return (z > 0).astype(np.int64)


@dataclass(frozen=True)
class DiagGaussian:
    """N(μ, diag σ²) over n dimensions, z = [μ, log σ] (N, 2n); log σ is the same in every state.

    Actions are not clipped here: what is stored and scored is what was sampled.
    """

    n: int

    @property
    def size(self) -> int:
        return 2 * self.n

    @property
    def free(self) -> int:
        return self.n

    @property
    def rank(self) -> int:
        return 2 * self.n

    def log_prob(self, z, action):
        mu, log_sigma = z.chunk(2, -1)
        x = (action - mu) * torch.exp(-log_sigma)
        return -(0.5 * x * x + log_sigma + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, z):
        log_sigma = z[..., self.n :]
        return (log_sigma + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, z, z_new):
        (mu, log_sigma), (mu_new, log_sigma_new) = z.chunk(2, -1), z_new.chunk(2, -1)
        precision = torch.exp(-2 * log_sigma_new)
        variance_ratio = torch.exp(2 * (log_sigma - log_sigma_new))
        quadratic = (mu_new - mu) ** 2 * precision
        return (log_sigma_new - log_sigma + 0.5 * (variance_ratio + quadratic - 1)).sum(-1)

    def metric(self, z):
        diagonal = torch.cat([torch.exp(-2 * z[..., self.n :]), torch.full_like(z[..., self.n :], 2)], -1)
        return lambda v: diagonal * v

    def root(self, z):
        log_sigma = z[..., self.n :]
        return torch.diag_embed(torch.cat([torch.exp(-log_sigma), torch.full_like(log_sigma, 2**0.5)], -1))

    def noise(self, rng, shape):
        return rng.standard_normal(size=(*shape, self.n), dtype=np.float32)

    def sample(self, z, noise):
        return z[..., : self.n] + np.exp(z[..., self.n :]) * noise

    def mode(self, z):
        return z[..., : self.n]
