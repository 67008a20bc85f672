"""Run folders with known curves, for tests of everything that reads them. No training, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

VERSIONS = {"python": "3.11.7", "rl_natgrad": "0.1.0", "torch": "2.13.0", "gymnasium": "1.4.0"}
CONFIG = {  # of a run, as far as what is written of it needs one
    "seed": 3,
    "total_steps": 1000,
    "num_envs": 8,
    "horizon": 256,
    "runs_dir": "runs",
    "algo": {"name": "trpo", "delta": 0.01, "normalize_adv": True},
    "env": {"id": "CartPole-v1"},
    "solver": {"name": "cg", "damping": 0.1},
    "policy": {"name": "mlp", "hidden": [64, 64]},
}


def write_run(
    root: Path,
    algo: str = "trpo",
    seed: int = 0,
    *,
    env: str = "CartPole-v1",
    returns: Sequence[float | None] = (10.0, 20.0, 30.0),
    steps_per_update: int = 100,
    seconds_per_update: float = 0.5,
    outcome: str = "finished",
    name: str | None = None,
    versions: dict | None = None,
    config: dict | None = None,
) -> Path:
    """A run folder whose update u (from 1) has rollout/return = returns[u - 1]; None writes no return."""
    path = root / env / algo / (name or f"20260101-000000-s{seed}-0000")
    path.mkdir(parents=True)
    content = {
        "seed": seed,
        "total_steps": steps_per_update * len(returns),
        "algo": {"name": algo, "gamma": 0.99},
        "env": {"id": env},
    }
    for key, value in (config or {}).items():
        group, _, leaf = key.rpartition(".")
        (content.setdefault(group, {}) if group else content)[leaf] = value
    record = {"config": content, "seed": seed, "versions": VERSIONS | (versions or {}), "outcome": outcome}
    record["error"] = "ValueError: broke" if outcome == "failed" else None
    (path / "run.json").write_text(json.dumps(record))
    filler = {f"policy/tag_{index}": 0.123456789 * index for index in range(20)}
    with open(path / "metrics.jsonl", "w") as file:
        for update, value in enumerate(returns, start=1):
            row = {"step": update * steps_per_update, "update": update}
            row |= filler | {"time/elapsed": update * seconds_per_update}
            if value is not None:
                row["rollout/return"] = float(value)
            file.write(json.dumps(row) + "\n")
    return path


def learning_curve(updates: int, end: float, rng: np.random.Generator) -> list[float]:
    """A noisy rise from 20 to about `end`."""
    rise = 1 - np.exp(-6 * np.arange(1, updates + 1) / updates)
    return list(20 + (end - 20) * rise + rng.normal(0, 8, updates))
