"""Action distributions, as stateless functions of the network's outputs z (N, K).

Each head knows its log-probability, entropy, KL, and the Fisher information of z:

    metric(z)   M = ∇²_z KL(π_z ‖ π_z') at z' = z = Cov[∇_z log π(a|z)]     as a product v ↦ M v
    root(z)     B (N, K, R) with B Bᵀ = M

Sums run over action dimensions, never means: the KL of a product of distributions is the sum of theirs.

Sampling is a function of z and of noise drawn for a whole rollout at once. It speaks what the environments do:
`sample(z, noise)` and `mode(z)` take and return arrays (B, …), or tensors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rl_natgrad.policy.activations import Array, lib
from rl_natgrad.policy.noise import Rng, gumbel, logistic, normal

Product = Callable[[Tensor], Tensor]


class Head(Protocol):
    """z (N, K) → a distribution over actions (N, *A)."""

    @property
    def size(self) -> int:
        """K, distribution parameters per state."""

    @property
    def free(self) -> int:
        """The last `free` of them do not depend on the state: they are parameters in θ, not network outputs."""

    @property
    def rank(self) -> int:
        """R, columns of the metric's root."""

    def log_prob(self, z: Tensor, action: Tensor) -> Tensor:
        """log π_z(a) (N,)."""

    def entropy(self, z: Tensor) -> Tensor:
        """H(π_z) (N,), nats."""

    def score(self, z: Tensor, action: Tensor) -> Tensor:
        """∇_z log π_z(a) (N, K)."""

    def entropy_slope(self, z: Tensor) -> Tensor:
        """∇_z H(π_z) (N, K)."""

    def kl(self, z: Tensor, z_new: Tensor) -> Tensor:
        """KL(π_z ‖ π_z_new) (N,), nats."""

    def metric(self, z: Tensor) -> Product:
        """v ↦ M v, (N, K) → (N, K)."""

    def root(self, z: Tensor) -> Tensor:
        """B (N, K, R) with B Bᵀ = M."""

    def noise(self, rng: Rng, shape: tuple[int, ...]) -> Array:
        """The randomness of so many actions, (*shape, …)."""

    def sample(self, z: Array, noise: Array) -> Array:
        """Actions (B, *A), a function of z (B, K) and noise (B, …)."""

    def mode(self, z: Array) -> Array:
        """The most likely actions (B, *A)."""


