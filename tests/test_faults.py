"""Disks that fail and processes that are killed, at single system calls; and settings that ask too much.

Every fault ends in one line with path and errno, exit code 1, and a run that goes on to the same bits.
RL_NATGRAD_KILLS says how many kills there are: three fifths in trainings and their resumes, a fifth in sweeps,
a fifth in searches. RL_NATGRAD_SEED says which.
"""

import contextlib
import errno
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from faults import Programs
from whole_runs import CRITIC, SMALL, assert_equal, copy, facts, only_run, outcome, run, wait_until

from rl_natgrad.algos.problem import Problem
from rl_natgrad.run import events, lock
from rl_natgrad.run.records import read_rows
from rl_natgrad.training.iteration import Training

WORDS = [*SMALL, *CRITIC, "total_steps=500", "checkpoint.every=1", "checkpoint.keep=2", "eval.every=1",
         "critic.overlap=true"]  # fmt: skip
ERRNOS = errno.ENOSPC, errno.EROFS, errno.EIO
CALLS = (
    "open", "create", "read", "write", "fsync", "close", "rename", "unlink", "mkdir", "ftruncate", "flock",
    "opendir",
)  # fmt: skip
HARMLESS = (",close,", ",opendir,")  # of a lock whose run is over; of a folder that is listed to count in
EACH = 2  # positions of each call that are tried, each as a fault that passes and as one that stays
KILLS, SEED = int(os.environ.get("RL_NATGRAD_KILLS", "40")), os.environ.get("RL_NATGRAD_SEED", "0")


# ---- in this process -----------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fails_once_at_the_end_is_one_line(monkeypatch, tmp_path, capfd):
    """Closing again what had failed to close was "write to closed file", with a traceback."""
    end, left = events.hparams_end, [1]
    monkeypatch.setattr(events, "hparams_end", lambda **words: full() if left and left.pop() else end(**words))
    assert run(monkeypatch, *WORDS, f"runs_dir={tmp_path}") == 1
    path = only_run(tmp_path)
    assert capfd.readouterr().err == f"error: {path}/metrics.jsonl: No space left on device [errno 28]\n"
    assert outcome(path) == "failed"
    assert run(monkeypatch, f"resume={path}") == 0 and outcome(path) == "finished"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_standard_output_that_is_full_is_named(monkeypatch, tmp_path, capfd):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stdout", full)
        assert run(monkeypatch, *WORDS, f"runs_dir={tmp_path}") == 1
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert capfd.readouterr().err == "error: standard output: No space left on device [errno 28]\n"
    assert outcome(only_run(tmp_path)) == "failed"


def test_a_lock_that_does_not_close_hides_nothing(monkeypatch, tmp_path):
    """It raised instead of what the run had to say."""
    close = os.close
    with pytest.raises(ValueError, match="what went wrong"), lock.hold(tmp_path):
        monkeypatch.setattr(os, "close", lambda file: (close(file), full()))
        raise ValueError("what went wrong")
    monkeypatch.undo()
    with lock.hold(tmp_path):
        pass


@pytest.mark.parametrize("tries", ["1001", "1000000"])
def test_backtracks_beyond_float32_are_refused(monkeypatch, tmp_path, capfd, tries):
    assert run(monkeypatch, f"algo.max_backtracks={tries}", f"runs_dir={tmp_path / 'none'}") == 2
    says = f"error: algo.max_backtracks must be a whole number >= 0 and <= 1000, got {tries}\n"
    assert capfd.readouterr().err == says and not (tmp_path / "none").exists()


def test_updates_that_were_not_finite_are_noted_once_and_counted(monkeypatch, tmp_path, capfd):
    learn = Training.learn

    def poisoned(self, *given):
        with monkeypatch.context() as patch:
            if self.update in (1, 2, 4):
                patch.setattr(Problem, "_kl", lambda problem, z: z.sum() * np.nan)
            return learn(self, *given)

    monkeypatch.setattr(Training, "learn", poisoned)
    assert run(monkeypatch, *SMALL, "algo=npg", "total_steps=1500", f"runs_dir={tmp_path}") == 0
    path, out = only_run(tmp_path), capfd.readouterr().out
    assert [row["update"] for row in read_rows(path) if "policy/not_finite" in row] == [2, 3, 5]
    assert re.findall(r"^note    update (\d+) took no step: .* was not finite", out, re.MULTILINE) == ["2"]
    assert " · 3 updates not finite" in next(line for line in out.splitlines() if line.startswith("done "))
    assert run(monkeypatch, f"resume={path}", "total_steps=2000") == 0
    out = capfd.readouterr().out
    assert "note    update" not in out and " · 3 updates not finite" in out  # those from before are counted


