"""How a program ends that could not do what was asked: one line on standard error, and an exit code."""

import sys


def say(error: BaseException | str, code: int) -> int:
    """Prints `error: …` in one line, a failed read or write with its path and errno. Returns the exit code."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        path = f"{error.filename}: " if error.filename is not None else ""
        text = f"{path}{error.strerror} [errno {error.errno}]"
    print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code
