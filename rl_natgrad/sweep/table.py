"""What a person sees of a sweep: a live table on a terminal, a line now and then elsewhere, a table at the end."""

import time
from typing import Any, TextIO

from rl_natgrad.run.progress import duration, forgiving, number, two_digits
from rl_natgrad.sweep.job import Job, counts

QUIET = 60.0  # seconds without a line, off a terminal, after which one says how far things are


class Table:
    """`changed` after a job began or ended, `refresh` about once a second, `close` at the end (or use `with`)."""

    def __init__(self, jobs: list[Job], stream: TextIO):
        self._jobs, self._stream = jobs, forgiving(stream)
        self._live: Any = None  # rich's own, imported with the first table
        self._started: dict[int, float] = {}
        self._said, self._note = time.monotonic(), ""

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def changed(self, job: Job) -> None:
        if self._stream.isatty():
            self.refresh()
            return
        now = time.monotonic()
        if job.outcome == "running":
            self._started[job.number] = now
            self.say(f"start   {self._name(job)}")
            return
        word = "done" if job.outcome == "finished" else job.outcome
        took = duration(now - self._started.get(job.number, now))
        self.say(f"{word:<7} {self._name(job)} · return {number(job.value)} · {job.error or took}")

    def refresh(self) -> None:
        if self._stream.isatty():
            self._draw()
        elif time.monotonic() - self._said >= QUIET:
            self.say(f"        {counts(self._jobs)}")

    def note(self, line: str) -> None:
        if self._stream.isatty():
            self._note = line
            self._draw()
        else:
            self.say(line)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)
        self._said = time.monotonic()

    def _name(self, job: Job) -> str:
        return f"{job.number}/{len(self._jobs)} {job.label}".rstrip()

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
        shown = sorted((running + ended[::-1])[:room], key=lambda job: job.number)
        lines = [*rows_of(live_rows(shown)), "", counts(self._jobs), self._note]
        self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)


def live_rows(jobs: list[Job]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("job", "overrides", "progress", "return", "steps/s", "state")]
    for job in jobs:
        rate = job.row.get("time/steps_per_second")
        share = min(job.row.get("step", 0) / job.config.total_steps, 1)
        speed = f"{two_digits(rate):,}" if rate else "-"
        rows.append((str(job.number), job.label, f"{share:.0%}", number(job.value), speed, job.outcome))
    return rows


def closing(jobs: list[Job]) -> list[str]:
    """Every job with its outcome, return and folder; then why the failed ones failed."""
    rows = [("job", "overrides", "outcome", "return", "folder")]
    for job in jobs:
        rows.append((str(job.number), job.label, job.outcome, number(job.value), str(job.run or "-")))
    failed = [job for job in jobs if job.outcome == "failed"]
    return rows_of(rows) + [
        f"failed  {job.number} {job.label}: {job.error} (all it said: {job.log})" for job in failed
    ]


def rows_of(rows: list[tuple[Any, ...]]) -> list[str]:
    """The rows with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
