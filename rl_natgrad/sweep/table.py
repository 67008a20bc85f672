"""What a person sees of a sweep: a live table on a terminal, a line now and then elsewhere, a table at the end."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rl_natgrad.run.files import write_json
from rl_natgrad.run.progress import duration, forgiving, number, two_digits
from rl_natgrad.run.records import SWEEP
from rl_natgrad.sweep.job import Job, counts

if TYPE_CHECKING:
    from rich.live import Live

QUIET = 60.0  # seconds without a line, off a terminal, after which one says how far things are
SAVE = 1.0  # seconds between two writes of sweep.json while jobs run


class View:
    """The jobs on a stream and in <folder>/sweep.json, which say the same. `with` it, the table is live."""

    def __init__(self, jobs: list[Job], folder: Path, command: str, stream: TextIO):
        self._jobs, self._file, self._command = jobs, folder / SWEEP, command
        self._stream = forgiving(stream)
        self._live: Live | None = None  # imported with the first table
        self._started: dict[int, float] = {}
        self._said = self._saved = time.monotonic()
        self._note = ""

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, job: Job) -> None:
        """A job began or ended: a line, or the table again."""
        if self._stream.isatty():
            self._draw()
            return
        now = time.monotonic()
        name = f"{job.number}/{len(self._jobs)} {job.label}".rstrip()
        if job.outcome == "running":
            self._started[job.number] = now
            self.say(f"start   {name}")
            return
        word = "done" if job.outcome == "finished" else job.outcome
        took = duration(now - self._started.get(job.number, now))
        returns = f"train return {number(job.train_return)} · eval return {number(job.eval_return)}"
        self.say(f"{word:<7} {name} · {returns} · {job.error or took}")

    def refresh(self) -> None:
        """The table again; elsewhere a line where there was none for long; and sweep.json where it is due."""
        now = time.monotonic()
        if self._stream.isatty():
            self._draw()
        elif now - self._said >= QUIET:
            self.say(f"        {counts(self._jobs)}")
        if now - self._saved >= SAVE:
            with contextlib.suppress(OSError):  # jobs outlive a full disk for a while; the last `save` reports it
                self.save()

    def note(self, line: str) -> None:
        """Something that is no job's: below the table, or a line."""
        if self._stream.isatty():
            self._note = line
            self._draw()
        else:
            self.say(line)

    def say(self, *lines: str) -> None:
        """Lines that stay."""
        print(*lines, sep="\n", file=self._stream, flush=True)
        self._said = time.monotonic()

    def save(self) -> None:
        """Writes sweep.json. Raises: OSError."""
        write_json(self._file, {"command": self._command, "jobs": [job.record() for job in self._jobs]})
        self._saved = time.monotonic()

    def _draw(self) -> None:
        """As many jobs as the terminal has lines for: those that run first, then the newest ended."""
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=Console(file=self._stream), auto_refresh=False, transient=True)
            self._live.start()
        room = max(self._live.console.height - 4, 1)
        ended = [job for job in self._jobs if job.outcome not in ("running", "waiting")]
        running = [job for job in self._jobs if job.outcome == "running"]
        rows = [("job", "overrides", "progress", "train return", "steps/s", "state")]
        for job in sorted((running + ended[::-1])[:room], key=lambda job: job.number):
            rate = job.row.get("time/steps_per_second")
            share = min(job.row.get("step", 0) / job.config.total_steps, 1)
            speed = f"{two_digits(rate):,}" if rate else "-"
            rows.append((str(job.number), job.label, f"{share:.0%}", number(job.train_return), speed, job.outcome))
        lines = [*_aligned(rows), "", counts(self._jobs), self._note]
        self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)


def closing(jobs: Sequence[Job]) -> list[str]:
    """Every job with its outcome, return and folder; then why the failed ones failed."""
    rows = [("job", "overrides", "outcome", "train return", "eval return", "folder")]
    for job in jobs:
        returns = number(job.train_return), number(job.eval_return)
        rows.append((str(job.number), job.label, job.outcome, *returns, str(job.run or "-")))
    return _aligned(rows) + [
        f"failed  {job.number} {job.label}: {job.error} (all it said: {job.log})"
        for job in jobs if job.outcome == "failed"
    ]  # fmt: skip


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
