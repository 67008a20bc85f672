"""SIGINT and SIGTERM: heard at once where nothing is lost by it, and after the update elsewhere."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AFTER = "\nstop    after this update (once more: at once)\n"


class Stopped(BaseException):
    """Somebody said stop. Not an Exception: an environment that swallows those cannot swallow this."""


def deafen() -> None:
    """From here on SIGINT and SIGTERM change nothing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Stop:
    """While entered, the first signal raises Stopped, or is only noted inside `patient()`; a second one exits.

    number: the signal heard, 0 before.  relayed: whether the same signal may come twice and mean it once, as from
    a cluster that tells every process and from torchrun, which passes on what it is told.
    """

    def __init__(self, relayed: bool = False) -> None:
        self.number, self._relayed, self._patient = 0, relayed, False

    def __enter__(self) -> "Stop":
        self._old = {s: signal.signal(s, self._hear) for s in (signal.SIGINT, signal.SIGTERM)}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, *exception: object) -> None:
        sys.unraisablehook = self._hook
        for number, handler in self._old.items():
            signal.signal(number, handler)

    @property
    def code(self) -> int:
        """The exit code of a process that this signal ended, as shells have it."""
        return 128 + self.number

    @contextmanager
    def patient(self) -> Iterator[None]:
        """A signal waits for the next `check` or `at_once`; raises Stopped where one was swallowed before."""
        before, self._patient = self._patient, True
        try:
            self.check()
            yield
        finally:
            self._patient = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside `patient()`: a signal raises Stopped again, one that was noted before included."""
        self.check()
        before, self._patient = self._patient, False
        try:
            yield
        finally:
            self._patient = before

    def check(self) -> None:
        """Raises Stopped where a signal has been noted."""
        if self.number:
            raise Stopped

    def note(self, number: int) -> None:
        """A signal that another process of this run has heard: as if it had come here, inside `patient()`."""
        if not self.number:
            self.number = number
            _write(AFTER)

    def _swallowed(self, what: Any) -> None:
        """What a weak reference's callback raises, Python only prints; the next `check` raises Stopped again."""
        if not isinstance(what.exc_value, Stopped):
            self._hook(what)

    def _hear(self, number: int, frame: object) -> None:
        if self._relayed and number == self.number:
            return
        if self.number:
            _write("\x1b[?25h" if os.isatty(2) else "")  # a bar has hidden the cursor
            os._exit(128 + number)  # not an exception, which a finally clause could hold up
        self.number = number
        if not self._patient:
            raise Stopped
        _write(AFTER)


def _write(text: str) -> None:
    os.write(2, text.encode())  # print may be in the middle of another print
