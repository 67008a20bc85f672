"""Standard output and standard error, which others' code may close or replace."""

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Pipe(io.FileIO):
    """A pipe to write into; what comes after its reader has left goes nowhere, and is no error."""

    def write(self, data: Any) -> int:
        """Bytes written."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def unfailing() -> None:
    """Standard output and error as a program of ours has them: neither `… | head -1` nor an encoding without ·
    ends it."""
    sys.stdout, sys.stderr = _unfailing(sys.stdout, 1), _unfailing(sys.stderr, 2)


def _unfailing(stream: TextIO, number: int) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="replace" if stream.errors == "strict" else stream.errors)
    if not stat.S_ISFIFO(os.fstat(number).st_mode):
        return stream
    pipe = io.BufferedWriter(Pipe(number, "w", closefd=False))
    lines = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(pipe, stream.encoding, stream.errors, line_buffering=lines)


def usable(stream: TextIO, number: int) -> TextIO:
    """The stream; where it is closed, a new one on file `number`."""
    with contextlib.suppress(ValueError):  # its buffer was taken away
        if stream is None or not stream.closed:
            return stream
    return open(number, "w", errors="replace", closefd=False)


@contextmanager
def kept() -> Iterator[None]:
    """At the end sys.stdout, sys.stderr and the files 1 and 2 are as before.

    A file 1 that stays closed would be the number of the next file that is opened, such as a checkpoint, and
    get what is printed.
    """
    out, err = sys.stdout, sys.stderr
    copies = {number: _copy(number) for number in (1, 2)}
    try:
        yield
    finally:
        for number, copy in copies.items():
            if copy is not None:
                os.dup2(copy, number)
                os.close(copy)
        sys.stdout, sys.stderr = usable(out, 1), usable(err, 2)


def _copy(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:  # it was closed from the start
        return None
