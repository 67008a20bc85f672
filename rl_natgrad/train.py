"""python -m rl_natgrad.train: what the command line asks for, and nothing imported that it does not need."""

import sys
from pathlib import Path

from rl_natgrad import cli


def main() -> int:
    """Trains, resumes or sweeps. Returns the exit code: 0 done, 1 failed, 2 refused, 130 or 143 stopped."""
    command = cli.command(sys.argv[1:])
    if command.kind == "multirun":
        from rl_natgrad.sweep.run import sweep

        return sweep(command)
    from rl_natgrad import loop

    if command.kind == "resume":
        return loop.resume(Path(command.resume), list(command.overrides))
    return loop.start(command.config, list(command.overrides))


if __name__ == "__main__":
    sys.exit(main())
