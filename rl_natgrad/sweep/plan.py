"""The jobs of a sweep that lists them all: which are left, and how each is started."""

import re
from pathlib import Path

from rl_natgrad.config.schema import Config
from rl_natgrad.sweep.earlier import Earlier
from rl_natgrad.sweep.job import Job, counts, newest_row


class Listed:
    """Every job once, in order; with `earlier`, without those that some run has finished already."""

    def __init__(self, jobs: list[Job], earlier: Earlier | None = None):
        self.jobs = jobs
        common = set.intersection(*(set(job.fresh) for job in jobs)) if len(jobs) > 1 else set()
        for job in jobs:
            job.label = " ".join(word for word in job.fresh if word not in common)
            if earlier:
                adopt(job, earlier)
        self._left = [job for job in jobs if job.outcome == "waiting"]

    def opening(self) -> str:
        """What there is to do, as part of a line."""
        return counts(self.jobs)

    def next(self) -> Job | None:
        """A job to start; None when there is none."""
        return self._left.pop(0) if self._left else None

    def look(self, job: Job) -> None:
        """Why a running job may be stopped early: never."""

    def ended(self, job: Job) -> None:
        """Nothing is learnt from how a job ended."""

    def closing(self, command: str) -> list[str]:
        """The last lines: the command that runs what is missing, where something is."""
        if all(job.outcome == "finished" for job in self.jobs):
            return []
        word = "sweep.skip_finished=true"
        return [f"go on   {command if word in command else f'{command} {word}'}"]


def new_job(number: int, overrides: list[str], config: Config, folder: Path, label: str = "") -> Job:
    """A job that starts from scratch, with exactly the words of a user who runs it alone."""
    words = [word for word in overrides if not word.startswith(("sweep.", "search.", "sweep=", "search="))]
    return Job(number, words, config, folder / f"{number}.log", words, label)


def adopt(job: Job, earlier: Earlier) -> None:
    """The job is what an earlier run did, or is doing, or goes on where one was interrupted."""
    found = earlier.claim(job.config)
    if found is None:
        return
    job.run = found.path
    if found.outcome == "stopped":
        job.words = resuming(found.path, job.config.env.allow_import)
    else:
        job.outcome = "finished" if found.outcome == "finished" else "running"
        job.row = newest_row(found.path)


def resuming(run: Path, allow_import: bool) -> list[str]:
    """The words that go on with a run; quoted, so that Hydra's grammar reads any path back unchanged.

    A run's folder may not allow an import by itself: the user has, in this command.
    """
    doubled = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), str(run))
    return [f"resume='{doubled}'", *(["env.allow_import=true"] if allow_import else [])]
