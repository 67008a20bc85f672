"""A misbehaving environment ends training and evaluation with one line, exit 1, and nobody left behind."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import whole_runs
from environments import WRONG

from rl_natgrad import evaluate
from rl_natgrad.run.records import read_record

TINY = ["num_envs=2", "horizon=8", "total_steps=16", "eval.episodes=2", "policy.hidden=[4]", "critic.hidden=[4]"]
DEEDS = [*WRONG, "step hangs"]
FEW = ["reset raises", "step nan", "step reward-none"]  # with worker processes the rest takes minutes
CASES = [(how, "sync") for how in DEEDS] + [
    pytest.param(how, backend, marks=[] if how in FEW else pytest.mark.slow)
    for backend in ("async", "split")
    for how in DEEDS
]


def words(how: str, backend: str, timeout: float = 30) -> list[str]:
    how = "step sleeps" if how == "step hangs" else how
    timeout = 0.5 if how == "step sleeps" else timeout
    return [
        "env.id=environments:Misbehaving-v0", "env.allow_import=true", f"env.backend={backend}",
        f"env.timeout={timeout}", "env.kwargs={max_episode_steps: 8, how: " + how + "}", *TINY,
    ]  # fmt: skip


def is_one_line(text: str, how: str) -> bool:
    """Names environment, index, step and field."""
    told = "did not return within 0.5 s" if how == "step hangs" else WRONG[how]
    step = 0 if how.startswith("reset") else 3
    where = rf"error: (environments:)?Misbehaving-v0, environment \d, (episode 0, )?step {step}: "
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) == 1 and re.match(where, lines[0]) is not None and told in lines[0]


def no_children() -> bool:
    """No process of ours is left but those that wait to be reaped, and helpers that end with us: the backstop, and
    what multiprocessing started for another test."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    left = [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"]
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
    return all(b"backstop.py" in command or b"multiprocessing" in command for command in commands)


@pytest.mark.parametrize("how, backend", CASES)
def test_training_ends_with_one_line(how, backend, tmp_path, monkeypatch, capfd):
    code = whole_runs.run(monkeypatch, *words(how, backend), f"runs_dir={tmp_path}")
    said, run = capfd.readouterr().err, whole_runs.only_run(tmp_path)
    assert code == 1 and is_one_line(said, how)
    assert (f"(see {run}/traceback.txt)" in said) == (" raised " in said)  # where its own code failed
    assert (" raised " in said) == (how.split()[1] in ("raises", "exits"))
    record = read_record(run)
    assert record["outcome"] == "failed" and "Misbehaving-v0, environment" in record["error"]
    assert no_children()


def test_the_lines_to_paste_allow_the_import_that_they_need(tmp_path, monkeypatch, capfd):
    assert whole_runs.run(monkeypatch, *words("well behaved", "sync"), f"runs_dir={tmp_path}") == 0
    last = capfd.readouterr().out.splitlines()[-1]
    run = whole_runs.only_run(tmp_path)
    assert last == f"play    python -m rl_natgrad.evaluate run={run} allow_import=true"


@pytest.fixture(scope="module")
def good_run(tmp_path_factory):
    """A finished run of the same environment while it behaved."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert whole_runs.run(monkeypatch, *words("well behaved", "sync"), f"runs_dir={folder}") == 0
    return whole_runs.only_run(folder)


@pytest.mark.parametrize("how, backend", CASES)
def test_evaluation_ends_with_one_line(how, backend, good_run, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(good_run, run)
    record = read_record(run)
    hanging = how == "step hangs"
    record["config"]["env"] |= {
        "backend": backend, "kwargs": {"max_episode_steps": 8, "how": "step sleeps" if hanging else how},
        "timeout": 0.5 if hanging else 30.0,
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    code = evaluate.main([f"run={run}", "episodes=2", "allow_import=true"])
    assert code == 1 and is_one_line(capfd.readouterr().err, how)
    assert no_children()
