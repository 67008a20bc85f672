"""What goes wrong with an environment, as one line."""

import signal


class EnvError(RuntimeError):
    """An environment misbehaved: the line names it, its index, its step and the field."""


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
