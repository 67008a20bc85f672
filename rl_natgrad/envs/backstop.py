"""Ends this process where C code keeps the interpreter's lock, so that nothing of Python in it can run.

faulthandler's timer does that too, but it counts the time in which a process is stopped (Ctrl-Z, a paused
container), and fires the moment that it goes on.  So where /proc says who is stopped, a helper process takes
over after the first second: it counts the seconds in which neither it nor we were stopped and we sent no beat.
"""

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PERIOD = 1.0  # seconds at most between two looks at the process
GRACE = 0.5  # seconds that writing the stacks, and ending, may take


class Backstop:
    """While armed, this process ends with exit code 1 where `arm` is not called for `limit` seconds.

    There is one timer in a process, whoever arms it.  said: the line it then ends with, after its stacks.
    """

    _helper: "Helper | None" = None  # shared, as faulthandler's timer is
    _users, _lock = 0, threading.Lock()

    def __init__(self, limit: float, said: str) -> None:
        self.limit, self.said, self.armed = limit, said, False
        with self._lock:
            Backstop._users += 1

    def arm(self) -> None:
        """The limit begins again."""
        self.armed = True
        if helper := self._running():
            helper.tell(b"+")
        else:
            faulthandler.dump_traceback_later(self.limit, exit=True, file=2)  # sys.stderr may be no file

    def hand_over(self) -> None:
        """The helper counts from here on, if there can be one."""
        with self._lock:
            if self._running() is None and sys.platform == "linux" and stopped(os.getpid()) is not None:
                with contextlib.suppress(OSError):  # no processes left; the timer stays
                    Backstop._helper = Helper(self.limit, self.said)
                    faulthandler.cancel_dump_traceback_later()

    def disarm(self) -> None:
        """No limit until it is armed again."""
        self.armed = False
        if helper := self._running():
            helper.tell(b"-")
        else:
            faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """Disarms it; the last one ends the helper."""
        if self.armed:
            self.disarm()
        with self._lock:
            Backstop._users -= 1
            if not Backstop._users and (helper := self._running()):
                Backstop._helper = None
                helper.close()

    def _running(self) -> "Helper | None":
        return self._helper if self._helper and self._helper.parent == os.getpid() else None  # not after a fork


class Helper:
    """The process, and what this one does when it says so: DUMP writes the stacks, SIGHUP ends it.

    Only a handler in C runs while the lock is kept, and libc's _exit is one that exits with the signal's
    number, which is 1 for SIGHUP.  A process that ignores SIGHUP (nohup) or handles it is killed instead.
    """

    def __init__(self, limit: float, said: str) -> None:
        self.parent, self._dump, self._libc = os.getpid(), signal.SIGRTMAX - 2, ctypes.CDLL(None)
        self._exits = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        words = [str(self.parent), str(limit), str(self._dump), said]
        self._process = subprocess.Popen(
            [sys.executable, "-ISE", __file__, *words],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,  # Ctrl-C and Ctrl-Z are not for it
        )  # fmt: skip
        assert self._process.stdin
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        faulthandler.register(self._dump, file=2)
        if self._exits:
            self._libc.signal(signal.SIGHUP, ctypes.cast(self._libc._exit, ctypes.c_void_p))

    def tell(self, beat: bytes) -> None:
        """+ begins the limit again, - ends it."""
        with contextlib.suppress(OSError):  # it has gone
            os.write(self._pipe, beat)

    def close(self) -> None:
        """Ends it."""
        if self._exits:
            self._libc.signal(signal.SIGHUP, ctypes.c_void_p(0))  # SIG_DFL, as Python thinks it is
        faulthandler.unregister(self._dump)
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def stopped(pid: int) -> bool | None:
    """Whether a process is stopped, by a signal or a debugger; None where nobody says."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return None


def main(parent: int, limit: float, dump: int, said: str) -> None:
    """The helper: waits for beats on standard input, and ends with it."""
    period, still, armed = min(PERIOD, limit / 20), 0.0, False
    while still < limit:
        if select.select([0], [], [], period)[0]:
            beats = os.read(0, 4096)
            if not beats:
                return
            armed, still = beats.endswith(b"+"), 0.0
        elif os.getppid() != parent:
            return
        elif armed and not stopped(parent):
            still += period  # counted and not read from a clock: we may have been stopped as well
    with contextlib.suppress(ProcessLookupError):
        os.kill(parent, dump)
        time.sleep(GRACE)
        os.write(2, f"error: {said}\n".encode())
        for number in (signal.SIGHUP, signal.SIGKILL):
            if os.getppid() == parent:
                os.kill(parent, number)
                time.sleep(GRACE)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
