import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from oracles import DenseFisher, kl, log_prob, make_problem, mean_kl, randn, sample, spectrum

from rl_natgrad.algos.npg import npg
from rl_natgrad.algos.problem import Batch, Problem
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.optim.solvers import Solution, cholesky, identity
from rl_natgrad.optim.steps import FullStep, backtrack, full_step, newton, to_radius
from rl_natgrad.policy.heads import Categorical, DiagGaussian

pytestmark = pytest.mark.usefixtures("float64")

NAN, INF = math.nan, math.inf
THETA, STEP = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, -2.0], [4.0, 8.0]))


# --- to_radius --------------------------------------------------------------------------------------


def along(d, ok=True) -> Solution:
    """A solve that gave d."""
    return Solution(torch.as_tensor(d), 1, 0.0, ok)


def test_radius_by_hand():
    # dᵀFd = 1·4·1 + 2·1·2 = 8, ½ β² 8 = 0.01.
    F = DenseFisher(torch.diag(torch.tensor([4.0, 1.0])))
    assert to_radius(along([1.0, 2.0]), F, 0.01).length == pytest.approx(0.05, rel=1e-14)


def test_radius_moves_delta_nats_in_the_quadratic_model():
    F, d = spectrum([3.0, 1.0, 0.2, 1e-3]), randn(0, 4)
    full = to_radius(along(d), F, 0.02)
    step = full.length * full.d
    assert 0.5 * float(step @ F.A @ step) == pytest.approx(0.02, rel=1e-12)


@pytest.mark.parametrize("diagonal", [[0.0, 0.0], [-1.0, 0.0], [NAN, 1.0], [INF, 1.0]])
def test_a_degenerate_direction_has_no_step(diagonal):
    F = DenseFisher(torch.diag(torch.tensor(diagonal)))
    assert to_radius(along(torch.ones(2)), F, 0.01) is None
    rated = to_radius(along(torch.ones(2)), F, 0.01, lr=0.3)
    assert rated is None if any(diagonal) else (rated.length, rated.kl(1.0)) == (0.3, 0.0)


@pytest.mark.parametrize("head", [Categorical(3), DiagGaussian(2)], ids=["categorical", "gaussian"])
def test_measured_kl_of_the_full_step_tends_to_delta(head):
    problem = make_problem(head, N=40)
    d = cholesky(problem.fisher(), -problem.grad(), damping=0.1, max_gib=1)
    errors = []
    for delta in (1e-3, 1e-5, 1e-7):
        step = full_step(problem, to_radius(d, problem.fisher(), delta))
        errors.append(abs(float(mean_kl(problem, step.theta)) / delta - 1))
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


@dataclass
class Landscape:
    """Any loss and KL, around a θ_old."""

    evaluate: Callable
    theta: torch.Tensor = THETA
    loss_old: float = OLD_LOSS


def search(evaluate, step=STEP, **options):
    options = {"delta": DELTA, "shrink": 0.5, "max_backtracks": 0} | options
    return backtrack(Landscape(evaluate), FullStep(step, 1.0), **options)


def whole(evaluate, step=STEP):
    return full_step(Landscape(evaluate), FullStep(step, 1.0))


@pytest.mark.parametrize("name", ACCEPT)
def test_accept_rule(name):
    loss, kl, accepted = ACCEPT[name]
    s = search(lambda theta: (loss, kl))
    assert s.accepted is accepted
    if accepted:
        assert torch.equal(s.theta, THETA + STEP)
        assert (s.loss, s.kl, s.tries) == (loss, kl, 1)
    else:
        assert torch.equal(s.theta, THETA)
        assert (s.loss, s.kl, s.tries) == (OLD_LOSS, 0.0, 1)
    assert s.finite == (math.isfinite(loss) and math.isfinite(kl))


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("take", [search, whole])
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
    assert (s.tries, s.accepted) == (2, True)
    assert s.kl == pytest.approx(0.009, rel=1e-12)


def test_failed_search_keeps_theta_bit_for_bit_after_all_its_tries():
    calls, theta = [], THETA.clone()
    s = search(lambda theta: calls.append(1) or (-1.1, 1.0), max_backtracks=4)
    assert len(calls) == s.tries == 5
    assert torch.equal(s.theta, theta) and torch.equal(THETA, theta)
    assert s.kl == 0 and s.loss == OLD_LOSS  # of what was kept, not of the last trial


def test_full_step_asks_nothing_but_that_it_is_finite():
    s = whole(lambda theta: (5.0, 3.0))
    assert s.accepted and torch.equal(s.theta, THETA + STEP)
    assert (s.loss, s.kl, s.tries) == (5.0, 3.0, 1)


@pytest.mark.parametrize("outcome", [(NAN, 0.0), (-1.1, NAN), (INF, 0.0), (-1.1, INF), (-INF, 0.0)])
def test_full_step_that_is_not_finite_is_put_back(outcome):
    s = whole(lambda theta: outcome)
    assert not s.accepted and not s.finite
    assert torch.equal(s.theta, THETA)
    assert (s.loss, s.kl, s.kl_predicted) == (OLD_LOSS, 0.0, 0.0)


