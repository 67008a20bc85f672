"""The command line of compare: folders and key=value options, checked before anything is read."""

from dataclasses import dataclass, field
from pathlib import Path

from rl_natgrad.config.options import NUMBER, TEXT, TEXTS, TRUTH, Option, choice
from rl_natgrad.config.options import parse as parse_options
from rl_natgrad.config.refusals import ConfigError

AXES = {"steps": "environment steps", "updates": "policy updates", "seconds": "seconds of training"}

HELP = """\
python -m rl_natgrad.compare FOLDERS… [key=value …]

Finds runs at any depth below FOLDERS (those of a sweep: runs/sweeps/<name>), groups them by what differs (never
by seed), and compares the groups: a table here, and curves.png, summary.csv, summary.md and a TensorBoard run for
each group (IQM and interval) in `out`; of several environments also profile.png, which sums them up.

  by          keys to group by, with commas: algo, solver, algo.delta …  [whatever differs between the runs]
              by=env compares within each environment; by=versions tells runs of different versions apart
  groups      labels of the groups to show, in this order  [all, by name]
  x           steps, updates or seconds; several with commas are drawn side by side, the first rules the
              table  [steps]
  metric      the number compared, a key of metrics.jsonl  [rollout/return]; eval/return, known once at the end of
              each run, is drawn as bars
  threshold   the level whose first crossing is timed  [Gymnasium's own, where the environment has one]
  out         folder for what is written  [compare/ in the folder that holds all the runs, or in the sweep's],
              or a .png, .pdf or .svg for the figure alone
  format      of the figures: png, pdf, svg; several with commas  [png]
  size        of a panel in inches, such as 3.2x2.4  [6.4x4.2]
  labels      what the groups are called in tables and figures, with commas, in the order of groups=
  title       above the figure
  failed      true: keep runs that failed, as far as they got  [false]
  unfinished  runs that are still running or were stopped: true keeps all, false none  [those that got at least
              nine tenths as far as the finished ones, or all where none has finished]

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
    unfinished: bool | None = None
    groups: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    format: list[str] = field(default_factory=lambda: ["png"])
    size: tuple[float, float] = (6.4, 4.2)
    title: str | None = None

    @property
    def figure(self) -> Path | None:
        """The file that is asked for instead of a folder."""
        return self.out if self.out and self.out.suffix.lower() in FORMATS else None


FORMATS = (".png", ".pdf", ".svg")


def _size(text: str) -> tuple[float, float]:
    width, height = (float(part) for part in text.lower().replace("×", "x").split("x"))
    if not (0.5 <= width <= 100 and 0.5 <= height <= 100):
        raise ValueError(text)
    return width, height


OPTIONS = {
    "by": TEXTS,
    "x": choice({axis: axis for axis in AXES}, several=True),
    "metric": TEXT,
    "threshold": NUMBER,
    "out": Option("a folder, or a file that ends in .png, .pdf or .svg", lambda text: Path(TEXT.read(text))),
    "failed": TRUTH,
    "unfinished": TRUTH,
    "groups": TEXTS,
    "labels": TEXTS,
    "format": choice({name[1:]: name[1:] for name in FORMATS}, several=True),
    "size": Option("width × height in inches, 0.5 to 100 each, such as 3.2x2.4", _size),
    "title": TEXT,
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
    options = Options(folders, **given)
    if options.figure and "format" in given:
        raise ConfigError(f"format is told by the file's name, {options.out}; leave out format=, or name a folder")
    if options.labels and len(options.labels) != len(options.groups):
        shown = f"{len(options.labels)} groups and groups={','.join(options.groups) or '…'} {len(options.groups)}"
        raise ConfigError(f"labels names {shown}; labels= needs groups=, one label each")
    return options
