"""Ctrl-C, kill, kill -9: whenever it comes, the run goes on later as if nothing had been."""

import random
import re
import signal
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from whole_runs import (
    CRITIC,
    SMALL,
    Fork,
    assert_equal,
    checkpoints,
    facts,
    hears_signals,
    only_run,
    outcome,
    reached,
    run,
    spawn,
    wait_until,
)  # fmt: skip

from rl_natgrad.run.records import read_rows
from rl_natgrad.run.signals import Stop, Stopped

WORDS = [*SMALL, *CRITIC, "total_steps=6000", "checkpoint.every=3", "eval.every=8", "critic.overlap=true"]
SLOW_EVALUATION = ["eval.every=2", "eval.episodes=4", "env=Pendulum", "num_envs=2", "horizon=32"]
TIME = 10  # seconds that a stop may take


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The facts of the run that nobody disturbs, for the words it is started with."""

    @cache
    def facts_of(*words):
        runs_dir = tmp_path_factory.mktemp("undisturbed")
        with pytest.MonkeyPatch.context() as patch:
            assert run(patch, *words, "critic.overlap=false", f"runs_dir={runs_dir}") == 0
        return facts(only_run(runs_dir))

    return facts_of


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float


def stopped(process, number) -> Ended:
    """Sends a signal; how the process ended, what it wrote, and after how many seconds."""
    start = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return Ended(process.returncode, out, err, time.monotonic() - start)


def ended_well(end: Ended, number: int) -> bool:
    """In time, without a traceback, and by the signal, unless the run was faster."""
    return end.code in (0, 128 + number) and end.seconds < TIME and "Traceback" not in end.err


def goes_on(path: Path, expected) -> None:
    """Resumes to the end, in this process; the run is then the one that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, f"resume={path}") == 0
    assert_equal(path, expected)


# ---- Stop itself ---------------------------------------------------------------------------------------------


def test_a_signal_raises_at_once_or_waits_where_patience_is_asked_for(capfd):
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with Stop() as stop, pytest.raises(Stopped):
            signal.raise_signal(number)
        assert stop.code == 128 + number and signal.getsignal(number) is before
        with Stop() as stop, stop.patient():
            with stop.at_once():
                pass
            signal.raise_signal(number)
            with pytest.raises(Stopped):
                stop.check()
            with pytest.raises(Stopped), stop.at_once():
                pytest.fail("a signal that was noted before is heard at once")
        with Stop() as stop, stop.patient(), pytest.raises(Stopped), stop.at_once():
            signal.raise_signal(number)
    assert capfd.readouterr().err.count("stop    after this update (once more: at once)") == 2


