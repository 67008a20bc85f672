"""A process that has imported all that a training needs, and forks it for each job of a sweep.

    python -m rl_natgrad.sweep.server        requests on standard input, a line each; answers on standard output

It starts no thread and no device, and imports nothing of the user's, so that a job is as good as a process that
has just imported the same: what it does beyond that, importing its environment's module included, it does alone.

Differs from multiprocessing's forkserver: a job is a main program, in a session of its own; and it is reaped only
when its group has been killed, as until then no other process can have the group's number.
"""

import atexit
import contextlib
import gc
import io
import json
import os
import runpy
import signal
import sys
import threading
from typing import Any, NamedTuple, NoReturn

from rl_natgrad.run.imports import for_good
from rl_natgrad.sweep.process import dies_with

BLAS = "OPENBLAS_NUM_THREADS"  # numpy starts threads as it is imported, unless this is 1
HEARD = (signal.SIGINT, signal.SIGTERM)  # by jobs only: schedulers and service managers send them to everybody


class Asked(NamedTuple):
    """A job to fork."""

    words: list[str]
    log: str


def main() -> None:
    """Serves until the requests end; in a job that it forks, trains."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    server, requests, answers = os.getpid(), os.dup(0), os.dup(1)
    _direct(0, os.devnull, os.O_RDONLY)
    os.dup2(2, 1)  # what an import prints is no answer
    _import()
    asked = _serve(requests, answers)
    if asked:
        os.close(requests)
        os.close(answers)
        _train(asked, server)


def _import() -> None:
    """What a training imports before its environment. Exits where that has started a thread."""
    given = os.environ.get(BLAS)
    os.environ[BLAS] = "1"
    with for_good():  # also, a job that looked here for garbage would copy it all
        from rl_natgrad.config import command  # noqa: F401
        from rl_natgrad.training import resume  # noqa: F401
    if given is None:
        del os.environ[BLAS]
    else:
        os.environ[BLAS] = given
    if len(os.listdir("/proc/self/task")) > 1:
        os.write(2, b"note: an import starts a thread, so each job imports by itself, which takes longer\n")
        os._exit(1)  # the interpreter would wait for that thread


def _serve(requests: int, answers: int) -> Asked | None:
    """Answers until the requests end; then None. Returns at once in a new job."""
    with open(requests, closefd=False) as lines:
        _answer(answers, None)
        for line in lines:
            verb, *given = json.loads(line)
            try:
                if verb == "start":
                    _compose(given[0])
                    pid = os.fork()
                    if pid == 0:
                        return Asked(*given)
                    _answer(answers, pid)
                else:
                    _answer(answers, {"poll": _poll, "stop": _stop, "kill": _kill}[verb](*given))
            except OSError as error:
                _answer(answers, {"errno": error.errno, "strerror": error.strerror})
    return None


def _compose(words: list[str]) -> None:
    """Hydra's part of a job's configuration, which it remembers: jobs of other seeds have it from here."""
    from rl_natgrad.config import compose, refusals

    with contextlib.suppress(refusals.ConfigError):  # the job will say so
        compose.load(word for word in words if not word.startswith("resume="))


def _answer(answers: int, value: Any) -> None:
    os.write(answers, json.dumps(value).encode() + b"\n")


def _poll(pid: int) -> int | None:
    """The exit code of a job (-n for signal n), or None while it runs. To be asked until it has ended."""
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return None
    _kill(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGINT)


def _kill(pid: int) -> None:
    """A job and all that it has started. It has no group yet where it has just been forked."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _train(asked: Asked, server: int) -> None:
    """`python -m rl_natgrad.train <words>`, in a process that has been forked for it."""
    os.setsid()
    dies_with(server)
    _direct(1, asked.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(1, 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    import numpy
    import torch

    torch.default_generator.seed()  # others would draw the same; Python's own does this by itself
    numpy.random.seed()  # noqa: NPY002
    sys.argv[1:] = asked.words
    try:
        runpy.run_module("rl_natgrad.train", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(code: int) -> NoReturn:
    """The interpreter's end, but for taking its objects apart, of which a fork would first make copies.

    multiprocessing ends what it forks in this way; here open files are flushed as well.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    files = [one for one in gc.get_objects() if issubclass(type(one), io.TextIOWrapper | io.BufferedWriter)]
    for file in (sys.stdout, sys.stderr, *files):
        with contextlib.suppress(Exception):  # closed, or its disk is full
            file.flush()
    os._exit(code)


def _direct(number: int, path: str, flags: int) -> None:
    file = os.open(path, flags, 0o666)
    os.dup2(file, number)
    os.close(file)


if __name__ == "__main__":
    main()
