"""results/curvature: what its matrices must agree with, and that its words follow the rows."""

import numpy as np
import pytest
import torch
from whole_runs import ROOT

SIZES = (400, 1_600, 6_400)


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    import curvature

    return curvature


@pytest.fixture
def look(page):
    """What is seen of a classifier of noisy data after one natural step."""

    def see(hidden):
        from functools import partial

        from problems import parted

        rng = np.random.default_rng(0)
        x = rng.normal(size=(150, 3))
        data = parted(x, (x[:, 0] + rng.normal(size=150) > 0).astype(int), hidden, seed=0)
        step = page.trpo(data.problem(), solve=partial(page.cg, **page.CG), **page.STEP)
        data.model.become(step.theta)
        return page.look(data.problem())

    return see


def test_of_logistic_regression_the_fisher_is_the_hessian(look):
    seen = look(())
    assert seen["apart"] < 1e-12 and seen["negative"] == 0 and not seen["left"]
    assert seen["newton_slope"] < 0 and seen["free_natural"] == pytest.approx(1, abs=1e-12)


def test_of_a_network_it_is_the_curvature_of_the_kl_alone(look):
    seen = look((4,))
    assert seen["apart"] > 0.01 and seen["negative"] > 0.05
    assert seen["ggn_error"] < 1e-12 and seen["difference_error"] < 1e-7
    assert seen["free_slope"] < 0 and seen["natural_slope"] < 0


def test_products_and_solves_agree_however_they_are_made(page):
    problem = page.problem_of(4, samples=50)
    found = page.equalities(problem, {name: page.method(problem, name) for name in page.methods(4)})
    assert found["product_error"] < 1e-12 and found["cg_error"] < 1e-8
    H = torch.autograd.functional.hessian(problem.loss, problem.theta)
    Hv = H @ page.direction(problem)
    assert float((page.method(problem, "H·v, autodiff")() - Hv).norm() / Hv.norm()) < 1e-12


def invented(up=False, same=False, hessian=1.5, power=2.0, cg_power=0.5, exact=1e-15):
    """Rows of a world: does Newton go up, does CG on H go the natural way, H·v / F·v, exponents of P."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(100, 105):
        for task, kind in (("cancer, logistic", "nll"), ("cancer, MLP", "nll"), ("CartPole", "rl")):
            for updates in (1, 5):
                flat = task == "cancer, logistic"
                rows.append({
                    "kind": kind, "task": task, "seed": seed, "updates": updates, "negative": 0.0 if flat else 0.4,
                    "apart": 0.0 if flat else 2.0, "alike": 1.0 if flat else 0.3, "left": not flat,
                    "newton_slope": 0.1 if up and not flat else -0.1, "free_slope": -0.5, "natural_slope": -0.7,
                    "free_natural": 1.0 if flat or same else 0.8, "newton_gain": 0.1, "natural_gain": 0.2,
                    "ggn_error": exact, "difference_error": 1e-9,
                })  # fmt: skip
    base = {"gradient, autodiff": 2.0, "F·v, chain rule": 0.5, "F·v, autodiff": 1.0, "H·v, autodiff": hessian}
    for seed in range(5):
        for P in SIZES:
            scale = {"CG, 10 iterations": 5 * (P / 400) ** cg_power, "Cholesky": 9 * (P / 400) ** power}
            ms = {name: t * P / 400 for name, t in base.items()} | scale
            for name, t in ms.items():
                noisy = t * rng.uniform(0.98, 1.02)
                rows.append({"kind": "cost", "seed": seed, "P": P, "method": name, "ms": noisy,
                             "product_error": 1e-15, "cg_error": 1e-9})  # fmt: skip
    return rows + [{"kind": "memory", "P": P, "method": "CG, 10 iterations", "mib": 7.0} for P in SIZES]


def test_the_verdicts_follow_the_rows(page):
    def verdicts(**world):
        return [claim.verdict for claim in page.answer(invented(**world)).claims]

    assert verdicts() == ["half true", "true", "half true"]
    assert verdicts(same=True, hessian=0.7, cg_power=2.0) == ["true", "false", "true"]
    assert verdicts(exact=0.1, hessian=1.0, power=1.0) == ["false", "not settled", "false"]


def test_the_numbers_follow_the_rows(page):
    said = page.answer(invented()).sentence
    assert "*up* in 0 of 20" in said and "40% [40%, 40%] of H's" in said
    turned = page.answer(invented(up=True, hessian=3.0))
    assert "*up* in 20 of 20" in turned.sentence and "cancer, MLP 2.00 [2.00, 2.00] → 2.00" in turned.sentence
    assert "takes 3.0" in turned.claims[1].number or "takes 2.9" in turned.claims[1].number
    assert "P to the 2.0" in turned.claims[2].number and "from P = 400 on" in turned.claims[2].number
