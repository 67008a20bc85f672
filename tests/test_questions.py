"""results/: each committed page is what its committed data says, and its runner loses and repeats nothing."""

import importlib
import re
import types

import numpy as np
import pytest
from whole_runs import ROOT

from rl_natgrad import Training

QUESTIONS = ROOT / "scripts" / "questions"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.syspath_prepend(QUESTIONS)
    return importlib.import_module


def answered():
    """The questions that have data."""
    folders = {file.stem: file.stem.replace("_", "-").rstrip("-") for file in sorted(QUESTIONS.glob("*.py"))}
    return [name for name, folder in folders.items() if (ROOT / "results" / folder / "data.csv").exists()]


@pytest.mark.parametrize("name", answered())
def test_a_page_is_its_data_and_nothing_else(scripts, name, tmp_path):
    runner, question = scripts("runner"), scripts(name)
    committed = ROOT / "results" / runner.title(question)
    (tmp_path / "data.csv").write_bytes((committed / "data.csv").read_bytes())
    runner.render(question, tmp_path)
    assert (tmp_path / "README.md").read_text() == (committed / "README.md").read_text()
    assert (tmp_path / "figure.png").stat().st_size > 10_000 and (committed / "figure.png").exists()
    assert (committed / "data.csv").stat().st_size < 700_000


@pytest.mark.parametrize("name", [name for name in answered() if name != "tuning"])  # whose jobs depend on results
def test_data_is_of_the_jobs_that_the_command_runs(scripts, name):
    runner, question = scripts("runner"), scripts(name)
    rows, _ = runner.from_csv((ROOT / "results" / runner.title(question) / "data.csv").read_text())
    jobs = question.jobs(False)
    keys = list(jobs[0])
    there = {tuple(_same(row.get(key)) for key in keys) for row in rows}
    wanted = {tuple(_same(job.get(key)) for key in keys) for job in jobs}
    assert there == wanted or (getattr(question, "OPEN", False) and there < wanted)
    assert 1 <= len(question.jobs(True)) <= len(jobs)


def _same(cell):
    try:
        return float(f"{float(cell):.6g}")
    except (TypeError, ValueError):
        return cell or None


def test_the_index_is_the_pages(scripts):
    index = scripts("index")
    assert f"{index.BEGIN}{index.table()}{index.END}" in (ROOT / "results" / "README.md").read_text()


@pytest.mark.parametrize("file, mark, most", [("README.md", "claims", 12), ("results/README.md", "guide", 40)])
def test_figures_that_are_told_are_on_the_pages(file, mark, most):
    told = (ROOT / file).read_text().split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0]
    assert 0 < len(told.strip().splitlines()) <= most
    pages = {page.parent.name: page.read_text() for page in (ROOT / "results").glob("*/README.md")}
    for part in re.split(r"\n- ", told):
        names = [name for name in re.findall(r"([\w-]+)/README\.md\)", part) if name in pages]
        there = "".join(pages[name] for name in names or pages)
        for number in re.findall(r"[−\d][\d,.e+]*\d", part):
            assert number in there, f"{file} says {number}, which is not on {' or '.join(names) or 'any page'}"


def doubling(job):
    with open(job["log"], "a") as file:
        file.write(f"{job['n']}\n")
    return [{"twice": 2 * job["n"], "half": job["n"] / 2, "none": None, "word": "a, b"}]


class Doubling:
    rows = staticmethod(doubling)


@pytest.fixture
def jobs(tmp_path):
    return [{"n": n, "log": str(tmp_path / "log")} for n in range(5)]


def test_what_is_done_is_not_done_again(scripts, jobs, tmp_path):
    runner, kept = scripts("runner"), tmp_path / "kept.jsonl"
    assert runner.work(Doubling, jobs[:3], kept, 2) == 0
    with kept.open("a") as file:
        file.write('{"job": {"n": 3')  # as a kill leaves it
    assert runner.work(Doubling, jobs, kept, 2) == 0
    assert sorted((tmp_path / "log").read_text().split()) == list("01234")
    rows, about = runner.collected(jobs, kept)
    assert [row["twice"] for row in rows] == [0, 2, 4, 6, 8]
    again, read = runner.from_csv(runner.to_csv(rows, about))
    assert again == rows and read == about and about.startswith("5 jobs")


def test_a_job_that_fails_takes_no_other_with_it(scripts, jobs, tmp_path, capsys):
    runner, kept = scripts("runner"), tmp_path / "kept.jsonl"
    broken = {"n": 9}  # no log to write to
    assert runner.work(Doubling, [jobs[0], broken, jobs[1]], kept, 1) == 1
    assert 'error: {"n": 9}: KeyError(' in capsys.readouterr().err
    assert len(kept.read_text().splitlines()) == 2


@pytest.fixture
def pages(scripts, jobs, tmp_path, monkeypatch):
    """A question with these jobs, and what its page was last made of."""
    runner, made = scripts("runner"), []
    question = types.SimpleNamespace(__file__="doubling_.py", rows=doubling, jobs=lambda smoke: jobs, OPEN=True)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    read = lambda _, out: made.append(runner.from_csv((out / "data.csv").read_text())[0])  # noqa: E731
    monkeypatch.setattr(runner, "render", read)

    def run(*words):
        return runner.main(question, words), [row["n"] for row in made[-1]] if made else None

    return run, question


