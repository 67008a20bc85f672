"""scripts/questions/denominator.py: its measures by other means, and a page that says what rows say."""

import numpy as np
import pytest
import torch
from scipy import stats
from whole_runs import ROOT

from rl_natgrad.optim.solvers import cg, cholesky


@pytest.fixture
def question(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    import denominator

    return denominator


@pytest.fixture
def softmax(question):
    """A linear softmax model of 3 classes on 40 samples of 4 features: net, θ, x, y, in float64."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=random, dtype=torch.float64)
    y = torch.randint(3, (40,), generator=random)
    net = question.MLP((4, 3), last_gain=1.0)
    return net, torch.randn(net.size, generator=random, dtype=torch.float64), x, y


def log_likelihood(theta, x, y):
    W, b = theta[:12].reshape(3, 4), theta[12:]
    return torch.distributions.Categorical(logits=x @ W.T + b).log_prob(y)


def test_with_one_sample_at_a_time_v_is_the_diagonal_of_the_empirical_fisher(question, softmax):
    net, theta, x, y = softmax
    moments = question.Moments(net.size, betas=(0.9, 1 - 1e-9))  # so long a memory is a plain mean
    for n in range(len(x)):
        moments.add(question.gradient(net, theta, x[n : n + 1], y[n : n + 1]))
    scores = torch.autograd.functional.jacobian(lambda t: log_likelihood(t, x, y), theta)
    torch.testing.assert_close(moments.hat()[1], (scores.T @ scores / len(x)).diagonal(), rtol=1e-6, atol=1e-9)


def test_the_running_means_are_those_of_torch(question):
    gradients = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments, theta = question.Moments(7), torch.nn.Parameter(torch.zeros(7, dtype=torch.float64))
    adam = torch.optim.Adam([theta])
    for g in gradients:
        moments.add(g)
        theta.grad = g.clone()
        adam.step()
    m, v = moments.hat()
    torch.testing.assert_close(m, adam.state[theta]["exp_avg"] / (1 - 0.9**5))
    torch.testing.assert_close(v, adam.state[theta]["exp_avg_sq"] / (1 - 0.999**5))


def test_the_fisher_is_the_second_derivative_of_the_kl(question, softmax):
    net, theta, x, _ = softmax
    at = lambda t: torch.distributions.Categorical(logits=x @ t[:12].reshape(3, 4).T + t[12:])  # noqa: E731
    kl = lambda t: torch.distributions.kl_divergence(at(theta), at(t)).mean()  # noqa: E731
    torch.testing.assert_close(
        question.fisher(net, theta, x).dense(), torch.autograd.functional.hessian(kl, theta), rtol=1e-9, atol=1e-12
    )


def test_cg_to_the_end_is_choleskys_direction(question, softmax):
    net, theta, x, y = softmax
    F, b = question.fisher(net, theta, x), -question.gradient(net, theta, x, y)
    found = cg(F, b, damping=0.01, max_iter=200, tol=1e-13).x
    assert question.cosine(found, cholesky(F, b, damping=0.01, max_gib=1.0).x, F.mv) == pytest.approx(1, abs=1e-9)
    assert question.cosine(b, found, F.mv) < 0.99


def test_rank_correlation_is_scipys_and_that_of_the_diagonal_with_itself_is_one(question, softmax):
    net, theta, x, y = softmax
    F, g = question.fisher(net, theta, x), question.gradient(net, theta, x, y)
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert question.spearman(a, a + b) == pytest.approx(stats.spearmanr(a, a + b).statistic)
    same = question.compared(g, F.dense().diagonal(), g, F, F)
    assert (same["spearman"], same["ratio"]) == pytest.approx((1, 1))


def page(question, spearman, plain, root, returns):
    """The answer for made-up rows: correlations, cosines of −g and −g / √v̂, returns of the three solvers."""
    noise = np.random.default_rng(0).normal(0, 1e-3, 10)
    kinds = [("policy", "CartPole", "TRPO", kind) for kind in ("64", "full")] + [("model", "digits", "64", "64")]
    rows = [
        {"part": part, "case": case, "learner": learner, "seed": 100 + i, "update": 3, "batch": kind,
         "samples": 64, "spearman": spearman + noise[i], "ratio": 0.01, "plain": plain, "diagonal": plain + 0.1,
         "root": root + noise[i], "adam": root}
        for part, case, learner, kind in kinds for i in range(10)
    ]  # fmt: skip
    rows += [
        {"part": "learning", "case": "CartPole", "learner": solver, "seed": 100 + i, "steps": 10,
         "mean": value + noise[i], "end": value}
        for solver, value in zip(question.SOLVERS, returns, strict=True) for i in range(10)
    ]  # fmt: skip
    return question.answer(rows)


@pytest.mark.parametrize(("spearman", "plain", "root", "verdict", "said"), [
    (0.9, 0.6, 0.8, "true", "in 3 of 3 cells, with IQMs from 0.90 to 0.90"),
    (0.9, 0.8, 0.6, "half true", "nearer to CG's direction than it was in 0, further away in 3"),
    (0.1, 0.6, 0.8, "half true", "in 0 of 3 cells"),
    (0.1, 0.8, 0.6, "false", "in 0 of 3 cells"),
    (0.5, 0.7, 0.7, "not settled", "in 0, further away in 0"),
])  # fmt: skip
def test_the_verdict_is_that_of_the_rows(question, spearman, plain, root, verdict, said):
    found = page(question, spearman, plain, root, (10, 20, 30))
    assert found.claims[0].verdict == verdict
    assert said in found.claims[0].number
    assert "v̂ is 0.01 to 0.01 of diag F: its size is another" in found.sentence
    assert "nearer to CG's direction in 3 of 3 cells" in found.sentence


def test_who_learns_more_is_said(question):
    up, down = (page(question, 0.9, 0.6, 0.8, returns) for returns in ((10, 20, 30), (30, 20, 20)))
    assert "diagonal is above identity (P = 1.00" in up.sentence and "cg is above diagonal" in up.sentence
    assert "diagonal is below identity (P = 0.00" in down.sentence
    assert "cg is not told apart from diagonal (P = 0.50" in down.sentence
    assert [line[:3] for line in up.tables[2].rows][2] == ["CartPole", "cg", "30 [30, 30]"]
