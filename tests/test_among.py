"""Samples that several ranks have a part of: the means, steps and fits of one process with all of them."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import pytest
import torch
from oracles import HEADS, each_head, make_problem, randn, rng

from rl_natgrad.algos.among import OneOfSeveral
from rl_natgrad.algos.critic import AdamFit, Critic, LBFGSFit, TrustRegionFit
from rl_natgrad.algos.npg import npg
from rl_natgrad.algos.pg import PG
from rl_natgrad.algos.problem import Batch, Problem
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.optim.solvers import cg, identity, steihaug
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.rollout.normalize import RunningMoments
from rl_natgrad.training.build import FISHERS

pytestmark = pytest.mark.usefixtures("float64", "unlocked")


@pytest.fixture
def unlocked(monkeypatch):
    """Before Python 3.12 a cached property has one lock for all, and ranks in threads would wait for it."""
    for part in vars(Problem).values():
        if isinstance(part, cached_property):
            monkeypatch.setattr(part, "lock", nullcontext(), raising=False)

WHO = {  # who has each of 13 samples, again and again
    "two": [0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1, 0, 0],
    "three": [0, 1, 2, 2, 0, 1, 1, 0, 2, 2, 0, 1, 2],
    "three, one with none": [0, 2, 2, 0, 0, 0, 2, 2, 0, 2, 0, 0, 0],
}
each_way = pytest.mark.parametrize("who", WHO.values(), ids=WHO)


def in_ranks(who, N, work):
    """What work(rows, among) gives in each rank, which are threads here: its samples, and where they stand."""
    world = max(who) + 1
    owner, barrier, said, results = torch.tensor(who).repeat(N)[:N], threading.Barrier(world), {}, {}

    def rank(r):
        def total(x):
            said[r] = x
            barrier.wait(60)
            whole = sum(said[k] for k in range(world))
            barrier.wait(60)
            return whole

        own = (owner == r).nonzero().squeeze(1)
        try:
            results[r] = work(own, OneOfSeveral(own, N, total))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=rank, args=(r,)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[r] for r in range(world)]


def alike(found, expected):
    """Tensors and numbers, by name, to rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        left, right = np.asarray(found[name]), np.asarray(value)
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-13, err_msg=name)



def part_of(problem, rows, among):
    return replace(problem, batch=problem.batch.take(rows), among=among)


def picture(problem):
    """All that a learner looks at."""
    theta, v = problem.theta + 0.1 * randn(7, len(problem.theta)), randn(8, len(problem.theta))
    loss, kl = problem.evaluate(theta)
    return {
        "loss_old": problem.loss_old, "loss": loss, "kl": kl, "entropy": problem.entropy(), "g": problem.grad(),
        "Av": problem.system().mv(v).detach(), "Fv": problem.fisher().mv(v).detach(),
        "F": problem.fisher().dense().detach(),
    }  # fmt: skip


@each_way
@pytest.mark.parametrize("fisher", FISHERS)
@each_head
def test_every_average_is_that_of_all_samples(head, fisher, who):
    problem = make_problem(head, N=13, coef=0.1, curvature=FISHERS[fisher])
    expected = picture(problem)
    for found in in_ranks(who, 13, lambda rows, among: picture(part_of(problem, rows, among))):
        alike(found, expected)


@each_way
def test_the_fisher_may_be_of_some_of_the_samples_and_in_double_precision(who):
    problem = make_problem(HEADS["categorical"], N=26, rows=torch.tensor([1, 2, 5, 8, 13, 21]), float64=True)
    expected = picture(problem)
    for found in in_ranks(who, 26, lambda rows, among: picture(part_of(problem, rows, among))):
        alike(found, expected)


