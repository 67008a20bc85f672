"""Ends a hang inside an environment that runs in our own process."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from rl_natgrad.envs.backstop import Backstop
from rl_natgrad.envs.episode import CONSTRUCTOR, Episodes
from rl_natgrad.envs.errors import EnvError

GRACE = 5.0  # seconds at most for the raised error to end the run in good order
START = 30.0  # seconds at least for a constructor, which may import, download and compile
BACKSTOP = 5  # × timeout: when nothing of Python has run for so long


def fail(error: EnvError) -> int:
    """Prints the line of the error. Returns the exit code 1."""
    with contextlib.suppress(OSError):
        os.write(2, f"error: {error}\n".encode())
    return 1


last_words: Callable[[EnvError], int] = fail
"""Called where only ending the process helps: says why, and returns its exit code."""


class Watchdog:
    """`with watchdog:` around environments' code; each call of it may take `timeout` seconds.

    Three nets, since a hang can sit anywhere.  A thread sees that nothing moves and has a signal raise
    EnvError in the main thread, which ends sleeps and Python loops.  Where that does not help (C code, or an
    environment that swallows errors) it ends the process, with `last_words`.  Where C code even holds the
    interpreter's lock, so that no thread runs, a Backstop prints where it hangs and exits 1.
    """

    def __init__(self, episodes: Episodes, timeout: float) -> None:
        self.episodes, self.timeout = episodes, timeout
        self.busy, self.grace = False, min(GRACE, timeout)
        limit = BACKSTOP * timeout
        self.backstop = Backstop(limit, f"{episodes.recipe.id}: C code kept the interpreter for {limit:g} s")
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="env-watchdog", daemon=True)
        main = threading.current_thread() is threading.main_thread()
        # SIGALRM is used where nobody else uses it.
        self.can_raise = main and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, _raise)
        if self.can_raise:
            signal.signal(signal.SIGALRM, _raise)
        self.thread.start()

    def __enter__(self) -> None:
        self.busy = True
        if not self.backstop.armed:  # once per rollout; a thread cannot do it once the lock is held
            self.backstop.arm()

    def __exit__(self, *error: object) -> None:
        self.busy = False

    def close(self) -> None:
        """Ends the thread."""
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        # Waits are counted and clocks are not read: a stopped process (Ctrl-Z) has not hung.
        period, still, last = min(1.0, self.timeout / 4), 0.0, None
        while not self.stop.wait(period):
            now = self.episodes.position() if self.busy else None
            still = still + period if now is not None and now == last else 0.0
            last = now
            self.backstop.hand_over()
            if now is not None:
                self.backstop.arm()
            elif self.backstop.armed:
                self.backstop.disarm()
            if still >= self._limit():
                self._end(now)
                still = 0.0
        self.backstop.close()

    def _limit(self) -> float:
        return max(self.timeout, START) if self.episodes.doing == CONSTRUCTOR else self.timeout

    def _end(self, position: Any) -> None:
        error = self.episodes.hung(f"did not return within {self._limit():g} s (env.timeout)")
        if self.can_raise:
            _hung[:] = [error]
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            if self.stop.wait(self.grace) or not self.busy or self.episodes.position() != position:
                return
        code = 1
        try:
            code = last_words(error)
        finally:
            os._exit(code)


_hung: list[EnvError] = []


def _raise(*_: object) -> None:
    if _hung:
        raise _hung.pop()
