"""Disks that fail: one line with path and errno, exit code 1, a run that goes on. Settings that ask too much."""

import errno
import os
import re

import numpy as np
import pytest
from whole_runs import CRITIC, SMALL, only_run, outcome, run

from rl_natgrad.algos.problem import Problem
from rl_natgrad.run import events, lock
from rl_natgrad.run.records import read_rows
from rl_natgrad.training.iteration import Training

WORDS = [*SMALL, *CRITIC, "total_steps=500", "checkpoint.every=1", "checkpoint.keep=2", "eval.every=1"]


# ---- in this process -----------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fails_once_at_the_end_is_one_line(monkeypatch, tmp_path, capfd):
    """Closing again what had failed to close was "write to closed file", with a traceback."""
    end, left = events.hparams_end, [1]
    monkeypatch.setattr(events, "hparams_end", lambda **words: full() if left and left.pop() else end(**words))
    assert run(monkeypatch, *WORDS, f"runs_dir={tmp_path}") == 1
    path = only_run(tmp_path)
    assert capfd.readouterr().err == f"error: {path}/metrics.jsonl: No space left on device [errno 28]\n"
    assert outcome(path) == "failed"
    assert run(monkeypatch, f"resume={path}") == 0 and outcome(path) == "finished"


def test_a_lock_that_does_not_close_hides_nothing(monkeypatch, tmp_path):
    """It raised instead of what the run had to say."""
    close = os.close
    with pytest.raises(ValueError, match="what went wrong"), lock.hold(tmp_path):
        monkeypatch.setattr(os, "close", lambda file: (close(file), full()))
        raise ValueError("what went wrong")
    monkeypatch.undo()
    with lock.hold(tmp_path):
        pass


@pytest.mark.parametrize("tries", ["1001", "1000000"])
def test_backtracks_beyond_float32_are_refused(monkeypatch, tmp_path, capfd, tries):
    assert run(monkeypatch, f"algo.max_backtracks={tries}", f"runs_dir={tmp_path / 'none'}") == 2
    says = f"error: algo.max_backtracks must be a whole number >= 0 and <= 1000, got {tries}\n"
    assert capfd.readouterr().err == says and not (tmp_path / "none").exists()


def test_updates_that_were_not_finite_are_noted_once_and_counted(monkeypatch, tmp_path, capfd):
    learn = Training.learn

    def poisoned(self, batch):
        with monkeypatch.context() as patch:
            if self.update in (1, 2, 4):
                patch.setattr(Problem, "_kl", lambda problem, z: z.sum() * np.nan)
            return learn(self, batch)

    monkeypatch.setattr(Training, "learn", poisoned)
    assert run(monkeypatch, *SMALL, "algo=npg", "total_steps=1500", f"runs_dir={tmp_path}") == 0
    path, out = only_run(tmp_path), capfd.readouterr().out
    assert [row["update"] for row in read_rows(path) if "policy/not_finite" in row] == [2, 3, 5]
    assert re.findall(r"^note    update (\d+) took no step: .* was not finite", out, re.MULTILINE) == ["2"]
    assert " · 3 updates not finite" in next(line for line in out.splitlines() if line.startswith("done "))
    assert run(monkeypatch, f"resume={path}", "total_steps=2000") == 0
    out = capfd.readouterr().out
    assert "note    update" not in out and " · 3 updates not finite" in out  # those from before are counted
