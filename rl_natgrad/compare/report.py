"""A comparison as a terminal table, summary.csv and summary.md."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rl_natgrad.compare import summary
from rl_natgrad.compare.summary import LAST, Comparison, few, pair_table, table, title, to_csv
from rl_natgrad.run.files import write_atomically

NOTES = f"""\
The unit is the seed. `final` is a run's metric over the last {100 * LAST:.0f} % of the range above, which every
run covers. IQM is the interquartile mean of that over seeds, with a 95 % bootstrap interval (10,000 resamples of
seeds). `area` is the mean height of the curve over the range. `… to` is the median, over all runs, of the first
crossing of the threshold; a run that never crosses it counts as later than all others, and `reached` says how
many did. P(A > B) is the chance that a run of A ends above a run of B, a tie counting half; [1.00, 1.00] says
that these seeds do not overlap, not that none ever would. Groups whose interval holds 0.5 cannot be told apart.
"""
_NUMBER = re.compile(r"[<≥×+−-]?\s?\d|[–-]?$")


def show(comparisons: Sequence[Comparison]) -> None:
    """The tables, on stdout."""
    from rich.console import Console
    from rich.table import Table

    # Off a terminal rich would wrap at 80 columns; a file or a pipe has no width.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
    for comparison in comparisons:
        tables = {title(comparison): table(comparison), "probability of improvement": pair_table(comparison)}
        for name, (header, rows) in tables.items():
            if not rows:
                continue
            console.print(name, style="bold", markup=False, soft_wrap=True)  # a table's own title wraps with it
            grid = Table(box=None, pad_edge=False)
            for index, column in enumerate(header):
                grid.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
            for row in rows:
                grid.add_row(*(cell.replace("[", r"\[") for cell in row))
            console.print(grid)
            console.print()
        if caution := few(comparison):
            console.print(caution, markup=False)


def write(
    comparisons: Sequence[Comparison], notes: Sequence[str], metric: str, command: str, out: Path,
    figures: Sequence[str],
) -> None:  # fmt: skip
    """summary.csv and summary.md in `out`, where these figures are."""
    write_atomically(out / "summary.csv", to_csv(comparisons).encode())
    text = [f"# {metric}", "", f"    {command}", ""]
    if len(comparisons) > 1:
        text += ["## All environments", "", markdown_table(*summary.overview(comparisons)), ""]
        if any(comparison.pairs for comparison in comparisons):
            text += [summary.ranking(comparisons)[1], "", markdown_table(*summary.chances(comparisons)), ""]
    for comparison in comparisons:
        text += [f"## {title(comparison)}", "", markdown_table(*table(comparison)), ""]
        if comparison.pairs:
            text += [markdown_table(*pair_table(comparison)), ""]
        if caution := few(comparison):
            text += [f"**{caution[0].upper()}{caution[1:]}.**", ""]
    text += [f"![{Path(figure).stem}]({figure})" for figure in figures] + ["", NOTES]
    text += [f"- {note}" for note in notes]
    write_atomically(out / "summary.md", ("\n".join(text).rstrip() + "\n").encode())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Columns with numbers are to the right; the first, which names the row, never is."""
    marks = ["--:" if any(_NUMBER.match(row[k]) for row in rows) else ":--" for k in range(1, len(header))]
    lines = [header, [":--", *marks], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
