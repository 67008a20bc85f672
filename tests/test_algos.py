import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import (
    HEADS,
    each_discrete,
    each_head,
    entropy,
    flat_log_prob,
    jacobian,
    make_policy,
    make_problem,
    mean_kl,
    randn,
    reference_forward,
)

from rl_natgrad.algos.npg import npg
from rl_natgrad.algos.pg import PG
from rl_natgrad.algos.ppo import PPO, clipped
from rl_natgrad.algos.problem import Problem
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.optim.solvers import cg, cholesky, identity, woodbury
from rl_natgrad.training import build
from rl_natgrad.training.build import SOLVERS

pytestmark = pytest.mark.usefixtures("float64")

SOLVE = partial(cg, damping=0.01, max_iter=10, tol=1e-10)
EXACT = partial(cholesky, damping=0.01, max_gib=1)
LEARNERS = {  # name: problem ↦ a new learner for it
    "trpo": lambda problem: partial(trpo, solve=SOLVE, delta=0.01, max_backtracks=10, shrink=0.8),
    "trpo identity": lambda problem: partial(trpo, solve=identity, delta=0.01, max_backtracks=10, shrink=0.8),
    "npg": lambda problem: partial(npg, solve=SOLVE, delta=0.01),
    "npg identity": lambda problem: partial(npg, solve=identity, delta=0.01),
    "npg lr": lambda problem: partial(npg, solve=SOLVE, delta=0.01, lr=0.02),
    "pg": lambda problem: PG(problem.theta, partial(torch.optim.Adam, lr=0.01)),
    "ppo": lambda problem: PPO(
        problem.theta, np.random.default_rng(0), clipped, total_steps=1000, lr=0.01, decay_lr=False, clip=0.2,
        decay_clip=False, epochs=3, minibatch=8, target_kl=None, max_grad_norm=0.5, entropy_coef=0.0,
    ),
}
FIRST_ORDER = ("pg", "ppo")
each_learner = pytest.mark.parametrize("name", LEARNERS)


def surrogate(problem, theta) -> torch.Tensor:
    ratio = (flat_log_prob(problem, theta) - flat_log_prob(problem, problem.theta)).exp()
    return -(ratio * problem.batch.adv).mean()


# --- TRPO's promise -----------------------------------------------------------------------------------


def solver(name: str):
    if name == "identity":
        return identity
    if name in ("pinv", "svd"):
        return partial(SOLVERS[name], rtol=1e-6, max_gib=1)
    options = {"max_iter": 10, "tol": 1e-10} if name in ("cg", "steihaug") else {"max_gib": 1}
    return partial(SOLVERS[name], damping=0.01, **options)


def test_accepted_trpo_steps_keep_their_promise_and_rejected_ones_keep_theta():
    """Over 1,000 random problems; the KL and the surrogate are measured again by torch.distributions."""
    outcomes = []

    @settings(max_examples=1000, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        head=st.sampled_from(list(HEADS.values())),
        seed=st.integers(0, 2**31),
        N=st.integers(1, 20),
        scale=st.floats(0.05, 1.5),
        log_delta=st.floats(-5, 0),
        max_backtracks=st.integers(0, 4),
        shrink=st.floats(0.1, 0.95),
        name=st.sampled_from(sorted(SOLVERS)),
        adv=st.sampled_from([1.0, 1.0, 1.0, 1e-6, 1e6, 0.0, math.nan, math.inf]),
    )
    def promise(head, seed, N, scale, log_delta, max_backtracks, shrink, name, adv):
        policy, delta = make_policy(head, seed, sizes=(3, 4), scale=scale), 10**log_delta
        problem = make_problem(head, seed, N=N, policy=policy)
        problem = replace(problem, batch=replace(problem.batch, adv=adv * problem.batch.adv))
        theta_old = policy.theta.clone()
        u = trpo(problem, solve=solver(name), delta=delta, max_backtracks=max_backtracks, shrink=shrink)
        outcomes.append(bool(u.info["line_search/accepted"]))
        assert torch.equal(policy.theta, theta_old)
        if outcomes[-1]:
            assert math.isfinite(adv) and u.finite
            assert float(mean_kl(problem, u.theta)) <= delta * (1 + 1e-9) + 1e-15
            better = float(surrogate(problem, u.theta) - surrogate(problem, problem.theta))
            assert better < 1e-13 * adv  # equal only to rounding
            assert u.info["policy/gain"] > 0
        else:
            assert torch.equal(u.theta, theta_old)
            assert u.info["policy/kl"] == 0 and u.info["policy/step_norm"] == 0

    promise()
    assert len(outcomes) == 1000
    assert np.mean(outcomes) >= 0.3
    assert outcomes.count(False) >= 50


