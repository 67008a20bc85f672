"""python -m rl_natgrad.evaluate: a trained run, played again."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rl_natgrad import load
from rl_natgrad.config import options
from rl_natgrad.config.options import TRUTH
from rl_natgrad.envs.errors import EnvError, EnvSetupError
from rl_natgrad.envs.leftovers import tidy
from rl_natgrad.run.errors import say
from rl_natgrad.run.streams import unfailing

if TYPE_CHECKING:  # torch comes with them; a wrong command is answered without
    from rl_natgrad.playback.agent import Agent
    from rl_natgrad.training.evaluation import Played

HELP = """\
python -m rl_natgrad.evaluate run=FOLDER [key=value …]

Plays episodes with the policy of a run, and prints their returns. By default they are the episodes at the end
of training, so the returns are too, bit for bit.

  run            a run folder, such as runs/CartPole-v1/trpo/20261120-201530-s0-3f9c
  episodes       how many  [the run's eval.episodes, 20 unless set]
  deterministic  true: the most likely action; false: drawn from the policy; both  [both]
  checkpoint     last, best (by evaluation) or the number of an update  [last]
  video          true: the first episode as mp4, in the run folder  [false]
  allow_import   true: an environment module:Name-v0 may import the module, which runs its code  [false]
"""
MODES = {"true": ("deterministic",), "false": ("stochastic",), "both": ("deterministic", "stochastic")}
MAX_EPISODES = 10_000  # each has an environment of its own


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    run: Path
    episodes: int | None = None
    deterministic: tuple[str, ...] = MODES["both"]
    checkpoint: str = "last"
    video: bool = False
    allow_import: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 where an environment or the disk fails, 2 where the command or the run makes no sense."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    try:
        asked = parse(argv)
        play(load(asked.run, checkpoint=asked.checkpoint, allow_import=asked.allow_import), asked)
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


def parse(argv: Sequence[str]) -> Options:
    """Options from the arguments. Raises: ConfigError."""
    return Options(**options.parse_for_agent(argv, OPTIONS, "evaluate"))


def play(agent: "Agent", asked: Options) -> None:
    """Plays and prints; nothing that is printed depends on a clock."""
    from rl_natgrad.training.evaluation import evaluate
    from rl_natgrad.training.threads import use_threads

    cfg = agent.config
    use_threads(1)
    film = _film(agent, asked.run, asked.deterministic[0]) if asked.video else None
    played = evaluate(cfg, agent.policy, asked.episodes, asked.deterministic)
    print(f"run     {asked.run}")
    print(agent.described(asked.checkpoint))
    for line in [*table(played), *([film] if film else [])]:
        print(line)


def table(played: "Played") -> list[str]:
    """The return of each episode, and what they come to; float() reads the numbers back bit for bit."""
    modes = list(played)
    columns = [[repr(float(value)) for value in played[mode][0]] for mode in modes]
    widths = [max(map(len, [mode, *column])) for mode, column in zip(modes, columns, strict=True)]
    rows = [["episode", *modes], *([str(n), *row] for n, row in enumerate(zip(*columns, strict=True), 1))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, [7, *widths], strict=True)) for row in rows]
    for mode, (returns, lengths) in played.items():
        said = f"return {float(returns.mean())!r} ± {float(returns.std())!r} · length {lengths.mean():.1f}"
        lines.append(f"{mode:<14}{said} · {len(returns)} episodes")
    return lines


def _film(agent: "Agent", run: Path, mode: str) -> str:
    """Films one episode; the line that says where."""
    from rl_natgrad.playback import video
    from rl_natgrad.training.build import undisturbed
    from rl_natgrad.training.evaluation import acting, streams

    file = run / f"{mode}-{agent.update:08d}.mp4"
    act = acting(agent.policy, mode, streams(agent.config)[0])
    with undisturbed():
        earned = video.record(agent.config, act, file)
    return f"video   {file} (return {earned!r})"


OPTIONS = options.AGENT | {
    "episodes": options.whole(1, MAX_EPISODES),
    "deterministic": options.choice(MODES),
    "video": TRUTH,
}

if __name__ == "__main__":
    sys.exit(process())
