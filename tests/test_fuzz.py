"""Environments that do one of a hundred wrong things somewhere, drawn at random: the run ends, and says how.

RL_NATGRAD_FUZZ says how many are drawn.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from environments import CHANGES, DEEDS
from whole_runs import Fork, checkpoints, only_run, outcome, wait_until

from rl_natgrad.run import checkpoint
from rl_natgrad.run.records import read_record, read_rows

DRAWN = int(os.environ.get("RL_NATGRAD_FUZZ", "20"))
TIME = 240  # seconds for a run to end: a constructor alone may take 30, and so may workers that import torch
HANGS = ("sleeps", "spins", "stubborn", "keeps")
WORDS = [
    "env.id=environments:Misbehaving-v0", "env.allow_import=true", "num_envs=2", "horizon=8", "eval.episodes=2",
    "policy.hidden=[4]", "critic.hidden=[4]", "checkpoint.every=1", "eval.every=1",
]  # fmt: skip


class Case(NamedTuple):
    """What is done wrong, where and in which step of an episode, and by whom."""

    door: str
    backend: str
    place: str
    how: str
    at: int

    @property
    def timeout(self) -> float:
        return 0.5 if self.how in HANGS else 30.0

    @property
    def kwargs(self) -> dict:
        return {"max_episode_steps": 8, "how": f"{self.place} {self.how}", "at": self.at}

    @property
    def takes_us_along(self) -> bool:
        """Nothing can be said by a process that its environment has ended, or kept for itself."""
        return self.how in ("dies", "killed", "keeps") and self.backend != "async"


def draw(n: int) -> Case:
    rng = np.random.default_rng(n)
    place = str(rng.choice(["constructor", "reset", "step", "close"]))
    results = [*CHANGES, "arity", "nothing", "bare"] if place in ("reset", "step") else []
    how = str(rng.choice(results if results and rng.random() < 0.4 else list(DEEDS)))
    door = str(rng.choice(["train", "evaluate", "resume"]))
    return Case(door, str(rng.choice(["sync", "async", "split"])), place, how, int(rng.integers(1, 8)))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A finished run of the same environment while it behaved."""
    folder = tmp_path_factory.mktemp("good")
    words = ["env.kwargs={max_episode_steps: 8, how: well behaved, at: 3}", "env.backend=sync", "total_steps=16"]
    process = Fork(*WORDS, *words, f"runs_dir={folder}", output=folder / "out")
    assert (process.communicate(TIME)[1], process.returncode) == ("", 0)
    return only_run(folder)


def start(case: Case, good: Path, folder: Path) -> tuple[Fork, Path]:
    """The process, and the folder in which its run is or will be."""
    about = {"output": folder / "out", "RL_NATGRAD_MARK": str(folder)}
    if case.door == "train":
        kwargs = ", ".join(f"{key}: {value}" for key, value in case.kwargs.items())
        words = [f"env.kwargs={{{kwargs}}}", f"env.backend={case.backend}", f"env.timeout={case.timeout}"]
        return Fork(*WORDS, *words, "total_steps=32", f"runs_dir={folder}", **about), folder
    run = Path(shutil.copytree(good, folder / "env" / "algo" / "copy"))
    record = read_record(run)
    record["config"]["env"] |= {"backend": case.backend, "kwargs": case.kwargs, "timeout": case.timeout}
    (run / "run.json").write_text(json.dumps(record))
    if case.door == "evaluate":
        return Fork(f"run={run}", "episodes=2", "allow_import=true", module="evaluate", **about), folder
    return Fork(f"resume={run}", "env.allow_import=true", "total_steps=32", **about), folder


def marked(folder: Path) -> list[int]:
    """Processes that were started for this run and are still there."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RL_NATGRAD_MARK={folder}".encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("n", range(DRAWN))
def test_every_run_ends_and_says_how(n, good, tmp_path):
    case = draw(n)
    print(case)
    process, folder = start(case, good, tmp_path)
    _, err = process.communicate(TIME)
    code, said = process.returncode, err.splitlines()
    wait_until(lambda: not marked(folder), 10)
    if case.takes_us_along and code not in (0, 1, 2):
        assert code in (3, -signal.SIGKILL)
    else:
        typed = case.how == "interrupts" and case.door == "evaluate"  # as if by Ctrl-C
        assert code in ((0, 1, 2, 130) if typed else (0, 1, 2)), (code, err)
        assert (code in (0, 130)) == all(line.startswith("note ") for line in said), (code, err)
        assert len(said) <= 3 or (case.how == "keeps" and "C code kept" in said[-1]), err
    assert "Traceback" not in err
    runs = list(folder.glob("*/*/*/run.json"))
    if case.door == "train" and code == 2:
        assert not runs
    for path in (file.parent for file in runs):
        ends = {0: ["finished"], 1: ["failed"], 2: []}.get(code, ["running"])
        if case.door != "train":
            ends.append("finished")  # as it was
        if case.takes_us_along:
            ends.append("running")
        assert outcome(path) in ends, (code, err)
        read_rows(path)
        for file in checkpoints(path):
            checkpoint.read(file)