SOLVE = partial(cg, damping=0.05, max_iter=5, tol=0.0)
NEWTON = partial(steihaug, damping=0.05, max_iter=5, tol=0.0)
SEARCH = {"delta": 0.05, "max_backtracks": 5, "shrink": 0.5}
RECIPES = {
    "npg": (partial(npg, solve=SOLVE, delta=0.01), FISHERS),
    "trpo": (partial(trpo, solve=SOLVE, **SEARCH), ["gauss_newton", "kl_hessian", "empirical"]),
    "newton": (partial(trpo, solve=NEWTON, **SEARCH), ["hessian"]),
    "plain": (partial(trpo, solve=identity, **SEARCH), ["gauss_newton"]),
}
CASES = [(name, fisher) for name, (_, fishers) in RECIPES.items() for fisher in fishers]


@each_way
@pytest.mark.parametrize("name, fisher", [case for case in CASES if case != ("npg", "hessian")])
def test_steps_are_those_of_one_process(name, fisher, who):
    problem = make_problem(HEADS["gaussian"], N=26, curvature=FISHERS[fisher])
    step = RECIPES[name][0]

    def updated(problem):
        update = step(problem)
        return {"theta": update.theta, "finite": update.finite, **update.info}

    expected = updated(problem)
    assert expected["line_search/accepted"] and float((expected["theta"] - problem.theta).norm()) > 1e-3
    for found in in_ranks(who, 26, lambda rows, among: updated(part_of(problem, rows, among))):
        alike(found, expected)


@each_way
def test_first_order_steps_are_those_of_one_process(who):
    problem = make_problem(HEADS["categorical"], N=26)

    def updated(problem):
        update = PG(problem.theta, partial(torch.optim.SGD, lr=0.3))(problem)
        return {"theta": update.theta, **update.info}

    expected = updated(problem)
    for found in in_ranks(who, 26, lambda rows, among: updated(part_of(problem, rows, among))):
        alike(found, expected)


NET = MLP((2, 8, 1), last_gain=1.0)
FITS = {
    "adam": lambda theta: AdamFit(theta, np.random.default_rng(0), lr=5e-3, epochs=3, minibatch=7),
    "lbfgs": lambda theta: LBFGSFit(max_iter=5, history=5),
    "trust region": lambda theta: TrustRegionFit(delta=0.1, damping=0.01, max_iter=5, steps=2),
    "gauss newton": lambda theta: TrustRegionFit(delta=None, damping=0.01, max_iter=5, steps=2),
}


@each_way
@pytest.mark.parametrize("name", FITS)
def test_critics_learn_what_one_process_learns(name, who):
    obs = randn(0, 40, 2)
    ret = 50 + 20 * torch.sin(obs[:, 0]) - 10 * obs[:, 1]
    whole = Batch(obs, torch.zeros(40), torch.zeros(40), ret, randn(1, 40))

    def fitted(batch, *among):
        theta = NET.init(rng(0)).double()
        critic = Critic(NET, theta, FITS[name](theta))
        said = [critic.fit(batch, *among) for _ in range(2)]
        state = critic.state()
        return {"theta": state["theta"], "moments": state["moments"], **{f"{k} {i}": info[k] for i, info in enumerate(said) for k in info}}  # noqa: E501

    expected = fitted(whole)
    for found in in_ranks(who, 40, lambda rows, among: fitted(whole.take(rows), among)):
        alike(found, expected)


@each_way
def test_moments_are_those_of_all_samples(who):
    moments, x = RunningMoments((3,)), 5 + randn(0, 26, 3)
    moments.update(x.numpy())
    moments.update(x.numpy() ** 2)

    def learned(rows, among):
        own = RunningMoments((3,))
        among.learn(own, x[rows])
        among.learn(own, x[rows] ** 2)
        return own.state()

    for found in in_ranks(who, 26, learned):
        alike(found, moments.state())


@each_way
def test_one_rank_that_is_not_finite_keeps_every_critic(who):
    ret = torch.ones(26)
    ret[0] = torch.nan
    whole = Batch(randn(0, 26, 2), torch.zeros(26), torch.zeros(26), ret, torch.zeros(26))

    def fitted(rows, among):
        theta = NET.init(rng(0)).double()
        critic = Critic(NET, theta, FITS["adam"](theta))
        return critic.fit(whole.take(rows), among)["critic/not_finite"], torch.equal(critic.theta, theta)

    assert set(in_ranks(who, 26, fitted)) == {(1.0, True)}
