"""IQM, low and high of each group as one TensorBoard run, in a folder of their own."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rl_natgrad.compare.stats import Array
from rl_natgrad.compare.summary import Comparison, band
from rl_natgrad.run.events import EventFile, layout
from rl_natgrad.run.files import write_json
from rl_natgrad.run.tags import describe

MARK = "compare.json"
EARLIER = ("iqm", "low", "high")  # folders below a group's, one line each, of earlier versions


def write(comparisons: Sequence[Comparison], metric: str, out: Path) -> None:
    """<out>/[<environment>/]<group>, a run with the metric at x = environment steps.

    The metric's own tag has the IQM, <metric>/low and <metric>/high its interval, and a custom chart fills that.
    What is known once has no curve. What an earlier call wrote in `out` is removed first.
    """
    folders = {}
    for comparison in (c for c in comparisons if not c.known_once):
        for group in comparison.groups:
            parts = [comparison.env, group.label] if len(comparisons) > 1 else [group.label]
            names = [re.sub(r"[^\w.=+\[\] -]+", "-", part) for part in parts]  # that every file system takes
            folders[out.joinpath(*names)] = group
    _remove_earlier(out)
    write_json(out / MARK, {"aggregates": [folder.relative_to(out).as_posix() for folder in folders]})
    for folder, group in folders.items():
        grid, *curves = band(group.runs, "steps")
        told = {
            metric: f"IQM over {len(group.runs)} runs of: {describe(metric) or metric}",
            f"{metric}/low": "lower end of the IQM's 95 % bootstrap interval",
            f"{metric}/high": "upper end of the IQM's 95 % bootstrap interval",
        }
        tags = {tag: line for tag, line in zip(told, curves, strict=True) if line is not None}
        _write_run(folder, grid, tags, told)


def _write_run(path: Path, grid: Array, tags: Mapping[str, Array], told: Mapping[str, str]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    events = EventFile(path, describe=told.__getitem__)
    if len(tags) > 1:
        events.summary(layout("compare", {}, {f"{next(iter(tags))}: IQM and 95 % interval": list(tags)}))
    for index, step in enumerate(grid):
        events.scalars({tag: float(line[index]) for tag, line in tags.items()}, round(float(step)))
    events.close()


def _remove_earlier(out: Path) -> None:
    """The event files of an earlier call, wherever it says it wrote them, and nothing else."""
    try:
        earlier = json.loads((out / MARK).read_text())["aggregates"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for folder in earlier:
        for path in (out / str(folder) / name for name in ("", *EARLIER)):
            if path.resolve().is_relative_to(out.resolve()):
                for file in path.glob("events.out.tfevents.*"):
                    file.unlink()
