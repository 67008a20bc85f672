"""Threads and processes that environments leave behind: what would keep a process from ending, or outlive it."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rl_natgrad.envs.errors import note


def tidy(main: Callable[[], int], grace: float = 5.0) -> int:
    """main() as all that its process does.

    What environments left running has `grace` seconds to end by itself; then it is named, and ended.
    """
    before, code = children(), 1
    try:
        code = main()
        return code
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, or its disk is full
                stream.flush()
        threading.Thread(target=_insist, args=(code, grace), daemon=True).start()
        _end(before, grace / 2)


def _insist(code: int, grace: float) -> None:
    """The end, where the interpreter waits for threads that never do."""
    time.sleep(grace)
    left = {one.name for one in threading.enumerate() if not one.daemon} - {threading.main_thread().name}
    if left:  # else the machine is busy, and the interpreter's own end takes that long
        note(f"ended without waiting for what an environment left running: {_listed('thread', left)}")
    os._exit(code)


def _end(before: set[int], grace: float) -> None:
    """Ends processes that were not there before.  multiprocessing's own helpers end with us."""
    end = time.monotonic() + grace
    while (left := {pid: name for pid in children() - before if (name := _name(pid))}) and time.monotonic() < end:
        time.sleep(0.02)
    if left:
        note(f"ended what an environment left running: {_listed('process', set(left.values()))}")
    for pid in left:
        _kill(pid)


def children(pid: int | str = "self") -> set[int]:
    """The processes that a process has started, as Linux tells; elsewhere none."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found |= {int(word) for word in file.read_text().split()}
    return found


def _listed(kind: str, names: set[str]) -> str:
    """`thread a, thread b`: without numbers, so that many workers say the same once."""
    return ", ".join(f"{kind} {name}" for name in sorted(names))


def _kill(pid: int) -> None:
    below = children(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    for one in below:
        _kill(one)


def _name(pid: int) -> str:
    """Of a process that runs and does not end with us, else nothing."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()  # a zombie has none
        if command and b"from multiprocessing." not in command:
            return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
