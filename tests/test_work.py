"""What an update costs, counted in work and not in seconds, so that a regression shows on any machine."""

import contextlib
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from oracles import make_policy, make_problem

from rl_natgrad.algos.critic import AdamFit, Critic
from rl_natgrad.config import compose
from rl_natgrad.optim.first_order import Adam
from rl_natgrad.optim.fisher import GaussNewton
from rl_natgrad.policy.heads import Categorical, DiagGaussian
from rl_natgrad.policy.mlp import MLP, LinearizedMLP, LinearizedMLPAlong, MLPTape
from rl_natgrad.policy.policy import Policy
from rl_natgrad.training.iteration import Training

ITERATIONS = 7


@pytest.fixture
def counted(monkeypatch):
    """How often each of these is called: networks forward on a batch, J v, Jᵀ u, F v, and what else is named."""
    calls = Counter()

    def count(owner, name, label):
        original = getattr(owner, name)

        def wrapper(*args, **kwargs):
            calls[label] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    for linearized in (LinearizedMLP, LinearizedMLPAlong):
        count(linearized, "jvp", "jvp")
        count(linearized, "vjp", "vjp")
    count(MLP, "_activations", "forward")
    count(MLPTape, "backward", "gradient")
    count(GaussNewton, "mv", "product")
    count(Adam, "step", "adam")
    count(Policy, "act", "act")
    count(Policy, "noise", "noise")
    count(torch.autograd, "grad", "autograd")
    return calls


@contextlib.contextmanager
def peak():
    """[bytes]: the most that was allocated at once within, over what there was before."""
    result = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield result
        result.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


@pytest.fixture
def training(closed):
    words = ("num_envs=4", "horizon=64", "policy.hidden=[16,16]")
    return lambda env, *more: closed(Training(compose.load([f"env={env}", *more, *words])))


@pytest.mark.parametrize("algo", ["npg", "trpo"])
@pytest.mark.parametrize("env", ["CartPole", "Pendulum", "Acrobot"])
def test_a_natural_step(training, env, algo, counted):
    run = training(env, f"algo={algo}", "critic=none", f"solver.max_iter={ITERATIONS}")
    batch = run.batch(run.collector.collect(run.policy))
    counted.clear()
    info = run.learn(batch)
    assert info["solver/iterations"] == ITERATIONS
    assert counted["product"] == ITERATIONS + 1  # and one for the radius
    assert counted["jvp"] == counted["product"]
    assert counted["vjp"] == counted["product"] + 1  # and the gradient
    assert counted["forward"] == 1 + info["line_search/tries"]  # one at θ_old serves everything there
    assert counted["autograd"] == 1  # of the surrogate in the head's few parameters


def test_a_plain_step(training, counted):
    run = training("CartPole", "algo=pg", "critic=none")
    batch = run.batch(run.collector.collect(run.policy))
    counted.clear()
    run.learn(batch)
    assert (counted["forward"], counted["vjp"], counted["jvp"], counted["product"]) == (2, 1, 0, 0)


def test_epochs_of_minibatches(training, counted):
    run = training("CartPole", "algo=ppo", "critic=none", "algo.epochs=3", "algo.minibatch=50")
    batch = run.batch(run.collector.collect(run.policy))
    steps = 3 * math.ceil(len(batch.obs) / 50)
    counted.clear()
    run.learn(batch)
    assert counted["adam"] == counted["gradient"] == steps
    assert counted["forward"] == 3  # at θ_old; at θ' for loss and KL, and for the ratios
    assert (counted["vjp"], counted["autograd"]) == (1, 1)  # of the surrogate at θ_old, for the log


def test_a_rollout(training, counted):
    run = training("CartPole")
    counted.clear()
    run.collector.collect(run.policy)
    assert (counted["act"], counted["forward"], counted["noise"], counted["autograd"]) == (64, 64, 1, 0)


def test_the_values_of_a_rollout_are_one_forward(training, counted):
    run = training("CartPole")
    rollout = run.collector.collect(run.policy)
    counted.clear()
    run.batch(rollout)
    assert counted["forward"] == 1


def test_a_critics_fit(counted):
    net = MLP((3, 8, 8, 1), last_gain=1.0)
    theta = net.init(torch.Generator().manual_seed(0))
    fit = AdamFit(theta, np.random.default_rng(0), lr=1e-3, epochs=3, minibatch=32)
    critic = Critic(net, theta, fit)
    batch = make_problem(Categorical(3), N=100).batch
    counted.clear()
    critic.fit(batch)
    assert counted["adam"] == counted["gradient"] == 3 * 4
    assert counted["forward"] == 0  # what is logged was known before
    assert counted["jvp"] == counted["vjp"] == counted["autograd"] == 0


@pytest.mark.parametrize("head, layers", [(Categorical(2), 2), (Categorical(3), 4), (DiagGaussian(2), 4)], ids=str)
def test_memory_of_a_product(head, layers):
    """Of the order of a few hidden layers, and all of it given back."""
    N, width = 2000, 32
    problem = make_problem(head, N=N, policy=make_policy(head, sizes=(3, width, width)))
    fisher, v = problem.fisher(), torch.ones(problem.theta.numel())
    fisher.mv(v)
    layer = N * width * v.element_size()
    with peak() as most:
        for _ in range(3):
            fisher.mv(v)
    assert most[0] < (layers + 0.5) * layer, most[0] / layer
    with peak() as left:
        fisher.mv(v)
    assert left[0] <= most[0] * 1.01


def test_memory_of_acting():
    """Nothing stays, and nothing large comes and goes."""
    policy = make_policy(Categorical(4), sizes=(3, 16, 16))
    obs, noise = np.zeros((8, 3)), policy.noise(np.random.default_rng(0), (8,))
    policy.act(obs, noise)
    with peak() as most:
        for _ in range(100):
            policy.act(obs, noise)
    assert most[0] < 4 * 8 * 16 * 8 + 4096, most[0]
