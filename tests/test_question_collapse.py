"""results/collapse says what its rows say."""

import importlib

import numpy as np
import pytest
from whole_runs import ROOT


@pytest.fixture
def collapse(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    return importlib.import_module("collapse")


def invented(collapse, falls, ends):
    """Rows of one environment: `falls(rule, size)` of ten seeds collapse, each ends at `ends(rule)`."""
    rows = []
    for rule, (_, _, sizes) in collapse.RULES.items():
        for size in map(float, sizes):
            for seed in range(100, 110):
                fell = seed - 100 < falls(rule, size)
                rows.append({
                    "env": "CartPole", "rule": rule, "size": size, "seed": seed, "steps": 60_000, "start": 20.0,
                    "best": 400.0, "end": ends(rule) + seed % 3, "mean": 200.0,
                    "fallen": 300.0 if fell else 20.0, "kl": min(size, 1.0), "kl_max": size, "kl_ratio": 1.0,
                    "stayed": 0.0, "finished": True,
                })  # fmt: skip
    return rows


def verdicts(collapse, falls, ends):
    return [claim.verdict for claim in collapse.answer(invented(collapse, falls, ends)).claims]


def test_direction_counts_where_the_plain_gradient_ends_lower(collapse):
    never = lambda rule, size: 0  # noqa: E731
    assert verdicts(collapse, never, lambda rule: 400 if rule[0] == "F" else 100) == ["false", "true"]
    assert verdicts(collapse, never, lambda rule: 400)[0] == "true"


def test_trpo_prevents_collapse_unless_it_collapses(collapse):
    at_large = lambda rule, size: 8 if size >= 1 else 0  # noqa: E731
    always = lambda rule, size: 5  # noqa: E731
    assert verdicts(collapse, at_large, lambda rule: 400)[1] == "half true"
    assert verdicts(collapse, always, lambda rule: 400)[1] == "false"
    answer = collapse.answer(invented(collapse, at_large, lambda rule: 400))
    assert "1 and 10 in 16 of 20" in answer.claims[1].number
    assert "it is the small step" in answer.claims[1].number


def test_a_collapse_is_half_of_what_was_gained(collapse):
    risen = collapse.rise_and_fall([20, 20, 20, 100, 200, 300, 300, 300, 100, 100, 100])
    assert [risen[key] for key in ("start", "best", "end", "fallen")] == pytest.approx([20, 300, 100, 200])
    assert collapse.fall(risen, 20, 300) == pytest.approx(200 / 280)
    assert collapse.fall(risen, 20, 3000) is None  # it had gained next to nothing
    early = collapse.rise_and_fall([20, 50, 50, 50, 20, 20, 20, 100, 200, 300, 300, 300])
    assert collapse.fall(early, 20, 300) < collapse.HALF  # a wobble on the way is no collapse
    assert collapse.rise_and_fall(list(np.linspace(20, 300, 20)))["fallen"] == 0


def test_radii_that_hold_and_a_model_that_is_right_are_what_the_page_counts(collapse):
    rows = invented(collapse, lambda rule, size: 0, lambda rule: 400)
    assert "in 0 of 50 trainings" in collapse.answer(rows).oracle
    rows[-60]["kl_max"] = 1e9
    assert rows[-60]["rule"].endswith("(TRPO)")
    assert "in 1 of 50 trainings" in collapse.answer(rows).oracle
