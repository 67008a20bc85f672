"""Reading what runs left behind, also while they are being written."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rl_natgrad.run.files import naming

RECORD, METRICS, SWEEP, TRACEBACK = "run.json", "metrics.jsonl", "sweep.json", "traceback.txt"
MAX_BYTES = 16 * 2**20  # of a record: a thousand resumes take a tenth of that
RENAMED = {"search/accepted": "line_search/accepted", "search/tries": "line_search/tries"}
"""Tags by the name that they have in older files: a search is Optuna's now."""

ADDED: dict[str, Any] = {
    "dtype": "float32", "optimizer": {"warmup": 0}, "critic": {"overlap": "auto"},
    "policy": {"std": "free"}, "policy=mlp": {"init": "orthogonal"}, "critic=adam": {"minibatches": None},
    "env": {"frame_stack": None, "action_mask": False, "stagger": False},
}  # fmt: skip
"""Keys of the configuration that older records lack, with the values that those runs had.
group=name: of that choice alone."""


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """Every folder at any depth below `folders` with a run.json, sorted (so none of the aggregates of compare)."""
    found = set()
    for folder in folders:
        for base, names, files in os.walk(folder, followlinks=True):
            if RECORD in files:
                names.clear()  # a run holds no runs
                found.add(Path(base))
    return sorted(found)


def read_record(path: str | Path) -> dict:
    """run.json of the run in folder `path`, its configuration with the keys of today.

    Raises:  OSError where it cannot be read, ValueError (one line, naming the file) where it is no record.
    """
    file = Path(path) / RECORD
    with naming(file):
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{file} is larger than any record of a run ({MAX_BYTES:,} bytes)")
        text = file.read_bytes()
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ValueError(f"{file} is not the record of a run: it has no config")
    _add(record["config"], ADDED)
    return record


def _add(config: dict, added: dict[str, Any]) -> None:
    """Sets the keys that are missing, but for those of sections that are missing too, or have none."""
    for key, value in added.items():
        group, _, choice = key.partition("=")
        section = config.get(group)
        if not isinstance(value, dict):
            config.setdefault(key, value)
        elif isinstance(section, dict) and section.get("name") != "none" and choice in ("", section.get("name")):
            _add(section, value)


def read_rows(path: str | Path) -> list[dict]:
    """The rows of <path>/metrics.jsonl, their tags under today's names; [] where there is no such file.

    The last line may be half-written, by a run in progress or one that was killed: it is then left out.
    Raises:  ValueError (one line, naming file and line) where an earlier line is broken.
    """
    file = Path(path) / METRICS
    try:
        with naming(file):
            lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # a whole line ends in \n
        try:
            row = json.loads(line)
            whole = type(row["step"]) is int and type(row["update"]) is int
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole or not all(isinstance(value, int | float | None) for value in row.values()):
            raise ValueError(f"{file}, line {number}: not a row of metrics") from None
        rows.append({RENAMED.get(tag, tag): value for tag, value in row.items()})
    return rows
