"""What the maths is compared with: the same things, computed another way and in float64."""

import itertools
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as D
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from rl_natgrad.algos.problem import Batch, Problem, surrogate
from rl_natgrad.policy.activations import Relu, Sigmoid, Tanh
from rl_natgrad.policy.heads import Bernoulli, Categorical, DiagGaussian, MultiDiscrete
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.networks import Biased
from rl_natgrad.policy.policy import Policy, with_head

HEADS = {
    "categorical": Categorical(4),
    "multidiscrete": MultiDiscrete((2, 4, 3)),
    "bernoulli": Bernoulli(3),
    "gaussian": DiagGaussian(2),
    "state gaussian": DiagGaussian(2, "state"),
}
DISCRETE = ("categorical", "multidiscrete", "bernoulli")
each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
each_discrete = pytest.mark.parametrize("head", [HEADS[name] for name in DISCRETE], ids=DISCRETE)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


def close(a: Tensor, b: Tensor, tol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


# --- distributions ----------------------------------------------------------------------------------


def distributions(head, z: Tensor) -> list[D.Distribution]:
    """One torch distribution per independent part; log-probs, entropies and KLs add up over them."""
    match head:
        case Categorical():
            return [D.Categorical(logits=z)]
        case MultiDiscrete(nvec):
            return [D.Categorical(logits=part) for part in z.split(nvec, -1)]
        case Bernoulli():
            return [D.Bernoulli(logits=part) for part in z.unbind(-1)]
        case DiagGaussian(n):
            return [D.Normal(z[:, d], z[:, n + d].exp()) for d in range(n)]


def log_prob(head, z: Tensor, action: Tensor) -> Tensor:
    parts = distributions(head, z)
    columns = [action] if isinstance(head, Categorical) else action.unbind(-1)
    return sum(part.log_prob(a.to(z.dtype)) for part, a in zip(parts, columns, strict=True))


def kl(head, z: Tensor, z_new: Tensor) -> Tensor:
    pairs = zip(distributions(head, z), distributions(head, z_new), strict=True)
    return sum(D.kl_divergence(p, q) for p, q in pairs)


def entropy(head, z: Tensor) -> Tensor:
    return sum(part.entropy() for part in distributions(head, z))


def sample(head, z: Tensor, seed: int) -> Tensor:
    """Actions (N, *A), drawn by torch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        columns = [part.sample() for part in distributions(head, z)]
    action = columns[0] if isinstance(head, Categorical) else torch.stack(columns, -1)
    return action if isinstance(head, DiagGaussian) else action.long()


def all_actions(head) -> Tensor:
    """Every action of a discrete head, (actions, *A)."""
    match head:
        case Categorical(n):
            return torch.arange(n)
        case MultiDiscrete(nvec):
            return torch.tensor(list(itertools.product(*map(range, nvec))))
        case Bernoulli(n):
            return torch.tensor(list(itertools.product((0, 1), repeat=n)))


# --- networks ---------------------------------------------------------------------------------------


def reference_forward(net, theta: Tensor, x: Tensor) -> Tensor:
    """An MLP's outputs (with free ones, WithFree) by torch's own layers."""
    if isinstance(net, Biased):
        return reference_forward(net.net, theta, x)
    if not isinstance(net, MLP):
        body = reference_forward(net.net, theta[: -net.n], x)
        return torch.cat([body, theta[-net.n :].expand(len(x), net.n)], 1)
    start = 0
    for k, (i, o) in enumerate(itertools.pairwise(net.sizes)):
        W, b = theta[start : start + i * o].reshape(o, i), theta[start + i * o : start + (i + 1) * o]
        x, start = functional.linear(x, W, b), start + (i + 1) * o
        if k < len(net.sizes) - 2:
            x = {Tanh: torch.tanh, Relu: torch.relu, Sigmoid: torch.sigmoid}[net.activation](x)
    return x


# --- problems ---------------------------------------------------------------------------------------


def make_policy(head, seed: int = 0, *, sizes=(3, 5), activation=Tanh, scale=0.7) -> Policy:
    """A policy far from its nearly uniform start: θ is scale · N(0, 1)."""
    net = with_head(lambda outputs: MLP((*sizes, outputs), activation), head, 0.0)
    return Policy(net, head, scale * randn(seed, net.size), lambda obs: obs)


def make_problem(
    head, seed: int = 0, *, N: int = 12, policy: Policy | None = None, coef: float = 0.0, **options
) -> Problem:
    policy = policy or make_policy(head, seed)
    width = getattr(policy.net, "net", policy.net).sizes[0]
    obs = randn(seed + 1, N, width)
    action = sample(head, policy.forward(policy.theta, obs).detach(), seed + 2)
    adv = randn(seed + 3, N)
    batch = Batch(obs, action, adv, randn(seed + 4, N).double(), torch.zeros(N))
    return Problem(policy, batch, partial(surrogate, entropy_coef=coef), **options)


def jacobian(problem: Problem, obs: Tensor | None = None) -> Tensor:
    """∂z/∂θ (N, K, P) by torch.func, through the reference network."""
    obs = problem.batch.obs if obs is None else obs
    return torch.func.jacrev(lambda theta: reference_forward(problem.model.net, theta, obs))(problem.theta)


def flat_log_prob(problem: Problem, theta: Tensor, action: Tensor | None = None) -> Tensor:
    """log π_θ(a|s) (N,), through the reference network and torch.distributions."""
    z = reference_forward(problem.model.net, theta, problem.batch.obs)
    return log_prob(problem.model.head, z, problem.batch.action if action is None else action)


def mean_kl(problem: Problem, theta: Tensor) -> Tensor:
    """E[KL(π_old ‖ π_θ)], likewise."""
    z_old, z = (reference_forward(problem.model.net, t, problem.batch.obs) for t in (problem.theta, theta))
    return kl(problem.model.head, z_old.detach(), z).mean()


# --- operators --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenseFisher:
    """A Fisher that is a given matrix, with a root R where one is given (A = RᵀR)."""

    A: Tensor
    R: Tensor | None = None

    def mv(self, v: Tensor) -> Tensor:
        return self.A @ v

    def shape(self):
        return (None if self.R is None else len(self.R)), len(self.A)

    def rows(self):
        return self.R

    def dense(self) -> Tensor:
        return self.A.clone()


def spectrum(eigenvalues, seed: int = 0) -> DenseFisher:
    """A symmetric matrix with these eigenvalues and random eigenvectors; rows where they are ≥ 0."""
    w = torch.tensor(eigenvalues, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(len(w), len(w), dtype=torch.float64, generator=rng(seed)))[0]
    A = Q @ torch.diag(w) @ Q.T
    R = w.sqrt().unsqueeze(1) * Q.T if bool((w >= 0).all()) else None
    return DenseFisher((A + A.T) / 2, R)


def krylov_minimiser(A: np.ndarray, b: np.ndarray, iterations: int) -> np.ndarray:
    """The k-th CG iterate as what it is: the minimiser of ½xᵀAx − bᵀx over span{b, Ab, …, Aᵏ⁻¹b}.

    An orthonormal basis of that space (Arnoldi, orthogonalised twice) and a small dense solve; no recurrence
    of CG's.
    """
    basis = [b / np.linalg.norm(b)]
    for _ in range(iterations - 1):
        v = A @ basis[-1]
        for _ in range(2):
            for q in basis:
                v = v - q * (q @ v)
        basis.append(v / np.linalg.norm(v))
    Q = np.stack(basis, 1)
    return Q @ np.linalg.solve(Q.T @ A @ Q, Q.T @ b)


class Reads(TorchDispatchMode):
    """Counts the numbers that the program waits for, one at a time."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})
