import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from oracles import DenseFisher, kl, log_prob, make_problem, mean_kl, randn, sample, spectrum

from rl_natgrad.algos.problem import Batch, Problem
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.optim.solvers import Solution, cholesky, identity
from rl_natgrad.optim.steps import backtrack, full_step, kl_constrained_step, kl_radius
from rl_natgrad.policy.heads import Categorical, DiagGaussian

pytestmark = pytest.mark.usefixtures("float64")

NAN, INF = math.nan, math.inf
THETA, STEP = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, -2.0], [4.0, 8.0]))


# --- kl_radius --------------------------------------------------------------------------------------


def test_radius_by_hand():
    # dᵀFd = 1·4·1 + 2·1·2 = 8, ½ β² 8 = 0.01.
    F = DenseFisher(torch.diag(torch.tensor([4.0, 1.0])))
    assert kl_radius(torch.tensor([1.0, 2.0]), F, 0.01) == pytest.approx(0.05, rel=1e-14)


def test_radius_moves_delta_nats_in_the_quadratic_model():
    F, d = spectrum([3.0, 1.0, 0.2, 1e-3]), randn(0, 4)
    step = kl_radius(d, F, 0.02) * d
    assert 0.5 * float(step @ F.A @ step) == pytest.approx(0.02, rel=1e-12)


@pytest.mark.parametrize(
    ("diagonal", "expected"), [([0.0, 0.0], 0.0), ([-1.0, 0.0], NAN), ([NAN, 1.0], NAN), ([INF, 1.0], NAN)]
)
def test_radius_of_a_degenerate_direction(diagonal, expected):
    beta = kl_radius(torch.ones(2), DenseFisher(torch.diag(torch.tensor(diagonal))), 0.01)
    assert beta == expected or (math.isnan(beta) and math.isnan(expected))


@pytest.mark.parametrize("head", [Categorical(3), DiagGaussian(2)], ids=["categorical", "gaussian"])
def test_measured_kl_of_the_full_step_tends_to_delta(head):
    problem = make_problem(head, N=40)
    d = cholesky(problem.fisher(), -problem.grad(), damping=0.1, max_gib=1).x
    errors = []
    for delta in (1e-3, 1e-5, 1e-7):
        step = kl_radius(d, problem.fisher(), delta) * d
        errors.append(abs(float(mean_kl(problem, problem.theta + step)) / delta - 1))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


# --- backtrack: the accept rule ---------------------------------------------------------------------

OLD_LOSS, DELTA = -1.0, 0.01
ACCEPT = {  # name: (loss, kl) of the only trial, accepted
    "better, inside": (-1.1, 0.009, True),
    "better, on the edge": (-1.1, 0.01, True),
    "better, just outside": (-1.1, 0.010001, False),
    "better, within 1.5 δ": (-1.1, 0.014, False),
    "worse, inside": (-0.9, 0.001, False),
    "the same, inside": (-1.0, 0.0, False),
    "nan loss": (NAN, 0.001, False),
    "inf loss": (INF, 0.001, False),
    "-inf loss": (-INF, 0.001, False),
    "nan kl": (-1.1, NAN, False),
    "inf kl": (-1.1, INF, False),
    "-inf kl": (-1.1, -INF, False),
}


def search(evaluate, step=STEP, **options):
    options = {"delta": DELTA, "shrink": 0.5, "max_backtracks": 0} | options
    return backtrack(evaluate, THETA, step, OLD_LOSS, **options)


@pytest.mark.parametrize("name", ACCEPT)
def test_accept_rule(name):
    loss, kl, accepted = ACCEPT[name]
    s = search(lambda theta: (loss, kl))
    assert s.accepted is accepted
    if accepted:
        assert torch.equal(s.theta, THETA + STEP)
        assert (s.loss, s.kl, s.tries, s.fraction) == (loss, kl, 1, 1.0)
    else:
        assert torch.equal(s.theta, THETA)
        assert (s.loss, s.kl, s.tries, s.fraction) == (OLD_LOSS, 0.0, 1, 0.0)
    assert s.finite == (math.isfinite(loss) and math.isfinite(kl))


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("take", [search, lambda f, step: full_step(f, THETA, step, OLD_LOSS)])
def test_parameters_that_are_not_finite_are_never_taken(take, bad):
    # A saturated network has finite outputs, and so loss and KL, at infinite parameters.
    s = take(lambda theta: (-1.1, 0.001), step=torch.tensor([bad, 0.0]).double())
    assert not s.accepted and not s.finite
    assert torch.equal(s.theta, THETA)


