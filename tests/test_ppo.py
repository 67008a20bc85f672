"""PPO against its textbook: torch's Adam, torch's distributions, autograd through torch's layers, float64."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from oracles import HEADS, each_head, entropy, flat_log_prob, make_problem, reference_forward

from rl_natgrad.algos.ppo import PPO, clipped, penalised, unclipped
from rl_natgrad.config import compose
from rl_natgrad.optim.first_order import Adam
from rl_natgrad.training.build import SLOPES
from rl_natgrad.training.iteration import Training

pytestmark = pytest.mark.usefixtures("float64")
SETTINGS = {"lr": 0.01, "clip": 0.2, "epochs": 3, "minibatch": 8, "max_grad_norm": 0.5, "entropy_coef": 0.0}


def build(problem, slope=clipped, *, seed=0, **other):
    options = {"total_steps": 1000, "decay_lr": False, "decay_clip": False, "target_kl": None} | SETTINGS | other
    return PPO(problem.theta, np.random.default_rng(seed), slope, **options)


# --- what a sample gains ------------------------------------------------------------------------------

GAINS = {  # in other words than the docstrings'
    clipped: lambda r, A, e: torch.where(A > 0, r.clamp(max=1 + e), r.clamp(min=1 - e)) * A,
    penalised: lambda r, A, e: A * r - A.abs() / (2 * e) * (r * r - 2 * r + 1),
    unclipped: lambda r, A, e: A * r,
}


@pytest.mark.parametrize(("slope", "ratio", "adv", "expected"), [  # worked out by hand, ε = 0.2
    (clipped, 1.1, 2.0, 2.0), (clipped, 1.3, 2.0, 0.0), (clipped, 0.7, 2.0, 2.0),
    (clipped, 0.9, -2.0, -2.0), (clipped, 0.7, -2.0, 0.0), (clipped, 1.3, -2.0, -2.0),
    (penalised, 1.0, 2.0, 2.0), (penalised, 1.2, 2.0, 0.0), (penalised, 1.4, 2.0, -2.0),
    (penalised, 0.8, -2.0, 0.0), (penalised, 0.6, -2.0, 2.0), (penalised, 1.2, -2.0, -4.0),
    (unclipped, 1.3, 2.0, 2.0), (unclipped, 0.7, -2.0, -2.0),
])  # fmt: skip
def test_slope_of_what_a_sample_gains(slope, ratio, adv, expected):
    r, A = torch.tensor([ratio], requires_grad=True), torch.tensor([adv])
    assert slope(r, A, 0.2).item() == pytest.approx(expected, abs=1e-12)
    autograd = torch.autograd.grad(GAINS[slope](r, A, 0.2), r)[0].item()
    assert autograd == pytest.approx(expected, abs=1e-12) or abs(ratio - 1) == pytest.approx(0.2)  # its corner


# --- a whole update -----------------------------------------------------------------------------------

def textbook(problem, slope, *, lr, clip, epochs, minibatch, max_grad_norm, entropy_coef):
    theta, rng = torch.nn.Parameter(problem.theta.clone()), np.random.default_rng(0)
    adam, N = torch.optim.Adam([theta], lr=lr, eps=1e-5), len(problem.batch.obs)
    old = flat_log_prob(problem, problem.theta)
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(N), math.ceil(N / minibatch)):
            part = replace(problem, batch=problem.batch.take(torch.from_numpy(rows)))
            ratio = (flat_log_prob(part, theta) - old[rows]).exp()
            z = reference_forward(part.model.net, theta, part.batch.obs)
            loss = -GAINS[slope](ratio, part.batch.adv, clip) - entropy_coef * entropy(part.model.head, z)
            g = torch.autograd.grad(loss.mean(), theta)[0]
            theta.grad = g * min(1, max_grad_norm / max(float(g.norm()), 1e-300))
            adam.step()
    return theta.detach(), (flat_log_prob(problem, theta.detach()) - old).exp()


@each_head
@pytest.mark.parametrize("slope", GAINS, ids=lambda slope: slope.__name__)
@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_an_update_is_the_textbooks(head, slope, coef):
    problem = make_problem(head, N=29)  # minibatches of 8 and of 7
    theta, ratio = textbook(problem, slope, **SETTINGS | {"entropy_coef": coef})
    u = build(problem, slope, entropy_coef=coef)(problem)
    torch.testing.assert_close(u.theta, theta, rtol=1e-8, atol=1e-10)
    outside = ((ratio - 1).abs() > 0.2).double().mean()
    assert 0 < outside < 1  # of both kinds
    assert u.info["policy/clip_fraction"] == pytest.approx(float(outside))
    assert u.info["policy/epochs"] == 3


@pytest.mark.parametrize("slope", GAINS, ids=lambda slope: slope.__name__)
def test_the_first_step_is_the_policy_gradients(slope):
    problem = make_problem(HEADS["gaussian"], N=20)
    u = build(problem, slope, epochs=1, minibatch=20, max_grad_norm=None)(problem)
    g = problem.grad()  # m̂ = g and v̂ = g² after one step
    torch.testing.assert_close(u.theta - problem.theta, -0.01 * g / (g.abs() + 1e-5))


# --- options ------------------------------------------------------------------------------------------


def test_an_update_ends_where_the_kl_is_reached():
    problem, make = make_problem(HEADS["gaussian"], N=64), partial(build, lr=0.005, epochs=12)
    learner = make(problem, target_kl=1e-6)
    assert learner(problem).info["policy/epochs"] == 1 / 8  # the first minibatch is at θ_old
    assert float(learner.adam.steps) == 1
    u, free = make(problem, target_kl=0.01)(problem), make(problem)(problem)
    assert 1 / 8 < u.info["policy/epochs"] < 12 == free.info["policy/epochs"]
    assert u.info["policy/kl"] < 2 * 0.015 < free.info["policy/kl"]
    assert torch.equal(make(problem, target_kl=1e6)(problem).theta, free.theta)


@pytest.mark.parametrize("decay_lr", [True, False])
@pytest.mark.parametrize("decay_clip", [True, False])
def test_rate_and_clip_fall_over_total_steps(monkeypatch, decay_lr, decay_clip):
    problem, rates, clips, step = make_problem(HEADS["gaussian"], N=20), [], [], Adam.step
    monkeypatch.setattr(Adam, "step", lambda self, g, lr: (rates.append(lr), step(self, g, lr)))

    def slope(ratio, adv, clip):
        clips.append(clip)
        return clipped(ratio, adv, clip)

    decay = {"decay_lr": decay_lr, "decay_clip": decay_clip}
    learner = build(problem, slope, epochs=1, minibatch=20, total_steps=80, **decay)
    for _ in range(5):  # the last is past the end
        assert learner(problem).finite
    falls, stays = [1, 0.75, 0.5, 0.25, 0], [1] * 5
    assert rates == pytest.approx([0.01 * left for left in (falls if decay_lr else stays)], abs=1e-6)
    assert clips == pytest.approx([0.2 * left for left in (falls if decay_clip else stays)], abs=1e-6)


def test_a_square_that_overflows_is_not_learned_from():
    torch.set_default_dtype(torch.float32)
    problem = make_problem(HEADS["categorical"], N=20)
    huge = replace(problem, batch=replace(problem.batch, adv=problem.batch.adv * 1e25))
    assert huge.grad().isfinite().all() and not huge.grad().square().isfinite().all()
    learner = build(problem, max_grad_norm=None)
    u = learner(huge)
    assert not u.finite and torch.equal(u.theta, problem.theta) and not learner.adam.v.any()
    assert learner.samples == 20  # the environment's steps were taken all the same


def test_a_state_that_cannot_be_is_refused():
    learner = build(make_problem(HEADS["gaussian"]))
    for samples in (torch.tensor(-1), torch.tensor(1.5), torch.tensor([1])):
        with pytest.raises(ValueError, match="samples so far"):
            learner.load(learner.state() | {"samples": samples})


@pytest.mark.parametrize(("name", "slope"), {"clip": clipped, "spo": penalised, "none": unclipped}.items())
def test_what_the_configuration_says_arrives(closed, name, slope):
    words = ["algo=ppo", f"algo.surrogate={name}", "algo.clip=0.3", "algo.lr=1e-3", "algo.epochs=2"]
    run = closed(Training(compose.load([*words, "total_steps=512", "horizon=32", "algo.entropy_coef=0.1"])))
    learner = run.algorithm.learner
    assert learner.slope is slope is SLOPES[name]
    assert (learner.clip, learner.lr, learner.epochs, learner.total_steps) == (0.3, 1e-3, 2, 512)
    while run.step < 512:
        assert run.iterate()["policy/epochs"] == 2
    assert learner.samples == run.step  # the rate falls by environment steps
    problem = run.problem(run.gather().batch)
    H = problem.entropy()
    assert problem.loss_old == pytest.approx(-float(problem.batch.adv.mean()) - 0.1 * H)
