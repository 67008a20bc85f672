"""python -m rl_natgrad.evaluate: a trained run, played again."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_natgrad.run.errors import say

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
MODES = {"true": ["deterministic"], "false": ["stochastic"], "both": ["deterministic", "stochastic"]}
MAX_EPISODES = 10_000  # each has an environment of its own


class Refused(ValueError):
    """A command that makes no sense; the message is the one line to print."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 where an environment or the disk fails, 2 where the command or the run makes no sense."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    try:
        options = parse(argv)
        from rl_natgrad import load
        from rl_natgrad.envs.errors import EnvError, EnvSetupError

        try:
            keys = ("checkpoint", "allow_import")
            agent = load(options["run"], **{key: options[key] for key in keys if key in options})
            play(agent, options)
        except EnvSetupError as error:
            raise Refused(error) from error
        except EnvError as error:
            return say(error, 1)
    except ValueError as error:
        return say(error, 2)
    except OSError as error:
        return say(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The options given. Raises: Refused."""
    given: dict[str, Any] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals:
            raise Refused(f"expected key=value, got {word!r}" + ("; write run=…" * Path(word).is_dir()))
        if key not in _PARSERS:
            near = difflib.get_close_matches(key, _PARSERS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_PARSERS)}"
            raise Refused(f"unknown option {key!r}; {hint}")
        if key in given:
            raise Refused(f"{key} is given twice")
        given[key] = _PARSERS[key](key, value)
    if "run" not in given:
        raise Refused("name a run folder: python -m rl_natgrad.evaluate run=runs/…")
    return given


def play(agent: Agent, options: dict[str, Any]) -> None:
    """Plays and prints; nothing that is printed depends on a clock."""
    from rl_natgrad.training.build import use_threads
    from rl_natgrad.training.evaluation import evaluate

    cfg = agent.config
    use_threads(cfg.torch_threads)
    modes = options.get("deterministic", MODES["both"])
    film = _film(agent, options["run"], modes[0]) if options.get("video") else None
    played = evaluate(cfg, agent.policy, options.get("episodes"), modes)
    print(f"run     {options['run']}")
    which = options.get("checkpoint", "last")
    which = f"{which} checkpoint, " if not which.isdigit() else ""
    print(f"{cfg.algo.name} · {cfg.env.id} · {which}update {agent.update}, {agent.step:,} steps · seed {cfg.seed}")
    for line in [*table(played), *([film] if film else [])]:
        print(line)


def table(played: Played) -> list[str]:
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


def _film(agent: Agent, run: Path, mode: str) -> str:
    """Films one episode; the line that says where."""
    from rl_natgrad.playback import video
    from rl_natgrad.training.evaluation import acting, streams

    file = run / f"{mode}-{agent.update:08d}.mp4"
    act = acting(agent.policy, mode, streams(agent.config)[0])
    return f"video   {file} (return {video.record(agent.config, act, file)!r})"


def _folder(key: str, value: str) -> Path:
    if not value or not Path(value).is_dir():
        raise Refused(f"{key} must be a run folder, got {value!r}")
    return Path(value)


def _count(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 9 and 1 <= int(value) <= MAX_EPISODES):
        raise Refused(f"{key} must be a whole number from 1 to {MAX_EPISODES:,}, got {value!r:.60}")
    return int(value)


def _truth(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise Refused(f"{key} must be true or false, got {value!r:.60}")
    return value.lower() == "true"


def _modes(key: str, value: str) -> list[str]:
    if value.lower() not in MODES:
        raise Refused(f"{key} must be true, false or both, got {value!r:.60}")
    return MODES[value.lower()]


def _checkpoint(key: str, value: str) -> str:
    if value not in ("last", "best") and not (value.isascii() and value.isdigit() and len(value) < 13):
        raise Refused(f"{key} must be last, best or the number of an update, got {value!r:.60}")
    return value if value in ("last", "best") else str(int(value))


_PARSERS = {
    "run": _folder,
    "episodes": _count,
    "deterministic": _modes,
    "checkpoint": _checkpoint,
    "video": _truth,
    "allow_import": _truth,
}

if __name__ == "__main__":
    sys.exit(main())