def test_an_open_page_is_of_what_is_there(pages, jobs, tmp_path, capsys):
    run, question = pages
    assert run("jobs=0") == (1, None) and "5 of 5 jobs are not in" in capsys.readouterr().err
    (broken := dict(jobs[3])).pop("log")
    question.jobs = lambda smoke: [*jobs[:3], broken]
    assert run("jobs=1") == (1, [0, 1, 2])
    question.jobs = lambda smoke: jobs
    assert run("jobs=0") == (0, [0, 1, 2]) and (tmp_path / "results" / "doubling" / "data.csv").exists()
    assert run("jobs=1", "only=4") == (0, [0, 1, 2, 4])
    assert run("jobs=2") == (0, [0, 1, 2, 3, 4])
    assert sorted((tmp_path / "log").read_text().split()) == list("01234")


def test_a_new_checkout_goes_on_from_an_open_pages_data(pages, jobs, tmp_path):
    run, _ = pages
    kept, data = tmp_path / "runs/questions/doubling.jsonl", tmp_path / "results/doubling/data.csv"
    run("jobs=1", "only=4"), run("jobs=1", "only=2")
    _, *before = data.read_text().splitlines()
    kept.unlink()
    assert run("jobs=0") == (0, [2, 4])
    about, *after = data.read_text().splitlines()
    assert after == before and about.startswith("# 2 jobs, ") and " or " not in about
    kept.unlink()
    assert run("jobs=1") == (0, [0, 1, 2, 3, 4])
    assert (tmp_path / "log").read_text().split() == list("42013")
    kept.unlink()  # complete: the command makes it anew
    assert run("jobs=1") == (0, [0, 1, 2, 3, 4])
    assert (tmp_path / "log").read_text().split() == list("4201301234")


def test_rows_that_say_nothing_yet_are_kept_and_leave_the_page(scripts, jobs, tmp_path, capsys, monkeypatch):
    runner, page = scripts("runner"), tmp_path / "results/doubling/README.md"
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    page.parent.mkdir(parents=True)
    page.write_text("as it was")

    def nothing(rows):
        raise runner.NoPage(f"{len(rows)} are too few")

    question = types.SimpleNamespace(__file__="doubling_.py", rows=doubling, jobs=lambda smoke: jobs, OPEN=True)
    question.answer = nothing
    assert runner.main(question, ["jobs=1", "only=4"]) == 1
    assert capsys.readouterr().err == "error: no page yet: 1 are too few\n" and page.read_text() == "as it was"
    assert len(runner.read(tmp_path / "runs/questions/doubling.jsonl")) == 1


def test_a_page_that_is_not_open_waits_for_all(pages, jobs, capsys):
    run, question = pages
    question.OPEN = False
    run("jobs=1")
    question.jobs = lambda smoke: [*jobs, {"n": 7, "log": jobs[0]["log"]}]
    assert run("jobs=0")[0] == 1 and "1 of 6 jobs are not in" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["fast=1"], ["render", "--smoke"]])
def test_a_wrong_word_is_one_line(scripts, capsys, words):
    runner = scripts("runner")
    assert runner.main(scripts("collapse"), words) == 2
    assert re.fullmatch(r"error: expected \[render\].*\n", capsys.readouterr().err)


def test_a_mean_of_three_batches_has_three(scripts):
    smooth = scripts("trainings").smooth
    assert list(smooth([3.0, None, 6.0])) == []
    assert list(smooth([3.0, None, 6.0, 9.0, 0.0])) == pytest.approx([6.0, 5.0])


def test_a_curve_is_its_episodes_by_shares_of_the_steps(scripts):
    trainings = scripts("trainings")
    ended = [(10, 1.0), (10, 3.0), (30, 5.0), (44, 9.0)]  # the last update ends after the 40 steps asked for
    cells = trainings.shares(ended, [(10, 1.0), (30, 5.0), (44, 8.5)], 40, 4)
    assert cells == {"curve": "2 nan 5 9", "clock": "1 3 5 7.5"}
    run = trainings.as_run(cells | {"env": "CartPole", "algo": "pg", "seed": 3, "steps": 40})
    assert (list(run.y), list(run.x["steps"]), list(run.x["seconds"])) == ([2, 5, 9], [10, 30, 40], [1, 5, 7.5])


def test_a_curve_is_the_training_that_its_words_say(scripts):
    trainings, words, returns = scripts("trainings"), ["algo=pg", "env=CartPole", "horizon=16", "seed=3"], []
    with Training(*words, "total_steps=600") as run:
        while run.step < 600:
            gathered = run.gather()
            run.learn_from(gathered)
            returns += gathered.rollout.returns
        greedy = run.evaluate()["eval/return"]
    found = trainings.curve(words, 600, 1)
    assert float(found["curve"]) == pytest.approx(np.mean(returns), rel=1e-4) and found["greedy"] == greedy