@dataclass
class Categorical:
    """π(a) = softmax(z)_a over n actions; action (N,) int64."""

    n: int
    free = 0

    def __post_init__(self) -> None:
        self.size, self.rank = self.n, 1 if self.n == 2 else self.n  # two choices differ along one line

    def log_prob(self, z: Tensor, action: Tensor) -> Tensor:
        """z_a − log Σ exp z."""
        return z.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, z: Tensor) -> Tensor:
        """−Σ p log p."""
        logp = z.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def score(self, z: Tensor, action: Tensor) -> Tensor:
        """1 at a, less p."""
        at = action.unsqueeze(-1)
        return (-z.softmax(-1)).scatter_add_(-1, at, torch.ones_like(at, dtype=z.dtype))

    def entropy_slope(self, z: Tensor) -> Tensor:
        """−p (log p + H)."""
        logp = z.log_softmax(-1)
        p = logp.exp()
        return -p * (logp - (p * logp).sum(-1, keepdim=True))

    def kl(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Σ p (log p − log p_new)."""
        logp = z.log_softmax(-1)
        return (logp.exp() * (logp - z_new.log_softmax(-1))).sum(-1)

    def metric(self, z: Tensor) -> Product:
        """M = diag(p) − p pᵀ."""
        p = z.softmax(-1)

        def product(v: Tensor) -> Tensor:
            pv = p * v
            return pv - p * pv.sum(-1, keepdim=True)

        return product

    def root(self, z: Tensor) -> Tensor:
        """B with B Bᵀ = M."""
        p = z.softmax(-1)
        if self.n == 2:  # M = p₀p₁ [1, −1]ᵀ[1, −1]
            one = p.prod(-1, keepdim=True).sqrt()
            return torch.cat([one, -one], -1).unsqueeze(-1)
        # B = diag(√p) − p √pᵀ, since √pᵀ√p = 1
        return torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)

    def noise(self, rng: Rng, shape: tuple[int, ...]) -> Array:
        """Gumbel noise (*shape, n)."""
        return gumbel(rng, (*shape, self.n))

    def sample(self, z: Array, noise: Array) -> Array:
        """argmax of z + noise."""
        return (z + noise).argmax(-1)  # the Gumbel-max trick: exact

    def mode(self, z: Array) -> Array:
        """argmax of z."""
        return z.argmax(-1)


@dataclass
class MultiDiscrete:
    """Independent categoricals with nvec[d] choices each; action (N, D) int64; z holds their logits in a row."""

    nvec: tuple[int, ...]
    free = 0

    def __post_init__(self) -> None:
        self.size, self.rank = sum(self.nvec), sum(Categorical(n).rank for n in self.nvec)

    def _parts(self, *zs: Tensor):
        """(Categorical, its slice of each z), one per dimension."""
        return zip(map(Categorical, self.nvec), *(z.split(self.nvec, -1) for z in zs), strict=True)

    def log_prob(self, z: Tensor, action: Tensor) -> Tensor:
        """Σ over parts."""
        return sum(c.log_prob(zd, a) for (c, zd), a in zip(self._parts(z), action.unbind(-1), strict=True))

    def entropy(self, z: Tensor) -> Tensor:
        """Σ over parts."""
        return sum(c.entropy(zd) for c, zd in self._parts(z))

    def score(self, z: Tensor, action: Tensor) -> Tensor:
        """That of each part."""
        parts = zip(self._parts(z), action.unbind(-1), strict=True)
        return torch.cat([c.score(zd, a) for (c, zd), a in parts], -1)

    def entropy_slope(self, z: Tensor) -> Tensor:
        """That of each part."""
        return torch.cat([c.entropy_slope(zd) for c, zd in self._parts(z)], -1)

    def kl(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Σ over parts."""
        return sum(c.kl(zd, zd_new) for c, zd, zd_new in self._parts(z, z_new))

    def metric(self, z: Tensor) -> Product:
        """M, block by block."""
        products = [c.metric(zd) for c, zd in self._parts(z)]
        return lambda v: torch.cat([m(vd) for m, vd in zip(products, v.split(self.nvec, -1), strict=True)], -1)

    def root(self, z: Tensor) -> Tensor:
        """B, block by block."""
        root = z.new_zeros(*z.shape, self.rank)
        row = column = 0
        for c, zd in self._parts(z):
            root[..., row : row + c.n, column : column + c.rank] = c.root(zd)
            row, column = row + c.n, column + c.rank
        return root

    def noise(self, rng: Rng, shape: tuple[int, ...]) -> Array:
        """Gumbel noise (*shape, K)."""
        return gumbel(rng, (*shape, self.size))

    def sample(self, z: Array, noise: Array) -> Array:
        """Each part's argmax of z + noise."""
        return self.mode(z + noise)

    def mode(self, z: Array) -> Array:
        """Each part's argmax of z."""
        ends = np.cumsum(self.nvec)
        return lib(z).stack([z[..., end - n : end].argmax(-1) for n, end in zip(self.nvec, ends, strict=True)], -1)


@dataclass
class Bernoulli:
    """n independent coins, P(a_d = 1) = σ(z_d); action (N, n) of 0 and 1, int64."""

    n: int
    free = 0

    def __post_init__(self) -> None:
        self.size = self.rank = self.n

    def log_prob(self, z: Tensor, action: Tensor) -> Tensor:
        """Σ log σ(±z)."""
        return torch.where(action > 0, logsigmoid(z), logsigmoid(-z)).sum(-1)

    def entropy(self, z: Tensor) -> Tensor:
        """−Σ p log p + (1 − p) log(1 − p)."""
        p = z.sigmoid()
        return -(p * logsigmoid(z) + (1 - p) * logsigmoid(-z)).sum(-1)

    def score(self, z: Tensor, action: Tensor) -> Tensor:
        """a − p."""
        return action - z.sigmoid()

    def entropy_slope(self, z: Tensor) -> Tensor:
        """−z p (1 − p)."""
        return -z * z.sigmoid() * (-z).sigmoid()

    def kl(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Σ over coins."""
        p = z.sigmoid()
        one, zero = logsigmoid(z) - logsigmoid(z_new), logsigmoid(-z) - logsigmoid(-z_new)
        return (p * one + (1 - p) * zero).sum(-1)

    def metric(self, z: Tensor) -> Product:
        """M = diag(p (1 − p))."""
        variance = z.sigmoid() * (-z).sigmoid()
        return lambda v: variance * v

    def root(self, z: Tensor) -> Tensor:
        """B = diag √(p (1 − p))."""
        return torch.diag_embed((z.sigmoid() * (-z).sigmoid()).sqrt())

    def noise(self, rng: Rng, shape: tuple[int, ...]) -> Array:
        """Logistic noise (*shape, n)."""
        return logistic(rng, (*shape, self.n))

    def sample(self, z: Array, noise: Array) -> Array:
        """1 where z + noise > 0."""
        return self.mode(z + noise)

    def mode(self, z: Array) -> Array:
        """1 where z > 0."""
        return lib(z).asarray(z > 0, dtype=lib(z).int64)


@dataclass
class DiagGaussian:
    """N(μ, diag σ²) over n dimensions, z = [μ, log σ] (N, 2n).

    Actions are not clipped here: what is stored and scored is what was sampled.

    Args: std: "free", log σ is the same in every state; "state", it is an output of the network.
    """

    n: int
    std: str = "free"

    def __post_init__(self) -> None:
        self.size, self.rank, self.free = 2 * self.n, 2 * self.n, self.n if self.std == "free" else 0

    def log_prob(self, z: Tensor, action: Tensor) -> Tensor:
        """−Σ ½((a − μ)/σ)² + log σ + ½ log 2π."""
        mu, log_sigma = z.chunk(2, -1)
        x = (action - mu) * torch.exp(-log_sigma)
        return -(0.5 * x * x + log_sigma + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, z: Tensor) -> Tensor:
        """Σ log σ + ½ log 2πe."""
        return (z[..., self.n :] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def score(self, z: Tensor, action: Tensor) -> Tensor:
        """[x/σ, x² − 1] with x = (a − μ)/σ."""
        mu, log_sigma = z.chunk(2, -1)
        precision = torch.exp(-log_sigma)
        x = (action - mu) * precision
        return torch.cat([x * precision, x * x - 1], -1)

    def entropy_slope(self, z: Tensor) -> Tensor:
        """[0, 1]."""
        return torch.cat([torch.zeros_like(z[..., : self.n]), torch.ones_like(z[..., self.n :])], -1)

    def kl(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Σ log σ_new/σ + ½((σ² + (μ − μ_new)²)/σ_new² − 1)."""
        (mu, log_sigma), (mu_new, log_sigma_new) = z.chunk(2, -1), z_new.chunk(2, -1)
        precision = torch.exp(-2 * log_sigma_new)
        variance_ratio = torch.exp(2 * (log_sigma - log_sigma_new))
        quadratic = (mu_new - mu) ** 2 * precision
        return (log_sigma_new - log_sigma + 0.5 * (variance_ratio + quadratic - 1)).sum(-1)

    def metric(self, z: Tensor) -> Product:
        """M = diag(1/σ², 2)."""
        diagonal = torch.cat([torch.exp(-2 * z[..., self.n :]), torch.full_like(z[..., self.n :], 2)], -1)
        return lambda v: diagonal * v

    def root(self, z: Tensor) -> Tensor:
        """B = diag(1/σ, √2)."""
        log_sigma = z[..., self.n :]
        return torch.diag_embed(torch.cat([torch.exp(-log_sigma), torch.full_like(log_sigma, 2**0.5)], -1))

    def noise(self, rng: Rng, shape: tuple[int, ...]) -> Array:
        """Standard normal noise (*shape, n)."""
        return normal(rng, (*shape, self.n))

    def sample(self, z: Array, noise: Array) -> Array:
        """μ + σ · noise."""
        return z[..., : self.n] + lib(z).exp(z[..., self.n :]) * noise

    def mode(self, z: Array) -> Array:
        """μ."""
        return z[..., : self.n]
