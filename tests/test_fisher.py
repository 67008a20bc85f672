from dataclasses import replace

import pytest
import torch
from oracles import (
    HEADS,
    all_actions,
    close,
    each_discrete,
    each_head,
    flat_log_prob,
    jacobian,
    kl,
    log_prob,
    make_problem,
    mean_kl,
    randn,
    reference_forward,
    sample,
)

from rl_natgrad.algos.problem import empirical, hessian
from rl_natgrad.training.build import FISHERS

pytestmark = pytest.mark.usefixtures("float64")

each_fisher = pytest.mark.parametrize("name", FISHERS)


def metric(problem) -> torch.Tensor:
    """M (N, K, K): the Hessian of torch's KL, sample by sample."""
    z = reference_forward(problem.model.net, problem.theta, problem.batch.obs)
    head = problem.model.head
    hessian = torch.autograd.functional.hessian
    return torch.stack([hessian(lambda new, row=row: kl(head, row[None], new[None])[0], row) for row in z])


def dense(problem, name: str) -> torch.Tensor:
    """The Fisher as a matrix, by its definition."""
    if name == "empirical":
        scores = torch.func.jacrev(lambda theta: flat_log_prob(problem, theta))(problem.theta)
        return scores.T @ scores / len(scores)
    J = jacobian(problem)
    return torch.einsum("nkp,nkl,nlq->pq", J, metric(problem), J) / len(J)


def columns(F) -> torch.Tensor:
    """F by products with the unit vectors."""
    return torch.stack([F.mv(e) for e in torch.eye(F.shape()[1])], 1)


@each_head
@each_fisher
def test_fisher_is_its_definition_symmetric_and_positive(head, name):
    problem = make_problem(head, curvature=FISHERS[name])
    F, expected = problem.fisher(), dense(problem, name)
    matrix = columns(F)
    close(matrix, expected)
    close(F.dense(), expected)
    close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12 * torch.linalg.eigvalsh(matrix).max()


@each_head
@each_fisher
def test_rows_are_a_root_of_the_fisher(head, name):
    F = make_problem(head, curvature=FISHERS[name]).fisher()
    M, P = F.shape()
    R = F.rows()
    if name == "kl_hessian":
        assert M is None and R is None
    else:
        assert R.shape == (M, P)
        close(R.T @ R, columns(F))


@each_head
def test_gauss_newton_is_the_hessian_of_the_mean_kl(head):
    problem = make_problem(head)
    hessian = torch.autograd.functional.hessian(lambda theta: mean_kl(problem, theta), problem.theta)
    close(columns(problem.fisher()), hessian)


@each_discrete
def test_gauss_newton_is_the_score_covariance_over_all_actions(head):
    problem, actions = make_problem(head, N=5), all_actions(head)
    theta, obs = problem.theta, problem.batch.obs
    total = torch.zeros(len(theta), len(theta))
    for x in obs:
        rows = x.expand(len(actions), -1)

        def logp(theta, rows=rows):
            return log_prob(head, reference_forward(problem.model.net, theta, rows), actions)

        scores = torch.func.jacrev(logp)(theta)
        total += torch.einsum("a,ap,aq->pq", logp(theta).exp(), scores, scores)
    close(columns(problem.fisher()), total / len(obs))


@each_head
@pytest.mark.parametrize("rows", [None, torch.tensor([1, 4, 5, 9])])
def test_a_newton_step_solves_with_the_hessian_of_the_surrogate_and_keeps_the_radius_of_the_kl(head, rows):
    problem = make_problem(head, curvature=hessian, rows=rows)
    mine = slice(None) if rows is None else rows

    def loss(theta):
        ratio = (flat_log_prob(problem, theta) - flat_log_prob(problem, problem.theta)).exp()
        return -(ratio * problem.batch.adv)[mine].mean()

    H = torch.autograd.functional.hessian(loss, problem.theta)
    assert torch.linalg.eigvalsh(H)[0] < -0.01  # indefinite
    close(columns(problem.system()), H)
    close(problem.system().dense(), H)
    assert problem.system().shape() == (None, len(H)) and problem.system().rows() is None
    close(columns(problem.fisher()), columns(make_problem(head, rows=rows).fisher()))


@each_head
@pytest.mark.parametrize("name", ["gauss_newton", "kl_hessian", "empirical"])
def test_a_natural_step_solves_with_the_fisher(head, name):
    problem = make_problem(head, curvature=FISHERS[name])
    assert problem.system() is problem.fisher()


def test_gaussian_gauss_newton_is_the_expectation_of_the_empirical_one():
    # 40,000 sampled actions in the same five states, against the closed form.
    head, N = HEADS["gaussian"], 5
    few = make_problem(head, N=N)
    policy, obs = few.model, few.batch.obs.repeat(8000, 1)
    many = make_problem(head, N=len(obs), policy=policy, curvature=empirical)
    action = sample(head, policy.forward(policy.theta, obs).detach(), 0)
    many = replace(many, batch=replace(many.batch, obs=obs, action=action))
    exact, estimate = columns(few.fisher()), columns(many.fisher())
    assert (estimate - exact).norm() < 0.05 * exact.norm()
    assert (estimate - exact).norm() > 1e-6 * exact.norm()


@each_fisher
def test_fisher_is_a_mean_over_samples(name):
    problem = make_problem(HEADS["categorical"], curvature=FISHERS[name])
    twice = make_problem(HEADS["categorical"], curvature=FISHERS[name], rows=torch.arange(12).repeat(2))
    close(columns(twice.fisher()), columns(problem.fisher()))


@each_head
@each_fisher
def test_a_subset_serves_the_fisher_alone(head, name):
    whole, rows = make_problem(head, curvature=FISHERS[name]), torch.tensor([1, 4, 5, 9])
    part = replace(whole, rows=rows)
    b = whole.batch
    alone = replace(whole, batch=replace(b, obs=b.obs[rows], action=b.action[rows], adv=b.adv[rows]))
    close(columns(part.fisher()), dense(alone, name))
    theta = whole.theta + 0.1 * randn(9, len(whole.theta))
    assert torch.equal(part.grad(), whole.grad())
    assert part.evaluate(theta) == whole.evaluate(theta)
    assert part.loss_old == whole.loss_old
    assert not torch.allclose(columns(part.fisher()), columns(whole.fisher()))


@each_fisher
def test_the_operator_stays_the_same_from_one_product_to_the_next(name):
    problem = make_problem(HEADS["gaussian"], curvature=FISHERS[name], rows=torch.tensor([0, 3, 7]))
    F, v = problem.fisher(), randn(3, len(problem.theta))
    first = F.mv(v)
    F.mv(-v)
    assert torch.equal(F.mv(v), first)
