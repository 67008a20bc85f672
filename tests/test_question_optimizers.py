"""results/optimizers: its experiment against what is known, and its page against data that says the opposite."""

import re

import numpy as np
import pytest
import yaml
from whole_runs import ROOT


@pytest.fixture
def question(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    import optimizers

    return optimizers


SHORT = ["algo=pg", "env=CartPole", "num_envs=2", "horizon=32", "total_steps=300", "seed=3"]


def kls(question, *words):
    return [log["policy/kl"] for _, log in question.updates(*SHORT, *words)]


def test_momentum_zero_is_sgd_to_the_bit(question):
    plain = kls(question, "optimizer=sgd", "optimizer.lr=0.1")
    assert kls(question, "optimizer=momentum", "optimizer.lr=0.1", "optimizer.momentum=0") == plain
    assert kls(question, "optimizer=momentum", "optimizer.lr=0.1") != plain


def test_adamp_that_never_projects_is_adam(question):
    with question.projections() as tally:
        never = kls(question, "optimizer=adamp", "optimizer.delta=0")
        assert tally[0] > 0 and tally[1] == 0
    assert never == pytest.approx(kls(question, "optimizer=adam", "optimizer.lr=0.005"), rel=1e-3)
    with question.projections() as tally:
        kls(question, "optimizer=adamp", "optimizer.delta=1000")
        assert tally[1] == tally[0] > 0


def test_the_kl_of_sgds_first_update_is_quadratic_in_its_rate(question):
    words = ["optimizer=sgd", "dtype=float64"]
    small, large = (kls(question, *words, f"optimizer.lr={rate}")[0] for rate in (0.01, 0.03))
    rows = [{"env": "CartPole", "method": "sgd", "size": size, "seed": 3, "kl_first": kl}
            for size, kl in ((0.01, small), (0.03, large), (0.1, 1.0))]  # fmt: skip
    assert question.sgd_slope(rows) == pytest.approx(2, abs=0.01)


def test_the_rates_written_down_are_those_of_the_files(question):
    for name, rate in question.DEFAULTS.items():
        group, key = ("algo", "delta") if name == "trpo" else ("optimizer", "lr")
        text = (ROOT / "configs" / group / f"{name}.yaml").read_text()
        assert float(yaml.safe_load(text)[key]) == rate


def test_a_width_is_where_the_line_is_above_nine_tenths(question):
    x = np.array([-2.0, -1.0, 0.0, 1.0])
    assert question.width(x, np.array([0.0, 0.8, 1.0, 0.8])) == (pytest.approx(1.0), False)
    assert question.width(x, np.array([0.0, 0.0, 0.95, 1.0])) == (pytest.approx(1 + 0.05 / 0.95), True)
    assert question.width(x, np.array([1.0, 0.0, 1.0, 0.0])) == (pytest.approx(0.1), True)  # not the other peak


def invented(question, sharp, adagrad_late=0.5, scores=None, eps_loss=0.0):
    """Rows whose scores fall by `sharp` per squared decade from each method's best rate, its fourth."""
    rng, rows = np.random.default_rng(0), []
    for method, (_, _, sizes, envs) in question.methods().items():
        name = method.partition(",")[0]
        height = 300 * (scores or {}).get(name, 1.0) - (eps_loss if "ε" in method else 0)
        centre = np.log10(sizes[len(sizes) // 2])
        for env in envs:
            for size in sizes:
                off = np.log10(size) - centre
                mean = 20 + height * max(0.0, 1 - sharp * off**2)
                late = adagrad_late if method == "adagrad" else 1.0
                rows += [{
                    "env": env, "method": method, "size": size, "steps": 60_000, "seeds": 10, "seed": seed,
                    "failed": False, "start": 20.0, "mean": mean + rng.normal(), "end": mean + rng.normal(),
                    "kl": 0.01 * 100**off, "kl_first": size**2, "kl_early": 0.01,
                    "kl_late": 0.01 * late * (1 + rng.normal() / 99),
                    "projected": 0.25 if method == "adamp" else None,
                } for seed in range(100, 110)]  # fmt: skip
    return rows


def test_other_data_gives_another_verdict(question):
    answer = question.answer(invented(question, 4.0, 0.01, {"adagrad": 0.5, "radam": 1.1, "adamp": 1.1}, 100.0))
    assert [claim.verdict for claim in answer.claims] == ["true", "true", "false", "true", "true"]
    assert "and behind at the end) on CartPole." in answer.claims[1].number
    assert "the best optimizer is RAdam" in answer.sentence or "the best optimizer is AdamP" in answer.sentence
    assert "to the power 2.00" in answer.oracle and "projects 25.0%" in answer.oracle
    answer = question.answer(invented(question, 0.1, 1.0, {"radam": 0.8, "adamp": 0.8}))
    assert [claim.verdict for claim in answer.claims][:3] == ["false", "false", "true"]
    assert answer.claims[4].verdict == "false" and "worse in 2" in answer.claims[4].number
    (decades,) = re.findall(r"(\d\.\d\d) decades of its rate on CartPole", answer.claims[0].number)
    assert float(decades) == pytest.approx(2, abs=0.05)
