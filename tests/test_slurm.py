"""Slurm for real: two nodes of its own, a sweep on them, and a run of a rank on each."""

import os
import shutil
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import CalledProcessError
from tempfile import TemporaryDirectory

import pytest
from machines import pair
from sweeps import PROBE, environment, report
from whole_runs import CRITIC, SMALL, assert_equal, facts, only_run, outcome, reached, run, wait_until

from rl_natgrad.run.records import read_record, read_rows

pytestmark = pytest.mark.slow
DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
CONF = """
ClusterName=test
SlurmctldHost=host1(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmdParameters=config_overrides
KillWait=5
NodeName=host1 NodeAddr=10.77.0.1 CPUs=2 RealMemory=1000
NodeName=host2 NodeAddr=10.77.0.2 CPUs=2 RealMemory=1000
PartitionName=cpu Nodes=ALL Default=YES State=UP
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Two nodes with two cores each; the first is where one logs in."""
    missing = [name for name in DAEMONS if not shutil.which(name, path=PATH)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: slurm-wlm, munge)")
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    for key, value in environment(SLURM_CONF=f"{folder}/slurm.conf", PATH=PATH).items():
        monkeypatch.setenv(key, value)
    with ExitStack() as stack:
        spool = stack.enter_context(TemporaryDirectory(prefix="slurm"))  # a socket's path has 107 bytes at most
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, spool=spool))
        try:
            nodes = stack.enter_context(pair(tmp_path))
        except (OSError, CalledProcessError) as error:
            pytest.skip(f"needs namespaces and TUN devices, which root can make: {error}")
        files = [("key-file", "key"), ("socket", "munge"), ("pid-file", "munged.pid"), ("log-file", "munged.log")]
        options = [f"--{option}={folder}/{name}" for option, name in [*files, ("seed-file", "seed")]]
        nodes[0].start("munged", "--foreground", "--force", *options, output=folder / "munged.out")
        wait_until((folder / "munge").exists)
        nodes[0].start("slurmctld", "-D", "-i", output=folder / "slurmctld.out")
        for node in nodes:
            node.start("slurmd", "-D", output=folder / f"slurmd.{node.name}.out")
        idle = {node.name: "idle" for node in nodes}
        wait_until(lambda: states(nodes[0], "sinfo", "--Node", "--format=%N %t") == idle)
        yield nodes


def states(node, *command) -> dict[str, str]:
    """What Slurm says of nodes or jobs, or nothing where it has just been started."""
    with suppress(CalledProcessError):
        return dict(line.split() for line in node.run(*command, "--noheader").splitlines())
    return {}


def jobs(node) -> dict[str, str]:
    """Of the jobs that are not over, what each does."""
    return states(node, "squeue", "--format=%A %T")


def test_a_sweep_whose_jobs_fail_are_cancelled_or_late_goes_on(tmp_path, slurm):
    """Jobs 4 and 5 raise, 2 is past its limit, 3 is cancelled as it runs, 6 as it waits."""
    runs = tmp_path / "runs"
    words = [
        *PROBE, "env.kwargs.job=0,2", "total_steps=300,14000,14001", "checkpoint.every=1", f"runs_dir={runs}",
        "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=5",
        "hydra.launcher.cpus_per_task=1", "hydra.launcher.partition=cpu", "sweep.skip_finished=true",
    ]  # fmt: skip
    command = [sys.executable, "-m", "rl_natgrad.train", "-m", *words]
    sweep = slurm[0].start(*command, output=tmp_path / "first", SWEEP_SLOW="0.01")
    wait_until(lambda: jobs(slurm[0]).get("6") == "PENDING")  # four cores have one each
    slurm[0].run("scancel", "6")
    wait_until(lambda: len(reached(runs, 4)) == 2, 120)
    slurm[0].run("scancel", "3")
    assert sweep.wait(300) == 1, (tmp_path / "first").read_text()
    first = report(runs)["jobs"]
    assert [job["outcome"] for job in first] == ["finished", "stopped", "stopped", "failed", "failed", "failed"]
    assert first[0]["error"] is None and first[1]["error"].startswith("its time was up")
    assert first[2]["error"] == "stopped by SIGTERM"
    assert all("the pole fell over" in job["error"] for job in first[3:5])
    assert first[5]["error"] == "the cluster ended it (CANCELLED)"
    wait_until(lambda: not jobs(slurm[0]))
    again = slurm[0].start(*command, output=tmp_path / "second", SWEEP_FIXED="1")
    assert again.wait(180) == 0, (tmp_path / "second").read_text()
    second = report(runs)["jobs"]
    assert [job["outcome"] for job in second] == ["finished"] * 6 and second[0] == first[0]
    for before, after in zip(first[1:3], second[1:3], strict=True):
        assert before["run"] == after["run"]
        assert [one["after"] for one in read_record(after["run"])["resumed"]] == ["stopped"]


WORDS = [*SMALL, *CRITIC, "env=Pendulum", "checkpoint.every=2"]
RENDEZVOUS = ["--rdzv-backend=c10d", "--rdzv-endpoint=host1", "--rdzv-id=a"]
SRUN = ["srun", "-N2", "--ntasks-per-node=1", "torchrun", "--nnodes=2", "--nproc-per-node=1", *RENDEZVOUS,
        "-m", "rl_natgrad.train", *WORDS]  # fmt: skip
WIRE = {"GLOO_SOCKET_IFNAME": "wire"}


def test_srun_gives_the_bits_of_one_process(monkeypatch, tmp_path, slurm):
    assert run(monkeypatch, *WORDS, "total_steps=2600", f"runs_dir={tmp_path}/alone") == 0
    said = slurm[0].run(*SRUN, "total_steps=2600", f"runs_dir={tmp_path}/runs", timeout=180, **WIRE)
    path = only_run(tmp_path / "runs")
    assert "done" in said and read_record(path)["ranks"] == 2
    assert_equal(path, facts(only_run(tmp_path / "alone")))


def test_scancel_stops_all_ranks_after_the_update(monkeypatch, tmp_path, slurm):
    words = ["total_steps=1e7", f"runs_dir={tmp_path}/runs"]
    process = slurm[0].start(*SRUN, *words, output=tmp_path / "said", **WIRE)
    wait_until(lambda: reached(tmp_path / "runs", 6), 120)
    slurm[0].run("scancel", *jobs(slurm[0]))
    process.wait(60)
    wait_until(lambda: not jobs(slurm[0]))
    path = only_run(tmp_path / "runs")
    assert outcome(path) == "stopped", (tmp_path / "said").read_text()
    assert run(monkeypatch, f"resume={path}", f"total_steps={read_rows(path)[-1]['step'] + 1}") == 0
