"""The command line of compare: folders and key=value options, checked before anything is read."""

from dataclasses import dataclass, field
from pathlib import Path

from rl_natgrad.config.options import NUMBER, TEXT, TEXTS, TRUTH, Option, choice
from rl_natgrad.config.options import parse as parse_options
from rl_natgrad.config.refusals import ConfigError

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


class CompareError(ConfigError):
    """A set of runs that cannot be compared."""


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


OPTIONS = {
    "by": TEXTS,
    "x": choice({axis: axis for axis in AXES}, several=True),
    "metric": TEXT,
    "threshold": NUMBER,
    "out": Option("a folder", lambda text: Path(TEXT.read(text))),
    "failed": TRUTH,
    "unfinished": TRUTH,
}


def parse(argv: list[str]) -> Options:
    """Options from the arguments. A word with = is an option unless it is an existing folder.

    Raises:  ConfigError with one line.
    """
    words = [word for word in argv if word.startswith("-") or ("=" in word and not Path(word).is_dir())]
    given = parse_options(words, OPTIONS)
    folders = [Path(word) for word in argv if word not in words]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"no such folder: {folder}")
    if not folders:
        raise ConfigError("name at least one folder of runs, for example: python -m rl_natgrad.compare runs")
    return Options(folders, **given)
