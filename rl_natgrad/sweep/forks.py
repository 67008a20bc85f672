"""Jobs that start in milliseconds: forked by a process that has done their imports; see `server`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rl_natgrad.envs.cores import JOBS
from rl_natgrad.sweep.process import Process, dies_with


class Gone(Exception):
    """A server has ended, and its jobs with it."""


class Server:
    """The process that forks. It dies with this one, and its jobs with it.

    Raises: Gone where it cannot serve; it has said why on standard error.  OSError where there can be no process.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "rl_natgrad.sweep.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True, preexec_fn=partial(dies_with, os.getpid()),
            env={**os.environ, JOBS: str(at_once)},
        )  # fmt: skip
        try:
            self._answer()
        except Gone:
            self.close()
            raise

    def ask(self, *request: Any) -> Any:
        """Its answer. Raises: Gone, or the OSError that it met."""
        if self._popen.poll() is not None:
            raise Gone
        assert self._popen.stdin
        try:
            self._popen.stdin.write(json.dumps(request).encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            raise Gone from None
        answer = self._answer()
        if isinstance(answer, dict):
            raise OSError(answer["errno"], answer["strerror"])
        return answer

    def close(self) -> str:
        """Ends it. Returns how it has ended."""
        self._popen.kill()
        for pipe in (self._popen.stdin, self._popen.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert pipe
                pipe.close()
        code = self._popen.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _answer(self) -> Any:
        assert self._popen.stdout
        line = self._popen.stdout.readline()
        if not line:
            raise Gone
        return json.loads(line)


class Forked:
    """A job that a server has forked, to be used like a Process."""

    def __init__(self, server: Server, words: list[str], log: Path):
        self._server, self._log = server, log
        self._code: int | None = None
        self._pid: int = server.ask("start", words, str(log.absolute()))

    def poll(self) -> int | None:
        """The exit code (-n for signal n), or None while it runs. 1, as the log says, where its server ended."""
        if self._code is None:
            try:
                self._code = self._server.ask("poll", self._pid)
            except Gone:
                self._code = 1
                with contextlib.suppress(ProcessLookupError):  # what the job had started
                    os.killpg(self._pid, signal.SIGKILL)
                with open(self._log, "a") as log:
                    log.write(f"\nerror: the process that started this job has ended ({self._server.close()})\n")
        return self._code

    def stop(self) -> None:
        """Ask it to save and end."""
        self._ask("stop")

    def kill(self) -> None:
        """End it and all that it started."""
        self._ask("kill")

    def _ask(self, verb: str) -> None:
        if self._code is None:
            with contextlib.suppress(Gone):  # see poll
                self._server.ask(verb, self._pid)


class Forks:
    """Launches jobs by one server, which starts with the first of them; by another where that has ended.

    Where the system is not Linux, or a server cannot serve, each job is a Process that imports by itself.

    at_once: jobs at once, between whom cores are divided.
    """

    def __init__(self, at_once: int = 1) -> None:
        self.at_once = at_once
        self._server: Server | None = None
        self._serves = sys.platform == "linux"

    def start(self, words: list[str], log: Path) -> Forked | Process:
        """Starts a training of these words, whose output goes to `log`. Raises: OSError."""
        log.touch()
        while self._serves:
            try:
                self._server = self._server or Server(self.at_once)
                return Forked(self._server, words, log)
            except Gone:
                self._serves, self._server = self._server is not None, None  # a new one may serve
        return Process(words, log, self.at_once)

    def close(self) -> None:
        """Ends the server; jobs that run die with it."""
        if self._server:
            self._server.close()