# ---- at system calls -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    programs = Programs(tmp_path_factory.mktemp("programs"))
    yield programs
    programs.close()


@pytest.fixture(scope="module")
def whole(programs, tmp_path_factory):
    """The facts of the undisturbed run, and the calls it made."""
    runs_dir = tmp_path_factory.mktemp("whole")
    ended = programs(*WORDS, f"runs_dir={runs_dir}", below=runs_dir)
    assert ended.code == 0, ended.err
    return facts(only_run(runs_dir)), ended.calls


@pytest.fixture(scope="module")
def part(programs, whole, tmp_path_factory):
    """A run that was killed after its first checkpoint."""
    runs_dir = tmp_path_factory.mktemp("part")
    at = 1 + next(i for i, call in enumerate(whole[1]) if call.endswith("/00000002.safetensors"))
    assert programs(*WORDS, f"runs_dir={runs_dir}", below=runs_dir, at=at).code == -9
    return only_run(runs_dir)


def faults(call: str, calls: list[str]):
    """Positions among the calls of this kind, spread over them, each with an errno, once and for good."""
    n = sum(line.split()[1] == call for line in calls)
    rng = random.Random(call)
    places = {rng.randint(1 + n * i // EACH, max(n * (i + 1) // EACH, 1 + n * i // EACH)) for i in range(EACH)}
    for i, at in enumerate(sorted(place for place in places if place <= n)):
        for on in ({}, {"on": 1}):
            yield {"call": f",{call},", "at": at, "errno": ERRNOS[(i + bool(on)) % 3], **on}


def assert_one_line(ended, below: Path, fault) -> None:
    number = fault["errno"]
    says = rf"error: {re.escape(str(below))}[^\n]*: {os.strerror(number)} \[errno {number}\]\n"
    assert ended.code == 1 and re.fullmatch(says, ended.err), (fault, ended)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_in_a_training(programs, whole, tmp_path, call):
    expected, calls = whole
    for i, fault in enumerate(faults(call, calls)):
        runs_dir = tmp_path / str(i)
        ended = programs(*WORDS, f"runs_dir={runs_dir}", below=runs_dir, **fault)
        goes_on(programs, ended, runs_dir, fault, expected)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_in_a_resume(programs, whole, part, tmp_path, call):
    again = copy(part, tmp_path / "calls")
    calls = programs(f"resume={again}", below=again).calls
    for i, fault in enumerate(faults(call, calls)):
        path = copy(part, tmp_path / str(i))
        ended = programs(f"resume={path}", below=path, **fault)
        goes_on(programs, ended, tmp_path / str(i), fault, whole[0], left=halves(part))


def halves(path: Path) -> set[str]:
    """Names of half-written files."""
    return {file.name for file in path.rglob("*.tmp")}


def goes_on(programs, ended, runs_dir: Path, fault, expected, left=frozenset()) -> None:
    """The fault is one line, or was of no consequence; the run, if there is one, goes on to the bits expected.

    left: what a kill had left before; a disk that fails for good, or in the removal, may leave more.
    """
    harmless = ended.code == 0 and fault["call"] in HARMLESS
    if not harmless:
        assert_one_line(ended, runs_dir, fault)
    if not fault.get("on") and fault["call"] != ",unlink,":
        assert halves(runs_dir) <= left, fault
    for file in runs_dir.glob("*/*/*/run.json"):
        assert outcome(file.parent) in (("finished",) if harmless else ("failed", "running", "finished"))
        again = programs(f"resume={file.parent}")
        assert again.code == 0, (fault, again)
        assert_equal(file.parent, expected)
        assert not halves(runs_dir), fault


@pytest.mark.slow
@pytest.mark.parametrize("call", ["open", "read", "opendir"])
def test_a_call_that_fails_in_an_evaluation(programs, part, call):
    calls = programs(f"run={part}", module="evaluate", below=part).calls
    for fault in faults(call, calls):
        ended = programs(f"run={part}", module="evaluate", below=part, **fault)
        assert_one_line(ended, part, fault)


@pytest.mark.slow
@pytest.mark.parametrize("call, at", [("mkdir", 1), ("create", 1), ("create", 2), ("fsync", 1), ("fsync", 5)])
def test_a_study_on_a_disk_that_fails_is_one_line(programs, tmp_path, call, at):
    """SQLite's errors have no errno; after them the same command makes the search."""
    pytest.importorskip("optuna")
    words = ["-m", *SMALL, "total_steps=200", "algo.delta=interval(0.005,0.02)", "search.trials=1"]
    words += ["search.study=s", f"runs_dir={tmp_path}"]
    studies = tmp_path / "sweeps" / "studies"
    ended = programs(*words, below=studies, call=f",{call},", at=at, errno=errno.EIO, on=1)
    assert ended.code == 1 and re.fullmatch(rf"error: {studies}/s[^\n:]*: [^\n]+\n", ended.err), ended
    assert programs(*words).code == 0


# ---- kills at system calls -----------------------------------------------------------------------------------

SHORT = [word.replace("=500", "=300") for word in WORDS]  # two updates


@pytest.fixture(scope="module")
def undisturbed(programs, tmp_path_factory):
    """The facts of the training of these words that nobody disturbs."""
    known = {}

    def facts_of(words):
        key = tuple(sorted(word for word in words if not word.startswith("runs_dir=")))
        if key not in known:
            runs_dir = tmp_path_factory.mktemp("undisturbed")
            assert programs(*words, f"runs_dir={runs_dir}").code == 0
            known[key] = facts(only_run(runs_dir))
        return known[key]

    return facts_of


@pytest.mark.slow
def test_kills_at_random_calls_of_trainings_and_resumes(programs, whole, tmp_path):
    """Each run is killed once in its training and up to three times in its resumes."""
    rng, kills, done, where = random.Random(SEED), KILLS * 3 // 5, 0, Counter()
    for i in range(KILLS):
        runs_dir = tmp_path / str(i)
        ended = programs(*WORDS, f"runs_dir={runs_dir}", below=runs_dir, at=rng.randint(1, len(whole[1])))
        while ended.code == -9 and done < kills:
            done += 1
            where[ended.calls[-1].split()[1]] += 1
            if not list(runs_dir.glob("*/*/*/run.json")) or rng.random() < 0.25:
                break
            ended = programs(f"resume={only_run(runs_dir)}", below=runs_dir, at=rng.randint(1, 100))
        if list(runs_dir.glob("*/*/*/run.json")):
            again = programs(f"resume={only_run(runs_dir)}")
            assert again.code == 0, again
            assert_equal(only_run(runs_dir), whole[0])
        if done >= kills:
            break
    print(f"{done} kills of {i + 1} runs, all resumed to the bit: {dict(where)}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sweep", "search"])
def test_kills_at_random_calls_of_sweeps_and_searches(programs, undisturbed, tmp_path, kind):
    """Of the sweep's own process or a job's, whichever makes the call; then the same command goes on."""
    pytest.importorskip("optuna")
    what = {
        "sweep": ["seed=0,1", "sweep.skip_finished=true"],
        "search": ["algo.delta=interval(0.005,0.02)", "search.trials=2", "search.study=s", "search.pruner=none"],
    }[kind]
    words = ["-m", *SHORT, *what]
    calls = programs(*words, f"runs_dir={tmp_path / 'whole'}", below=tmp_path / "whole").calls
    rng, where = random.Random(kind + SEED), Counter()
    for i in range(max(KILLS // 5, 1)):
        runs_dir, at = tmp_path / str(i), rng.randint(1, len(calls))
        ended = programs(*words, f"runs_dir={runs_dir}", below=runs_dir, at=at)
        if len(ended.calls) >= at:  # which two jobs side by side may not reach
            where[f"{ended.code} {ended.calls[-1].split()[1]}"] += 1
        settled(runs_dir)
        assert "Traceback" not in ended.err, ended
        assert_true(runs_dir)
        again = programs(*words, f"runs_dir={runs_dir}")
        assert again.code == 0, (ended, again)
        assert_true(runs_dir)
        for file in runs_dir.glob("*/*/*/run.json"):
            again = programs(f"resume={file.parent}")  # what the sweep did not go on with; else nothing is left
            assert again.code == 0, again
            assert_equal(file.parent, undisturbed(words_of(json.loads(file.read_text())["config"])))
    print(f"{kind}: exit code and call of {sum(where.values())} kills: {dict(where)}")


def words_of(config) -> list[str]:
    """The words that make this training of SHORT."""
    return [*SHORT, f"seed={config['seed']}", f"algo.delta={config['algo']['delta']!r}"]


def assert_true(runs_dir: Path) -> None:
    """Each sweep.json is JSON, and calls no job finished that is not."""
    for file in runs_dir.glob("sweeps/*/sweep.json"):
        for job in json.loads(file.read_text())["jobs"]:
            if job["outcome"] == "finished":
                assert outcome(Path(job["run"])) == "finished", job


def settled(runs_dir: Path) -> None:
    """Waits until no job that a killed sweep took with it is left."""
    wait_until(lambda: not any(str(runs_dir).encode() in command for command in commands()))


def commands():
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield file.read_bytes()
