"""What goes wrong with an environment, as one line."""

import contextlib
import os
import re
import signal
from collections.abc import Callable


class EnvError(RuntimeError):
    """An environment misbehaved: the line names it, its index, its step and the field."""


class RaisedEnvError(EnvError):
    """Its own code raised: the traceback says where."""


class EnvSetupError(EnvError):
    """An environment cannot be used at all: unknown, missing extra, unsupported space. Nothing ran yet."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """`ValueError: first line of its message`, at most `limit` characters."""
    try:
        text = printable(str(error))
    except BaseException:
        text = "(its str raises)"
    return f"{type(error).__name__}: {text[:limit]}" if text else type(error).__name__


def printable(text: str) -> str:
    """The text on one line, in characters that every file and stream takes."""
    return " ".join(text.encode(errors="backslashreplace").decode().split())


def theirs(error: BaseException) -> bool:
    """Whether an environment raised it: it is none of ours, nor Ctrl-C where Python alone listens for that."""
    alone = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ours = type(error).__module__.startswith("rl_natgrad.")
    return not ours and not (alone and isinstance(error, KeyboardInterrupt))


def unmade(id: str, error: BaseException) -> str:
    """The line that says why an environment could not be made."""
    return f"{id}: {_missing_extra(id, error) or one_line(error)}"


def _missing_extra(id: str, error: BaseException) -> str | None:
    """The line that installs what an environment lacks, where that is why it failed."""
    import gymnasium as gym  # takes a while, and no wrong command needs it

    if not isinstance(error, gym.error.DependencyNotInstalled | ImportError):
        return None
    found = re.search(r"gymnasium\[(box2d|mujoco)\]", str(error))
    extra = "atari" if id.startswith("ALE/") else found and found[1]
    return f'needs an extra: pip install "rl-natgrad[{extra}]"' if extra else None


def _print(text: str) -> None:
    os.write(2, f"note    {text}\n".encode())


tell: Callable[[str], None] = _print  # elsewhere in a worker, which tells its parent
_noted: set[str] = set()


def note(text: str) -> None:
    """Says, once, what changes no result: evaluations make and end environments over and over."""
    if text not in _noted:
        _noted.add(text)
        with contextlib.suppress(OSError):
            tell(text)