def test_without_a_step_nothing_is_tried():
    def evaluate(theta):
        raise AssertionError("a forward pass")

    for s in (
        backtrack(Landscape(evaluate), None, delta=DELTA, shrink=0.5, max_backtracks=5),
        full_step(Landscape(evaluate), None),
    ):
        assert torch.equal(s.theta, THETA)
        assert (s.loss, s.kl, s.kl_predicted, s.tries, s.accepted) == (OLD_LOSS, 0.0, 0.0, 0, False)


def test_where_any_kl_is_allowed_the_loss_alone_decides():
    s = search(lambda theta: (-1.0 - float(theta.sum() < 11), 1e9), delta=None, max_backtracks=3)
    assert (s.tries, s.accepted, s.kl) == (2, True, 1e9)


# --- a direction, and how much of it is taken ---------------------------------------------------------

GRAD, F3 = randn(0, 3).double(), spectrum([2.0, 1.0, 0.5])
FLAT = Landscape(lambda theta: (0.0, 0.0), torch.zeros(3).double(), 0.0)


def test_step_goes_downhill_and_is_delta_long():
    d = identity(F3, -GRAD)
    step = full_step(FLAT, to_radius(d, F3, DELTA))
    assert float(step.theta @ GRAD) < 0
    assert 0.5 * float(step.theta @ F3.A @ step.theta) == pytest.approx(DELTA, rel=1e-12)
    assert step.kl_predicted == pytest.approx(DELTA, rel=1e-12)


@pytest.mark.parametrize("lr", [1e-3, 0.5])
def test_fixed_learning_rate_replaces_the_radius(lr):
    step = full_step(FLAT, to_radius(identity(F3, -GRAD), F3, DELTA, lr=lr))
    assert torch.equal(step.theta, -lr * GRAD)
    assert step.kl_predicted == pytest.approx(0.5 * float(step.theta @ F3.A @ step.theta), rel=1e-12)


def test_predicted_kl_is_of_what_was_taken():
    full = to_radius(identity(F3, -GRAD), F3, DELTA)
    length = float((full.length * full.d).norm())
    slope = Landscape(lambda theta: (-1.0, 0.02 * float(theta.norm()) / length), FLAT.theta, 0.0)
    step = backtrack(slope, full, delta=DELTA, shrink=0.5, max_backtracks=3)
    torch.testing.assert_close(step.theta, 0.5 * full.length * full.d)
    assert step.kl_predicted == pytest.approx(0.5 * float(step.theta @ F3.A @ step.theta), rel=1e-12)


def test_damping_is_of_the_solve_and_not_of_the_radius():
    d = cholesky(F3, -GRAD, damping=5.0, max_gib=1)
    step = full_step(FLAT, to_radius(d, F3, DELTA))
    assert 0.5 * float(step.theta @ F3.A @ step.theta) == pytest.approx(DELTA, rel=1e-12)


RADIUS = partial(to_radius, F=F3, delta=DELTA)


@pytest.mark.parametrize("full", [RADIUS, partial(RADIUS, lr=0.1), newton])
def test_a_failed_solve_has_no_step(full):
    assert full(along(torch.ones(3), ok=False)) is None
    assert full(along(torch.ones(3))) is not None


NPG, TRPO = partial(npg, delta=DELTA), partial(trpo, delta=DELTA, max_backtracks=10, shrink=0.5)


@pytest.mark.parametrize("recipe", [NPG, partial(NPG, lr=0.1), TRPO])
def test_a_failed_solve_moves_nothing_and_costs_no_forward(recipe, monkeypatch):
    problem = make_problem(Categorical(3))
    monkeypatch.setattr(Problem, "evaluate", None)
    update = recipe(problem, solve=lambda F, b: Solution(torch.ones_like(b), 3, 1.0, False))
    assert torch.equal(update.theta, problem.theta) and update.finite
    assert (update.info["line_search/accepted"], update.info["line_search/tries"]) == (0, 0)


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
    step = backtrack(problem, FullStep(z_new - z, 1.0), delta=delta, shrink=0.5, max_backtracks=0)
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
    policy = problem.model
    z = policy.forward(policy.theta, problem.batch.obs)
    # Reward what lies far from the mean: σ has to grow.
    adv = ((problem.batch.action - z[:, :2]) / z[:, 2:].exp()).square().sum(-1) - 2
    problem = Problem(policy, replace(problem.batch, adv=adv))
    solve = partial(cholesky, damping=0.01, max_gib=1)
    update = trpo(problem, solve=solve, delta=0.01, max_backtracks=10, shrink=0.8)
    assert update.info["line_search/accepted"] == 1
    assert (update.theta[-2:] > policy.theta[-2:] + 0.01).all()
    entropy_after = policy.head.entropy(policy.forward(update.theta, problem.batch.obs)).mean()
    assert entropy_after > update.info["policy/entropy"] + 0.02
