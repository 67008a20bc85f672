"""The figures: curves (or bars, of what is known once) with bootstrap bands, and the profile over environments."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rl_natgrad.compare import stats
from rl_natgrad.compare.options import AXES, Options
from rl_natgrad.compare.summary import Comparison, band, few, normalised
from rl_natgrad.run.files import naming

# Okabe and Ito 2008: told apart by colour-blind readers too. More groups repeat them with other lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")


def curves(comparisons: Sequence[Comparison], options: Options, files: Sequence[Path]) -> None:
    """One row of panels per environment, one column per axis, in each of these files. No band at n = 1."""
    axes = options.x[:1] if any(comparison.known_once for comparison in comparisons) else options.x
    figure = _figure(options, len(comparisons), len(axes))
    draw(figure, comparisons, axes, options.metric)
    _save(figure, files)


def draw(figure, comparisons: Sequence[Comparison], axes: Sequence[str], metric: str) -> None:
    """The panels of `curves`, on a matplotlib figure."""
    panels = figure.subplots(len(comparisons), len(axes), squeeze=False)
    for row, comparison in zip(panels, comparisons, strict=True):
        for panel, axis in zip(row, axes, strict=True):
            if comparison.known_once:
                _bars(panel, comparison)
            else:
                _panel(panel, comparison, axis)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(metric)
        if not comparison.known_once:
            row[0].legend(fontsize="small", frameon=False)


def profile(comparisons: Sequence[Comparison], options: Options, files: Sequence[Path]) -> None:
    """Share of runs above each normalised score, over all environments: a performance profile.

    Agarwal et al. 2021, section 4.3.  Differs: 0 is the worst and 1 the best run of each environment here, as
    there is no human score.
    """
    figure = _figure(options, 1, 1)
    draw_profile(figure, comparisons, options.metric)
    _save(figure, files)


def draw_profile(figure, comparisons: Sequence[Comparison], metric: str) -> None:
    """The panel of `profile`, on a matplotlib figure."""
    levels = np.linspace(0, 1, 101)
    panel = figure.subplots()
    for (label, strata), style in zip(normalised(comparisons).items(), _styles(), strict=False):
        share, low, high = stats.profile(strata, levels)
        panel.plot(levels, share, label=f"{label} (n = {sum(map(len, strata))})", linewidth=1.6, **style)
        panel.fill_between(levels, low, high, color=style["color"], alpha=0.2, linewidth=0)
    panel.set_xlabel(f"final {metric}: 0 the worst run of each environment, 1 the best")
    panel.set_ylabel("share of runs above")
    panel.legend(fontsize="small", frameon=False)
    panel.spines[["top", "right"]].set_visible(False)


def _figure(options: Options, rows: int, columns: int):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    width, height = options.size
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=110)
    if options.title:
        figure.suptitle(options.title)
    return figure


def _save(figure, files: Sequence[Path]) -> None:
    for file in files:
        stamp = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(file.suffix.lower())
        with naming(file):  # without the time of day: the same runs give the same file
            figure.savefig(file, metadata=stamp)


def _styles():
    return ({"color": colour, "linestyle": line} for line in LINES for colour in COLOURS)


def _panel(panel, comparison: Comparison, axis: str) -> None:
    from matplotlib.ticker import EngFormatter

    for group, style in zip(comparison.groups, _styles(), strict=False):
        grid, middle, low, high = band(group.runs, axis)
        panel.plot(grid, middle, label=f"{group.label} (n = {len(group.runs)})", linewidth=1.6, **style)
        if low is not None:
            panel.fill_between(grid, low, high, color=style["color"], alpha=0.2, linewidth=0)
    bottom, top = panel.get_ylim()  # of the curves, which a threshold far from them would press flat
    if comparison.threshold is not None and bottom <= comparison.threshold <= top:
        panel.axhline(comparison.threshold, color="0.6", linewidth=0.8, linestyle=":", label="threshold")
    panel.set_title(_title(comparison), fontsize="medium")
    panel.set_xlabel(AXES[axis])
    if axis != "seconds":
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k


def _bars(panel, comparison: Comparison) -> None:
    """The IQM of each group with its interval, and every run as a point."""
    for place, (group, style) in enumerate(zip(comparison.groups, _styles(), strict=False)):
        panel.barh(place, group.iqm, color=style["color"], alpha=0.3)
        panel.plot(group.finals, np.full(len(group.finals), place), ".", color=style["color"], markersize=4)
        if group.interval:
            panel.plot(group.interval, [place, place], color=style["color"], linewidth=2)
    panel.set_yticks(range(len(comparison.groups)), [f"{g.label} (n = {len(g.runs)})" for g in comparison.groups])
    panel.invert_yaxis()  # the first group above
    panel.set_title(_title(comparison), fontsize="medium")


def _title(comparison: Comparison) -> str:
    title = f"{comparison.env}: IQM over seeds, 95 % interval"
    return f"{title}\nunder 5 seeds: a hint" if few(comparison) else title
