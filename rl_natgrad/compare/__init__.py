"""python -m rl_natgrad.compare: which algorithm is better, and is it luck?"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rl_natgrad.compare.options import HELP, Options, parse
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.run.errors import say


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 1 where a file cannot be written, 2 where the question makes no sense (one line)."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    try:
        answer(parse(argv), argv)
    except ConfigError as error:
        return say(error, 2)
    except OSError as error:
        return say(error, 1)
    return 0


def answer(options: Options, argv: Sequence[str]) -> None:
    """Read, group, compare, say and write.  Raises:  ConfigError, OSError."""
    from rl_natgrad.compare import aggregates, plot, report, runs, summary

    found, notes = runs.read_runs(options)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    groups, said = runs.comparisons(found, options.by)
    for note in said:
        print(f"note: {note}", file=sys.stderr)
    comparisons = [summary.compare(env, members, options) for env, members in groups.items()]
    common = Path(os.path.commonpath([run.path.parent for run in found]))  # which is no run itself
    out = options.out or common / "compare"
    out.mkdir(parents=True, exist_ok=True)
    report.show(comparisons)
    plot.curves(comparisons, options.x, options.metric, out / "curves.png")
    command = shlex.join(["python", "-m", "rl_natgrad.compare", *argv])
    report.write(comparisons, [*notes, *said], options.metric, command, out)
    aggregates.write(comparisons, options.metric, out)
    print(f"wrote   {out}/curves.png, summary.csv, summary.md")
    print(f"watch   tensorboard --logdir {common}")
