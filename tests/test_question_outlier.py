"""results/outlier: its experiment against what is known, and its page against data that says the opposite."""

import numpy as np
import pytest
from whole_runs import ROOT


@pytest.fixture
def question(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    import outlier

    return outlier


def test_a_factor_of_one_changes_no_bit_and_another_one_does(question):
    words = ["algo=trpo", "env=CartPole", "num_envs=2", "horizon=32", "total_steps=10_000", "seed=3"]
    with question.Training(*words) as run:
        for _ in range(2):
            question.update(run)
        begun = question.state.of(run)
        on = [question.update(run) for _ in range(3)]
    plain, one, bad = (question.branch(words, begun, factor, 3) for factor in (None, 1.0, 1000.0))
    assert plain[0] == on == one[0] and (plain[1] == one[1]).all()
    assert not (plain[1] == bad[1]).all()
    assert plain[0][0][0] == bad[0][0][0]  # the returns are those that were, not the one that was made up
    assert bad[0][0][1] <= 0.01 * (1 + 1e-6)


def invented(ratios, harm=0.0, over=False):
    """Rows in which a bad update goes `ratios[learner]` times as far, and those with a radius lose `harm`."""
    rng, rows = np.random.default_rng(0), []
    for env in ("CartPole", "Pendulum"):
        for normalized in (True, False):
            for learner, ratio in ratios.items():
                for seed in range(100, 110):
                    lost = harm if learner in ("NPG", "TRPO") else 0.0
                    kl = 0.008 * ratio * (1 + rng.normal() / 99) if not (over and learner == "TRPO") else 0.05
                    rows.append({
                        "env": env, "learner": learner, "normalized": normalized, "seed": seed, "usual": 0.008,
                        "twin": 0.008, "kl": kl, "cosine": 0.1, "unchanged": True, "random": 20.0, "before": 100.0,
                        "first_plain": 200.0, "first_bad": 200.0 - lost + rng.normal(), "second_plain": 300.0,
                        "second_bad": 300.0 + rng.normal(),
                    })  # fmt: skip
    return rows


LESS = {"SGD": 0.05, "Adam": 1.2, "NPG, rate": 0.5, "NPG": 1.1, "TRPO": 1.0}
MORE = {"SGD": 900.0, "Adam": 1.2, "NPG, rate": 500.0, "NPG": 1.1, "TRPO": 1.0}


@pytest.mark.parametrize(("given", "verdicts"), [
    ((LESS,), ["false", "false"]),
    ((MORE,), ["true", "true"]),
    ((MORE | {"Adam": 0.1},), ["true", "half true"]),
    ((MORE, 0.0, True), ["true", "false"]),
    ((MORE, 50.0), ["true", "half true"]),
])  # fmt: skip
def test_other_data_gives_another_verdict(question, given, verdicts):
    rows = invented(*given)
    cells = [question.group(rows, env, normalized, learner) for env in ("CartPole", "Pendulum")
             for normalized in (True, False) for learner in LESS]  # fmt: skip
    over = sum(row["kl"] > 0.01 * (1 + 1e-6) for row in rows if row["learner"] == "TRPO")
    assert [question.drastic(cells)[0], question.protected(cells, over, 40)[0]] == verdicts


def test_the_numbers_on_the_page_are_those_of_the_rows(question):
    answer = question.answer(invented(MORE, 50.0))
    assert "lie below 0" in answer.cannot[0] and "8 of the 20 intervals" in answer.cannot[0]
    assert "SGD on CartPole (normalised) 9" in answer.claims[0].number
    assert "are lower after it in 8 of 8 cells" in answer.claims[1].number
    assert answer.tables[0].rows[4][0] == "TRPO" and answer.tables[0].rows[4][5].startswith("−50 [")
