"""Jobs that are forked: each as good as a process that has imported everything itself, and told of as one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from sweeps import TESTS
from whole_runs import ROOT, wait_until

from rl_natgrad.sweep import forks
from rl_natgrad.sweep.forks import Forks, Gone, Server
from rl_natgrad.sweep.process import Process

WORDS = ["env=fork_environments:Does-v0", "env.allow_import=true", "env.backend=sync", "total_steps=100"]
WORDS += ["num_envs=1", "horizon=64", "policy.hidden=[4]", "critic.hidden=[4]", "critic.epochs=1"]
WORDS += ["eval.episodes=1"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{TESTS}")
        patch.setenv("OPENBLAS_NUM_THREADS", "1")  # NumPy's starts idle threads on import, and none in a fork
        yield


@pytest.fixture(scope="module")
def started():
    with contextlib.closing(Forks()) as one:
        yield one


def begin(launch, folder: Path, deed: str = ""):
    """A job that does a deed, and its log."""
    folder.mkdir(exist_ok=True)
    log = folder / "1.log"
    return launch([*WORDS, f"runs_dir={folder}/runs", f"env.kwargs.deed='{deed}'"], log), log


def code_of(job) -> int:
    wait_until(lambda: job.poll() is not None)
    return job.poll()


def end(launch, folder: Path, deed: str = "") -> tuple[int, str]:
    job, log = begin(launch, folder, deed)
    return code_of(job), log.read_text()


def said(log: Path, word: str) -> str:
    """What stands behind a word in a log, once it does."""
    return wait_until(lambda: re.search(rf"^{word}(.*)\n", log.read_text(), re.MULTILINE))[1]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_forked_job_has_what_a_process_of_its_own_has(started, tmp_path):
    ends = [end(launch, tmp_path / "x", "tell") for launch in (Process, started.start, started.start)]
    (tmp_path / "x" / "1.log").unlink()
    text = ends[-1][1]  # each adds to the one log
    told = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    draws = [line for line in text.splitlines() if line.startswith("draws")]
    assert [code for code, _ in ends] == [0, 0, 0]
    fresh, *forked = told[:: len(told) // 3]  # each makes several environments
    for one in forked:
        assert {key: value for key, value in one.items() if fresh[key] != value} == {}
    assert len(set(draws)) == len(draws)


def test_what_a_forked_job_writes_as_it_ends_is_written(started, tmp_path):
    code, text = end(started.start, tmp_path, "late")
    assert code == 0 and {"atexit", "thread", "file", "stdout"} == set(re.findall("late: (.*)", text))


@pytest.mark.parametrize("deed, code", [("_exit", 7), ("SIGKILL", -9), ("SIGSEGV", -11), ("", 0)])
def test_how_a_forked_job_ends(started, tmp_path, deed, code):
    found, text = end(started.start, tmp_path, deed)
    assert found == code, text
    if deed == "_exit":
        wait_until(lambda: not runs(int(re.findall(r"child (\d+)", text)[0])))


def test_a_forked_job_is_asked_to_stop_or_killed_with_all_it_started(started, tmp_path):
    job, log = begin(started.start, tmp_path / "hang", "hang")
    said(log, "hangs")
    job.stop()
    assert code_of(job) == 130 and "stop    before the first update" in log.read_text()
    job, log = begin(started.start, tmp_path / "deaf", "deaf")
    child = int(said(log, "child"))
    job.stop()
    assert job.poll() is None and runs(child)
    job.kill()
    assert code_of(job) == -signal.SIGKILL
    wait_until(lambda: not runs(child))


def test_a_job_is_killed_however_young(started, tmp_path):
    for _ in range(5):
        job, _ = begin(started.start, tmp_path, "hang")
        job.kill()
        assert code_of(job) == -signal.SIGKILL


def test_the_server_has_one_thread_and_hears_no_signal_for_jobs(started, tmp_path):
    assert end(started.start, tmp_path)[0] == 0
    server = started._server._popen.pid
    assert len(os.listdir(f"/proc/{server}/task")) == 1 and os.getsid(server) == server
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        os.kill(server, number)
    assert end(started.start, tmp_path)[0] == 0 and started._server._popen.pid == server


def test_jobs_end_with_their_server_and_another_takes_its_place(tmp_path):
    with contextlib.closing(Forks()) as forks:
        jobs = [begin(forks.start, tmp_path / name, "hang") for name in "ab"]
        for _, log in jobs:
            said(log, "hangs")
        os.kill(forks._server._popen.pid, signal.SIGKILL)
        for job, log in jobs:
            assert code_of(job) == 1
            wait_until(lambda pid=job._pid: not runs(pid))
            job.stop()
            job.kill()
            last = log.read_text().splitlines()[-1]
            assert last == "error: the process that started this job has ended (killed by SIGKILL)"
        assert end(forks.start, tmp_path / "c")[0] == 0


def test_where_an_import_starts_a_thread_nothing_is_forked(tmp_path, monkeypatch, capfd):
    (tmp_path / "sitecustomize.py").write_text("import threading\nthreading.Timer(100, print).start()\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    with pytest.raises(Gone):
        Server()
    assert capfd.readouterr().err.startswith("note: an import starts a thread, so each job imports by itself")


def test_without_a_server_each_job_is_a_process_of_its_own(tmp_path, monkeypatch):
    def gone(at_once):
        raise Gone

    monkeypatch.setattr(forks, "Server", gone)
    monkeypatch.setattr(forks, "Process", lambda words, log, at_once: (words, log))
    with contextlib.closing(Forks()) as started:
        for _ in range(2):
            assert started.start(["seed=1"], tmp_path / "1.log") == (["seed=1"], tmp_path / "1.log")