# --- what every learner does --------------------------------------------------------------------------


@each_head
@each_learner
def test_the_log_says_what_happened(head, name):
    problem = make_problem(head, N=40)
    u = LEARNERS[name](problem)(problem)
    info, theta = u.info, u.theta
    z = reference_forward(problem.model.net, problem.theta, problem.batch.obs)
    leaf = problem.theta.clone().requires_grad_()
    grad, step = torch.autograd.grad(surrogate(problem, leaf), leaf)[0], theta - problem.theta
    expected = {
        "policy/loss_before": float(surrogate(problem, problem.theta)),
        "policy/loss_after": float(surrogate(problem, theta)),
        "policy/gain": float(surrogate(problem, problem.theta) - surrogate(problem, theta)),
        "policy/gain_predicted": -float(grad @ step),
        "policy/kl": float(mean_kl(problem, theta)),
        "policy/entropy": float(entropy(head, z).mean()),
        "policy/grad_norm": float(grad.norm()),
        "policy/step_norm": float(step.norm()),
    }
    assert u.finite
    assert {tag: info[tag] for tag in expected} == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert step.norm() > 0
    if name not in FIRST_ORDER:
        J = jacobian(problem)
        metric = problem.model.head.metric(z)
        predicted = 0.5 * float(((J @ step) * metric(J @ step)).sum(1).mean())
        assert info["policy/kl_predicted"] == pytest.approx(predicted, rel=1e-8)
        assert set(info) == set(expected) | {
            "policy/kl_predicted", "solver/iterations", "solver/residual",
            "line_search/accepted", "line_search/tries",
        }  # fmt: skip


@each_head
@each_learner
def test_a_learner_leaves_policy_and_batch_as_they_are(head, name):
    problem = make_problem(head, N=20)
    tensors = [problem.theta, *vars(problem.batch).values()]
    before = [t.clone() for t in tensors]
    u = LEARNERS[name](problem)(problem)
    assert all(map(torch.equal, tensors, before))
    assert not u.theta.requires_grad
    u.theta.add_(1)  # the update owns its θ
    assert torch.equal(problem.theta, before[0])


class Poisoned:
    """A head with one function that is not what it should be."""

    def __init__(self, head, **functions):
        self._head, self._functions = head, functions

    def __getattr__(self, name):
        return self._functions.get(name) or getattr(self._head, name)


def poison(problem: Problem, where: str) -> Problem:
    """The same problem with nan or inf at one place of the maths."""
    part, bad = where.split(" ")[0], float(where.split(" ")[1])
    head, policy = problem.model.head, copy.copy(problem.model)
    if part == "advantage":
        adv = problem.batch.adv.clone()
        adv[3] = bad
        return replace(problem, batch=replace(problem.batch, adv=adv))
    policy.head = {
        "fisher": Poisoned(head, metric=lambda z: lambda v: v * bad),
        "kl": Poisoned(head, kl=lambda z, z_new: head.kl(z, z_new) + bad),
        "gradient": Poisoned(head, log_prob=lambda z, a: head.log_prob(z, a) + (z - z.detach()).sum(-1) * bad),
    }[part]
    return replace(problem, model=policy)


