"""What goes wrong with an environment, as one line."""


class EnvError(RuntimeError):
    """An environment misbehaved: the line names it, its index, its step and the field."""


class EnvSetupError(EnvError):
    """An environment cannot be used at all: unknown, missing extra, unsupported space. Nothing ran yet."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """`ValueError: first line of its message`, at most `limit` characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}" if text else type(error).__name__
