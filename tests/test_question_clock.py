"""results/clock: its gradients and steps are right, and the page says what the rows say."""

import numpy as np
import pytest
import torch
from whole_runs import ROOT

from rl_natgrad.algos.problem import likelihood
from rl_natgrad.policy.heads import Bernoulli, Categorical, DiagGaussian
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.model import Model


@pytest.fixture
def models(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    import clock_models

    return clock_models


@pytest.fixture
def clock(models):
    import clock

    return clock


def a_task(models, head, seed=0, n=40):
    """A small task of that head, in float64."""
    rng = np.random.default_rng(seed)
    y = {Categorical: lambda: rng.integers(3, size=n), Bernoulli: lambda: rng.integers(2, size=(n, 2)),
         DiagGaussian: lambda: rng.standard_normal((n, 2))}[type(head)]()  # fmt: skip
    data = torch.from_numpy(rng.standard_normal((n, 4))), torch.from_numpy(y)
    return models.Task(MLP((4, 5, head.size), last_gain=1.0), head, data, data, data, cap=1.0)


HEADS = [Categorical(3), Bernoulli(2), DiagGaussian(2, std="state")]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_the_rivals_gradient_and_loss_are_autodiffs(models, head):
    task = a_task(models, head)
    x, y = task.train
    theta = task.start(1).double()
    leaf = theta.clone().requires_grad_()
    loss = -task.head.log_prob(task.net.forward(leaf, x), y).mean()
    (expected,) = torch.autograd.grad(loss, leaf)
    gradient = models.Gradient(task.net, head, theta)
    for _ in range(2):  # the arrays that are kept do no harm
        assert torch.allclose(gradient(x.numpy(), y.numpy()), expected, rtol=1e-12, atol=1e-14)
    z = models.forward(gradient.layers, x.numpy())[-1]
    assert models.LOSSES[type(head)](z, y.numpy()) == pytest.approx(loss.item(), rel=1e-13)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("warm", [None, 0.5])
def test_a_natural_loops_step_is_the_dense_one(models, head, warm):
    """Both of its first two, so that the second of a warm CG starts from the first."""
    task = a_task(models, head)
    x, y = task.train
    theta = task.start(1).double()
    s = {"delta": 1e-3, "iterations": 500, "share": 1.0, "tol": 1e-14, "longest": 1.0, "damping": 1e-2}
    step = models.natural(task, theta, s | ({"warm": warm} if warm else {}), np.random.default_rng(0))
    for _ in range(2):
        problem = likelihood(Model(task.net, head, theta.clone()), x, y)
        F, g = problem.fisher().dense(), problem.grad()
        lam = s["damping"] * (1 if warm else float(g @ F @ g) / float(g @ g))
        d = -torch.linalg.solve(F + lam * torch.eye(len(g), dtype=F.dtype), g)
        length = min(1.0, float((2 * s["delta"] / (d @ F @ d)) ** 0.5))
        assert step() == len(x)
        assert torch.allclose(theta, problem.theta + length * d, rtol=1e-8, atol=1e-10)


def test_one_natural_step_is_least_squares(clock):
    assert clock.least_squares() < 1e-10


def test_features_have_the_condition_number_that_they_are_named_after(models):
    for kappa in (1, 100):
        x, _ = models.synthetic(np.random.default_rng(0), "logistic", kappa, 30_000, 10)
        assert np.linalg.cond(x) == pytest.approx(kappa, rel=0.05)
        assert (x**2).mean() == pytest.approx(1, rel=0.05)


def test_a_trial_is_chosen_for_reaching_on_all_seeds_then_for_its_seconds(clock):
    took = {"never": [None, 1.0], "once": [0.1, None], "slow": [0.5, 0.5], "fast": [0.5, 0.3]}
    plans = {"a": [{"name": name} for name in took], "b": [{"name": "never"}]}
    asked = []

    def attempt(method, settings, seed, cap):
        asked.append((settings["name"], seed, cap))
        return took[settings["name"]][seed], -1.0

    chosen = clock.tune(plans, [0, 1], 9.0, attempt)
    assert chosen["a"]["settings"] == {"name": "fast"} and chosen["a"]["tuned"] == 0.4
    assert (chosen["a"]["reached"], chosen["b"]["reached"], chosen["b"]["tuned"]) == (2, 0, None)
    assert ("never", 1, 9.0) not in asked  # given up after its first seed
    assert ("fast", 0, 1.0) in asked  # twice the slow one's


def invented(natural, rival, trpo, lost=()):
    """Two tasks and one environment: seconds of the fastest loop of each kind; of TRPO, where PG takes 1."""
    base = {"n": 100, "params": 10, "cond": 5.0, "cap": 9.0, "trials_of": 12, "trial": 5, "settings": "rate 1"}
    rows = [{"part": "oracle", "task": "least squares", "kind": "oracle", "error": 1e-15}]
    for task in ("digits", "logistic, κ = 100"):
        kinds = {"natural": natural, "full-batch Adam": 3 * rival, "minibatch Adam": rival, "L-BFGS": 5.0}
        for method, s in kinds.items():
            row = {"part": "model", "task": task, "method": method}
            rows.append(row | base | {"kind": "tuned", "tuned": s, "reached": 3})
            for seed in range(100, 110):
                took = s * (1.05 if (seed if method == "natural" else seed // 2) % 2 else 0.95)
                run = row | {"kind": "run", "seed": seed, "test": 0.3}
                for target in ("loose", "middle", "strict") if (method, seed) not in lost else ():
                    run |= {f"s_{target}": took, f"u_{target}": 4 if method == "natural" else 40, "epochs": 4.0}
                rows.append(run)
    for method, s in (("PG", 1.0), ("TRPO", trpo)):
        row = {"part": "control", "task": "CartPole", "method": method}
        rows.append(row | base | {"kind": "tuned", "tuned": s, "reached": 3, "threshold": 475.0, "cap": 4.0})
        rows += [row | {"kind": "run", "seed": seed, "s_middle": s * (1 + 0.01 * (seed % 5)),
                        "u_middle": 9, "steps": 900, "startup": 0.1} for seed in range(100, 110)]  # fmt: skip
    return rows


def said(page):
    return [(claim.verdict, claim.number) for claim in page.claims]


def test_the_verdict_follows_the_seconds(clock):
    faster, slower = clock.answer(invented(1.0, 4.0, 0.5)), clock.answer(invented(4.0, 1.0, 2.0))
    assert [v for v, _ in said(faster)] == ["true", "false"]
    assert [v for v, _ in said(slower)] == ["true", "true"]
    assert "ahead on 3 of 3 tasks" in said(faster)[1][1] and "behind on 3" in said(slower)[1][1]
    assert "wins by the clock on digits (0.2" in faster.sentence and "loses on" not in faster.sentence
    assert "It loses on digits (4." in slower.sentence and "P(TRPO is faster) 0.00" in slower.sentence
    assert said(clock.answer(invented(1.0, 4.0, 2.0)))[1][0] == "half true"


def test_weak_rivals_alone_would_say_otherwise(clock):
    page = clock.answer(invented(2.0, 1.0, 2.0))  # the full-batch rival takes 3
    assert "it would win on 2 of 2 likelihood models, against all rivals on 0" in page.sentence
    assert page.tables[0].rows[0][4].startswith("2.") and page.tables[0].rows[0][8].startswith("0.6")


def test_nothing_told_apart_is_not_settled(clock):
    assert said(clock.answer(invented(1.0, 1.0, 1.0)))[1][0] == "not settled"


def test_a_run_that_does_not_arrive_makes_a_bound(clock):
    page = clock.answer(invented(1.0, 4.0, 1.0, lost={("minibatch Adam", 100), ("minibatch Adam", 101)}))
    row = page.tables[0].rows[0]
    assert row[4].startswith("≤ 0.2") and row[9] == "10 of 10, 8 of 10" and "*" in row[7]
    page = clock.answer(invented(1.0, 4.0, 1.0, lost={("natural", seed) for seed in range(100, 110)}))
    assert page.tables[0].rows[0][4].startswith("≥ 2") and said(page)[1][0] == "true"
    assert said(page)[0][0] == "not settled" and "–" in page.tables[1].rows[0]
