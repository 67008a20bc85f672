"""results/which-fisher: what its estimates must agree with, and that its words follow the rows."""

import numpy as np
import pytest
import torch
from whole_runs import ROOT


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    import which_fisher

    return which_fisher


@pytest.fixture(params=["classes", "numbers"])
def problem(page, request):
    """A network on made-up data, away from its uniform start."""
    from problems import parted

    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(60, 3)), rng.normal(size=60)
    y = np.digitize(x[:, 0] + noise, [-0.5, 0.5]) if request.param == "classes" else x[:, 0] + noise
    data = parted(x, y, (3,), seed=0)
    data.model.become(data.model.theta + 0.5 * torch.from_numpy(rng.normal(size=len(data.model.theta))))
    return data.problem()


def moment(page, problem, kind, rows=None, seed=0):
    rows = torch.arange(len(problem.lin.z)) if rows is None else rows
    rng = np.random.default_rng(seed)
    return page.second_moment(page.factor(kind, problem, problem.lin.jacobian(), rows, rng))


def test_the_exact_expectation_of_score_products_is_the_true_fisher(page, problem):
    F = problem.fisher().dense()
    assert page.apart(page.summed(problem, problem.lin.jacobian()), F) < 1e-12
    assert page.apart(moment(page, problem, "true"), F) < 1e-12
    hessian = torch.autograd.functional.hessian(problem.kl, problem.theta)
    assert page.apart(hessian, F) < 1e-12


def test_the_empirical_one_is_made_of_the_gradients_of_single_samples(page, problem):
    def log_prob(theta):
        return problem.model.head.log_prob(problem.model.forward(theta, problem.batch.obs), problem.batch.action)

    single = torch.autograd.functional.jacobian(log_prob, problem.theta)
    by_hand = torch.stack([torch.outer(g, g) for g in single]).mean(0)
    assert page.apart(moment(page, problem, "empirical"), by_hand) < 1e-12
    assert page.apart(by_hand, problem.fisher().dense()) > 0.05


def test_sampled_labels_converge_as_one_over_the_root_of_their_number(page, problem):
    F, rng = problem.fisher().dense(), np.random.default_rng(0)
    sizes, errors = (100, 1_600, 25_600), []
    for N in sizes:
        drawn = [torch.from_numpy(rng.integers(len(problem.lin.z), size=N)) for _ in range(20)]
        found = [moment(page, problem, "sampled", rows, seed) for seed, rows in enumerate(drawn)]
        errors.append(page.rms([page.apart(one, F) for one in found]))
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(-0.5, abs=0.06)


def invented(empirical=0.3, sampled=0.2, policy=0.0, cosine=0.99, slope=-0.5, exact=1e-15):
    """Rows of a world: training NLL by Fisher (true: 0.1), what a policy loses, F-cosine, slope, identity."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(100, 110):
        for kind, task in (("nll", "cancer, logistic"), ("rl", "CartPole")):
            for k in (1, 5):
                look = {"kind": kind, "task": task, "seed": seed, "updates": k}
                for name in ("true", "sampled", "empirical", *(["A²-weighted"] if kind == "rl" else [])):
                    error = {f"error_{N}": (N / 64) ** slope for N in (64, 256, 1024)}
                    direction = {"cosine": cosine if name == "empirical" else 1.0, "kl_ratio": 5.0}
                    exactly = {"sum_error": exact, "kl_error": 1e-15}
                    rows.append(look | {"fisher": name} | error | direction | exactly)
                rows.append(look | {"fisher": "none", "cosine": 0.7, "sum_error": None})
        for rule in ("KL radius", "fixed rate"):
            for name, loss in (("true", 0.1), ("sampled", sampled), ("empirical", empirical)):
                fit = {"kind": "fit", "task": "cancer, logistic", "seed": seed, "rule": rule, "fisher": name}
                rows.append(fit | {"train": loss * rng.uniform(0.9, 1.1), "edge": False, "fell": 4, "test": 0.5})
        for name, mean in (("true", 100.0), ("empirical", 100.0 - policy)):
            found = mean + 5 * ((7 * seed) % 10) / 10
            learn = {"kind": "learn", "task": "CartPole", "seed": seed, "fisher": name, "steps": 10}
            rows.append(learn | {"end": found, "mean": found})
    return rows


def test_the_verdicts_follow_the_rows(page):
    def verdicts(**world):
        return [claim.verdict for claim in page.answer(invented(**world)).claims]

    assert verdicts() == ["true", "true", "true"]
    assert verdicts(sampled=0.4, cosine=0.5) == ["true", "half true", "half true"]
    assert verdicts(empirical=0.05, exact=0.1, policy=50.0) == ["false", "false", "false"]
    assert verdicts(slope=-0.1)[0] == "not settled"


def test_the_numbers_follow_the_rows(page):
    said = page.answer(invented())
    assert "0.99 to 0.99 to the true one's" in said.sentence and "5 times what it predicts" in said.sentence
    assert "on 1 of 1 data sets at a fixed rate and on 1" in said.claims[1].number
    assert "N to the −0.50" in said.claims[0].number and "CartPole 0.50" in said.claims[2].number
    turned = page.answer(invented(empirical=0.05, policy=50.0, cosine=0.5))
    assert "on 0 of 1 data sets" in turned.claims[1].number
    assert "CartPole 0.00 [0.00, 0.00]" in turned.claims[2].number
    assert "0.50 to 0.50 to the true one's" in turned.sentence
