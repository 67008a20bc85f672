"""One job of a sweep: the words to start it with, and what its log and its run folder say of it."""

import contextlib
import json
import re
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rl_natgrad.config.schema import Config
from rl_natgrad.run.folder import RunRecord
from rl_natgrad.run.records import METRICS, read_record

Outcome = Literal["finished", "failed", "stopped", "running", "waiting"]
LAST_ROWS = 20  # among which a tag's newest value is looked for
PART = 1 << 16  # bytes of a log or of metrics.jsonl that are read, from its start or its end


@dataclass
class Job:
    """What to run, and how it went.

    fresh: the words that start it from scratch.  words: those that start it now; they may go on with a run.
    label: the words that tell it from the other jobs.
    """

    number: int
    fresh: list[str]
    config: Config
    log: Path
    words: list[str]
    label: str
    outcome: Outcome = "waiting"
    run: Path | None = None
    error: str | None = None
    pruned: bool = False  # a search stopped it, because others do better
    row: dict[str, Any] = field(default_factory=dict)  # the newest value of each tag

    @property
    def train_return(self) -> float | None:
        """Mean return of the last 100 training episodes, actions sampled."""
        return self.row.get("rollout/return")

    @property
    def eval_return(self) -> float | None:
        """Mean return of the newest evaluation, most likely actions; a run that was stopped may have none."""
        return self.row.get("eval/return")

    def record(self) -> dict[str, Any]:
        """The job in sweep.json."""
        run = str(self.run) if self.run else None
        returns = {"train_return": self.train_return, "eval_return": self.eval_return}
        return {"overrides": self.fresh, "run": run, "outcome": self.outcome, **returns, "error": self.error}

    def look(self) -> None:
        """Reads what is new in the log (where the run is) and in metrics.jsonl (how far it is)."""
        if self.run is None:
            self.run = announced(self.log)
        if self.run is not None:
            self.row |= newest_row(self.run)

    def end(self, code: int, asked: Outcome | None = None) -> None:
        """Reads how it ended.  code: of its process, -n for signal n.  asked: what it is if the sweep ended it."""
        self.look()
        said = _said(self.run)
        outcome = said.get("outcome")
        if code == 0 and outcome == "finished":
            self.outcome, self.error = "finished", None
        elif outcome == "stopped" or (asked and outcome != "failed"):
            self.outcome = asked or "stopped"
            if not asked:  # by somebody else
                by = {128 + number: f"stopped by {number.name}" for number in (signal.SIGINT, signal.SIGTERM)}
                self.error = self.error or by.get(code) or _last_words(code, self.log)
        else:
            self.outcome = "failed"
            self.error = self.error or said.get("error") or _last_words(code, self.log)
        if self.run and outcome == "running":  # it could not say so itself
            with contextlib.suppress(OSError):
                RunRecord(self.run, said).finish(self.outcome, self.error)


def _said(run: Path | None) -> dict[str, Any]:
    """The run's own record; {} where there is none to read."""
    with contextlib.suppress(OSError, ValueError):
        return read_record(run) if run else {}
    return {}


def counts(jobs: list[Job]) -> str:
    """12 jobs: 8 finished, 4 failed."""
    count = Counter(job.outcome for job in jobs)
    said = ", ".join(f"{count[state]} {state}" for state in get_args(Outcome) if count[state])
    return f"{len(jobs)} job{'s' if len(jobs) != 1 else ''}: {said}"


def announced(log: Path) -> Path | None:
    """The folder that a log's `run     <path>` line names; None until it is there."""
    try:
        with open(log, "rb") as file:
            text = file.read(PART).decode(errors="surrogateescape")
    except FileNotFoundError:
        return None
    lines = re.findall(r"^run     (.+)\n", text, re.MULTILINE)
    return next((Path(line) for line in lines if Path(line, "run.json").is_file()), None)


def newest_row(run: Path) -> dict[str, Any]:
    """The newest value of each tag in the last whole rows of metrics.jsonl; {} before the first.

    Of several rows, as the last is the final evaluation's, and not in every update does an episode end.
    """
    row: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in _end_of(run / METRICS).split(b"\n")[:-1][-LAST_ROWS:]:
            with contextlib.suppress(ValueError):  # cut off where reading began
                row |= json.loads(line)
    return row


def _last_words(code: int, log: Path) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = _end_of(log).decode(errors="replace").strip().split("\n")
    last = lines[-1].strip().removeprefix("error: ") or "it said nothing"
    return last if code else f"ended with exit code 0 before its end ({last})"


def _end_of(file: Path) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(max(opened.seek(0, 2) - PART, 0))
        return opened.read()
