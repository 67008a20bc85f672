"""Sweeps: their folders, experiments and tables, and whole ones, of which one job does nothing to the others."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import sys
from pathlib import Path

import pytest
import whole_runs
from sweeps import PROBE, TESTS, job, report, start, sweep
from whole_runs import facts, reached, wait_until

from rl_natgrad.config import command as cli
from rl_natgrad.config import compose
from rl_natgrad.config.experiment import unfold
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.run import folder
from rl_natgrad.sweep import run as sweep_run
from rl_natgrad.sweep import table
from rl_natgrad.sweep.job import Job
from rl_natgrad.sweep.plan import Listed


def family(mark: str) -> list[str]:
    """All that descends from a process started with MARK=<mark> in its environment (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"MARK={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


# folders


def _make(barrier, runs, found):
    barrier.wait()
    found.put((str(folder.new(runs / "sweeps")), str(folder.create(runs, "CartPole-v1", "pg", 0))))


def test_20_at_once_share_no_folder_of_a_sweep_or_a_run(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(20), context.Queue()
    processes = [context.Process(target=_make, args=(barrier, tmp_path, found)) for _ in range(20)]
    for process in processes:
        process.start()
    folders = [path for _ in processes for path in found.get(timeout=30)]
    for process in processes:
        process.join()
    assert len(set(folders)) == 40


# experiments


@pytest.mark.parametrize("name", compose.choices()["experiment"])
def test_each_experiment_composes_and_says_its_command(name):
    asked = cli.parse(["-m", f"experiment={name}"])
    title, command = (compose.config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()[:2]
    assert command == f"# python -m rl_natgrad.train -m experiment={name}"
    assert f" {len(asked.jobs)} run" in title


def test_an_experiment_is_its_words_and_those_beside_it_win(tmp_path, monkeypatch):
    text = "algo: pg,npg\nseed: range(2)\npolicy.hidden: '[8],[8,8]'\n---\nalgo: trpo\ntotal_steps: 1e4\n"
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "x.yaml").write_text(text)
    monkeypatch.setattr(compose, "config_dir", lambda: tmp_path)
    monkeypatch.setattr(compose, "choices", lambda: {"experiment": ["x"]})
    assert unfold(["seed=1"]) == [["seed=1"]]
    assert unfold(["horizon=64", "experiment=x", "seed=7"]) == [
        ["algo=pg,npg", "seed=7", "policy.hidden=[8],[8,8]", "horizon=64"],
        ["algo=trpo", "total_steps=1e4", "horizon=64", "seed=7"],
    ]
    (tmp_path / "experiment" / "x.yaml").write_text("policy.hidden: [8, 8]\n")
    with pytest.raises(ConfigError, match="quotes around lists"):
        unfold(["experiment=x"])


@pytest.mark.parametrize("algo", ["reinforce", "pg", "npg", "trpo", "ppo"])
def test_an_experiment_of_one_run_takes_any_algorithm(algo):
    asked = cli.parse(["experiment=device", f"algo={algo}", "env=Pendulum", "horizon=16"])
    assert (asked.config.env.backend, asked.config.num_envs, asked.config.horizon) == ("device", 4096, 16)
    assert asked.config.fisher is None or asked.config.fisher.fraction < 1


@pytest.mark.parametrize("words, part", [
    (["-m", "experiment=clasic-control"], "did you mean 'classic-control'?"),
    (["experiment=delta"], "write -m to sweep"),
    (["experiment=optimizers"], "write -m"),
    (["-m", "experiment=delta", "experiment=delta"], "given twice"),
    (["-m", "experiment=delta,optimizers"], "experiment must be"),
])  # fmt: skip
def test_a_wrong_experiment_is_refused(words, part):
    with pytest.raises(ConfigError) as caught:
        cli.parse(words)
    assert part in str(caught.value)


# the table


def jobs_of_all_kinds(tmp_path: Path) -> list[Job]:
    jobs = Listed([job(n, tmp_path, "num_envs=4", f"seed={n}") for n in range(1, 6)]).jobs
    for one, outcome in zip(jobs, ("finished", "failed", "stopped", "running", "waiting"), strict=True):
        one.outcome = outcome
    jobs[0].row = {"step": 10**5, "rollout/return": 456.7, "eval/return": 489.2}
    jobs[0].run = Path("runs/a")
    jobs[1].error, jobs[1].run = "ValueError: the pole fell over", Path("runs/b")
    jobs[3].row = {"step": 45_000, "rollout/return": 12.5, "time/steps_per_second": 31_234.0}
    return jobs


def test_a_sweep_ends_with_the_line_that_compares_it(tmp_path):
    jobs = jobs_of_all_kinds(tmp_path)
    line = f"compare python -m rl_natgrad.compare {tmp_path}"
    assert sweep_run._comparing(jobs, tmp_path) == [line]
    assert sweep_run._comparing([*jobs, job(6, tmp_path, "env=Acrobot")], tmp_path) == [f"{line} by=env"]
    assert sweep_run._comparing(jobs[2:], tmp_path) == []


def test_the_closing_table_has_every_job_and_why_it_failed(tmp_path):
    lines = table.closing(jobs_of_all_kinds(tmp_path))
    assert lines[:3] == [
        "job  overrides  outcome   train return  eval return  folder",
        "1    seed=1     finished  457           489          runs/a",
        "2    seed=2     failed    -             -            runs/b",
    ]
    assert len(lines) == 7 and lines[6].startswith("failed  2 seed=2: ValueError: the pole fell over (")
    assert lines[6].endswith(f"{tmp_path}/2.log)")


class Terminal:
    """A stream that claims to be one."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_the_live_table_shows_progress_return_and_speed(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    jobs, stream = jobs_of_all_kinds(tmp_path), Terminal()
    with table.View(jobs, tmp_path, "", stream) as view:
        view.changed(jobs[3])
        view.note("stop    each job")
    assert "4    seed=4     45%       12.5          31,000   running" in stream.text
    assert "5 jobs: 1 finished, 1 failed, 1 stopped, 1 running, 1 waiting" in stream.text
    assert "stop    each job" in stream.text and "seed=5" not in stream.text


def test_off_a_terminal_each_start_and_end_is_a_line(tmp_path, capsys, monkeypatch):
    jobs = jobs_of_all_kinds(tmp_path)
    monkeypatch.setattr(table, "QUIET", -1)
    with table.View(jobs, tmp_path, "", sys.stdout) as view:
        for one in (jobs[3], jobs[0], jobs[1]):
            view.changed(one)
        view.refresh()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "start   4/5 seed=4"
    assert lines[1].startswith("done    1/5 seed=1 · train return 457 · eval return 489 · ")
    assert lines[2] == "failed  2/5 seed=2 · train return - · eval return - · ValueError: the pole fell over"
    assert lines[3].strip() == "5 jobs: 1 finished, 1 failed, 1 stopped, 1 running, 1 waiting"


# whole sweeps


def test_two_jobs_one_of_which_fails(tmp_path):
    words = [*PROBE, "env.kwargs.job=0,2", "total_steps=700", f"runs_dir={tmp_path}", "sweep.jobs=2"]
    code, text = sweep(*words)
    assert code == 1, text
    good, bad = report(tmp_path)["jobs"]
    assert (good["outcome"], good["error"]) == ("finished", None) and good["eval_return"] > 0
    assert bad["outcome"] == "failed" and "ValueError: the pole fell over" in bad["error"]
    assert folder.read_record(good["run"])["outcome"] == "finished"
    assert "sweep.skip_finished=true" in text and "2 jobs: 1 finished, 1 failed" in text
    (swept,) = (tmp_path / "sweeps").iterdir()
    assert f"watch   python -m rl_natgrad.watch {swept}\n" in text


def test_a_refused_sweep_leaves_nothing(tmp_path):
    code, text = sweep("seed=0,1", "algo.delta=0.1,-1", f"runs_dir={tmp_path}/runs")
    assert code == 2 and text.count("\n") == 1 and "job 2 of 4" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_twelve_jobs_of_which_four_fail(tmp_path, monkeypatch):
    """Raise, sys.exit(3), kill -9 and hang: the others have the bits of jobs run alone; then just the 4 run."""
    words = [*PROBE, "total_steps=2000", "checkpoint.every=2", f"runs_dir={tmp_path}", "sweep.job_timeout=60"]
    jobs = "env.kwargs.job=range(12)"
    code, text = sweep(*words, jobs, "sweep.jobs=2")
    assert code == 1, text
    said = report(tmp_path)["jobs"]
    failed = {n: one["error"] for n, one in enumerate(said) if one["outcome"] == "failed"}
    assert list(failed) == [2, 5, 8, 11]
    for part, error in zip(("the pole fell over", "SystemExit: 3", "killed by SIGKILL", "no end within 60 s"),
                           failed.values(), strict=True):
        assert part in error and error in text
    assert [one["outcome"] for one in said].count("finished") == 8
    before = {path.parent for path in tmp_path.glob("*/*/*/run.json")}
    assert len(before) == 12

    monkeypatch.setenv("SWEEP_FIXED", "1")
    code, text = sweep(*words, jobs, "sweep.jobs=2", "sweep.skip_finished=true")
    assert code == 0, text
    again = report(tmp_path)["jobs"]
    assert [one["outcome"] for one in again] == ["finished"] * 12
    assert [n for n in range(12) if again[n] != said[n]] == [2, 5, 8, 11]
    assert text.count("\nstart ") == 4

    monkeypatch.syspath_prepend(TESTS)
    for n, one in enumerate(again):
        alone = tmp_path / "alone" / str(n)
        words = [*PROBE, "total_steps=2000", "checkpoint.every=2", f"env.kwargs.job={n}", f"runs_dir={alone}"]
        assert whole_runs.run(monkeypatch, *words) == 0
        whole_runs.assert_equal(Path(one["run"]), facts(whole_runs.only_run(alone)))


INTERRUPTED = [*PROBE, "total_steps=4000", "checkpoint.every=1", "seed=0,1", "sweep.jobs=3"]


def interrupt(tmp_path: Path, signals: list[int]) -> tuple[int, str]:
    """A sweep of four slow jobs, three at once, that gets these signals once some have checkpoints."""
    words = [*INTERRUPTED, "env.backend=sync,async", f"runs_dir={tmp_path}"]
    words.remove("env.backend=sync")
    process = start(*words, SWEEP_SLOW="0.002", MARK=str(tmp_path))
    wait_until(lambda: len(reached(tmp_path, 2)) >= 2, 120)
    assert len(family(str(tmp_path))) > 4  # the sweep, three jobs, workers of async ones
    for number in signals:
        process.send_signal(number)
    text = process.communicate()[0]
    wait_until(lambda: not family(str(tmp_path)), 10)
    return process.returncode, text


def go_on(tmp_path: Path, monkeypatch) -> str:
    """The interrupted sweep again, which ends with the bits of one that was never interrupted."""
    before = set(tmp_path.glob("*/*/*/run.json"))
    words = [*INTERRUPTED, "env.backend=sync,async"]
    words.remove("env.backend=sync")
    code, text = sweep(*words, f"runs_dir={tmp_path}", "sweep.skip_finished=true")
    assert code == 0, text
    jobs = report(tmp_path)["jobs"]
    assert {one["outcome"] for one in jobs} == {"finished"} and len({one["run"] for one in jobs}) == 4
    assert before <= {Path(one["run"], "run.json") for one in jobs}
    monkeypatch.syspath_prepend(TESTS)
    for n, one in enumerate(jobs):
        alone = [word for word in one["overrides"] if not word.startswith("runs_dir=")]
        assert whole_runs.run(monkeypatch, *alone, f"runs_dir={tmp_path}/alone/{n}") == 0
        whole_runs.assert_equal(Path(one["run"]), facts(whole_runs.only_run(tmp_path / "alone" / str(n))))
    return text


@pytest.mark.slow
def test_killing_the_sweep_leaves_no_orphan_and_it_goes_on(tmp_path, monkeypatch):
    assert interrupt(tmp_path, [signal.SIGKILL])[0] == -signal.SIGKILL
    go_on(tmp_path, monkeypatch)


@pytest.mark.slow
def test_ctrl_c_stops_every_job_with_a_checkpoint_and_says_how_to_go_on(tmp_path, monkeypatch):
    code, text = interrupt(tmp_path, [signal.SIGINT])
    assert code == 130, text
    assert text.splitlines()[-1].startswith("go on   python -m rl_natgrad.train -m ")
    assert text.splitlines()[-1].endswith("sweep.skip_finished=true")
    runs = [one["run"] for one in report(tmp_path)["jobs"] if one["outcome"] == "stopped"]
    assert runs and all(folder.read_record(run)["outcome"] == "stopped" for run in filter(None, runs))
    go_on(tmp_path, monkeypatch)


@pytest.mark.slow
def test_twenty_sweeps_at_once(tmp_path):
    words = [*PROBE, "total_steps=10", "sweep.jobs=1", f"runs_dir={tmp_path}"]
    processes = [start(*words) for _ in range(20)]
    texts = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 20, texts
    sweeps = list(tmp_path.glob("sweeps/*/sweep.json"))
    runs = {one["run"] for file in sweeps for one in json.loads(file.read_text())["jobs"]}
    assert len(sweeps) == len(runs) == len(list(tmp_path.glob("*/*/*/run.json"))) == 20
