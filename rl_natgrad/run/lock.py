"""One process at a time writes to a run folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from rl_natgrad.run.files import naming

LOCK = ".lock"


class Busy(ValueError):
    """A run that another process is training."""


@contextlib.contextmanager
def hold(run: Path) -> Iterator[None]:
    """The run is this process's until the end of the block, or of the process, however it ends.

    Raises: Busy, at once, where another process has it.  OSError with errno and path.
    """
    file = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        with naming(run / LOCK):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(file, 20).decode(errors="replace").strip()
                raise Busy(f"{run} is in use by process {holder or '?'}; wait until that has ended") from None
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # the lock goes with the number, which is free even so
            os.close(file)
