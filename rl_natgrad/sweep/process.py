"""A training in a process of its own, started as a user would start it, which dies with the sweep."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from rl_natgrad.envs.cores import JOBS

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Process:
    """`python -m rl_natgrad.train <words>`, its output appended to `log`, in a session of its own.

    The session keeps the terminal's Ctrl-C from it: the sweep decides what to stop, and how.
    at_once: jobs on this machine.
    """

    def __init__(self, words: list[str], log: Path, at_once: int = 1):
        command = [sys.executable, "-m", "rl_natgrad.train", *words]
        with open(log, "ab") as out:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=partial(dies_with, os.getpid()),
                env={**os.environ, JOBS: str(at_once)},
            )  # fmt: skip
        self._pid = self._popen.pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code (-n for signal n), or None while it runs."""
        if self._code is None and os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self.kill()  # what it left behind, while the number of its group cannot be another's
            self._code = self._popen.wait()
        return self._code

    def stop(self) -> None:
        """Ask it to save and end."""
        if self._code is None:
            os.kill(self._pid, signal.SIGINT)

    def kill(self) -> None:
        """End it and all that it started."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter: macOS, of a zombie
                os.killpg(self._pid, signal.SIGKILL)


def dies_with(parent: int) -> None:
    """In a new process of `parent`, before it does anything else."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # however that ends, even by kill -9
    if os.getppid() != parent:  # it has just done so
        os._exit(1)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's notice goes to all; see cluster.Task
