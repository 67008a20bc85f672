"""A run's folder and its record, run.json: who, what, when, and how it ended."""

import contextlib
import platform
import secrets
import shlex
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rl_natgrad.run import provenance
from rl_natgrad.run.files import write_atomically, write_json
from rl_natgrad.run.records import RECORD, TRACEBACK, find_runs, read_record


def create(runs_dir: str | Path, env_id: str, algo: str, seed: int) -> Path:
    """A run's new folder: <runs_dir>/<env id>/<algo>/<time>-s<seed>-<4 random letters>. Raises: OSError."""
    return new(parent(runs_dir, env_id, algo), f"s{seed}")


def parent(runs_dir: str | Path, env_id: str, algo: str) -> Path:
    """Where runs of this algorithm in this environment are."""
    return Path(runs_dir) / env_id.replace(":", "-").replace("/", "-") / algo


def launched(parent: Path, launch: str, config: dict) -> tuple[Path, str] | None:
    """The newest run there with that configuration and `launch` in its record, and its outcome."""
    for path in reversed(find_runs([parent])):
        with contextlib.suppress(OSError, ValueError):
            record = read_record(path)
            if record.get("launch") == launch and record["config"] == config:
                return path, record["outcome"]
    return None


def new(parent: Path, *words: str) -> Path:
    """A new folder <parent>/<time>-<words>-<4 random letters>, made by this call.

    mkdir either makes the folder or fails, so two callers never share one however many start at once.
    Raises:  OSError with errno and path (read-only, disk full, a file in the way).
    """
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        path = parent / "-".join([time.strftime("%Y%m%d-%H%M%S"), *words, secrets.token_hex(2)])
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


class RunRecord:
    """The run.json of one run. Every change is on disk, whole, when the call returns.

    Keys: command, config, seed, git {hash, dirty} | null, versions, platform, threads, device, backend,
    restorable, launch (the id of the torchrun that started it) | null, ranks (its processes), start, end,
    outcome (running | finished | stopped | failed), error, and resumed: one {start, command} for each time
    the run was continued.
    """

    def __init__(self, path: Path, data: dict[str, Any]):
        self.path, self.data = Path(path), data

    @classmethod
    def start(
        cls, path: Path, *, command: str, config: dict, threads: int, device: str, backend: str, restorable: bool,
        launch: str | None = None, ranks: int = 1,
    ) -> "RunRecord":  # fmt: skip
        """The record of a run that begins now in folder `path`."""
        record = cls(path, {"command": command, "config": config, "seed": config.get("seed")})
        record.update(
            git=provenance.git_state(), versions=provenance.versions(), platform=platform.platform(),
            threads=threads, device=device, backend=backend, restorable=restorable,
            launch=launch, ranks=ranks, start=_now(), end=None, outcome="running", error=None,
        )  # fmt: skip
        return record

    @classmethod
    def resume(cls, path: Path, *, command: str, **changed: Any) -> "RunRecord":
        """The record in folder `path`, running again: its start is kept, `changed` keys are replaced.
        Raises: OSError where run.json cannot be read, ValueError where it is no record."""
        data = read_record(path)
        again = {"start": _now(), "command": command, "after": data.get("outcome")}
        record = cls(path, data)
        record.update(
            **changed, resumed=[*data.get("resumed", []), again], end=None, outcome="running", error=None
        )
        (Path(path) / TRACEBACK).unlink(missing_ok=True)  # it told of the end that is now undone
        return record

    def update(self, **changed: Any) -> None:
        """The keys in `changed` are replaced, on disk too."""
        self.data |= changed
        write_json(self.path / RECORD, self.data)

    def finish(self, outcome: str, error: BaseException | str | None = None) -> None:
        """The run ended: finished, stopped or failed. An exception leaves traceback.txt and its last line."""
        try:
            if isinstance(error, BaseException):
                text = "".join(traceback.format_exception(error)).encode(errors="backslashreplace").decode()
                error = text.strip().splitlines()[-1]
                write_atomically(self.path / TRACEBACK, text.encode())
        finally:  # a full disk may still take the shorter record
            self.update(end=_now(), outcome=outcome, error=error)


def command_line(module: str, arguments: list[str] | None = None) -> str:
    """What the user would type to do this again: python -m <module> <arguments>."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def _now() -> str:
    """ISO 8601, local time with its offset, to the second."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")
