"""What a person sees while a run trains: three lines, a bar or a line now and then, and the outcome."""

import contextlib
import io
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rl_natgrad.run.files import naming
from rl_natgrad.run.streams import usable

LINE_SECONDS, LINE_SHARE = 10.0, 0.1  # off a terminal: a line after so many seconds or this share of the run
REFRESH_SECONDS = 0.1  # on a terminal; nothing runs between updates, so no thread disturbs training


def forgiving(stream: TextIO) -> TextIO:
    """The stream, which now writes ? for what its encoding lacks: an ASCII terminal has no ·."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream


class Progress:
    """`header` once, `update` after every policy update, `done` at the end; `close` always (or use `with`).

    total_steps: where training ends.  first_step: where it (re)starts; rates count from there.
    stream: a bar (rich, imported only then) where it is a terminal, plain lines elsewhere.
    """

    def __init__(self, total_steps: int, *, first_step: int = 0, stream: TextIO | None = None):
        self._given = stream
        self._total, self._first = total_steps, first_step
        self._start = self._last_time = time.monotonic()
        self._last_step = first_step
        self._bar: Any = None  # rich's own Progress, imported with the first bar
        self._latest: tuple[int, Mapping, float] = (first_step, {}, self._start)  # what the bar shows
        self._return: float | None = None
        self._searches = False  # NPG's one trial is no line search

    @property
    def _stream(self) -> TextIO:
        """Looked up each time, as environments may have closed the last one."""
        return forgiving(usable(self._given or sys.stdout, 1))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def header(
        self, path: Path, runs_dir: Path, config: Mapping, *, device: str, threads: int, note: str | None = None
    ) -> None:
        """Where the run is, how to watch it, what it is; and a note when something needs saying."""
        self._searches = "max_backtracks" in config["algo"]
        self._say(f"run     {path}")
        self._say(f"watch   tensorboard --logdir {runs_dir}")
        size = f"{config['num_envs']} environments × {config['horizon']} steps"
        place = f"{device}, {threads} thread{'s' if threads != 1 else ''}"
        self._say(f"{config['algo']['name']} · {config['env']['id']} · {size} · seed {config['seed']} · {place}")
        if note:
            self.note(note)

    def update(self, step: int, row: Mapping) -> None:
        """The bar moves to `step`; off a terminal a line is printed when one is due."""
        now = time.monotonic()
        if row.get("rollout/return") is not None:  # where no episode ended, the last one holds
            self._return = row["rollout/return"]
        if self._on_terminal():
            if self._bar is None:
                self._bar = _bar(self._given, self._total)
            self._latest = step, row, now
            self._draw(self._text(step, row, now, self._bar.console.width - 12), step, step >= self._total)
            return
        due = now - self._last_time >= LINE_SECONDS or step - self._last_step >= LINE_SHARE * self._total
        if due or step >= self._total:
            self._say(self._text(step, row, now))
            self._last_time, self._last_step = now, step

    def evaluating(self, episodes: int, of: int) -> None:
        """Episodes of the final evaluation that have ended: beside the full bar, or in a line now and then."""
        now, text = time.monotonic(), f"evaluating {episodes:,}/{of:,}"
        with contextlib.suppress(OSError, ValueError):  # an environment may have closed the stream
            if self._bar is not None:
                if episodes == of:  # what stays on the screen
                    text = self._text(*self._latest, self._bar.console.width - 12)
                self._draw(text, self._total, episodes in (0, of))
            elif episodes < of and now - self._last_time >= LINE_SECONDS and not self._on_terminal():
                self._say(text)
                self._last_time = now

    def _on_terminal(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def note(self, text: str) -> None:
        """Says something that a person should know, above the bar where there is one."""
        if self._bar is None:
            self._say(f"note    {text}")
        else:
            self._bar.console.print(f"note    {text}", markup=False, highlight=False)

    def done(
        self, run: str, runs_dir: Path, step: int, *, outcome: str = "finished",
        train_return: float | None = None, eval_returns: tuple[float, float, int] | None = None,
        not_finite: int = 0,
    ) -> None:  # fmt: skip
        """How it ended, how to watch and how to play.

        run: as a word of a command.  train_return: mean of the last 100 episodes.  eval_returns: mean, standard
        deviation, episodes.  not_finite: updates that took no step because their maths was not.
        """
        self.close()
        parts = [f"{step:,} steps in {duration(time.monotonic() - self._start)}"]
        parts.append(f"train return {number(train_return)} (last 100 episodes)")
        if eval_returns is not None:
            mean, std, episodes = eval_returns
            parts.append(f"eval return {number(mean)} ± {number(std)} ({episodes} episodes)")
        if not_finite:
            parts.append(f"{not_finite:,} update{'s' if not_finite != 1 else ''} not finite")
        self._say(f"{'done' if outcome == 'finished' else outcome:<7} {' · '.join(parts)}")
        self._say(f"watch   tensorboard --logdir {runs_dir}")
        self._say(f"play    python -m rl_natgrad.evaluate run={run}")

    def close(self) -> None:
        """The bar ends and the cursor is shown again."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, text: str, step: int, at_once: bool) -> None:
        """The bar, as wide as the terminal is now; not more often than one can see."""
        self._bar.columns[0].bar_width = max(min(32, self._bar.console.width - len(text) - 2), 8)
        self._bar.update(0, completed=step, text=text)
        if at_once or time.monotonic() - self._last_time >= REFRESH_SECONDS:
            self._bar.refresh()
            self._last_time = time.monotonic()

    def _text(self, step: int, row: Mapping, now: float, width: float = math.inf) -> str:
        """One line of numbers; what matters least goes first where it is wider than `width`."""
        rate = (step - self._first) / max(now - self._start, 1e-9)
        left = max(self._total - step, 0) / rate if rate > 0 else 0.0
        parts = {"share": f"{min(step / self._total, 1):4.0%}", "steps": f"{step:,}/{self._total:,}"}
        parts["return"] = f"train return {number(self._return)}"
        if row.get("policy/kl") is not None:
            parts["kl"] = f"kl {row['policy/kl']:.4f}"
        if self._searches and (tries := row.get("line_search/tries")) is not None:
            parts["backtracks"] = f"backtracks {max(int(tries) - 1, 0)}"
        parts |= {"rate": f"{two_digits(rate):,} steps/s", "eta": f"eta {int(left) // 60}:{int(left) % 60:02d}"}
        for name in ("backtracks", "kl", "rate", "steps", "eta", "return"):
            if len("  ".join(parts.values())) > width:
                parts.pop(name, None)
        return "  ".join(parts.values())

    def _say(self, line: str) -> None:
        with naming(Path("standard output")):
            print(line, file=self._stream, flush=True)


def _bar(stream: TextIO | None, total: int):
    """A started rich bar on the stream, or on what is standard output then: ━━━╸━━━ <text>."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    text = TextColumn("{task.fields[text]}", markup=False)
    bar = Progress(BarColumn(), text, console=Console(file=stream), auto_refresh=False)
    bar.add_task("", total=total, text="")
    bar.start()
    return bar


def number(value: float | None) -> str:
    """A return for people: 489, -91.3, 0.52; - where no episode has ended yet."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def two_digits(rate: float) -> int:
    """31,234 as 31,000: the rest is noise."""
    return int(float(f"{rate:.2g}"))


def duration(seconds: float) -> str:
    """A duration for people: 42.0 s, 5 min 03 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