def test_a_signal_that_a_callback_swallows_is_heard_later_and_prints_nothing(monkeypatch):
    """Imports have such callbacks."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with Stop() as stop:
        thing = {1}
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
        del thing
        assert reference() is None and stop.number == signal.SIGTERM
        with pytest.raises(Stopped):
            stop.check()
        assert not printed
        swallowed = weakref.ref(thing := {1}, lambda _: 1 / 0)
        del thing
    assert swallowed() is None and [type(one.exc_value) for one in printed] == [ZeroDivisionError]
    assert sys.unraisablehook == printed.append


# ---- whole processes -----------------------------------------------------------------------------------------


def test_a_stopped_run_says_how_to_resume_and_equals_the_undisturbed_one(tmp_path, undisturbed):
    goes_on(stop(tmp_path, signal.SIGTERM, updates=4), undisturbed(*WORDS))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_20_signals_each(tmp_path, undisturbed, number):
    rng = random.Random(number)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(stop, tmp_path / str(i), number, rng.randrange(1, 20)) for i in range(20)]
    for job in jobs:
        goes_on(job.result(), undisturbed(*WORDS))


def stop(tmp_path, number, updates) -> Path:
    """A run that was stopped after some updates."""
    process = Fork(*WORDS, f"runs_dir={tmp_path}", output=tmp_path / "output")
    wait_until(lambda: len(list(tmp_path.glob("*/*/*/metrics.jsonl"))) == 1)
    path = only_run(tmp_path)
    wait_until(lambda: len(read_rows(path)) >= updates or process.poll() is not None)
    end = stopped(process, number)
    assert ended_well(end, number), end
    if outcome(path) == "finished":  # it was faster
        return path
    assert (end.code, outcome(path)) == (128 + number, "stopped")
    assert end.out.splitlines()[-1] == f"resume  python -m rl_natgrad.train resume={path}"
    saved = int(checkpoints(path)[-1].stem)
    assert 0 <= saved - max(row["update"] for row in read_rows(path)) <= 1  # 1: stopped in an evaluation
    return path


SAID = "\nstop    after this update (once more: at once)\n"


def in_an_update(tmp_path, **env) -> Fork:
    """A run that is in the first of its updates, which are long."""
    process = Fork("horizon=20000", "total_steps=1e9", f"runs_dir={tmp_path}", output=tmp_path / "output", **env)
    wait_until(lambda: list(tmp_path.glob("*/*/*/metrics.jsonl")))
    time.sleep(0.3)
    return process


def test_a_second_signal_exits_at_once(tmp_path):
    process = in_an_update(tmp_path)
    process.send_signal(signal.SIGINT)
    wait_until((tmp_path / "output" / "err.txt").read_text)
    end = stopped(process, signal.SIGTERM)
    assert end.code == 143 and end.seconds < 1.5 and end.err == SAID


def test_a_signal_that_two_pass_on_is_one_and_another_one_is_a_second(tmp_path):
    """A cluster tells torchrun and its processes, and torchrun tells them too."""
    process = in_an_update(tmp_path, RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", LOCAL_RANK="0")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        wait_until((tmp_path / "output" / "err.txt").read_text)
        time.sleep(0.1)
    assert process.poll() is None
    end = stopped(process, signal.SIGINT)
    assert end.code == 130 and end.seconds < 1.5 and end.err == SAID


@pytest.mark.slow
def test_signals_during_start_up_leave_nothing_or_a_run_that_goes_on(tmp_path, undisturbed):
    rng = random.Random(0)
    for i in range(12):
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        process = spawn(*WORDS, f"runs_dir={tmp_path / str(i)}")
        wait_until(lambda process=process: hears_signals(process.pid))
        time.sleep(rng.uniform(0, 3))
        end = stopped(process, number)
        assert ended_well(end, number), end
        if list((tmp_path / str(i)).glob("*/*/*/run.json")):
            goes_on(only_run(tmp_path / str(i)), undisturbed(*WORDS))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_an_evaluation_leaves_the_evaluation_for_later(tmp_path, undisturbed, number):
    """It may take minutes, so it is not waited for, and not lost."""
    words = [*WORDS, "total_steps=200", *SLOW_EVALUATION]
    process = spawn(*words, "eval.episodes=20000", f"runs_dir={tmp_path}")
    wait_until(lambda: list(tmp_path.glob("*/*/*/metrics.jsonl")))
    path = only_run(tmp_path)
    wait_until(lambda: len(read_rows(path)) == 1)  # the second update's row is written after its evaluation
    time.sleep(1)
    end = stopped(process, number)
    assert ended_well(end, number) and end.code and outcome(path) == "stopped", end
    assert int(checkpoints(path)[-1].stem) == 2 and len(read_rows(path)) == 1
    process = spawn(f"resume={path}", "eval.episodes=4")
    assert process.wait(120) == 0
    assert_equal(path, undisturbed(*words))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_line_changes_nothing(tmp_path, number):
    """The interpreter takes a while to end, and by then the run is done."""
    process = spawn(*SMALL, "total_steps=300", f"runs_dir={tmp_path}")
    while not process.stdout.readline().startswith("done "):
        assert process.poll() is None
    time.sleep(0.02)
    assert stopped(process, number).code == 0


@pytest.mark.slow
def test_signals_during_a_resume(tmp_path, undisturbed):
    rng = random.Random(1)
    process = spawn(*WORDS, f"runs_dir={tmp_path}")
    wait_until(lambda: reached(tmp_path, 3))
    stopped(process, signal.SIGKILL)
    path = only_run(tmp_path)
    for i in range(8):
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        process = spawn(f"resume={path}")
        wait_until(lambda process=process: hears_signals(process.pid))
        time.sleep(rng.uniform(0, 2.5))
        end = stopped(process, number)
        assert ended_well(end, number), end
    goes_on(path, undisturbed(*WORDS))


# ---- kill -9 -------------------------------------------------------------------------------------------------


def test_kill_9_loses_at_most_one_interval(tmp_path, undisturbed):
    path, _ = kill(tmp_path, seconds=0.4, slow_save="0.05")
    goes_on(path, undisturbed(*WORDS))


@pytest.mark.slow
def test_50_kills_at_random_moments(tmp_path, undisturbed):
    """Half of them with saves stretched so far that most kills land in one."""
    rng = random.Random(9)
    with ThreadPoolExecutor(2) as pool:
        times = [(rng.uniform(0, 0.6), "0") if i % 2 else (rng.uniform(0, 2), "0.05") for i in range(50)]
        jobs = [pool.submit(kill, tmp_path / str(i), *when) for i, when in enumerate(times)]
    killed = [job.result() for job in jobs]
    assert sum(outcome(path) == "running" for path, _ in killed) >= 40  # others had come to their end before
    for path, _ in killed:
        goes_on(path, undisturbed(*WORDS))
    print(sum(inside for _, inside in killed), "of 50 kills were inside the writing of a file")
    assert sum(inside for _, inside in killed) >= 5


def kill(tmp_path, seconds, slow_save) -> tuple[Path, bool]:
    """A run that was killed some time after its folder was there, and whether that was inside a save."""
    process = Fork(*WORDS, f"runs_dir={tmp_path}", output=tmp_path / "output", RL_NATGRAD_SLOW_SAVE=slow_save)
    wait_until(lambda: list(tmp_path.glob("*/*/*/run.json")))
    time.sleep(seconds)
    stopped(process, signal.SIGKILL)
    path = only_run(tmp_path)
    logged = max((row["update"] for row in read_rows(path)), default=0)
    saved = max((int(file.stem) for file in checkpoints(path)), default=0)
    assert logged - saved <= 3  # checkpoint.every
    return path, bool(list(path.glob("checkpoints/.*.tmp")))


@pytest.mark.slow
def test_two_resumes_at_once_are_one(tmp_path, undisturbed):
    process = spawn(*WORDS, f"runs_dir={tmp_path}")
    wait_until(lambda: reached(tmp_path, 3))
    path = only_run(tmp_path)
    busy = spawn(f"resume={path}")
    _, err = busy.communicate()
    if process.poll() is None:  # it is still running
        assert busy.returncode == 2 and re.fullmatch(rf"error: .* is in use by process {process.pid}; .*\n", err)
    stopped(process, signal.SIGKILL)
    both = [spawn(f"resume={path}", RL_NATGRAD_SLOW_SAVE="0.1") for _ in range(2)]
    ended = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) in ([0, 2], [0, 0])  # the latter: one after the other
    assert "Traceback" not in "".join(ended)
    assert_equal(path, undisturbed(*WORDS))
