"""The command line of compare: folders and key=value options, checked before anything is read."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AXES = {"steps": "environment steps", "updates": "policy updates", "seconds": "seconds of training"}

HELP = """\
python -m rl_natgrad.compare FOLDERS… [key=value …]

Finds runs at any depth below FOLDERS, groups them by what differs (never by seed), and compares the groups: a
table here, and curves.png, summary.csv, summary.md and TensorBoard aggregates (IQM, low, high) in `out`.

  by          keys to group by, with commas: algo, solver, algo.delta …  [whatever differs between the runs]
              by=env compares within each environment; by=versions tells runs of different versions apart
  x           steps, updates or seconds; several with commas are drawn side by side, the first rules the
              table  [steps]
  metric      the number compared, a key of metrics.jsonl  [rollout/return]
  threshold   the level whose first crossing is timed  [Gymnasium's own, where the environment has one]
  out         folder for what is written  [compare/ in the folder that holds all the runs]
  failed      true: keep runs that failed, as far as they got  [false]
  unfinished  false: leave out runs that are still running or were stopped  [true]

final      a run's metric over the last tenth of the x range that every compared run covers
IQM        interquartile mean of that over seeds, with its 95 % bootstrap interval; the unit is the seed
area       mean height of the curve over that range
to reach   median over all runs; one that never reaches the threshold counts as later than all others
P(A > B)   chance that a run of A ends above a run of B, a tie counting half
"""


class CompareError(ValueError):
    """A command or a set of runs that cannot be compared; the message is the one line to print."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    folders: list[Path]
    by: list[str] = field(default_factory=list)
    x: list[str] = field(default_factory=lambda: ["steps"])
    metric: str = "rollout/return"
    threshold: float | None = None
    out: Path | None = None
    failed: bool = False
    unfinished: bool = True


def parse(argv: list[str]) -> Options:
    """Options from the arguments. A word with = is an option unless it is an existing folder.

    Raises:  CompareError with one line.
    """
    folders: list[Path] = []
    given: dict[str, Any] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or Path(word).is_dir():
            folders.append(Path(word))
        elif key not in _PARSERS:
            near = difflib.get_close_matches(key, _PARSERS, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(_PARSERS)}"
            raise CompareError(f"unknown option '{key}'; {hint}")
        else:
            given[key] = _PARSERS[key](key, value)
    for folder in folders:
        if str(folder).startswith("-"):
            raise CompareError(f"unknown option '{folder}'; options are written key=value, see --help")
        if not folder.is_dir():
            raise CompareError(f"no such folder: {folder}")
    if not folders:
        raise CompareError("name at least one folder of runs, for example: python -m rl_natgrad.compare runs")
    return Options(folders, **given)


def _text(key: str, value: str) -> str:
    if not value:
        raise CompareError(f"{key} must not be empty")
    return value


def _words(key: str, value: str) -> list[str]:
    return [_text(key, word.strip()) for word in value.split(",")]


def _axes(key: str, value: str) -> list[str]:
    for word in _words(key, value):
        if word not in AXES:
            raise CompareError(f"x must be steps, updates or seconds, got '{word}'")
    return _words(key, value)


def _number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CompareError(f"{key} must be a finite number, got '{value}'")
    return number


def _truth(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise CompareError(f"{key} must be true or false, got '{value}'")
    return value.lower() == "true"


_PARSERS = {
    "by": _words,
    "x": _axes,
    "metric": _text,
    "threshold": _number,
    "out": lambda key, value: Path(_text(key, value)),
    "failed": _truth,
    "unfinished": _truth,
}
