"""Environments that misbehave: what is said of it, and that nobody is left behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from environments import WRONG
from vector_envs import actions, make, run

from rl_natgrad.envs.checks import Checks
from rl_natgrad.envs.episode import episode_seed
from rl_natgrad.envs.errors import EnvError

TESTS = Path(__file__).parent
BACKENDS = ["sync", "async", "split"]
HANGS = ["step sleeps", "step spins", "reset sleeps"]
DEATHS = ["step dies", "step killed", "reset dies"]


def misbehave(how, backend, timeout=60.0):
    """The error of a rollout of 8 rows in which environment 1 misbehaves at its third step (or its reset)."""
    victim = episode_seed(0, 1, 0)
    e = make("environments:Misbehaving-v0", backend, 3, timeout=timeout, how=how, victim=victim)
    try:
        with pytest.raises(EnvError) as error:
            obs, rows = [e.reset().copy()], []
            for a in actions(e, 8):
                rows.append(tuple(x.copy() for x in e.step(a)))
                obs.append(rows[-1][0])
            reward, ends = np.stack([r[1] for r in rows]), np.stack([r[2] | r[3] for r in rows])
            Checks("Misbehaving-v0", e.observation_space)(np.stack(obs), reward, ends, np.zeros(3, int))
        return str(error.value)
    finally:
        e.close()


def in_place(line, how):
    step = 0 if how.startswith("reset") else 3
    where = rf"Misbehaving-v0, environment 1, (episode 0, )?step {step}: "
    return re.search(where, line) and "\n" not in line


FEW = ["reset raises", "step raises", "step shape", "step nan", "step reward-array"]


@pytest.mark.parametrize(
    "how, backend",
    [(how, "sync") for how in WRONG]
    + [
        pytest.param(how, backend, marks=[] if how in FEW else pytest.mark.slow)
        for backend in ("async", "split")
        for how in WRONG
    ],
)
def test_misbehaviour_is_named(how, backend):
    line = misbehave(how, backend)
    assert in_place(line, how) and WRONG[how] in line, line


@pytest.mark.parametrize("how", HANGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hang_is_ended_and_named(how, backend):
    line = misbehave(how, backend, timeout=0.5)
    assert in_place(line, how) and f"{how.split()[0]} did not return within 0.5 s (env.timeout)" in line, line


@pytest.mark.parametrize("how", DEATHS)
def test_a_dead_worker_is_named(how):
    line = misbehave(how, "async")
    end = "(signal 9)" if how == "step killed" else "(exit code 3)"
    assert in_place(line, how) and f"its process died in {how.split()[0]} {end}" in line, line


def test_an_error_in_a_worker_keeps_its_traceback(opened):
    e = opened("environments:Misbehaving-v0", "async", how="step raises", at=1)
    e.reset()
    with pytest.raises(EnvError) as error:
        e.step(actions(e, 1)[0])
    assert "in _raise" in str(error.value.__cause__)
    with pytest.raises(EnvError, match="have ended"):
        e.step(actions(e, 1)[0])


C_HANG = """
import ctypes, signal, sys; sys.path[:0] = [{tests!r}]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started with
import environments, vector_envs
environments.DEEDS["stubborn"] = {deed}
e = vector_envs.make("environments:Misbehaving-v0", timeout=0.4, how="step stubborn")
e.reset()
for a in vector_envs.actions(e, 8): e.step(a)
"""


@pytest.mark.parametrize(
    "deed, told",
    [
        ("environments._stubborn", "Misbehaving-v0, environment 0, episode 0, step 3: step did not return"),
        # PyDLL keeps the interpreter's lock, and a signal only ends one sleep
        ("lambda: [ctypes.PyDLL(None).sleep(1000) for _ in iter(int, 1)]", "in step"),
        (
            "lambda: [__import__('time').sleep(0.3)] + [ctypes.PyDLL(None).sleep(1000) for _ in iter(int, 1)]",
            "in step\n.*\nerror: environments:Misbehaving-v0: C code kept the interpreter for 2 s\n$",
        ),
    ],
)
def test_a_hang_that_swallows_errors_or_holds_the_interpreter_exits_1(deed, told):
    code = C_HANG.format(tests=str(TESTS), deed=deed)
    done = run(code)
    assert done.returncode == 1 and re.search(told, done.stderr, re.DOTALL), done


def test_the_time_in_which_a_process_is_stopped_is_no_hang():
    """At SIGCONT the time since the last beat was over, and so was the run."""
    code = f"""
import sys, threading, time; sys.path[:0] = [{str(TESTS)!r}]
import environments, gymnasium, vector_envs
class Slow(environments.Misbehaving):
    def step(self, action):
        time.sleep(0.02)
        return super().step(action)
gymnasium.register("Slow-v0", Slow)
e = vector_envs.make("Slow-v0", timeout=0.2, how="well behaved")
e.reset()
over = threading.Thread(target=sys.stdin.readline)
over.start()
(a,) = vector_envs.actions(e, 1)
for i in range(1000000):
    e.step(a)
    if i == 10:
        print("busy", flush=True)
    if not over.is_alive():
        break
e.close()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=TESTS.parent,
    )  # fmt: skip
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate("end\n", timeout=30)
    assert (process.returncode, said) == (0, "")


def test_the_time_in_which_a_worker_is_stopped_is_no_hang(opened):
    e = opened("environments:Misbehaving-v0", "async", timeout=0.2, how="well behaved")
    e.reset()
    (first, *_) = e.processes
    first.send_signal(signal.SIGSTOP)
    threading.Timer(1.0, first.send_signal, [signal.SIGCONT]).start()
    for a in actions(e, 3):
        e.step(a)


def test_no_worker_outlives_a_killed_parent():
    code = f"""
import sys; sys.path[:0] = [{str(TESTS)!r}]
import vector_envs
e = vector_envs.make("environments:Misbehaving-v0", "async", how="step spins")
e.reset()
print(*[p.pid for p in e.processes], flush=True)
for a in vector_envs.actions(e, 8): e.step(a)
"""
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TESTS.parent)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) >= 1
    time.sleep(0.2)  # long enough to be inside the loop that never ends
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_closing_leaves_no_process(opened):
    e = opened("CartPole-v1", "async")
    e.reset()
    pids = [p.pid for p in e.processes]
    e.close()
    assert not any(_alive(pid) for pid in pids)
    e.close()  # twice is fine
