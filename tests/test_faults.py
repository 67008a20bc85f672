"""Disks that fail: one line with path and errno, exit code 1, and a run that goes on."""

import errno
import os

import pytest
from whole_runs import CRITIC, SMALL, only_run, outcome, run

from rl_natgrad.run import events, lock

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
