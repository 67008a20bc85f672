"""python -m rl_natgrad.train -m …: every job a process of its own, one table, nothing lost."""

import contextlib
import shlex
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rl_natgrad.config.command import Multirun, NewRun
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.envs.cores import cores
from rl_natgrad.run.errors import say
from rl_natgrad.run.folder import command_line, new
from rl_natgrad.run.lock import Busy
from rl_natgrad.run.progress import duration
from rl_natgrad.sweep.cluster import Cluster
from rl_natgrad.sweep.earlier import Earlier
from rl_natgrad.sweep.forks import Forks
from rl_natgrad.sweep.job import Job, counts
from rl_natgrad.sweep.plan import Listed, new_job
from rl_natgrad.sweep.pool import Plan, Pool
from rl_natgrad.sweep.search import Search
from rl_natgrad.sweep.table import View, closing


def sweep(asked: Multirun) -> int:
    """Runs a sweep or a search. Returns the exit code: 0, 1 (a job failed), 2 (refused), 130 or 143 (stopped)."""
    began, command = time.monotonic(), command_line("rl_natgrad.train")
    runs_dir, keys = asked.config.runs_dir, asked.config.sweep
    try:
        cluster = Cluster.of(asked.launcher) if asked.launcher else None
        at_once = keys.jobs or (cluster.at_once if cluster else _at_once(asked))
        forks = Forks(at_once)
        search = Search.of(asked)
        folder = new(Path(runs_dir) / "sweeps")
        plan: Plan = search.open(folder) if search else _listed(asked.jobs, folder)
        view = View(plan.jobs, folder, command, sys.stdout)
        pool = Pool(
            plan, cluster.start if cluster else forks.start, at_once, job_timeout=keys.job_timeout,
            fail_fast=keys.fail_fast, view=view,
        )  # fmt: skip
        view.save()
        view.say(f"sweep   {folder}", f"watch   python -m rl_natgrad.watch {shlex.quote(str(folder))}")
        view.say(f"{plan.opening()} · {pool.at_once} at once")
        with contextlib.closing(forks), view:
            pool.work()
        view.save()
        view.say("", *closing(plan.jobs), "")
        word = "stopped" if pool.ending else "done"
        view.say(f"{word:<7} {counts(plan.jobs)} · {duration(time.monotonic() - began)}")
        view.say(f"table   {folder / 'sweep.json'}", *_comparing(plan.jobs, folder), *plan.closing(command))
    except (ConfigError, Busy) as error:
        return say(error, 2)
    except OSError as error:
        return say(error, 1)
    except Exception as error:  # Optuna and SQLAlchemy wrap what SQLite says of a disk that fails
        cause: BaseException | None = error
        while cause and not isinstance(cause, sqlite3.Error):
            cause = cause.__cause__
        if cause is None or search is None:
            raise
        return say(f"{search.database}: {cause}", 1)
    if pool.stopped:
        return 128 + pool.stopped
    return int(any(job.outcome in ("failed", "stopped") and not job.pruned for job in plan.jobs))


def _comparing(jobs: Sequence[Job], folder: Path) -> list[str]:
    """The line that compares what the jobs left, to paste."""
    several = len({job.config.env.id for job in jobs}) > 1
    asked = f"python -m rl_natgrad.compare {shlex.quote(str(folder))}{' by=env' * several}"
    return [f"compare {asked}"] if any(job.run for job in jobs) else []


def _at_once(asked: Multirun) -> int:
    """How many jobs this machine has at once: as many as there are cores for."""
    return max(cores() // max(job.config.torch_threads for job in asked.jobs), 1)


def _listed(asked: Sequence[NewRun], folder: Path) -> Listed:
    jobs = [new_job(n, job.overrides, job.config, folder) for n, job in enumerate(asked, 1)]
    going_on = jobs[0].config.sweep.skip_finished
    return Listed(jobs, Earlier(job.config.runs_dir for job in jobs) if going_on else None)