@each_learner
@pytest.mark.parametrize(
    "where", [f"{part} {bad}" for part in ("advantage", "gradient", "fisher", "kl") for bad in ("nan", "inf")]
)
def test_what_is_not_finite_moves_nothing_and_is_reported(name, where):
    problem = make_problem(HEADS["gaussian"], N=20)
    theta, learner = problem.theta.clone(), LEARNERS[name](problem)
    if name in FIRST_ORDER and where.startswith("fisher"):
        return  # they have none
    u = learner(poison(problem, where))
    assert not u.finite
    assert torch.equal(u.theta, theta)
    assert torch.equal(problem.theta, theta)
    assert u.info["policy/step_norm"] == 0
    assert learner(problem).finite  # and the next batch is learned from
    if name in FIRST_ORDER:
        assert torch.equal(learner(problem).theta, _second(LEARNERS[name](problem), problem))


def _second(learner, problem):
    """θ' of the second of two updates."""
    learner(problem)
    return learner(problem).theta


@each_learner
def test_zero_advantage_is_no_error(name):
    problem = make_problem(HEADS["categorical"], N=20)
    problem = replace(problem, batch=replace(problem.batch, adv=torch.zeros(20)))
    u = LEARNERS[name](problem)(problem)
    assert u.finite and torch.equal(u.theta, problem.theta)


# --- NPG ----------------------------------------------------------------------------------------------


@each_head
def test_kakades_learning_rate_multiplies_the_natural_gradient(head):
    problem = make_problem(head, N=40)
    damping, lr = 0.3, 0.05
    u = npg(problem, solve=partial(cholesky, damping=damping, max_gib=1), delta=0.01, lr=lr)
    F, g = problem.fisher().dense(), problem.grad()
    lam = damping * (g @ F @ g) / (g @ g)
    step = -lr * torch.linalg.solve(F + lam * torch.eye(len(g)), g)
    torch.testing.assert_close(u.theta - problem.theta, step, rtol=1e-8, atol=1e-10)
    doubled = npg(problem, solve=partial(cholesky, damping=damping, max_gib=1), delta=77.0, lr=2 * lr)
    torch.testing.assert_close(doubled.theta - problem.theta, 2 * step, rtol=1e-8, atol=1e-10)


@each_head
def test_npg_takes_the_whole_step_whatever_its_kl(head):
    # What "natural gradient" with TRPO's accept test would refuse: δ far beyond where the model is good.
    problem = make_problem(head, N=40)
    u = npg(problem, solve=EXACT, delta=1.0)
    step = u.theta - problem.theta
    assert 0.5 * float(step @ problem.fisher().mv(step)) == pytest.approx(1.0, rel=1e-9)
    assert u.info["policy/kl_predicted"] == pytest.approx(1.0, rel=1e-9)
    assert u.info["policy/kl"] == pytest.approx(float(mean_kl(problem, u.theta)), rel=1e-9)
    assert abs(u.info["policy/kl"] - 1) > 1e-3  # measured, not assumed


@each_head
def test_identity_follows_the_plain_gradient_and_cg_does_not(head):
    problem = make_problem(head, N=40)
    cosines = []
    for solve in (identity, SOLVE):
        step = npg(problem, solve=solve, delta=0.01).theta - problem.theta
        cosines.append(float(-step @ problem.grad() / (step.norm() * problem.grad().norm())))
    assert cosines[0] == pytest.approx(1, abs=1e-12)
    assert 0 < cosines[1] < 0.999


@each_head
def test_one_trust_region_step_is_npgs_where_nothing_is_searched(head):
    problem = make_problem(head, N=40)
    a = npg(problem, solve=SOLVE, delta=1e-6)
    b = trpo(problem, solve=SOLVE, delta=1e-6, max_backtracks=30, shrink=0.99)
    first = 0.99 ** (b.info["line_search/tries"] - 1)
    assert b.info["line_search/accepted"] and first > 0.9
    torch.testing.assert_close(b.theta - problem.theta, first * (a.theta - problem.theta))


def test_dense_solvers_agree_within_the_learner():
    problem = make_problem(HEADS["gaussian"], N=40)
    long = partial(cg, damping=0.01, max_iter=300, tol=1e-14)
    solves = (EXACT, partial(woodbury, damping=0.01, max_gib=1), long)
    a, b, c = (npg(problem, solve=solve, delta=0.01).theta for solve in solves)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(a, c, rtol=1e-6, atol=1e-6)


