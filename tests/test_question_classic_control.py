"""results/classic-control says what its rows say, whatever they say."""

import importlib
import re

import numpy as np
import pytest
from fake_runs import learning_curve
from whole_runs import ROOT

SEEDS = 6
ENDS = {"pg": 200.0, "npg": 300.0, "trpo": 450.0}
SETTINGS = {"delta": 0.01, "damping": 0.1, "lr": 0.005, "gamma": 0.99, "lam": 0.95, "num_envs": 8, "horizon": 256}


@pytest.fixture
def question(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    return importlib.import_module("classic_control")


def invented(ends, updates=40, steps_per_update=100):
    """Rows of made-up runs: environment → algorithm → where its curves end."""
    rng, rows = np.random.default_rng(0), []
    for env, algos in ends.items():
        for algo, end in algos.items():
            for seed in range(SEEDS):
                job = {"env": env, "algo": algo, "seed": seed, "steps": updates * steps_per_update}
                rows.append(job | SETTINGS | {"collecting": 0.5, "step": None})
                for n, value in enumerate(learning_curve(updates, end + rng.normal(0, 3), rng), 1):
                    point = {"step": n * steps_per_update, "update": n, "seconds": n * 0.5, "return": value}
                    rows.append(job | dict.fromkeys([*SETTINGS, "collecting"]) | point)
    return rows


def table(answer, title):
    (found,) = [table for table in answer.tables if table.title == title]
    return [dict(zip(found.header, row, strict=True)) for row in found.rows]


def test_the_verdict_follows_the_numbers(question):
    swapped = {"pg": 450.0, "npg": 300.0, "trpo": 200.0}
    for claim in question.answer(invented({"CartPole-v1": ENDS, "Acrobot-v1": swapped})).claims:
        assert claim.verdict == "it depends on the task"
        assert re.search(r"TRPO ends highest on CartPole-v1 \(4\d\d\.\d \[4\d\d\.\d, 4\d\d\.\d\]\)", claim.number)
        assert re.search(r"PG ends highest on Acrobot-v1 \(4\d\d\.\d \[", claim.number)


def test_what_cannot_be_told_apart_is_said_so(question):
    ends = {"CartPole-v1": ENDS | {"npg": 450.0}, "Acrobot-v1": dict.fromkeys(ENDS, -300.0)}
    said = question.answer(invented(ends)).claims[0].number
    assert re.search(r"(TRPO|NPG) ends highest on CartPole-v1 \(.*?\), not told apart from (NPG|TRPO)", said)
    assert re.search(r"TRPO, NPG and PG cannot be told apart on Acrobot-v1 \(−\d", said)


def test_the_tables_are_the_rows(question):
    rows = invented({"CartPole-v1": ENDS})
    answer = question.answer(rows)
    (row,) = table(answer, "At equal environment steps")
    assert (row["environment"], row["n"], row["environment steps"]) == ("CartPole-v1", "6", "3,610 to 4,000")
    for algo in ENDS:
        finals = []
        for seed in range(SEEDS):
            y = [r["return"] for r in rows if (r["algo"], r["seed"]) == (algo, seed) and r["step"]]
            finals.append(np.interp(np.linspace(3610, 4000, 100_001), np.arange(100, 4001, 100), y).mean())
        assert row[question.NAMES[algo]].startswith(f"{np.mean(sorted(finals)[1:-1]):.1f} [")  # a quarter is cut
    assert chances(answer)["TRPO > PG"] == "1.00 [1.00, 1.00]"
    (costs,) = table(answer, "What an update costs")
    assert costs == {"environment": "CartPole-v1"} | dict.fromkeys(question.NAMES.values(), "–") | dict.fromkeys(
        ("TRPO", "NPG", "PG"), "0.500")
    assert "δ = 0.01, damping 0.1, Adam at 0.005" in answer.run


def chances(answer):
    rows = table(answer, "Which run ends higher, at equal steps")
    return {row["P(A > B) [95 %]"]: row["CartPole-v1"] for row in rows}


def test_chances_are_turned_the_right_way_round(question):
    answer = question.answer(invented({"CartPole-v1": {"pg": 450.0, "npg": 300.0, "trpo": 200.0}}))
    assert chances(answer) == dict.fromkeys(("TRPO > PG", "NPG > PG", "TRPO > NPG"), "0.00 [0.00, 0.00]")


def test_a_threshold_that_is_not_reached_is_not_a_number(question):
    rows = table(question.answer(invented({"CartPole-v1": ENDS})), "How soon the environment counts as solved")
    reached = {row["algorithm"]: (row["environment steps"], row["seeds that reach it"]) for row in rows}
    assert reached["PG"] == ("not reached", "0 of 6")
    assert rows[0]["threshold"] == "475"
