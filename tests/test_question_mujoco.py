"""results/mujoco and results/ppo say what their rows say, and how many of these there are."""

import importlib

import numpy as np
import pytest
from whole_runs import ROOT

from rl_natgrad.config import compose


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "questions")
    return importlib.import_module


def invented(jobs, end):
    """Rows of made-up runs of these jobs, with straight curves up to end(job)."""
    def cell(low, high):
        return " ".join(f"{x:.5g}" for x in np.linspace(low, high, 50))

    clock = [job | {"timed": algo, "clock": 10 * n} for job in jobs if job["algo"] == "clock"
             for n, algo in enumerate(("trpo", "ppo", "npg", "pg"), 1)]  # fmt: skip
    return clock + [job | {"curve": cell(-end(job), end(job)), "clock": cell(1, 100), "greedy": end(job)}
                    for job in jobs if job["algo"] != "clock"]  # fmt: skip


def level(jobs, end):
    """The same with curves that stay at end(job)."""
    return [row | {"curve": " ".join([f"{row['greedy']}"] * 50)} for row in invented(jobs, end)]


def cell(answer, title, row, column):
    (found,) = [table for table in answer.tables if table.title == title]
    (line,) = [line for line in found.rows if line[0] == row]
    return line[list(found.header).index(column)]


def test_one_setting_for_all_six_which_comes_with_the_environments(scripts):
    question = scripts("mujoco_")
    for algo, words in question.SETTINGS.items():
        trees = []
        for env in question.ENVS:
            cfg = compose.load([*words.split(), f"env={env}"])
            assert cfg == compose.load([f"algo={algo}", f"env={env}", "env.backend=sync"])
            trees.append(cfg.tree())
            assert trees[-1]["env"].pop("id") == f"{env}-v5"
        assert trees == [trees[0]] * 6
    assert len(question.jobs(True)) == 10
    clock, jobs = question.jobs(False)[:CLOCK], question.jobs(False)[CLOCK:]
    assert {job["algo"] for job in clock} == {"clock"} and {job["seed"] for job in jobs[:24]} == {100}
    reported = [job for job in jobs if job["algo"] in question.SETTINGS]
    assert reported == jobs[:240] and {job["seed"] for job in reported} == set(range(100, 110))
    assert len({(job["env"], job["algo"]) for job in jobs[:24]}) == 24


CLOCK = 18  # jobs, the first: three rounds of six tasks
VERDICTS = {15: ["not settled"] * 4, 240: ["half true", "true", "TRPO", "TRPO"]}


@pytest.mark.parametrize("count, verdicts", VERDICTS.items())
def test_a_page_of_what_there_is_says_how_much(scripts, count, verdicts, tmp_path):
    question = scripts("mujoco_")
    ends, low = {"trpo": 4600, "ppo": 3000, "npg": 2000, "pg": 1000}, {"Hopper": 0.4}
    jobs = question.jobs(False)[: CLOCK + count]
    rows = invented(jobs, lambda job: ends[job["algo"]] * low.get(job["env"], 1))
    for row in rows:
        row["greedy"] = 4600
    answer = question.answer(rows)
    assert [claim.verdict for claim in answer.claims] == verdicts
    assert ("Not complete: 15 of 240" in answer.sentence) == (count == 15)
    assert "after 1,000,000 steps" in answer.question and f"{count} trainings of 1,000,000 steps" in answer.run
    n = cell(answer, "At equal environment steps", "HalfCheetah-v5", "n")
    assert n == ("1" if count == 15 else "10")
    score = 4600 * (2 * 46.5 / 49 - 1)  # the mean of the last tenth: a line's value at its middle
    assert cell(answer, "Beside other libraries", "HalfCheetah-v5", "measured: ours").startswith(f"{score:,.0f} [")
    assert cell(answer, "Beside other libraries", "Ant-v5", "sb3-contrib, published") == "3,554"
    assert cell(answer, "What a second does", "Hopper-v5", "TRPO") == "9.8"
    assert cell(answer, "What a second does", "Hopper-v5", "PG") == "2.5"
    answer.draw(tmp_path / "figure.png")


def test_a_clock_alone_makes_no_page(scripts):
    question = scripts("mujoco_")
    with pytest.raises(scripts("runner").NoPage, match="seeds 100 to 109"):
        question.answer(invented(question.jobs(False)[:CLOCK], lambda job: 1))


def test_what_was_tried_is_apart_from_what_is_reported(scripts):
    question = scripts("mujoco_")
    jobs = question.jobs(False)
    assert {job["seed"] for job in jobs if job["algo"] == "tried"} == {1001, 1002, 1003, 1004}
    ends = {"trpo": 500, "own": 5000}
    answer = question.answer(invented(jobs, lambda job: ends.get(job["algo"], job["seed"])))
    (tried,) = [table.rows for table in answer.tables if table.title == "What was tried"]
    assert ["Walker2d-v5", "`algo.lam=0.97`", "899", "1,002", "2"] in tried  # 1001.5 × 44/49
    assert ["Swimmer-v5", "`algo.gamma=0.999`", "900", "1,002", "4"] in tried
    assert cell(answer, "With a setting of its own", "Swimmer-v5", "n") == "10"
    (own,) = [table.rows for table in answer.tables if table.title == "With a setting of its own"]
    assert own[0][4:] == ["500 [500, 500]", "4,490 [4,490, 4,490]", "5,000 [5,000, 5,000]", "359"]
    assert "240 trainings" in answer.run and "Not complete" not in answer.sentence


