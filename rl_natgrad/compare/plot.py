"""curves.png: interquartile means over seeds, with their bootstrap bands."""

from collections.abc import Sequence
from pathlib import Path

from rl_natgrad.compare.options import AXES
from rl_natgrad.compare.summary import Comparison, band, few
from rl_natgrad.run.files import naming

# Okabe and Ito 2008: told apart by colour-blind readers too. More groups repeat them with other lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")


def curves(comparisons: Sequence[Comparison], axes: Sequence[str], metric: str, file: Path) -> None:
    """One row of panels per environment, one column per axis. No band at n = 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(axes), 4.2 * len(comparisons)), layout="constrained", dpi=110)
    panels = figure.subplots(len(comparisons), len(axes), squeeze=False)
    for row, comparison in zip(panels, comparisons, strict=True):
        for panel, axis in zip(row, axes, strict=True):
            _panel(panel, comparison, axis)
        row[0].set_ylabel(metric)
        row[0].legend(fontsize="small", frameon=False)
    with naming(file):
        figure.savefig(file)


def _panel(panel, comparison: Comparison, axis: str) -> None:
    from matplotlib.ticker import EngFormatter

    for index, group in enumerate(comparison.groups):
        grid, middle, low, high = band(group.runs, axis)
        colour, line = COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]
        label = f"{group.label} (n = {len(group.runs)})"
        panel.plot(grid, middle, label=label, linewidth=1.6, color=colour, linestyle=line)
        if low is not None:
            panel.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
    if comparison.threshold is not None:
        panel.axhline(comparison.threshold, color="0.6", linewidth=0.8, linestyle=":")
    title = f"{comparison.env}: IQM over seeds, 95 % interval"
    panel.set_title(f"{title}\nunder 5 seeds: a hint" if few(comparison) else title, fontsize="medium")
    panel.set_xlabel(AXES[axis])
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
    panel.spines[["top", "right"]].set_visible(False)
