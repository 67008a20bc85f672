"""A run's folder and record: exclusive, whole at every moment, and telling who, what and when."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import subprocess
from pathlib import Path

import pytest
from fake_runs import CONFIG

from rl_natgrad.run import files, folder, logger, provenance, records

START = {
    "command": "python -m rl_natgrad.train",
    "threads": 1,
    "device": "cpu",
    "backend": "sync",
    "restorable": True,
}


@pytest.fixture
def run(tmp_path):
    return folder.create(tmp_path, "CartPole-v1", "trpo", 3)


# ---- folder and record ---------------------------------------------------------------------------------------


def test_folder_name_says_when_and_which_seed(tmp_path):
    path = folder.create(tmp_path, "ale:ALE/Pong-v5", "npg", 7)
    assert path.parent == tmp_path / "ale-ALE-Pong-v5" / "npg"
    assert re.fullmatch(r"\d{8}-\d{6}-s7-[0-9a-f]{4}", path.name)


def test_a_taken_name_is_never_shared(tmp_path, monkeypatch):
    letters = iter(["aaaa", "aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(folder.secrets, "token_hex", lambda _: next(letters))
    monkeypatch.setattr(folder.time, "strftime", lambda _: "20260101-000000")
    names = [folder.create(tmp_path, "E-v0", "pg", 0).name[-4:] for _ in range(2)]
    assert names == ["aaaa", "bbbb"]


def test_record_tells_who_what_when(run):
    record = folder.RunRecord.start(run, config=CONFIG, **START)
    told = json.loads((run / "run.json").read_text())
    assert told["outcome"] == "running" and told["end"] is None and told["error"] is None
    assert told["config"] == CONFIG and told["seed"] == 3 and told["threads"] == 1
    assert {"python", "rl_natgrad", "torch", "gymnasium", "numpy", "hydra"} <= told["versions"].keys()
    record.finish("finished")
    told = records.read_record(run)
    assert told["outcome"] == "finished" and told["end"] >= told["start"]
    assert not (run / "traceback.txt").exists()


def test_failure_leaves_traceback_and_its_last_line(run):
    record = folder.RunRecord.start(run, config=CONFIG, **START)
    try:
        raise ValueError("first line\nreward is nan in environment 3")
    except ValueError as error:
        record.finish("failed", error)
    assert records.read_record(run)["error"] == "reward is nan in environment 3"
    assert "test_failure_leaves_traceback" in (run / "traceback.txt").read_text()


def test_resume_keeps_the_start_and_counts_itself(run):
    first = folder.RunRecord.start(run, config=CONFIG, **START)
    first.finish("stopped")
    again = folder.RunRecord.resume(run, command="python -m rl_natgrad.train resume=x", threads=2)
    told = records.read_record(run)
    assert told["start"] == first.data["start"] and told["command"] == START["command"] and told["threads"] == 2
    assert told["outcome"] == "running" and told["end"] is None
    assert [entry["after"] for entry in told["resumed"]] == ["stopped"]
    again.finish("stopped")
    folder.RunRecord.resume(run, command="again")
    assert len(records.read_record(run)["resumed"]) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 0}', '{"config": 3}'])
def test_no_record_is_refused_by_name(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        records.read_record(tmp_path)


def test_command_line_can_be_pasted():
    command = folder.command_line("rl_natgrad.train", ["algo=trpo", "seed=range(3)"])
    assert command == "python -m rl_natgrad.train algo=trpo 'seed=range(3)'"


# ---- git -----------------------------------------------------------------------------------------------------


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(root), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_is_commit_and_whether_the_code_differs(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = provenance.git_state(package)
    assert clean == {"hash": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "notes.txt").write_text("outside the code")
    assert provenance.git_state(package) == clean
    (package / "new.py").write_text("b = 2\n")
    assert provenance.git_state(package) == {**clean, "dirty": True}


def test_a_wheel_inside_a_repository_claims_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    package = tmp_path / "venv" / "site-packages" / "rl_natgrad"
    package.mkdir(parents=True)
    assert provenance.git_state(package) is None


# ---- writes that fail ----------------------------------------------------------------------------------------


def test_atomic_write_replaces_whole_files(tmp_path):
    target = tmp_path / "file"
    for data in (b"old", b"new and longer"):
        files.write_atomically(target, data)
        assert target.read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file_and_names_it(tmp_path, monkeypatch, broken):
    target = tmp_path / "file"
    files.write_atomically(target, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, broken, full)
    with pytest.raises(OSError) as caught:
        files.write_atomically(target, b"new")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(target)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@contextlib.contextmanager
def full_at(size: int):
    """Within, no file of this process grows beyond that many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("victim", ["metrics.jsonl", "events"])
def test_a_full_disk_surfaces_in_the_write_that_met_it(run, victim):
    if victim == "metrics.jsonl":
        (run / victim).write_bytes(bytes(2000))
    log = logger.Logger(run)
    (largest,) = run.glob(f"{victim}*")
    assert largest.stat().st_size > 200  # what the other file may still grow by
    with full_at(largest.stat().st_size), pytest.raises(OSError) as caught:
        log.write({"policy/kl": 0.1}, 100, 1)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(largest)