def test_equally_many_settings_of_each_are_chosen_from_on_other_seeds(scripts):
    question = scripts("mujoco_")
    jobs = [job for job in question.jobs(False) if job["algo"] == "choice"]
    assert {job["seed"] for job in jobs} <= {1001, 1002} and {job["env"] for job in jobs} == set(question.CHOOSING)
    assert {len(those) for those in question.CANDIDATES.values()} == {6}
    ends = {"HalfCheetah": 3295, "Hopper": 2 * 1932, "Walker2d": 0}  # the better library's, twice that, nothing
    answer = question.answer(invented(question.jobs(False), lambda job: ends.get(job["env"], 1)))
    (rows,) = [table.rows for table in answer.tables if table.title == "How the settings were chosen"]
    assert [row[0] for row in rows[:18]] == [name for name in ("PPO", "NPG", "PG") for _ in range(6)]
    assert [row[0] for row in rows[18:]] == ["TRPO"] * 3
    assert {row[5] for row in rows} == {"0.90"}  # of a straight line the last tenth's mean is 44/49 of its end
    assert rows[0][:5] == ["PPO", "as it began", "2,959", "3,470", "0"]


def test_a_task_that_is_behind_is_not_reached(scripts):
    question = scripts("mujoco_")
    rows = invented(question.jobs(False), lambda job: 3000 + (job["seed"] == 109) * 1900)
    answer = question.answer(rows)
    assert cell(answer, "The lowest and the highest run", "Ant-v5", "NPG") == "2,694 to 4,400"  # × 44/49
    assert answer.claims[1].verdict == "half true"
    assert question.answer(invented(question.jobs(False), lambda job: 10)).claims[0].verdict == "false"


@pytest.mark.parametrize("theirs, verdict", [(100.0, "true"), (150.0, "false")])
def test_the_lower_end_decides(scripts, theirs, verdict, tmp_path):
    question = scripts("ppo")
    answer = question.answer(level(question.jobs(False), lambda job: theirs if job["algo"] == "sb3" else 100.0))
    assert [claim.verdict for claim in answer.claims] == [verdict, "false"]
    said = {"true": "+0 [+0, +0]", "false": "−33.3 [−33.3, −33.3]"}
    assert cell(answer, "Return", "Hopper-v5", "in %") == said[verdict]
    rising = [row | {"curve": "0 " * 25 + "100 " * 25} if row["algo"] == "ours" else row
              for row in level(question.jobs(False), lambda job: 100.0)]  # fmt: skip
    early = question.answer(rising)
    assert cell(early, "Return", "Hopper-v5", "in %") == "+0 [+0, +0]"
    told = cell(early, "Return", "Hopper-v5", "over the whole training, in %")
    assert told == "−50 [−50, −50]"
    held = question.answer(level(question.jobs(False), lambda job: 50.0 if job["algo"] == "held" else 100.0))
    assert cell(held, "Return", "Hopper-v5", "in %") == "+0 [+0, +0]"
    assert cell(held, "Return where the KL holds back as well", "Hopper-v5", "in %") == "−50 [−50, −50]"
    wide = question.answer(level(question.jobs(False), lambda job: 40.0 + 120 * (job["seed"] % 2)))
    assert wide.claims[0].verdict == "not settled"  # seeds that end at 40 or at 160, of both
    shown = "Seeds and what they can show"
    assert cell(wide, shown, "Hopper-v5", "deviation of sb3's runs") == "63 %"  # 0.6 √(10/9)
    assert cell(wide, shown, "Hopper-v5", "seeds needed") == "628"  # 2 (2.8016 · 0.632 / 0.1)²
    assert float(cell(wide, shown, "Hopper-v5", "sb3 against itself").split()[0]) < 40
    assert cell(answer, shown, "Hopper-v5", "sb3 against itself") == "100 %"
    behind = [job for job in question.jobs(False) if job["env"] == "Hopper-v5"]
    for seeds, told in ((4, "not settled"), (5, "half true")):  # the other tasks are not there
        some = question.answer(level(behind[: 2 * seeds], lambda job: 50.0 if job["algo"] == "ours" else 100.0))
        assert some.claims[0].verdict == told
        assert cell(some, "Return", "Hopper-v5", "in %") == ("−50" if seeds < 5 else "−50 [−50, −50]")
    part = question.answer(level(question.jobs(False)[:4], lambda job: 100.0))
    assert {claim.verdict for claim in part.claims} == {"not settled"} and "4 of 85" in part.sentence
    part.draw(tmp_path / "figure.png")
    alone = question.answer(level(question.jobs(False)[:1], lambda job: 100.0))
    assert {claim.verdict for claim in alone.claims} == {"not settled"}
    alone.draw(tmp_path / "figure.png")


def test_the_zoos_settings_are_words(scripts):
    question = scripts("ppo")
    for env, zoo in question.TASKS.items():
        cfg = compose.load([*question.words(env), f"total_steps={zoo.steps}"])
        assert cfg.num_envs * cfg.horizon % zoo.minibatch == 0 and cfg.algo.minibatch == zoo.minibatch
        assert cfg.env.normalize_obs == zoo.normalize == (zoo.log_std is not None)
    for env, kl in question.HELD.items():
        assert compose.load(question.words(env, held=True)).algo.target_kl == kl
