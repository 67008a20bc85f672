"""Whole training runs, in this process or in one of their own, and everything of them that must be equal."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_natgrad import evaluate, train
from rl_natgrad.run import checkpoint
from rl_natgrad.run.records import read_rows

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["num_envs=4", "horizon=64", "policy.hidden=[16,16]", "eval.episodes=2"]
ENVS = {  # a name for the test, words for the command line
    "CartPole-native": ["env=CartPole"],
    "CartPole-sync": ["env=CartPole", "env.backend=sync"],
    "LunarLander": ["env=LunarLander"],
    "HalfCheetah": ["env=HalfCheetah"],
}
CRITIC = ["critic.hidden=[16,16]", "critic.epochs=2"]  # of the algorithms that have one


def run(monkeypatch, *words: str) -> int:
    """python -m rl_natgrad.train <words>, in this process; the last word of one key counts. Returns its code."""
    monkeypatch.setattr(sys, "argv", ["rl_natgrad.train", *_last_of_each(words)])
    try:
        return train.main()
    except SystemExit as end:
        return int(end.code or 0)


def spawn(*words: str, folder: Path | None = None, **env: str) -> subprocess.Popen:
    """python -m rl_natgrad.train <words>, in a process of its own; the last word of one key counts."""
    return subprocess.Popen(
        [sys.executable, "-m", "rl_natgrad.train", *_last_of_each(words)],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


class Fork:
    """The same from a process that has already imported everything, as importing takes longer than these runs."""

    def __init__(self, *words: str, output: Path, module: str = "train", **env: str):
        self.output = output
        output.mkdir(parents=True, exist_ok=True)
        self._process = SERVER.Process(target=_forked, args=(module, _last_of_each(words), str(output), env))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "still running"
        return tuple((self.output / name).read_text() for name in ("out.txt", "err.txt"))


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["whole_runs", "rl_natgrad.training.resume", "rl_natgrad.training.shares"])


def ranks(world: int, *words: str, output: Path, **env: str) -> list[Fork]:
    """The processes of one run, told what torchrun tells them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    env |= {"TORCHELASTIC_RUN_ID": output.name, "GLOO_SOCKET_IFNAME": "lo"}
    return [Fork(*words, output=output / str(rank), RANK=str(rank), **env) for rank in range(world)]


def _forked(module: str, words: list[str], output: str, env: dict[str, str]) -> None:
    os.environ.update(env)
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [f"rl_natgrad.{module}", *words]
    sys.exit({"train": train, "evaluate": evaluate}[module].process())


def _last_of_each(words) -> list[str]:
    return list({word.split("=")[0]: word for word in words}.values())


def only_run(runs_dir: Path) -> Path:
    """The one run in a runs folder."""
    (path,) = [file.parent for file in Path(runs_dir).glob("*/*/*/run.json")]
    return path


def checkpoints(path: Path) -> list[Path]:
    """Oldest first."""
    return checkpoint.Checkpoints(path, 1, "").all()


def reached(runs_dir: Path, update: int) -> list[Path]:
    """The runs that have saved this update or a later one, as old checkpoints go."""
    there = (folder.parent for folder in Path(runs_dir).glob("*/*/*/checkpoints"))
    return [path for path in there if (saved := checkpoints(path)) and int(saved[-1].stem) >= update]


def copy(path: Path, to: Path) -> Path:
    """A run of its own, as it would be in another runs folder."""
    return Path(shutil.copytree(path, to / "env" / "algo" / "copy", symlinks=True))


def outcome(path: Path) -> str:
    return json.loads((path / "run.json").read_text())["outcome"]


def facts(path: Path) -> dict[str, Any]:
    """All that two equal runs have in common, bit for bit: the last state, rows and curves, without clocks."""
    return {
        "checkpoint": leaves(checkpoint.read(checkpoints(path)[-1])),
        "rows": [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_rows(path)],
        "curves": curves(path),
    }


def leaves(node: Any, name: str = "") -> dict[str, Any]:
    """A state as one flat mapping; tensors and arrays as dtype, shape and bytes."""
    if isinstance(node, dict):
        parts = [leaves(child, f"{name}/{key}") for key, child in node.items() if key != "elapsed"]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(node, torch.Tensor):
        node = node.numpy()
    if isinstance(node, np.ndarray):
        return {name: f"{node.dtype} {node.shape} {hashlib.sha256(node.tobytes()).hexdigest()}"}
    return {name: repr(node)}


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run. JSON rows write −0.0 as 0, so here it is 0 too."""
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(point.step, repr(point.value + 0.0)) for point in events.Scalars(tag)] for tag in tags}


def assert_equal(path: Path, expected: dict[str, Any]) -> None:
    """A run has the facts of another; says which are different."""
    found = facts(path)
    for kind in ("checkpoint", "curves"):
        assert found[kind].keys() == expected[kind].keys(), kind
        other = [key for key in found[kind] if found[kind][key] != expected[kind][key]]
        assert not other, f"{kind}: {other}"
    assert found["rows"] == expected["rows"]


def wait_until(what, seconds: float = 60.0):
    """The first true value of what()."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
    return value


def hears_signals(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
