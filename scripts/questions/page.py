"""A page of results/: what a question's rows say, as text that is computed from them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from rl_natgrad.compare import stats
from rl_natgrad.compare.options import AXES
from rl_natgrad.compare.report import markdown_table
from rl_natgrad.compare.summary import Comparison, duration
from rl_natgrad.run.files import naming


@dataclass(frozen=True)
class Claim:
    """A line of results/README.md: what is claimed, whether it is true, and the number that says so."""

    claim: str
    verdict: str  # true, half true, false, or not settled
    number: str


@dataclass(frozen=True)
class Table:
    """A table with a word before it. Cells are text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    before: str = ""


@dataclass(frozen=True)
class Answer:
    """All that a page says. Every number and verdict in it comes from the rows."""

    title: str
    question: str
    claims: Sequence[Claim]
    sentence: str  # the answer
    run: str  # what was run
    tables: Sequence[Table]
    plot: Callable[["Figure"], None]  # noqa: F821  draws on an empty matplotlib figure
    caption: str
    oracle: str  # what shows that the experiment itself is right, with its figure
    cannot: Sequence[str]  # what this cannot show
    literature: Sequence[str]
    size: tuple[float, float] = field(default=(13, 4.4))  # of the figure, inches

    def draw(self, file: Path) -> None:
        """The figure."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, layout="constrained", dpi=110)
        self.plot(figure)
        for panel in figure.axes:
            panel.spines[["top", "right"]].set_visible(False)
        with naming(file):
            figure.savefig(file)


PAGE = """\
# {title}

**Question.** {question}

## Answer

{verdicts}

{sentence}

## Command

    python {script}

runs what is missing and writes this page; it can be stopped and started again. `render` makes page and figure from
[data.csv](data.csv) alone, `smoke=1` tries everything in a minute.

![{caption}](figure.png)

{caption}

## What was run

{run}

{tables}

## Is the experiment right?

{oracle}

## What this cannot show

{cannot}

## Literature

{literature}

Made with {about}.
"""


def markdown(answer: Answer, script: str, about: str) -> str:
    """README.md. script: what makes it."""
    verdicts = "\n".join(f"- “{c.claim}”: **{c.verdict}**. {c.number}" for c in answer.claims)
    tables = "\n\n".join(
        "\n\n".join(filter(None, (f"## {t.title}", t.before, markdown_table(t.header, t.rows))))
        for t in answer.tables if t.rows  # a page of what there is has no row of what is missing
    )  # fmt: skip
    return PAGE.format(
        title=answer.title, question=answer.question, verdicts=verdicts, sentence=answer.sentence, script=script,
        caption=answer.caption, run=answer.run, tables=tables, oracle=answer.oracle, about=about,
        cannot="\n".join(f"- {line}" for line in answer.cannot),
        literature="\n".join(f"- {line}" for line in answer.literature),
    )  # fmt: skip


def iqm(values: ArrayLike, show: str = ",.0f") -> str:
    """IQM [low, high] over seeds, its 95 % bootstrap interval; a dash where there is nothing."""
    found = np.asarray(values, float)
    if len(found) == 0:
        return "–"
    low, high = interval(found)
    return f"{number(float(stats.iqm(found)), show)} [{number(low, show)}, {number(high, show)}]"


def interval(values: ArrayLike) -> tuple[float, float]:
    """95 % bootstrap interval of the IQM over seeds."""
    low, high = stats.iqm_interval([np.asarray(values, float)[:, None]], replicates=10_000)
    return float(low[0]), float(high[0])


def number(value: float, show: str = ",.0f") -> str:
    """The number with a real minus sign, and below a million without an exponent: 3,740 for 3.74e+03."""
    text = format(value, show)
    if "e+" in text and "e" not in show and abs(value) < 1e6:
        text = f"{float(text):,.0f}"
    return text if "e" in text else text.replace("-", "−")


def minus(text: str) -> str:
    """Numbers as `rl_natgrad.compare` writes them, with a real minus sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def cells(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[Sequence[str], list[list[str]]]:
    """A table of `rl_natgrad.compare`, with real minus signs."""
    return header, [[minus(cell) for cell in row] for row in rows]


def solved(comparisons: Sequence[Comparison]) -> Table:
    """Steps, updates and seconds to the threshold, one row per environment and algorithm."""
    rows = []
    for c in (c for c in comparisons if c.threshold is not None):
        for group in c.groups:
            times = [duration(group.to_reach[axis], axis) for axis in AXES]
            rows.append([c.env, f"{c.threshold:g}", group.label, *times, f"{group.reached} of {len(group.runs)}"])
    return Table(
        "How soon the environment counts as solved",
        *cells(["environment", "threshold", "algorithm", *AXES.values(), "seeds that reach it"], rows),
        before="Median over all seeds of the first point of the curve that reaches Gymnasium's threshold; a seed that "
        "never does counts as later than all others.",
    )
