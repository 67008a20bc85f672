"""Ends a hang inside an environment that runs in our own process."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from typing import Any

from rl_natgrad.envs.episode import Episodes
from rl_natgrad.envs.errors import EnvError

GRACE = 5.0  # seconds at most for the raised error to end the run in good order
BACKSTOP = 5  # × timeout: when nothing of Python has run for so long


class Watchdog:
    """`with watchdog:` around stepping; each environment may take `timeout` seconds in it.

    Three nets, since a hang can sit anywhere.  A thread sees that nothing moves and has a signal raise
    EnvError in the main thread, which ends sleeps and Python loops.  Where that does not help (C code, or an
    environment that swallows errors) it prints the line and exits 1.  Where C code even holds the
    interpreter's lock, so that no thread runs, faulthandler's own thread prints where it hangs and exits 1.
    """

    def __init__(self, episodes: Episodes, timeout: float) -> None:
        self.episodes, self.timeout = episodes, timeout
        self.busy, self.armed, self.grace = False, False, min(GRACE, timeout)
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
        if not self.armed:  # once per rollout; a thread cannot do it once the lock is held
            self._arm()

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
            now = self._position() if self.busy else None
            still = still + period if now is not None and now == last else 0.0
            last = now
            if now is not None:
                self._arm()
            elif self.armed:
                self._disarm()
            if still >= self.timeout:
                self._end(now)
                still = 0.0
        if self.armed:
            self._disarm()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(BACKSTOP * self.timeout, exit=True)
        self.armed = True

    def _disarm(self) -> None:
        self.armed = False
        faulthandler.cancel_dump_traceback_later()

    def _position(self) -> tuple[int, int, int]:
        episode = self.episodes.current()
        return episode.index, episode.number, len(episode.actions)

    def _end(self, position: Any) -> None:
        episode = self.episodes.current()
        doing = "step" if episode.actions else "reset"
        error = episode.error(f"{doing} did not return within {self.timeout:g} s (env.timeout)")
        if self.can_raise:
            _hung[:] = [error]
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            if self.stop.wait(self.grace) or not self.busy or self._position() != position:
                return
        with contextlib.suppress(OSError):
            os.write(2, f"error: {error}\n".encode())
        sys.stderr.flush()
        os._exit(1)


_hung: list[EnvError] = []


def _raise(*_: object) -> None:
    if _hung:
        raise _hung.pop()
