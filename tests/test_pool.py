"""Jobs of a sweep: side by side, how each ended, and which of them were done before."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest
from sweeps import job, stored

from rl_natgrad.config import command as cli
from rl_natgrad.config import compose
from rl_natgrad.run import folder, lock
from rl_natgrad.sweep import pool as pools
from rl_natgrad.sweep.earlier import Earlier
from rl_natgrad.sweep.plan import Listed, resuming
from rl_natgrad.sweep.pool import Pool

# the pool


class Fake:
    """A launcher whose processes end after so many looks; 'hang' ignores being asked to stop. All name one run."""

    def __init__(self, script: dict[int, tuple[int, float]], run: Path):
        self.script, self.run, self.alive, self.most, self.log = script, run, 0, 0, []

    def start(self, words, log):
        log.write_text(f"run     {self.run}\n")
        self.alive += 1
        self.most = max(self.most, self.alive)
        return Handle(self, int(log.stem))


class Handle:
    def __init__(self, fake: Fake, number: int):
        self.fake, self.number, self.ended = fake, number, None
        self.code, self.left = fake.script.get(number, (0, 3))

    def poll(self):
        self.left -= 1
        if self.ended is None and self.left <= 0:
            self.ended = self.code
        if self.ended is not None:
            self.fake.alive -= 1
        return self.ended

    def stop(self):
        self.fake.log.append(("stop", self.number))
        if self.code != "hang":
            self.ended = 130

    def kill(self):
        self.fake.log.append(("kill", self.number))
        self.ended = -9


class Silent:
    def __init__(self):
        self.notes = []

    def changed(self, job):
        pass

    def refresh(self):
        pass

    def note(self, line):
        self.notes.append(line)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Runs jobs 1..n through a pool of fakes; a job with exit code 0 counts as a finished run."""
    monkeypatch.setattr(pools, "TICK", 0.001)
    monkeypatch.setattr(pools, "GRACE", 0.02)
    finished = stored(tmp_path / "runs")

    def work(jobs: int, script: dict, at_once: int = 2, **options):
        fake, view = Fake(script, finished), Silent()
        plan = Listed([job(n, tmp_path) for n in range(1, jobs + 1)])
        keys = {"job_timeout": None, "fail_fast": False} | options
        pool = Pool(plan, fake.start, at_once, view=view, **keys)
        pool.work()
        return [one.outcome for one in plan.jobs], plan.jobs, fake, pool

    return work


def test_a_pool_never_runs_more_than_it_may(work):
    outcomes, _, fake, _ = work(9, {}, at_once=3)
    assert outcomes == ["finished"] * 9 and fake.most == 3


def test_a_failed_job_takes_no_other_with_it(work):
    outcomes, jobs, _, _ = work(5, {2: (1, 2), 4: (-9, 2)})
    assert outcomes == ["finished", "failed", "finished", "failed", "finished"]
    assert jobs[3].error == "killed by SIGKILL"


def test_fail_fast_stops_the_others_and_starts_no_more(work):
    outcomes, _, fake, _ = work(4, {1: (0, 10**6), 2: (1, 3)}, fail_fast=True)
    assert outcomes == ["stopped", "failed", "waiting", "waiting"]
    assert fake.log == [("stop", 1)]


def test_a_job_that_takes_too_long_is_asked_and_then_killed(work):
    outcomes, jobs, fake, _ = work(3, {2: ("hang", 10**6)}, job_timeout=0.05)
    assert outcomes == ["finished", "failed", "finished"]
    assert jobs[1].error == "no end within 0.05 s (sweep.job_timeout)"
    assert fake.log[0] == ("stop", 2) and ("kill", 2) in fake.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_job_and_a_second_one_kills(work, monkeypatch, number):
    script = {1: (0, 10**6), 2: ("hang", 10**6)}
    real, sent, before = Handle.stop, [], signal.getsignal(number)

    def stop(self):
        real(self)
        if self.number == 2 and not sent:
            sent.append(os.kill(os.getpid(), number))

    def alarm(*_):
        if signal.getsignal(number) is not before:  # the pool listens
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Handle, "stop", stop)
    old = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        outcomes, _, fake, pool = work(4, script)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert outcomes == ["stopped", "stopped", "waiting", "waiting"] and pool.stopped == number
    assert [entry for entry in fake.log if entry[0] == "stop"] == [("stop", 1), ("stop", 2)]
    assert ("kill", 2) in fake.log
    assert signal.getsignal(number) is before


def test_a_run_that_cannot_be_resumed_starts_anew(work, tmp_path, monkeypatch):
    one = job(1, tmp_path)
    one.words = ["resume=x"]
    started, fake = [], Fake({1: (2, 2)}, tmp_path)
    monkeypatch.setattr(fake, "start", lambda words, log: (started.append(words), log.touch(), Handle(fake, 1))[2])
    view = Silent()
    Pool(Listed([one]), fake.start, 1, view=view, job_timeout=None, fail_fast=False).work()
    assert started == [["resume=x"], []] and one.outcome == "failed"  # the second time it counts
    assert view.notes == ["anew    1: it said nothing"]


# how a job ended

