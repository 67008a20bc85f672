"""python -m rl_natgrad.export: a trained policy as ONNX, which acts without this package and without torch."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_natgrad import load
from rl_natgrad.config import options
from rl_natgrad.config.options import Option
from rl_natgrad.envs.errors import EnvError, EnvSetupError
from rl_natgrad.envs.leftovers import tidy
from rl_natgrad.run.errors import say
from rl_natgrad.run.files import write_atomically
from rl_natgrad.run.streams import unfailing

HELP = """\
python -m rl_natgrad.export run=FOLDER [key=value …]

Writes the policy of a run as an ONNX graph: batches of the environment's own observations in, its own most likely
actions out; the normaliser, and the way to the bounds of the actions, are inside. A Tuple or Dict has an input for
each of its parts. Needs pip install "rl-natgrad[onnx]".

  run           a run folder, such as runs/CartPole-v1/trpo/20261120-201530-s0-3f9c
  out           the file, which ends in .onnx  [policy.onnx in the run folder]
  checkpoint    last, best (by evaluation) or the number of an update  [last]
  allow_import  true: an environment module:Name-v0 may import the module, which runs its code  [false]
"""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    run: Path
    out: Path | None = None
    checkpoint: str = "last"
    allow_import: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 where an environment or the disk fails, 2 where the command or the run makes no sense."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    try:
        export(Options(**options.parse_for_agent(argv, OPTIONS, "export")))
    except (EnvSetupError, ValueError) as error:
        return say(error, 2)
    except (EnvError, OSError) as error:
        return say(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def process() -> int:
    """main() as all that its process does."""
    unfailing()
    return tidy(main)


def export(asked: Options) -> None:
    """Writes the file whole or not at all, and says what it takes and gives.
    Raises: ValueError, EnvSetupError, OSError."""
    try:
        from rl_natgrad.playback import graph
    except ImportError as error:
        if error.name != "onnx":
            raise
        raise EnvSetupError('export needs an extra: pip install "rl-natgrad[onnx]"') from error
    agent = load(asked.run, checkpoint=asked.checkpoint, allow_import=asked.allow_import)
    model = graph.model(agent, asked.run)
    out = asked.out or asked.run / "policy.onnx"
    word = "rewrote" if out.exists() else "wrote"
    write_atomically(out, model.SerializeToString(deterministic=True))
    print(f"run     {asked.run}")
    print(agent.described(asked.checkpoint))
    print(f"{word:<8}{out}")
    for line in graph.ports(model):
        print(line)


def _file(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".onnx" or path.is_dir() or not path.parent.is_dir():
        raise ValueError(text)
    return path


OPTIONS = options.AGENT | {"out": Option("a file that ends in .onnx, in a folder that is there", _file)}

if __name__ == "__main__":
    sys.exit(process())
