"""The numbers of a run: one row per update, to metrics.jsonl and to TensorBoard."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rl_natgrad.run import events
from rl_natgrad.run.files import naming, write_atomically
from rl_natgrad.run.records import METRICS, read_rows
from rl_natgrad.run.tags import describe

CHARTS = {
    "KL: predicted, realised": ["policy/kl_predicted", "policy/kl"],
    "surrogate gain: predicted, realised": ["policy/gain_predicted", "policy/gain"],
}


class Logger:
    """Appends rows to <path>/metrics.jsonl and to an event file of its own; every row is flushed.

    purge_step: on resume, the first step that is written again; TensorBoard forgets it and what follows in
    earlier files. Cut metrics.jsonl before (`cut`).
    """

    def __init__(self, path: str | Path, *, purge_step: int | None = None):
        self._metrics = Path(path) / METRICS
        self._file = open(self._metrics, "a", encoding="utf-8")  # noqa: SIM115 (kept open for the run)
        self._events = events.EventFile(Path(path), purge_step=purge_step, describe=describe)
        if purge_step is None:
            self._events.summary(events.layout("trust region", CHARTS))

    def write(self, row: Mapping[str, float | int | bool | None], step: int, update: int) -> None:
        """One line of metrics.jsonl, and one point per tag at x = step. None says nothing and is not written.

        JSON has no NaN: a value that is not finite stands as null in metrics.jsonl, as itself in TensorBoard.
        Raises:  OSError with errno and path.
        """
        said = {tag: float(value) for tag, value in row.items() if value is not None}
        line: dict[str, float | int | None] = {"step": step, "update": update}
        line |= {tag: _plain(value) if math.isfinite(value) else None for tag, value in said.items()}
        with naming(self._metrics):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        self._events.scalars(said, step)

    def again(self, rows: Sequence[Mapping]) -> None:
        """Points for TensorBoard of rows that metrics.jsonl has, but that `purge_step` made it forget."""
        for row in rows:
            values = {tag: math.nan if row[tag] is None else row[tag] for tag in row if "/" in tag}
            self._events.scalars(values, row["step"])

    def hparams(self, config: Mapping, overrides: Sequence[str] = ()) -> None:
        """What the HPARAMS page shows of this run: algorithm, environment, seed, and what was overridden."""
        self._events.summary(events.hparams_start(hparams(config, overrides)))

    def close(self, outcome: str | None = None) -> None:
        """The files are closed, once; HPARAMS says how the run ended when `outcome` is given.

        Raises:  OSError with errno and path; the files are closed all the same.
        """
        if self._file.closed:  # by a close that met a full disk
            return
        with naming(self._metrics), contextlib.ExitStack() as stack:  # all of it, whatever of it fails
            stack.callback(self._events.close)
            stack.callback(self._file.close)
            if outcome is not None:
                self._events.summary(events.hparams_end(success=outcome == "finished"))


def hparams(config: Mapping, overrides: Sequence[str] = ()) -> dict[str, bool | float | str]:
    """Algorithm, environment, seed and the overridden keys of `config` that are of the method, as scalars."""
    found = {"algo": config["algo"]["name"], "env": config["env"]["id"], "seed": config["seed"]}
    for key in dict.fromkeys(override.split("=", 1)[0].lstrip("+") for override in overrides):
        value: object = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):  # a group, such as solver=cg
            value = value.get("name")
        if value is not None and key not in ("runs_dir", "resume", "total_steps"):
            plain = value if isinstance(value, bool | int | float) else str(value)
            found.setdefault(key.removesuffix(".name"), plain)
    return found


def cut(path: str | Path, update: int) -> list[dict]:
    """metrics.jsonl as it was after `update`: no later row, no final evaluation row, no half-written line.

    The final evaluation is a second row of the last update, so the first row of each update is kept.
    Returns the rows that are left.
    """
    kept, last = [], 0
    for row in read_rows(path):
        if last < row["update"] <= update:
            last = row["update"]
            kept.append(row)
    write_atomically(Path(path) / METRICS, "".join(json.dumps(row) + "\n" for row in kept).encode())
    return kept


def _plain(value: float) -> float | int:
    """Counts are written as 3, not 3.0."""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