def test_search_takes_the_first_trial_that_passes():
    seen = []

    def evaluate(theta):
        seen.append(theta)
        return -1.1, float((theta - THETA).square().sum()) / 80 * 0.036  # 0.036, 0.009, …

    s = search(evaluate, max_backtracks=10)
    assert [torch.equal(t, THETA + STEP * 0.5**j) for j, t in enumerate(seen)] == [True, True]
    assert torch.equal(s.theta, seen[1])
    assert (s.tries, s.fraction, s.accepted) == (2, 0.5, True)
    assert s.kl == pytest.approx(0.009, rel=1e-12)


def test_failed_search_keeps_theta_bit_for_bit_after_all_its_tries():
    calls, theta = [], THETA.clone()
    s = search(lambda theta: calls.append(1) or (-1.1, 1.0), max_backtracks=4)
    assert len(calls) == s.tries == 5
    assert torch.equal(s.theta, theta) and torch.equal(THETA, theta)
    assert s.kl == 0 and s.loss == OLD_LOSS  # of what was kept, not of the last trial


def test_full_step_asks_nothing_but_that_it_is_finite():
    s = full_step(lambda theta: (5.0, 3.0), THETA, STEP, OLD_LOSS)
    assert s.accepted and torch.equal(s.theta, THETA + STEP)
    assert (s.loss, s.kl, s.tries, s.fraction) == (5.0, 3.0, 1, 1.0)


@pytest.mark.parametrize("outcome", [(NAN, 0.0), (-1.1, NAN), (INF, 0.0), (-1.1, INF), (-INF, 0.0)])
def test_full_step_that_is_not_finite_is_put_back(outcome):
    s = full_step(lambda theta: outcome, THETA, STEP, OLD_LOSS)
    assert not s.accepted and not s.finite
    assert torch.equal(s.theta, THETA)
    assert (s.loss, s.kl, s.fraction) == (OLD_LOSS, 0.0, 0.0)


# --- the shared step --------------------------------------------------------------------------------


def constrained(F, grad, search, **options):
    return kl_constrained_step(torch.zeros(len(grad)), grad, F, identity, DELTA, search, **options)


def take(fraction):
    def search(step):
        return partial(full_step, lambda theta: (0.0, 0.0), torch.zeros(len(step)))(fraction * step, 0.0)

    return search


def test_step_goes_downhill_and_is_delta_long():
    F, grad = spectrum([2.0, 1.0, 0.5]), randn(0, 3)
    step, solution, predicted = constrained(F, grad, take(1.0))
    assert torch.equal(solution.x, -grad)
    assert float(step.theta @ grad) < 0
    assert 0.5 * float(step.theta @ F.A @ step.theta) == pytest.approx(DELTA, rel=1e-12)
    assert predicted == pytest.approx(DELTA, rel=1e-12)


@pytest.mark.parametrize("lr", [1e-3, 0.5])
def test_fixed_learning_rate_replaces_the_radius(lr):
    F, grad = spectrum([2.0, 1.0, 0.5]), randn(0, 3)
    step, _, predicted = constrained(F, grad, take(1.0), lr=lr)
    assert torch.equal(step.theta, -lr * grad)
    assert predicted == pytest.approx(0.5 * float(step.theta @ F.A @ step.theta), rel=1e-12)


def test_predicted_kl_is_of_what_was_taken():
    F, grad = spectrum([2.0, 1.0, 0.5]), randn(0, 3)

    def search(step):
        return backtrack(
            lambda theta: (-1.0, 0.02 * float(theta.norm() / step.norm())), torch.zeros(3), step, 0.0,
            delta=DELTA, shrink=0.5, max_backtracks=3,
        )  # fmt: skip

    step, _, predicted = constrained(F, grad, search)
    assert step.fraction == 0.5
    assert predicted == pytest.approx(0.5 * float(step.theta @ F.A @ step.theta), rel=1e-12)


