"""Sweeps: their jobs, what runs leave for them, and whole ones, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from whole_runs import ROOT, SMALL

from rl_natgrad.config import compose
from rl_natgrad.run import folder
from rl_natgrad.sweep.job import Job
from rl_natgrad.sweep.plan import new_job

TESTS = Path(__file__).resolve().parent
PROBE = ["env=sweep_environments:Sweep-v0", "env.allow_import=true", "env.backend=sync", *SMALL, "critic.epochs=1"]


def job(number: int, tmp_path: Path, *overrides: str) -> Job:
    return new_job(number, list(overrides), compose.load(overrides), tmp_path)


def stored(runs: Path, *overrides: str, outcome: str = "finished", checkpoint: bool = False) -> Path:
    """A run's folder as a run of these overrides leaves it."""
    path = folder.create(runs, "CartPole-v1", "trpo", 0)
    tree = compose.load(overrides).model_dump(mode="json")
    record = folder.RunRecord.start(
        path, command="", config=tree, threads=1, device="cpu", backend="sync", restorable=True
    )
    if outcome != "running":
        record.finish(outcome)
    if checkpoint:
        (path / "checkpoints").mkdir()
        (path / "checkpoints" / "00000010.safetensors").touch()
    return path


def environment(**env: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", **env}


def start(*words: str, **env: str) -> subprocess.Popen:
    """python -m rl_natgrad.train -m <words>."""
    command = [sys.executable, "-m", "rl_natgrad.train", "-m", *words]
    return subprocess.Popen(
        command, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def sweep(*words: str, **env: str) -> tuple[int, str]:
    process = start(*words, **env)
    text = process.communicate()[0]
    return process.returncode, text


def report(runs: Path, number: int = -1) -> dict:
    """sweep.json of the newest sweep."""
    return json.loads((sorted((runs / "sweeps").glob("2*"))[number] / "sweep.json").read_text())
