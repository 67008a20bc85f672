"""One run on two machines: the bits of one process, and both end where one dies or the cable is cut."""

import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import CalledProcessError

import pytest
from machines import cut, mend, pair
from whole_runs import (
    CRITIC,
    ROOT,
    SMALL,
    assert_equal,
    checkpoints,
    facts,
    only_run,
    outcome,
    reached,
    run,
    wait_until,
)  # fmt: skip

from rl_natgrad.run.records import read_record, read_rows

pytestmark = pytest.mark.slow
WORDS = [*SMALL, *CRITIC, "env=Pendulum", "checkpoint.every=2"]
IN_TIME = 30  # seconds
ENV = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "wire"}


@pytest.fixture
def two(tmp_path):
    """Two machines, 1 ms apart."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(pair(tmp_path, 0.001))
        except (OSError, CalledProcessError) as error:
            pytest.skip(f"needs namespaces and TUN devices, which root can make: {error}")
        yield made


def torchrun(two, tmp_path, *words, restarts=0):
    """README's command for several machines, on each; a file is what one of them says."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
        "--rdzv-endpoint=host1", "--rdzv-id=a", f"--max-restarts={restarts}", "-m", "rl_natgrad.train", *words,
        f"runs_dir={tmp_path}/runs",
    ]  # fmt: skip
    return [machine.start(*command, output=tmp_path / machine.name, **ENV) for machine in two]


def underway(tmp_path) -> Path:
    """The run, once it has saved a few times."""
    wait_until(lambda: reached(tmp_path / "runs", 6), 120)
    return only_run(tmp_path / "runs")


def trains(machine) -> list[int]:
    """The ranks there."""
    found = machine.processes().items()
    return [pid for pid, line in found if " -m rl_natgrad.train" in line and "torch.distributed" not in line]


def errors(tmp_path, name) -> list[str]:
    return [line for line in (tmp_path / name).read_text().splitlines() if line.startswith("error: ")]


def goes_on(path) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        return run(patch, f"resume={path}", f"total_steps={read_rows(path)[-1]['step'] + 1}") == 0


def test_two_machines_give_the_bits_of_one_process(monkeypatch, tmp_path, two):
    words = [*WORDS, "total_steps=2600"]
    assert run(monkeypatch, *words, f"runs_dir={tmp_path}/alone") == 0
    codes = [process.wait(120) for process in torchrun(two, tmp_path, *words)]
    assert codes == [0, 0], (tmp_path / "host1").read_text()
    assert read_record(only_run(tmp_path / "runs"))["ranks"] == 2
    assert_equal(only_run(tmp_path / "runs"), facts(only_run(tmp_path / "alone")))


@pytest.mark.parametrize("mode", ["gather", "sharded"])
@pytest.mark.parametrize("what", ["host1 dies", "host2 dies", "cut"])
def test_a_machine_that_is_gone_ends_the_other(tmp_path, two, what, mode):
    processes = torchrun(two, tmp_path, *WORDS, "total_steps=1e7", f"distributed.mode={mode}")
    path = underway(tmp_path)
    start = time.monotonic()
    lost = [] if what == "cut" else [one for one in two if one.name in what]
    cut(two[1]) if what == "cut" else lost[0].kill()
    left = [machine for machine in two if machine not in lost]
    for machine in left:
        wait_until(lambda machine=machine: not trains(machine), IN_TIME + start - time.monotonic())
        assert len(errors(tmp_path, machine.name)) == 1, (tmp_path / machine.name).read_text()
        assert "has ended, or cannot be reached" in errors(tmp_path, machine.name)[0]
    if what == "cut":  # torchrun itself waits longer for its store, which is on host1
        left, processes = left[:1], processes[:1]
    for machine, process in zip(two, processes, strict=False):
        assert process.wait(60) == 1 or machine in lost, (tmp_path / machine.name).read_text()
    assert not any(machine.processes() for machine in left)
    assert outcome(path) == ("running" if what == "host1 dies" else "failed")
    assert checkpoints(path) and goes_on(path)


def test_torchrun_alone_is_killed_and_its_rank_stops_all(tmp_path, two):
    torchrun(two, tmp_path, *WORDS, "total_steps=1e7")
    path = underway(tmp_path)
    for pid, line in two[1].processes().items():
        if "torch.distributed.run" in line:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(trains, two)), IN_TIME)
    assert outcome(path) == "stopped" and goes_on(path)


@pytest.mark.parametrize("what", ["rank 0 dies", "rank 1 dies", "cut for a while"])
def test_torchrun_starts_all_again_and_they_go_on(monkeypatch, tmp_path, two, what):
    words = [*WORDS, "total_steps=60000"]
    assert run(monkeypatch, *words, f"runs_dir={tmp_path}/alone") == 0
    processes = torchrun(two, tmp_path, *words, restarts=3)
    underway(tmp_path)
    before = [pid for machine in two for pid in trains(machine)]
    if what == "cut for a while":
        cut(two[1])
        wait_until(lambda: not set(before) & {pid for machine in two for pid in trains(machine)}, IN_TIME)
        mend(two[1])
    else:
        os.kill(before[what == "rank 1 dies"], signal.SIGKILL)
    codes = [process.wait(240) for process in processes]
    assert codes == [0, 0], (tmp_path / "host1").read_text() + (tmp_path / "host2").read_text()
    path = only_run(tmp_path / "runs")
    assert read_record(path)["resumed"]
    assert_equal(path, facts(only_run(tmp_path / "alone")))
