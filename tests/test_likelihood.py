"""The natural gradient on any likelihood model: the same problem, with −E[log p_θ(y|x)] as its loss."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from oracles import (
    HEADS,
    close,
    flat_log_prob,
    kl,
    log_prob,
    make_problem,
    mean_kl,
    randn,
    reference_forward,
    sample,
)

from rl_natgrad.algos.npg import npg
from rl_natgrad.algos.problem import Batch, Model, Problem, hessian, kl_hessian, likelihood
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.optim.solvers import cg, pinv, steihaug
from rl_natgrad.optim.steps import newton
from rl_natgrad.policy.heads import Categorical, DiagGaussian
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.policy import with_head

pytestmark = pytest.mark.usefixtures("float64")


MODELS = {**HEADS, "normal": DiagGaussian(2, std="state")}  # N(μ(x), σ(x)²): both are the network's outputs
each_model = pytest.mark.parametrize("head", MODELS.values(), ids=MODELS)


def make_likelihood(head, seed: int = 0, *, sizes=(3, 5), N: int = 12, **options) -> Problem:
    """A model far from its start, on data that another model of its kind made."""
    net = with_head(lambda outputs: MLP((*sizes, outputs)), head, 0.0)
    theta, truth = 0.7 * randn(seed, 2, net.size)
    x = randn(seed + 1, N, sizes[0])
    y = sample(head, reference_forward(net, truth, x), seed + 2)
    return likelihood(Model(net, head, theta), x, y, **options)


@each_model
def test_loss_kl_and_gradient_are_those_of_torchs_distributions(head):
    problem = make_likelihood(head)
    net, x, y = problem.model.net, problem.batch.obs, problem.batch.action
    for seed in range(3):
        theta = problem.theta + 0.3 * randn(50 + seed, len(problem.theta))
        loss, moved = problem.evaluate(theta)
        close(torch.tensor(loss), -log_prob(head, reference_forward(net, theta, x), y).mean())
        z_old, z = (reference_forward(net, t, x) for t in (problem.theta, theta))
        close(torch.tensor(moved), kl(head, z_old, z).mean())
    leaf = problem.theta.clone().requires_grad_()
    close(problem.grad(), torch.autograd.grad(-flat_log_prob(problem, leaf).mean(), leaf)[0])
    assert problem.evaluate(problem.theta) == (problem.loss_old, 0.0)


@each_model
def test_gauss_newton_is_the_hessian_of_the_kl(head):
    problem = make_likelihood(head)
    expected = torch.autograd.functional.hessian(lambda theta: mean_kl(problem, theta), problem.theta)
    close(problem.fisher().dense(), expected)
    close(make_likelihood(head, curvature=kl_hessian).fisher().dense(), expected)


@each_model
def test_hessian_products_are_differences_of_gradients(head):
    problem, eps = make_likelihood(head), 1e-5
    model, H = problem.model, problem.hessian()
    for seed in range(3):
        v = randn(seed, len(problem.theta))
        ahead, behind = (replace(problem, model=replace(model, theta=model.theta + e * v)) for e in (eps, -eps))
        close(H.mv(v), (ahead.grad() - behind.grad()) / (2 * eps), tol=1e-7)
    close(H.dense(), H.dense().T)


def test_hessian_of_a_softmax_regression_is_its_fisher():
    # The log-likelihood of a linear exponential family: its Hessian does not depend on the labels.
    problem = make_likelihood(Categorical(4), sizes=(3,), N=30)
    close(problem.hessian().dense(), problem.fisher().dense(), tol=1e-12)
    deep = make_likelihood(Categorical(4), N=30)
    assert (deep.hessian().dense() - deep.fisher().dense()).norm() > 0.1 * deep.fisher().dense().norm()


@pytest.mark.parametrize("solve", [partial(pinv, rtol=1e-12, max_gib=1),
                                   partial(cg, damping=0.0, max_iter=50, tol=1e-14)])  # fmt: skip
def test_one_natural_step_on_a_linear_gaussian_is_least_squares(solve):
    problem = make_likelihood(DiagGaussian(1), sizes=(3,), N=30)
    x, y = problem.batch.obs, problem.batch.action
    *line, _ = problem.theta + newton(solve(problem.fisher(), -problem.grad())).d  # W and b; log σ
    close(torch.stack(line), torch.linalg.lstsq(torch.cat([x, torch.ones(30, 1)], 1), y).solution[:, 0])


@each_model
def test_a_recipe_neither_knows_nor_asks_what_the_loss_is(head):
    # At π_θ = π_old the surrogate with advantages 1 has the gradient of the log-likelihood.
    policy_problem = make_problem(head, N=30)
    obs, action = policy_problem.batch.obs, policy_problem.batch.action
    of_policy = Problem(policy_problem.model, Batch(obs, action, *torch.ones(3, 30)))
    model = Model(policy_problem.model.net, head, policy_problem.theta)
    step = partial(npg, solve=partial(cg, damping=0.1, max_iter=10, tol=1e-10), delta=0.01)
    close(step(likelihood(model, obs, action)).theta, step(of_policy).theta)


@each_model
def test_a_newton_step_has_the_predicted_kl_and_lowers_the_loss(head):
    left = False
    for seed in range(3):
        problem = make_likelihood(head, seed, N=40, curvature=hessian, rows=torch.arange(30))
        solve = partial(steihaug, damping=0.1, max_iter=30, tol=1e-10)
        update = npg(problem, solve=solve, delta=1e-4)
        step, F = update.theta - problem.theta, make_likelihood(head, seed, N=40, rows=torch.arange(30)).fisher()
        assert 0.5 * float(step @ F.dense() @ step) == pytest.approx(1e-4, rel=1e-9)
        assert update.info["policy/kl_predicted"] == pytest.approx(1e-4, rel=1e-9)
        left |= update.info.get("solver/indefinite") == 1
        searched = trpo(problem, solve=solve, delta=0.01, max_backtracks=10, shrink=0.5)
        assert searched.info["policy/gain"] > 0 and searched.info["policy/kl"] <= 0.01
    assert left  # at negative curvature, at least once


def test_a_model_that_becomes_its_updates_fits():
    problem = make_likelihood(Categorical(4), sizes=(3,), N=200)
    model, losses = problem.model, []
    for _ in range(30):
        problem = likelihood(model, problem.batch.obs, problem.batch.action)
        update = trpo(problem, solve=partial(cg, damping=0.01, max_iter=20, tol=1e-10), delta=0.05,
                      max_backtracks=10, shrink=0.5)  # fmt: skip
        model.become(update.theta)
        losses.append(update.info["policy/loss_after"])
    leaf = model.theta.clone().requires_grad_()
    best = torch.optim.LBFGS([leaf], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        best.zero_grad()
        (loss := -flat_log_prob(problem, leaf).mean()).backward()
        return loss

    best.step(closure)
    assert losses[-1] == pytest.approx(closure().item(), abs=1e-3) and losses[0] > losses[-1] + 0.1