def test_damping_is_of_the_solve_and_not_of_the_radius():
    F, grad = spectrum([2.0, 1.0, 0.5]), randn(0, 3)
    solve = partial(cholesky, damping=5.0, max_gib=1)
    step, *_ = kl_constrained_step(torch.zeros(3), grad, F, solve, DELTA, take(1.0))
    assert 0.5 * float(step.theta @ F.A @ step.theta) == pytest.approx(DELTA, rel=1e-12)


@pytest.mark.parametrize("lr", [None, 0.1])
def test_a_failed_solve_moves_nothing(lr):
    def broken(F, b):
        return Solution(torch.ones_like(b), 3, 1.0, False)

    F = spectrum([2.0, 1.0, 0.5])
    theta = randn(1, 3)
    search = partial(full_step, lambda theta: (float(theta.sum()), 0.0), theta, loss=0.0)
    step, solution, _ = kl_constrained_step(theta, randn(0, 3), F, broken, DELTA, search, lr=lr)
    assert not solution.ok and not step.accepted
    assert torch.equal(step.theta, theta)


# --- the direction of the KL ------------------------------------------------------------------------


class Point:
    """A policy whose θ is z itself, in one state."""

    def __init__(self, head, theta):
        self.head, self.theta = head, theta

    def forward(self, theta, obs):
        return theta.expand(len(obs), -1)


def one_trial(head, z, z_new, *, delta):
    """What the line search says of the single step z → z_new, which raises the sampled action's probability."""
    candidates = [sample(head, z[None], seed) for seed in range(50)]
    action = next(a for a in candidates if log_prob(head, z_new[None], a) > log_prob(head, z[None], a))
    policy = Point(head, z)
    problem = Problem(policy, Batch(torch.zeros(1, 1), action, *torch.ones(3, 1)))
    problem.__dict__["lin"] = type("Lin", (), {"z": z[None]})()
    step = backtrack(
        problem.evaluate, z, z_new - z, problem.loss_old, delta=delta, shrink=0.5, max_backtracks=0
    )  # fmt: skip
    assert problem.evaluate(z_new)[0] < problem.loss_old
    return step.accepted


WIDE_NARROW = {
    "categorical": (Categorical(2), torch.tensor([0.0, 0.0]), torch.tensor([0.0, 3.0])),
    "gaussian": (DiagGaussian(1), torch.tensor([0.0, 0.0]), torch.tensor([0.0, -1.0])),
}


@pytest.mark.parametrize("name", WIDE_NARROW)
def test_search_measures_kl_from_old_to_new(name):
    head, wide, narrow = WIDE_NARROW[name]
    there, back = (float(kl(head, a[None], b[None])) for a, b in ((wide, narrow), (narrow, wide)))
    assert there > 1.5 * back  # narrowing costs more than the KL the other way round says
    between = (there * back) ** 0.5
    assert not one_trial(head, wide, narrow, delta=between)  # KL(new‖old) ≤ δ < KL(old‖new)
    assert one_trial(head, narrow, wide, delta=between)  # KL(old‖new) ≤ δ < KL(new‖old)


# --- log σ ------------------------------------------------------------------------------------------


def test_log_sigma_is_in_theta_and_moves_in_a_trpo_step():
    problem = make_problem(DiagGaussian(2), N=60)
    policy = problem.policy
    z = policy.forward(policy.theta, problem.batch.obs)
    # Reward what lies far from the mean: σ has to grow.
    adv = ((problem.batch.action - z[:, :2]) / z[:, 2:].exp()).square().sum(-1) - 2
    problem = Problem(policy, replace(problem.batch, adv=adv))
    solve = partial(cholesky, damping=0.01, max_gib=1)
    update = trpo(problem, solve=solve, delta=0.01, max_backtracks=10, shrink=0.8)
    assert update.info["search/accepted"] == 1
    assert (update.theta[-2:] > policy.theta[-2:] + 0.01).all()
    entropy_after = policy.head.entropy(policy.forward(update.theta, problem.batch.obs)).mean()
    assert entropy_after > update.info["policy/entropy"] + 0.02
