"""results/: each committed page is what its committed data says, and its runner loses and repeats nothing."""

import importlib
import re

import pytest
from whole_runs import ROOT

QUESTIONS = ROOT / "scripts" / "questions"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(QUESTIONS)
    return importlib.import_module


def answered():
    """The questions that have data."""
    names = sorted(file.stem for file in QUESTIONS.glob("*.py"))
    return [name for name in names if (ROOT / "results" / name.replace("_", "-") / "data.csv").exists()]


@pytest.mark.parametrize("name", answered())
def test_a_page_is_its_data_and_nothing_else(scripts, name, tmp_path):
    runner, question = scripts("runner"), scripts(name)
    committed = ROOT / "results" / runner.title(question)
    (tmp_path / "data.csv").write_bytes((committed / "data.csv").read_bytes())
    runner.render(question, tmp_path)
    assert (tmp_path / "README.md").read_text() == (committed / "README.md").read_text()
    assert (tmp_path / "figure.png").stat().st_size > 10_000 and (committed / "figure.png").exists()
    assert (committed / "data.csv").stat().st_size < 600_000


@pytest.mark.parametrize("name", answered())
def test_data_is_of_the_jobs_that_the_command_runs(scripts, name):
    runner, question = scripts("runner"), scripts(name)
    rows, _ = runner.from_csv((ROOT / "results" / runner.title(question) / "data.csv").read_text())
    jobs = question.jobs(False)
    keys = list(jobs[0])
    assert {tuple(_same(row.get(key)) for key in keys) for row in rows} == {
        tuple(_same(job.get(key)) for key in keys) for job in jobs
    }
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


@pytest.mark.parametrize("words", [["fast=1"], ["render", "--smoke"]])
def test_a_wrong_word_is_one_line(scripts, capsys, words):
    runner = scripts("runner")
    assert runner.main(scripts("collapse"), words) == 2
    assert re.fullmatch(r"error: expected \[render\].*\n", capsys.readouterr().err)


def test_a_mean_of_three_batches_has_three(scripts):
    smooth = scripts("trainings").smooth
    assert list(smooth([3.0, None, 6.0])) == []
    assert list(smooth([3.0, None, 6.0, 9.0, 0.0])) == pytest.approx([6.0, 5.0])
