"""Jobs side by side, a few at a time: started, looked at, stopped, none in the way of another."""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rl_natgrad.sweep.cluster import Submitted
from rl_natgrad.sweep.forks import Forked
from rl_natgrad.sweep.job import Job, Outcome
from rl_natgrad.sweep.plan import Listed
from rl_natgrad.sweep.process import Process
from rl_natgrad.sweep.search import Search
from rl_natgrad.sweep.table import View

TICK = 0.05  # seconds between two looks at whether a process has ended
LOOK = 1.0  # seconds between two looks at what the jobs have written
REFUSED = 2  # exit code of a run that could not be resumed: its folder is damaged
GRACE = 5.0  # seconds a job that took too long has to save and end

Plan = Listed | Search  # which jobs there are, and what is learnt from them
Handle = Process | Forked | Submitted  # a job that has been started
Launch = Callable[[list[str], Path], Handle]  # starts a training of these words, which speaks to this log


class Running:
    """A job and its process."""

    def __init__(self, job: Job, handle: Handle):
        self.job, self.handle = job, handle
        self.since: float | None = None  # when it really began: a cluster may let it wait
        self.asked: Outcome | None = None
        self.until = math.inf

    def end(self, outcome: Outcome, why: str | None = None, within: float = math.inf) -> None:
        """Ask it, once, to save and end; it is killed where it does not in time."""
        if self.asked is None:
            self.asked, self.job.error, self.until = outcome, why, time.monotonic() + within
            self.handle.stop()


class Pool:
    """Works through a plan.

    ending: nothing more is started (a failure with fail_fast, or a signal).  stopped: the signal's number, or 0.
    """

    def __init__(
        self, plan: Plan, launch: Launch, at_once: int, *, job_timeout: float | None, fail_fast: bool, view: View
    ):
        self.plan, self.launch, self.at_once, self.view = plan, launch, at_once, view
        self.job_timeout, self.fail_fast = job_timeout, fail_fast
        self.running: list[Running] = []
        self.ending, self.stopped, self.signals = False, 0, 0

    def work(self) -> None:
        """Returns when nothing runs and nothing is left to start; leaves no process behind, however it ends."""
        old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        looked_at, told = 0.0, False
        try:
            while self._fill():
                time.sleep(TICK)
                now = time.monotonic()
                look = now - looked_at >= LOOK
                if self.stopped and not told:
                    told = True
                    self.view.note("stop    each job after its update (once more: at once)")
                for one in list(self.running):
                    self._tend(one, now, look)
                if look:
                    looked_at = now
                    self.view.refresh()
        finally:
            for one in self.running:
                one.handle.kill()
            for s, handler in old.items():
                signal.signal(s, handler)

    def _fill(self) -> bool:
        """Starts what may be started. Returns whether anything runs."""
        while not self.ending and len(self.running) < self.at_once and (job := self.plan.next()):
            self._start(job)
        return bool(self.running)

    def _start(self, job: Job) -> None:
        self.running.append(Running(job, self.launch(job.words, job.log)))
        job.outcome = "running"
        self.view.changed(job)

    def _tend(self, one: Running, now: float, look: bool) -> None:
        job = one.job
        code = one.handle.poll()
        if code is not None:
            self.running.remove(one)
            self._ended(one, code)
            return
        if one.since is None and job.log.exists():
            one.since = now
        if one.since and self.job_timeout and now - one.since > self.job_timeout:
            one.end("failed", f"no end within {self.job_timeout:g} s (sweep.job_timeout)", within=GRACE)
        if self.ending:
            one.end("stopped")
        if now > one.until or self.signals > 1:
            one.handle.kill()
        if look:
            job.look()
            if why := self.plan.look(job):
                job.pruned = True
                one.end("stopped", why)

    def _ended(self, one: Running, code: int) -> None:
        job = one.job
        job.end(code, one.asked)
        if code == REFUSED and job.words != job.fresh and not self.ending:
            self.view.note(f"anew    {job.number}: {job.error}")
            job.run, job.error, job.words = None, None, job.fresh
            self._start(job)
            return
        self.plan.ended(job)
        self.view.changed(job)
        if self.fail_fast and job.outcome == "failed":
            self.ending = True

    def _note(self, number: int, frame: object) -> None:
        """The first signal lets every job save and end; the second one kills them."""
        self.signals, self.stopped, self.ending = self.signals + 1, number, True
