"""python -m rl_natgrad: what there is."""

import sys

from rl_natgrad.run.streams import unfailing
from rl_natgrad.version import __version__

DOORS = """\
rl_natgrad {version}: policy gradients with a real trust region

  python -m rl_natgrad.train algo=trpo env=CartPole      train; -m for a sweep, resume=RUN to go on
  python -m rl_natgrad.evaluate run=RUN episodes=20      play a trained policy, and film it
  python -m rl_natgrad.export run=RUN                    a trained policy as ONNX, to act without this package
  python -m rl_natgrad.compare runs                      groups, intervals over seeds, curves
  python -m rl_natgrad.watch runs                        TensorBoard, the runs named by what differs

Each says more with --help; python -m rl_natgrad.train --help metrics says what every logged number means.
"""


def main(argv: list[str] | None = None) -> int:
    """Prints the doors. Exit code: 0; 2 where words are given, as they are for one of the doors."""
    argv = sys.argv[1:] if argv is None else argv
    print(DOORS.format(version=__version__), end="")
    wrong = [word for word in argv if word not in ("-h", "--help", "--version")]
    if wrong:
        print(f"error: {wrong[0]!r} is for one of these; write python -m rl_natgrad.train …", file=sys.stderr)
    return 2 if wrong else 0


if __name__ == "__main__":
    unfailing()
    sys.exit(main())