ENDS = [  # exit code, outcome in run.json, error in it, asked by the sweep → outcome, error, outcome in run.json
    (0, "finished", None, None, "finished", None, "finished"),
    (0, "finished", None, "stopped", "finished", None, "finished"),
    (1, "failed", "ValueError: x", None, "failed", "ValueError: x", "failed"),
    (3, "failed", "SystemExit: 3", None, "failed", "SystemExit: 3", "failed"),
    (0, "failed", "SystemExit: 0", None, "failed", "SystemExit: 0", "failed"),
    (-9, "running", None, None, "failed", "killed by SIGKILL", "failed"),
    (-11, "running", None, None, "failed", "killed by SIGSEGV", "failed"),
    (0, "running", None, None, "failed", "ended with exit code 0 before its end (last words)", "failed"),
    (5, "running", None, None, "failed", "last words", "failed"),
    (2, None, None, None, "failed", "last words", None),
    (130, "stopped", None, "stopped", "stopped", None, "stopped"),
    (143, "stopped", None, None, "stopped", "stopped by SIGTERM", "stopped"),
    (-2, None, None, "stopped", "stopped", None, None),
    (-9, "running", None, "stopped", "stopped", None, "stopped"),
    (1, "failed", "OSError: full", "stopped", "failed", "OSError: full", "failed"),
    (130, "stopped", None, "failed", "failed", "asked", "stopped"),
    (-9, "running", None, "failed", "failed", "asked", "failed"),
]


@pytest.mark.parametrize("code, said, why, asked, outcome, error, then", ENDS)
def test_how_a_job_ended(tmp_path, code, said, why, asked, outcome, error, then):
    one = job(1, tmp_path)
    one.error = "asked" if asked == "failed" else None
    text = "noise\nrun     elsewhere\nerror: last words\n\n"
    if said:
        path = stored(tmp_path / "runs", outcome=said)
        if why:
            folder.RunRecord(path, folder.read_record(path)).update(error=why)
        text = f"run     {path}\n" + text
    one.log.write_text(text)
    one.end(code, asked)
    assert (one.outcome, one.error) == (outcome, error)
    assert one.run == (path if said else None)
    if said:
        assert folder.read_record(path)["outcome"] == then


def test_a_half_written_row_is_not_read(tmp_path):
    path = stored(tmp_path / "runs")
    one = job(1, tmp_path)
    one.log.write_text(f"run     {path}\n")
    for text, value in (("", None), ('{"step": 1, "rollout/return": 3.0}\n', 3.0), ('{"step": 2}\n{"st', 3.0),
                        ('{"step": 3, "rollout/return": null, "eval/return": 7}\n', 7)):
        (path / "metrics.jsonl").write_text(text)
        one.look()
        assert (one.eval_return or one.train_return) == value
    assert one.row["step"] == 3


# going on


def test_runs_are_matched_by_their_resolved_configuration(tmp_path):
    runs = tmp_path / "runs"
    one = stored(runs, "algo.delta=0.02", "env=CartPole", f"runs_dir={runs}")
    two = stored(runs, "algo=npg", "seed=3")
    (runs / "not a run").mkdir()
    (runs / "not a run" / "run.json").write_text("{")
    earlier = Earlier([str(runs), str(runs)])
    take = lambda *words: earlier.claim(compose.load(words))  # noqa: E731
    assert take("env=CartPole-v1", "algo.delta=2e-2", "algo=trpo", "sweep.jobs=2").path == one
    assert take("seed=3", "algo=npg").path == two
    assert take("seed=3", "algo=npg", "distributed.mode=sharded").path == two  # of one process, they are the same
    assert take("seed=3") is None and take("algo=npg") is None and take("algo.delta=0.02", "horizon=128") is None


def test_an_interrupted_run_goes_on_once_and_a_failed_one_starts_anew(tmp_path):
    interrupted = [stored(tmp_path, outcome=how, checkpoint=True) for how in ("stopped", "running", "failed")]
    interrupted.append(stored(tmp_path, outcome="stopped"))  # without a checkpoint, it begins anew in its folder
    broken = stored(tmp_path, outcome="failed", checkpoint=True)
    (broken / "traceback.txt").touch()
    earlier, cfg = Earlier([str(tmp_path)]), compose.load([])
    taken = list(itertools.takewhile(bool, (earlier.claim(cfg) for _ in range(9))))
    assert sorted(found.path for found in taken) == sorted(interrupted) and taken[-1].path == interrupted[-1]
    finished = stored(tmp_path)
    jobs = [job(1, tmp_path), job(2, tmp_path), job(3, tmp_path, "seed=1")]
    plan = Listed(jobs, Earlier([str(tmp_path)]))
    assert [one.run for one in jobs] == [finished, finished, None]
    assert plan.next() is jobs[2] and plan.next() is None


def test_a_run_that_somebody_runs_now_is_left_alone(tmp_path):
    path = stored(tmp_path, outcome="running", checkpoint=True)
    one = job(1, tmp_path)
    with lock.hold(path):
        plan = Listed([one], Earlier([str(tmp_path)]))
    assert plan.next() is None and one.outcome == "running" and one.run == path


@pytest.mark.parametrize("name", ["plain", "a b", "it's", "x=1,2", "[a]", "it\\'s", "ends\\", "ü·"])
def test_any_folder_can_be_resumed(name):
    asked = cli.parse(resuming(Path("runs", name), True))
    assert isinstance(asked, cli.Resume) and asked.run == f"runs/{name}"


def test_a_job_has_the_words_of_a_user_who_runs_it_alone(tmp_path):
    one = job(1, tmp_path, "algo=pg", "sweep.jobs=2", "search.trials=3", "seed=1")
    assert one.words == ["algo=pg", "seed=1"]
