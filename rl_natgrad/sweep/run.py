"""python -m rl_natgrad.train -m …: every job a process of its own, one table, nothing lost."""

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rl_natgrad.config.command import Multirun, NewRun
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import Sweep as SweepKeys
from rl_natgrad.run.errors import say
from rl_natgrad.run.files import write_json
from rl_natgrad.run.folder import command_line
from rl_natgrad.run.progress import duration
from rl_natgrad.sweep.cluster import Cluster
from rl_natgrad.sweep.earlier import Earlier
from rl_natgrad.sweep.job import Job, counts
from rl_natgrad.sweep.plan import Listed, new_job
from rl_natgrad.sweep.pool import Launcher, Plan, Pool
from rl_natgrad.sweep.process import Process
from rl_natgrad.sweep.search import Search
from rl_natgrad.sweep.table import Table, closing

SAVE = 1.0  # seconds between two writes of sweep.json while jobs run


def sweep(command: Multirun) -> int:
    """Runs a sweep or a search. Returns the exit code: 0, 1 (a job failed), 2 (refused), 130 or 143 (stopped)."""
    began = time.monotonic()
    try:
        launcher: Launcher = Cluster.of(command.launcher) if command.launcher else Local(command.jobs)
        search = Search.of(command)
        folder = _create(Path(command.config.runs_dir) / "sweeps")
        plan: Plan = search.open(folder) if search else _listed(command.jobs, folder)
        view = _View(command.config.runs_dir, folder, plan)
        pool = _work(command.config.sweep, plan, launcher, view)
        view.close(pool, time.monotonic() - began)
    except ConfigError as error:
        return say(error, 2)
    except OSError as error:
        return say(error, 1)
    if pool.stopped:
        return 128 + pool.stopped
    return int(any(job.outcome in ("failed", "stopped") and not job.pruned for job in plan.jobs))


class Local:
    """Starts jobs on this machine, by default as many at once as there are cores for their threads."""

    def __init__(self, jobs: Sequence[NewRun]):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.at_once = max(cores // max(job.config.torch_threads for job in jobs), 1)

    def start(self, words: list[str], log: Path) -> Process:
        return Process(words, log)


def _create(sweeps: Path) -> Path:
    """A new folder <runs_dir>/sweeps/<time>-<4 random letters>, made by this call."""
    sweeps.mkdir(parents=True, exist_ok=True)
    while True:
        path = sweeps / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def _listed(asked: Sequence[NewRun], folder: Path) -> Listed:
    jobs = [new_job(n, job.overrides, job.config, folder) for n, job in enumerate(asked, 1)]
    going_on = jobs[0].config.sweep.skip_finished
    return Listed(jobs, Earlier(job.config.runs_dir for job in jobs) if going_on else None)


def _work(keys: SweepKeys, plan: Plan, launcher: Launcher, view: "_View") -> Pool:
    pool = Pool(
        plan, launcher, keys.jobs or launcher.at_once, job_timeout=keys.job_timeout,
        fail_fast=keys.fail_fast, view=view,
    )  # fmt: skip
    view.open(pool.at_once)
    with view.table:
        pool.work()
    return pool


class _View:
    """What is shown of a sweep, and sweep.json, which says the same."""

    def __init__(self, runs_dir: str, folder: Path, plan: Plan):
        self.runs_dir, self.folder, self.plan = runs_dir, folder, plan
        self.table = Table(plan.jobs, sys.stdout)
        self.command = command_line("rl_natgrad.train")
        self._saved = 0.0

    def open(self, at_once: int) -> None:
        self._save()
        self.table.say(f"sweep   {self.folder}")
        self.table.say(f"watch   tensorboard --logdir {self.runs_dir}")
        self.table.say(f"{self.plan.opening()} · {at_once} at once")

    def changed(self, job: Job) -> None:
        self.table.changed(job)
        self.looked()

    def looked(self) -> None:
        self.table.refresh()
        if time.monotonic() - self._saved >= SAVE:
            with contextlib.suppress(OSError):  # jobs outlive a full disk for a while; `close` reports it
                self._save()

    def note(self, line: str) -> None:
        self.table.note(line)

    def close(self, pool: Pool, seconds: float) -> None:
        """The closing table, and how to go on where something is left."""
        say = self.table.say
        self._save()
        for line in ["", *closing(self.plan.jobs), ""]:
            say(line)
        word = "stopped" if pool.ending else "done"
        say(f"{word:<7} {counts(self.plan.jobs)} · {duration(seconds)}")
        say(f"table   {self.folder / 'sweep.json'}")
        for line in self.plan.closing(self.command):
            say(line)

    def _save(self) -> None:
        jobs = [job.record() for job in self.plan.jobs]
        write_json(self.folder / "sweep.json", {"command": self.command, "jobs": jobs})
        self._saved = time.monotonic()