# --- PG -----------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}, {}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {}),
    "nag": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {"nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05}, {}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0, "rho": 0.9}, {}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.99}, {}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "betas": (0.9, 0.999)}, {}),
    "radam": (torch.optim.RAdam, {"lr": 0.01, "betas": (0.9, 0.999)}, {}),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def problems(policy, steps: int, start: int = 0):
    for seed in range(start, start + steps):
        yield make_problem(policy.head, seed, N=16, policy=policy)


@each_optimizer
def test_one_flat_theta_is_exact(name):
    """20 steps, bit for bit, against the same optimizer on one parameter per layer."""
    torch.set_default_dtype(torch.float32)
    optimizer, options, fixed = OPTIMIZERS[name]
    policy = make_policy(HEADS["gaussian"], sizes=(3, 13, 7))
    learner = PG(policy.theta, partial(build.OPTIMIZERS[name], **options))
    shapes = [s for W, b in policy.net.net.layers(policy.theta[:-2]) for s in (W.shape, b.shape)] + [(2,)]
    sizes = [math.prod(shape) for shape in shapes]
    layers = [
        torch.nn.Parameter(p.clone().view(s)) for p, s in zip(policy.theta.split(sizes), shapes, strict=True)
    ]  # fmt: skip
    reference = optimizer(layers, **options, **fixed)
    for problem in problems(policy, 20):
        for p, g in zip(layers, problem.grad().split(sizes), strict=True):
            p.grad = g.view(p.shape).clone()
        reference.step()
        policy.become(learner(problem).theta)
        assert torch.equal(policy.theta, torch.cat([p.detach().flatten() for p in layers]))


def adamp_by_hand(w, g, p, delta):
    """p less its radial parts, in loops over a weight's rows or of the whole."""
    for parts in ([(w[k], g[k]) for k in range(len(w))], [(w.ravel(), g.ravel())]):
        cosines = [abs(a.ravel() @ b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in parts]
        if max(cosines) < delta / parts[0][0].size ** 0.5:
            along = np.stack([a.ravel() / np.linalg.norm(a) for a, _ in parts])
            flat = p.reshape(len(parts), -1)
            return np.stack([q - (q @ a) * a for q, a in zip(flat, along, strict=True)]).reshape(p.shape)
    return p


# In the middle, rows pass one by one; at 1e9 all do; a weight as a whole is where rows do not and it does.
@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0, 1e9])
def test_adamp_is_the_equations_of_the_paper(delta):
    policy, lr, betas, eps = make_policy(HEADS["gaussian"], sizes=(3, 6, 4)), 0.01, (0.9, 0.99), 1e-12
    options = {"tensors": policy.net.tensors, "lr": lr, "betas": betas, "eps": eps, "delta": delta}
    learner = PG(policy.theta, partial(build.OPTIMIZERS["adamp"], **options))
    theta, m, v = policy.theta.numpy(), 0, 0
    adam, projected = PG(policy.theta, partial(torch.optim.Adam, lr=lr, betas=betas, eps=eps)), 0
    for t, problem in enumerate(problems(policy, 12), start=1):
        g = problem.grad().numpy()
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        p = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        plain = p.copy()
        for place, shape in policy.net.tensors:
            if len(shape) == 2:
                w, h, q = (x[place].reshape(shape) for x in (theta, g, p))
                p[place] = adamp_by_hand(w, h, q, delta).ravel()
        projected += not np.array_equal(p, plain)
        theta = theta - lr * p
        if delta == 0:
            torch.testing.assert_close(adam(problem).theta, torch.from_numpy(theta), rtol=1e-10, atol=1e-12)
        policy.become(learner(problem).theta)
        torch.testing.assert_close(policy.theta, torch.from_numpy(theta), rtol=1e-9, atol=1e-11)
    assert (projected > 0) == (delta > 0)


