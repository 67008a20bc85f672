"""Writes that survive a crash, and errors that name their file."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError raised inside carries `path`: a failing write (disk full) does not name its file itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """`path` holds either its old content or all of `data`, at whatever moment the process or machine stops.

    A rename is atomic only within a folder, and lasting only once the folder itself is on disk: a temporary
    sibling is written and synced, renamed over `path`, and then the folder is synced.

    Raises:  OSError with errno and path; the sibling is removed where that can be, the old file untouched.
    """
    sibling = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        sibling.unlink(missing_ok=True)  # of a process that was killed and had the same number
        try:
            with open(sibling, "xb") as file:  # x follows no symbolic link
                file.write(data[: len(data) // 2])
                pause()
                file.write(data[len(data) // 2 :])
                file.flush()
                pause()
                os.fsync(file.fileno())
            pause()
            os.replace(sibling, path)
        except BaseException:
            with suppress(OSError):  # a disk that takes nothing gives nothing back; the next resume removes it
                sibling.unlink(missing_ok=True)
            raise
        pause()
        sync_folder(path.parent)


def pause() -> None:
    """Stands between the stages of a save: with RL_NATGRAD_SLOW_SAVE=<seconds> a test can kill inside each."""
    if seconds := os.environ.get("RL_NATGRAD_SLOW_SAVE"):
        time.sleep(float(seconds))


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON, atomically. Strict JSON: NaN and inf raise ValueError."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def sync_folder(path: Path) -> None:
    """The names in folder `path` (created, renamed or removed files) are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    with naming(path):
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
