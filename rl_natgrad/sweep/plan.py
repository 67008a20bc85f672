"""The jobs of a sweep that lists them all: which are left, and how each is started."""

from pathlib import Path

from rl_natgrad.config import Config
from rl_natgrad.sweep.earlier import Earlier
from rl_natgrad.sweep.job import Job, newest_row


class Listed:
    """Every job once, in order; with `earlier`, without those that some run has finished already."""

    def __init__(self, jobs: list[Job], earlier: Earlier | None = None):
        self.jobs = jobs
        if earlier:
            for job in jobs:
                adopt(job, earlier)
        self._left = [job for job in jobs if job.outcome == "waiting"]

    def next(self) -> Job | None:
        return self._left.pop(0) if self._left else None

    def look(self, job: Job) -> str | None:
        return None

    def ended(self, job: Job) -> None:
        pass

    def closing(self, command: str) -> list[str]:
        if all(job.outcome == "finished" for job in self.jobs):
            return []
        return [f"go on   {going_on(command)}"]


def new_job(number: int, overrides: list[str], config: Config, folder: Path) -> Job:
    """A job that starts from scratch, with exactly the words of a user who runs it alone."""
    words = [word for word in overrides if not word.startswith(("sweep.", "search.", "sweep=", "search="))]
    return Job(number, words, config, log=folder / f"{number}.log", words=words)


def adopt(job: Job, earlier: Earlier) -> None:
    """The job is what an earlier run did, or is doing, or goes on where one was interrupted."""
    found = earlier.take(job.config)
    if found is None:
        return
    job.run = found.path
    if found.outcome == "stopped":
        job.words = resuming(found.path)
    else:
        job.outcome = "finished" if found.outcome == "finished" else "running"
        job.row = newest_row(found.path)


def going_on(command: str) -> str:
    """The command that runs what is missing."""
    word = "sweep.skip_finished=true"
    return command if word in command else f"{command} {word}"


def resuming(run: Path) -> list[str]:
    """The words that go on with a run; quoted, so that Hydra's grammar reads any path back unchanged."""
    text = str(run)
    return ["resume='" + text.replace("\\'", "\\\\'").replace("'", "\\'") + "'"]
