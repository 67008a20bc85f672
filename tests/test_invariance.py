"""The natural gradient does not depend on how the policy is parametrised; the plain one does."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from oracles import DISCRETE, HEADS, make_policy, make_problem, randn

from rl_natgrad.algos.npg import npg
from rl_natgrad.algos.problem import Problem
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.optim.linearization import Along
from rl_natgrad.optim.solvers import cholesky, identity, pinv
from rl_natgrad.policy.heads import DiagGaussian
from rl_natgrad.training.build import FISHERS

pytestmark = pytest.mark.usefixtures("float64")


@dataclass(frozen=True)
class Reparametrised:
    """The same policy as a function of φ, θ = Aφ."""

    policy: object
    A: torch.Tensor
    theta: torch.Tensor  # φ

    @property
    def head(self):
        return self.policy.head

    def forward(self, phi, obs):
        return self.policy.forward(self.A @ phi, obs)

    def linearize(self, theta, obs):
        return LinearizedInPhi(self.policy.linearize(self.A @ theta, obs), self.A)


@dataclass(frozen=True)
class LinearizedInPhi:
    lin: object
    A: torch.Tensor

    @property
    def z(self):
        return self.lin.z

    @property
    def size(self):
        return self.lin.size

    def jvp(self, v):
        return self.lin.jvp(self.A @ v)

    def vjp(self, u):
        return self.A.T @ self.lin.vjp(u)

    def along(self, b):
        return Along(self, b)

    def jacobian(self):
        return self.lin.jacobian() @ self.A


def both(head, *, sizes=(2, 2), N=80, fisher="gauss_newton"):
    """A problem in θ and the same one in φ; A is far from orthogonal."""
    problem = make_problem(head, N=N, policy=make_policy(head, sizes=sizes), curvature=FISHERS[fisher])
    P = len(problem.theta)
    U, V = (torch.linalg.qr(randn(seed, P, P))[0] for seed in (7, 8))
    A = U @ torch.diag(torch.logspace(-1, 1, P)) @ V
    policy = Reparametrised(problem.model, A, torch.linalg.solve(A, problem.theta))
    return problem, Problem(policy, problem.batch, curvature=FISHERS[fisher]), A


SOLVES = {
    "natural": partial(pinv, rtol=1e-11, max_gib=1),
    "plain": identity,
    "damped": partial(cholesky, damping=0.1, max_gib=1),
}
RECIPES = {
    "npg": partial(npg, delta=1e-3),
    "npg lr": partial(npg, delta=0.01, lr=0.01),
    "trpo": partial(trpo, delta=1e-3, max_backtracks=20, shrink=0.5),
}


def difference(recipe, solve, head, **options) -> float:
    """How far apart the two new policies are, relative to the length of the step."""
    problem, same, A = both(head, **options)
    theta, phi = RECIPES[recipe](problem, solve=solve).theta, RECIPES[recipe](same, solve=solve).theta
    z_old, z, z_phi = (problem.model.forward(t, problem.batch.obs) for t in (problem.theta, theta, A @ phi))
    assert (z - z_old).norm() > 1e-3
    return float((z - z_phi).norm() / (z - z_old).norm())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("fisher", ["gauss_newton", "kl_hessian", "empirical"])
def test_natural_gradient_makes_the_same_policy_in_any_parameters(recipe, fisher):
    assert difference(recipe, SOLVES["natural"], DiagGaussian(1), fisher=fisher) < 1e-6


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("solve", ["plain", "damped"])
def test_plain_and_damped_gradients_do_not(recipe, solve):
    assert difference(recipe, SOLVES[solve], DiagGaussian(1)) > 0.01


@pytest.mark.parametrize("name", DISCRETE)
def test_to_first_order_it_holds_for_a_singular_fisher_too(name):
    # There the steps differ by what does not change the policy.
    problem, same, A = both(HEADS[name], sizes=(3, 4), N=12)
    solve = partial(pinv, rtol=1e-9, max_gib=1)
    d, d_phi = (solve(p.fisher(), -p.grad()).x for p in (problem, same))
    J, metric = problem.lin.jacobian(), problem.model.head.metric(problem.lin.z)
    assert (metric(J @ d - J @ (A @ d_phi))).norm() < 1e-5 * metric(J @ d).norm()
    g, g_phi = problem.grad(), same.grad()
    assert (metric(J @ g - J @ (A @ g_phi))).norm() > 0.1 * metric(J @ g).norm()
