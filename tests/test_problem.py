from dataclasses import replace

import pytest
import torch
from oracles import (
    HEADS,
    all_actions,
    close,
    each_discrete,
    each_head,
    entropy,
    flat_log_prob,
    log_prob,
    make_policy,
    make_problem,
    mean_kl,
    randn,
    reference_forward,
)

from rl_natgrad.algos.problem import Batch, Problem
from rl_natgrad.policy.heads import DiagGaussian
from rl_natgrad.training.build import FISHERS

pytestmark = pytest.mark.usefixtures("float64")


def reference_loss(problem, theta, coef=0.0) -> torch.Tensor:
    """−E[π_θ/π_old · A] − c E[H], by the reference network and torch.distributions."""
    ratio = (flat_log_prob(problem, theta) - flat_log_prob(problem, problem.theta).detach()).exp()
    z = reference_forward(problem.model.net, theta, problem.batch.obs)
    bonus = entropy(problem.model.head, z).mean()
    return -(ratio * problem.batch.adv).mean() - coef * bonus


@each_head
@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_loss_and_kl_equal_their_definitions_anywhere(head, coef):
    problem = make_problem(head, coef=coef)
    for seed in range(3):
        theta = problem.theta + 0.3 * randn(50 + seed, len(problem.theta))
        loss, kl = problem.evaluate(theta)
        close(torch.tensor(loss), reference_loss(problem, theta, coef))
        close(torch.tensor(kl), mean_kl(problem, theta))
        assert kl > 0
        close(problem.loss(theta), torch.tensor(loss))
        close(problem.kl(theta), torch.tensor(kl))


@each_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_at_the_old_parameters_the_ratio_is_exactly_one_and_kl_zero(head, dtype):
    torch.set_default_dtype(dtype)
    problem = make_problem(head, N=100)
    assert problem.evaluate(problem.theta.clone()) == (problem.loss_old, 0.0)
    assert problem.loss_old == float(-problem.batch.adv.mean())


@each_head
def test_gradient_of_the_surrogate_is_the_policy_gradient(head):
    problem = make_problem(head, N=30)
    scores = torch.func.jacrev(lambda theta: flat_log_prob(problem, theta))(problem.theta)
    close(problem.grad(), -(scores * problem.batch.adv.unsqueeze(-1)).mean(0))


@each_head
@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_gradient_equals_autograd_of_the_definition(head, coef):
    problem = make_problem(head, coef=coef)
    theta = problem.theta.clone().requires_grad_()
    close(problem.grad(), torch.autograd.grad(reference_loss(problem, theta, coef), theta)[0])


@each_discrete
def test_gradient_is_that_of_the_exact_expectation_over_all_actions(head):
    """Each state once with each action, weighted with π_old: the surrogate is then E_s Σ_a π_θ(a|s) Q(s, a)."""
    policy, actions = make_policy(head), all_actions(head)
    S, n = 4, len(actions)
    obs, Q = randn(1, S, 3), randn(2, S, n)

    def probability(theta):
        rows = reference_forward(policy.net, theta, obs).repeat_interleave(n, 0)
        return log_prob(head, rows, actions.repeat(S, *[1] * (actions.dim() - 1))).exp().view(S, n)

    adv = n * (probability(policy.theta) * Q).flatten()  # the mean over n actions of n·π(a)·Q(a)
    batch = Batch(
        obs.repeat_interleave(n, 0), actions.repeat(S, *[1] * (actions.dim() - 1)), adv, *torch.zeros(2, S * n)
    )  # fmt: skip
    theta = policy.theta.clone().requires_grad_()
    J = (probability(theta) * Q).sum(1).mean()
    close(Problem(policy, batch).grad(), -torch.autograd.grad(J, theta)[0])


@each_head
def test_a_baseline_leaves_the_expected_gradient_where_it_is(head):
    # In expectation over all actions the score is 0, so a constant advantage moves nothing.
    if isinstance(head, DiagGaussian):  # sampled instead of enumerated
        problem = make_problem(head, N=4000)
        batch = replace(problem.batch, adv=torch.ones(4000))
        chance = (problem.fisher().dense().trace() / 4000).sqrt()  # √(E‖score‖² / N)
        assert replace(problem, batch=batch).grad().norm() < 2 * chance < 0.5
        return
    policy, actions = make_policy(head), all_actions(head)
    n = len(actions)
    obs = randn(1, 1, 3).expand(n, 3)
    p = log_prob(head, reference_forward(policy.net, policy.theta, obs), actions).exp()
    assert Problem(policy, Batch(obs, actions, n * p, p, p)).grad().norm() < 1e-12


@each_head
def test_entropy_equals_torchs(head):
    problem = make_problem(head)
    z = reference_forward(problem.model.net, problem.theta, problem.batch.obs)
    close(torch.tensor(problem.entropy()), entropy(head, z).mean())


@each_head
@pytest.mark.parametrize("fisher_name", ["gauss_newton", "kl_hessian", "empirical"])
def test_a_problem_changes_neither_policy_nor_batch(head, fisher_name):
    problem = make_problem(head, curvature=FISHERS[fisher_name], coef=0.1)
    before = [problem.theta.clone(), *(t.clone() for t in vars(problem.batch).values())]
    problem.grad()
    problem.fisher().mv(problem.grad())
    problem.evaluate(problem.theta + 1)
    after = [problem.theta, *vars(problem.batch).values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert not problem.theta.requires_grad


def test_old_outputs_stay_frozen_when_the_policy_moves_on():
    problem = make_problem(HEADS["gaussian"])
    theta_old, grad, loss = problem.theta, problem.grad(), problem.loss_old
    theta = theta_old + 0.1
    evaluated = problem.evaluate(theta)
    problem.model.become(theta)
    assert problem.evaluate(theta) == evaluated
    assert torch.equal(problem.grad(), grad) and problem.loss_old == loss
