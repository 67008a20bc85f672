"""scripts/tune.py: as many trials for each algorithm, chosen on seeds that are not reported."""

import importlib
import itertools

import numpy as np
import pytest
from whole_runs import ROOT

from rl_natgrad import Training
from rl_natgrad.config import compose


@pytest.fixture
def tune(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    return importlib.import_module("tune")


def test_each_algorithm_has_as_many_trials_within_its_ranges(tune):
    for env, algo in itertools.product(("CartPole", "Pendulum"), tune.ALGOS):
        words, (base, _) = tune.settings(env, algo, 24), tune.ALGOS[algo]
        assert len(set(words)) == 24 and words[:5] == tune.settings(env, algo, 5)
        assert all("log_std" in each for each in words) == (env == "Pendulum")
        ends = ([f"{key}={at(u)}" for key, at in tune.knobs(env, algo).items()] for u in (0.0, 1 - 1e-12))
        for each in ends:
            compose.load([*base, *each, f"env={env}"])
    lows, highs = ([at(u) for at in tune.knobs("Pendulum", "ppo").values()] for u in (0.0, 1 - 1e-12))
    assert lows == ["0.0001", "2", "64", "0.05", "32", "0.8", "0.0003", "-2"]
    assert highs == ["0.003", "20", "256", "0.5", "256", "0.995", "0.01", "0.5"]


def test_the_rounds_end_with_the_best_of_all_seeds_seen(tune):
    plan = tune.Plan(trials=4, best=2)
    ends = {  # by trial: of the first round, and of the second; trial 3 fails
        "first": {0: 3.0, 1: 5.0, 2: 4.0, 3: 9.0}, "again": {1: 1.0, 2: 4.0},
    }  # fmt: skip

    def done(jobs):
        failed = lambda job: job["trial"] == 3 and job["seed"] == 1000  # noqa: E731
        return [job | dict.fromkeys(("end", "mean"), None if failed(job) else ends[job["round"]][job["trial"]])
                for job in jobs]  # fmt: skip

    first, again, final = tune.rounds("CartPole", "ppo", plan, done)
    assert [(job["trial"], job["seed"]) for job in first] == list(itertools.product(range(4), (1000,)))
    assert [(job["trial"], job["seed"]) for job in again] == list(itertools.product((1, 2), (1001, 1002, 1003)))
    assert [(job["trial"], job["seed"]) for job in final[:10]] == [(2, seed) for seed in range(100, 110)]
    assert final[0]["settings"] == tune.settings("CartPole", "ppo", 4)[2] and final[0]["steps"] == 100_000
    as_it_comes = [("default", "", seed) for seed in range(100, 110)]
    assert [(job["round"], job["settings"], job["seed"]) for job in final[10:]] == as_it_comes


def test_equal_ends_are_told_apart_by_all_of_training(tune):
    rows = [{"trial": trial, "end": 500.0, "mean": mean} for trial, mean in enumerate((300.0, 400.0, 350.0))]
    assert tune.ranked(rows) == [1, 2, 0]


def test_a_training_is_the_one_that_its_words_say(tune):
    job = {"env": "CartPole", "algo": "pg-steps", "settings": "horizon=16 algo.epochs=2", "seed": 3, "steps": 1500}
    returns, lasts = [], []
    words = ["algo=ppo", "algo.surrogate=none", "horizon=16", "algo.epochs=2", "env=CartPole", "seed=3"]
    with Training(*words, "total_steps=1500") as run:
        while run.step < 1500:
            gathered = run.gather()
            run.learn_from(gathered)
            returns += gathered.rollout.returns
            lasts += gathered.rollout.returns if run.step > 1350 else []
    row = {"end": np.mean(lasts), "mean": np.mean(returns)}
    assert lasts and tune.rows(job | {"round": "first"}) == [pytest.approx(row)]
    (final,) = tune.rows(job | {"round": "final"})
    assert final.pop("curve") and final.pop("clock") and final.pop("updates") == run.update == 13
    assert final == pytest.approx(row)


def test_a_training_that_fails_counts_as_none(tune, monkeypatch):
    monkeypatch.setattr(tune, "updates", lambda *words: iter([(20.0, {"step": 128, "rollout/episodes": 5})]))
    job = {"env": "CartPole", "algo": "pg", "settings": "", "seed": 3, "steps": 5000}
    assert tune.rows(job) == [{"end": None, "mean": None}]


def test_the_page_says_who_is_ahead_and_what_untuned_gives(tune):
    tuning = importlib.import_module("tuning")
    found = []
    for k, algo in enumerate(tune.ALGOS):  # the later, the better, and the less it depends on its settings
        row = {"env": "CartPole", "algo": algo, "steps": 1000, "settings": f"of={algo}"}
        found += [row | {"round": "first", "trial": t, "seed": s, "end": 100.0 * k + 20 * t * (5 - k)}
                  for t in range(5) for s in (1000,)]  # fmt: skip
        curve = {"curve": shared(range(100 * k, 100 * k + 10)), "clock": shared(range(1, 11))}
        winner = row | curve | {"round": "final", "trial": 4, "end": 1.0, "updates": 20}
        found += [winner | {"seed": seed} for seed in range(100, 110)]
        early = winner | {"round": "default", "trial": -1, "curve": shared(range(100 * k - 5, 100 * k + 5))}
        found += [early | {"seed": seed} for seed in range(100, 110)]
    page = tuning.answer(found)
    assert "Not complete: without Acrobot, Pendulum and LunarLander" in page.sentence
    assert "125 trainings" in page.run
    steps, updates, seconds, untuned = page.claims
    assert steps.verdict == updates.verdict == seconds.verdict == "PPO"
    assert "highest on CartPole-v1 (408.6" in steps.number
    assert untuned.verdict == "PPO, TRPO and NPG"  # of 0 to 480, PPO's median is 440
    assert "PPO 0.92 [0.83, 1.00], TRPO 0.79" in untuned.number and "PG 0.42 [0.00, 0.83]." in untuned.number
    (gains,) = (table.rows for table in page.tables if table.title == "What tuning gains")
    assert gains[0][:2] == ["CartPole-v1", "TRPO"] and gains[0][-1] == "1.00 [1.00, 1.00]"
    assert [cell.split()[0] for cell in gains[0][2:6]] == ["304", "309", "300", "304"]
    _, lines = tuning.quartiles({"CartPole": tuning.trials(found, "CartPole")})
    assert lines[-1][1:] == ["PG", "5", "0", "100", "200", "300", "400"]
    failed = [row | {"end": None} if row["algo"] == "pg" and row["trial"] == 4 else row for row in found]
    assert tuning.trials(failed, "CartPole")["PG"].tolist() == [-np.inf, 0, 100, 200, 300]


def shared(numbers):
    return " ".join(map(str, numbers))


@pytest.mark.parametrize("word", ["env=Cartpole", "algo=pgg", "smok=1"])
def test_what_it_does_not_know_is_refused(tune, word, capsys):
    assert tune.main(tune, [word]) == 2 and "CartPole" in capsys.readouterr().err
