"""python -m rl_natgrad.compare: which algorithm is better, and is it luck?"""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rl_natgrad.compare.options import HELP, Options, parse
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.run.errors import say
from rl_natgrad.run.streams import unfailing


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


def process() -> int:
    """main() as all that its process does."""
    unfailing()
    return main()


def answer(options: Options, argv: Sequence[str]) -> None:
    """Read, group, compare, say and write.  Raises:  ConfigError, OSError."""
    from rl_natgrad.compare import aggregates, plot, report, runs, summary

    found, notes = runs.read_runs(options)
    groups, said = runs.comparisons(found, options.by)
    groups = runs.chosen(groups, options)
    notes += said
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    comparisons = [summary.compare(env, members, options) for env, members in groups.items()]
    report.show(comparisons)
    common = Path(os.path.commonpath([run.path.parent for run in found]))  # which is no run itself
    if file := options.figure:
        _replacing([file], lambda: plot.curves(comparisons, options, [file]))
        return
    out = options.out or (options.folders[0] if runs.is_sweep(options.folders) else common) / "compare"
    out.mkdir(parents=True, exist_ok=True)
    figures = [out / f"curves.{suffix}" for suffix in options.format]
    profiles = [out / f"profile.{suffix}" for suffix in options.format if len(comparisons) > 1]
    command = shlex.join(["python", "-m", "rl_natgrad.compare", *argv])
    shown = [files[0].name for files in (figures, profiles) if files]

    def write() -> None:
        plot.curves(comparisons, options, figures)
        if profiles:
            plot.profile(comparisons, options, profiles)
        report.write(comparisons, notes, options.metric, command, out, shown)
        aggregates.write(comparisons, options.metric, out)

    _replacing([*figures, *profiles, out / "summary.csv", out / "summary.md"], write)
    print(f"watch   tensorboard --logdir {shlex.quote(str(out))}")


def _replacing(files: Sequence[Path], write: Callable[[], None]) -> None:
    """Writes, and says which of the files were there before."""
    old = [file for file in files if file.exists()]
    new = [file for file in files if file not in old]
    write()
    for word, told in (("wrote", new), ("rewrote", old)):
        if told:
            print(f"{word:<8}{told[0].parent}/{', '.join(file.name for file in told)}")
