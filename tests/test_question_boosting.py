"""scripts/questions/boosting.py: scores, metrics and stages by other means, and a page that says what rows say."""

import math

import numpy as np
import pytest
import torch
from whole_runs import ROOT


@pytest.fixture
def boosting(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    import boosting

    return boosting


def normal(boosting, kind):
    return boosting.LogScore(boosting.DiagGaussian(1)) if kind == "NLL" else boosting.CRPS()


def cdf(z, x):
    return torch.distributions.Normal(z[0], z[1].exp()).cdf(x)


Z = torch.tensor([[0.3, -0.7], [-1.0, 0.4]], dtype=torch.float64)
X = torch.linspace(-15, 15, 60_001, dtype=torch.float64)


def test_the_metric_of_a_normal_is_one_over_the_variance_and_two(boosting):
    sigma = Z[:, 1].exp()
    expected = torch.diag_embed(torch.stack([sigma**-2, torch.full_like(sigma, 2)], -1))
    torch.testing.assert_close(normal(boosting, "NLL").metric(Z), expected)


def test_the_metric_of_a_softmax_is_the_second_derivative_of_its_kl(boosting):
    score = boosting.LogScore(boosting.Categorical(3), fixed=1)
    for z, M in zip(Z, score.metric(Z), strict=True):
        old = torch.distributions.Categorical(logits=torch.cat([z, z.new_zeros(1)]))
        kl = lambda new, old=old: torch.distributions.kl_divergence(  # noqa: E731
            old, torch.distributions.Categorical(logits=torch.cat([new, new.new_zeros(1)]))
        )
        torch.testing.assert_close(M, torch.autograd.functional.hessian(kl, z))


def test_the_crps_is_its_integral(boosting):
    y = torch.tensor([[0.9], [-3.0]], dtype=torch.float64)
    for z, at, found in zip(Z, y, normal(boosting, "CRPS")(Z, y), strict=True):
        integral = torch.trapezoid((cdf(z, X) - (at <= X).double()) ** 2, X)
        assert float(found) == pytest.approx(float(integral), abs=1e-3)  # a step within a cell of 5e-4


def test_the_metric_of_the_crps_is_the_second_derivative_of_its_divergence(boosting):
    for z, M in zip(Z, normal(boosting, "CRPS").metric(Z), strict=True):
        divergence = lambda new, z=z: torch.trapezoid((cdf(new, X) - cdf(z, X)) ** 2, X)  # noqa: E731
        torch.testing.assert_close(M, torch.autograd.functional.hessian(divergence, z), atol=1e-8, rtol=1e-6)


def by_mean(X, target):
    return lambda x: np.full(len(x), target.mean())


def by_least_squares(X, target):
    weights = np.linalg.lstsq(X, target, rcond=None)[0]
    return lambda x: x @ weights


@pytest.mark.parametrize("natural", [True, False])
def test_without_features_boosting_ends_at_maximum_likelihood(boosting, natural):
    y = torch.from_numpy(np.random.default_rng(0).gamma(2, 3, (50, 1)))
    start = torch.tensor([1.0, 1.5], dtype=torch.float64)
    stages = boosting.boost(normal(boosting, "NLL"), natural, 0.5, by_mean, np.zeros((50, 1)), y, start)
    *_, (z,) = (stage for _, stage in zip(range(1000), stages, strict=False))
    assert z[0].tolist() == pytest.approx([y.mean().item(), math.log(y.std(correction=0).item())], abs=1e-5)


@pytest.mark.parametrize("kind", ["NLL", "CRPS"])
def test_the_natural_gradient_does_not_depend_on_units_and_the_ordinary_one_does(boosting, kind):
    rng = np.random.default_rng(0)
    X, unit = rng.normal(size=(40, 2)), 77.0
    y = torch.from_numpy(X @ [1.0, -0.5] + rng.normal(size=40))[:, None]

    def tenth(y, start, natural):
        stages = boosting.boost(normal(boosting, kind), natural, 0.3, by_least_squares, X, y, start)
        return next(z for stage, (z,) in enumerate(stages) if stage == 9)

    start = torch.zeros(2, dtype=torch.float64)
    shift = torch.tensor([5.0, math.log(unit)], dtype=torch.float64)
    scale = torch.tensor([unit, 1.0], dtype=torch.float64)
    for natural in (True, False):
        ours, theirs = tenth(y, start, natural), tenth(5 + unit * y, start + shift, natural)
        assert torch.allclose(ours * scale + shift, theirs, rtol=1e-9, atol=1e-9) == natural


def page(boosting, gaps):
    """The answer for cells (data, score) whose ordinary score is above the natural one by `gaps`, ± 0.01."""
    noise = np.tile([-0.01, 0.01], 25)
    return boosting.answer([
        {"data": data, "score": score, "repeat": i // 5, "fold": i % 5, "constant": 1.5, "truth": None,
         "natural": 1.0, "natural_rate": 0.1, "natural_stages": 20,
         "ordinary": 1.0 + gap + noise[i], "ordinary_rate": 0.03, "ordinary_stages": 60}
        for (data, score), gap in gaps.items() for i in range(50)
    ])  # fmt: skip


CELLS = [("diabetes", "NLL"), ("raw diabetes", "NLL"), ("digits", "softmax")]


@pytest.mark.parametrize(("gaps", "verdicts", "said"), [
    ([0.1, 0.5, 0.2], ["true", "half true"], "scores better on: diabetes NLL (+0.1"),
    ([-0.1, 0.1, -0.2], ["false", "false"], "ordinary one scores better on: diabetes NLL (−0.1"),
    ([0.0, 0.0, 0.0], ["not settled", "false"], "cannot be told apart on: diabetes NLL ("),
    ([0.6, 0.6, 0.6], ["true", "true"], "raw diabetes NLL and digits softmax"),
    ([0.1, 0.1, -0.1], ["half true", "false"], "ordinary one scores better on: digits softmax (−0.1"),
])  # fmt: skip
def test_verdicts_and_numbers_are_those_of_the_rows(boosting, gaps, verdicts, said):
    found = page(boosting, dict(zip(CELLS, gaps, strict=True)))
    assert [claim.verdict for claim in found.claims] == verdicts
    assert said in found.sentence + " ".join(claim.number for claim in found.claims)
    assert [row[0] for row in found.tables[0].rows] == ["diabetes NLL", "raw diabetes NLL", "digits softmax"]
    assert float(found.tables[0].rows[0][3]) == pytest.approx(1.0 + gaps[0], abs=0.01)