@pytest.mark.parametrize("by_row", [True, False])
def test_adamp_does_not_lengthen_a_weight_whose_length_has_no_effect(by_row):
    shape, target, lengths = (4, 6), randn(1, 4, 6), {}
    adamp = partial(build.OPTIMIZERS["adamp"], tensors=[(slice(0, 24), shape)], delta=0.1)
    for name, rule in (("adamp", adamp), ("adam", torch.optim.Adam)):
        theta = torch.nn.Parameter(randn(0, 24))
        optimizer = rule([theta], lr=0.1, betas=(0.9, 0.999), eps=1e-8)
        for _ in range(50):
            before, w = theta.detach().clone(), theta.view(shape)
            optimizer.zero_grad()
            ((w / w.norm(dim=1 if by_row else (0, 1), keepdim=True) - target) ** 2).sum().backward()
            optimizer.step()
            moved = (theta.detach() - before).view(shape)
            if name == "adamp":
                radial = (moved * before.view(shape)).sum(1 if by_row else (0, 1))
                assert radial.abs().max() < 1e-7
        lengths[name] = float(theta.detach().norm())
    assert lengths["adamp"] < 0.9 * lengths["adam"], lengths


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_rate_rises_linearly_over_the_warm_up(name):
    # The first four steps have 1/4, 2/4, 3/4 and all of the rate; from then on it is the optimizer's.
    policy = make_policy(HEADS["categorical"])
    learner = PG(policy.theta, partial(build.OPTIMIZERS[name], lr=0.1), warmup=4)
    plain = torch.nn.Parameter(policy.theta.clone())
    optimizer = OPTIMIZERS[name][0]([plain], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(t + 1, 4) / 4)
    for problem in problems(policy, 7):
        plain.grad = problem.grad().clone()
        optimizer.step()
        schedule.step()
        policy.become(learner(problem).theta)
        torch.testing.assert_close(policy.theta, plain.detach(), rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="steps"):
        learner.load({"steps": torch.tensor(-1)})


@each_optimizer
def test_saved_and_loaded_an_optimizer_goes_on_bit_for_bit(name):
    torch.set_default_dtype(torch.float32)
    thetas = {}
    for stop in (0, 3, None):
        policy = make_policy(HEADS["categorical"])
        new = partial(PG, policy.theta, partial(build.OPTIMIZERS[name], **OPTIMIZERS[name][1]))
        learner = new()
        for k, problem in enumerate(problems(policy, 6)):
            if k == stop:
                saved, learner = learner.state(), new()
                learner.load(saved)
            policy.become(learner(problem).theta)
        thetas[stop] = policy.theta
    assert torch.equal(thetas[0], thetas[None])
    assert torch.equal(thetas[3], thetas[None])


def test_saved_state_does_not_change_while_training_goes_on():
    policy = make_policy(HEADS["categorical"])
    learner = PG(policy.theta, partial(torch.optim.Adam, lr=0.01))
    first, *rest = problems(policy, 3)
    learner(first)
    saved = learner.state()
    before = {name: value.clone() for name, value in saved.items()}
    for problem in rest:
        learner(problem)
    assert before and all(torch.equal(saved[name], before[name]) for name in before)


@each_discrete
def test_entropy_bonus_raises_entropy(head):
    problem = make_problem(head, N=40, coef=1.0)
    problem = replace(problem, batch=replace(problem.batch, adv=torch.zeros(40)))
    u = PG(problem.theta, partial(torch.optim.SGD, lr=0.1))(problem)
    z = problem.model.forward(u.theta, problem.batch.obs)
    assert float(head.entropy(z).mean()) > u.info["policy/entropy"] + 1e-3


def test_pg_makes_one_step_from_where_the_policy_is_now():
    # Not from where the optimizer's own parameter was left.
    policy = make_policy(HEADS["gaussian"])
    learner = PG(policy.theta, partial(torch.optim.SGD, lr=0.1))
    learner(make_problem(policy.head, 0, policy=policy))
    policy.become(policy.theta + randn(5, len(policy.theta)))
    problem = make_problem(policy.head, 1, policy=policy)
    torch.testing.assert_close(learner(problem).theta, policy.theta - 0.1 * problem.grad())
