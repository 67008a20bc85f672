"""What earlier runs have done already, found by their resolved configurations."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rl_natgrad.config.schema import Config
from rl_natgrad.run import lock
from rl_natgrad.run.records import TRACEBACK, find_runs, read_record

NOT_THE_RUN = ("runs_dir", "resume", "sweep", "search", "distributed")
"""Where it is kept, who asked and what several ranks would do, not what it computes."""


class Found(NamedTuple):
    """A run of the same configuration."""

    path: Path
    outcome: str  # finished, running (by somebody, now) or stopped (and can go on)


class Earlier:
    """The runs below some folders. One that can go on is given to one job only."""

    def __init__(self, folders: Iterable[str]):
        self._runs: dict[str, list[Found]] = {}
        for path in find_runs(sorted(set(folders))):
            with contextlib.suppress(OSError, ValueError):  # not a record: nothing to go on with
                record = read_record(path)
                state = _state(path, record)
                if state:
                    self._runs.setdefault(_key(record["config"]), []).append(Found(path, state))

    def claim(self, config: Config) -> Found | None:
        """A finished run, else one that somebody runs now, else the interrupted one that got farthest."""
        found = self._runs.get(_key(config.model_dump(mode="json")), [])
        order = ("stopped", "running", "finished")
        best = max(found, key=lambda f: (order.index(f.outcome), _progress(f.path)), default=None)
        if best and best.outcome != "finished":
            found.remove(best)
        return best


def _key(config: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in config.items() if key not in NOT_THE_RUN}, sort_keys=True)


def _state(path: Path, record: dict[str, Any]) -> str | None:
    if record.get("outcome") == "finished":
        return "finished"
    if record.get("outcome") == "running" and _is_held(path):
        return "running"
    # A run with a traceback failed by itself: what has to change before it can succeed may be in its past.
    return None if (path / TRACEBACK).exists() else "stopped"


def _is_held(path: Path) -> bool:
    try:
        with lock.hold(path):
            return False
    except lock.Busy:
        return True


def _progress(path: Path) -> str:
    """The name of the newest checkpoint; they sort by update."""
    return max((file.name for file in (path / "checkpoints").glob("[0-9]*.safetensors")), default="")
