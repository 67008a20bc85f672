"""Checkpoints: whole at every moment, and refused by name where they are not."""

import ast
import itertools
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from whole_runs import CRITIC, ROOT, SMALL, checkpoints, copy, leaves, only_run, outcome, run

import rl_natgrad
from rl_natgrad.run import checkpoint, files
from rl_natgrad.run.checkpoint import Checkpoints, Damaged, decode, encode, fit, number, read, whole

STATE = {
    "step": 7, "nothing": None, "text": "x", "list": [1.5, 2], "empty": {},
    "policy": {"theta": torch.arange(5.0)},
    "arrays": {"scalar": np.array(2.5), "bool": np.array([True]), "none": np.zeros((0, 3), np.int64),
               "view": np.arange(6.0).reshape(2, 3).T, "byte": np.zeros((2, 2), np.uint8)},
    "rng": np.random.default_rng(0).bit_generator.state,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with three checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        runs_dir = tmp_path_factory.mktemp("runs")
        assert run(patch, *SMALL, "total_steps=700", "checkpoint.every=1", f"runs_dir={runs_dir}") == 0
    return only_run(runs_dir)


# ---- the file ------------------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_written():
    found = decode(encode(STATE, "1.0"), "x")
    assert leaves(found) == leaves(STATE)
    assert isinstance(found["policy"]["theta"], torch.Tensor) and isinstance(found["arrays"]["view"], np.ndarray)
    found["policy"]["theta"] += 1  # its own memory


def test_state_is_data():
    for bad in (float("nan"), object(), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            encode({"x": bad}, "1.0")


def test_another_format_says_who_wrote_it(monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 7)
    data = encode(STATE, "9.8.7")
    monkeypatch.undo()
    with pytest.raises(Damaged, match=r"^f is in checkpoint format 7, of rl_natgrad 9.8.7; this version reads"):
        decode(data, "f")


def mutations(data: bytes, other: bytes, count: int, rng: random.Random):
    """Truncated, extended, flipped, overwritten, swapped with parts of another checkpoint."""
    size = len(data)
    for _ in range(count):
        at = rng.choice((rng.randrange(size), rng.randrange(min(size, 4000))))  # half of them near the header
        bit = bytes([data[at] ^ 1 << rng.randrange(8)])
        yield rng.choice((
            data[:at], data + data[:at] or b"0", data[at:], data[:at] + bit + data[at + 1 :],
            data[:at] + bytes(8) + data[at + 8 :] if any(data[at : at + 8]) else data[:at],
            other[:at] + data[at:], data[:at] + rng.randbytes(16) + data[at + 16 :],
        ))  # fmt: skip


def test_1000_mutations_are_refused_by_name(trained):
    first, second = (file.read_bytes() for file in checkpoints(trained)[:2])
    header = 8 + int.from_bytes(first[:8], "little")
    swapped = [second[:header] + first[header:], first[:8] + second[8:header] + first[header:], b"", first[:8]]
    refused = 0
    for data in itertools.chain(swapped, mutations(first, second, 1100, random.Random(0))):
        if data in (first, second):  # parts that the two have in common
            continue
        with pytest.raises(Damaged, match=r"^runs/x/00000001\.safetensors "):
            decode(data, "runs/x/00000001.safetensors")
        refused += 1
    assert refused >= 1000 and decode(first, "x") and decode(second, "x")


def test_every_single_bit_counts():
    data = encode({"x": torch.zeros(2), "y": 1}, "1")
    for at, bit in itertools.product(range(len(data)), range(8)):
        with pytest.raises(Damaged):
            decode(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], "x")


# ---- the folder ----------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(tmp_path):
    kept = Checkpoints(tmp_path, 3, "1")
    kept.save_best(STATE)
    for update in (8, 9, 10, 100_000_000):
        kept.save(STATE, update)
    assert [path.name for path in kept.all()] == ["00000009.safetensors", "00000010.safetensors",
                                                  "100000000.safetensors"]  # fmt: skip
    assert sorted(os.listdir(tmp_path / "checkpoints"))[-1] == "best.safetensors"


@pytest.mark.parametrize("call", range(11))
def test_a_save_killed_at_any_call_leaves_whole_checkpoints(tmp_path, call):
    """The process ends before the n-th call that changes the disk, for every n."""
    kept = Checkpoints(tmp_path, 2, "1")
    for update in (1, 2):
        kept.save({"update": update}, update)
    child = os.fork()
    if child == 0:
        _die_before(call)
        kept.save({"update": 3}, 3)
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert died == (call < 10), "a save makes another number of calls than range() has"
    found = kept.all()
    newest = read(found[-1])["update"]
    assert len(found) >= 2 and newest == int(found[-1].stem) and newest in (2, 3)
    assert (newest == 3) == (call > 5)
    kept.save({"update": 4}, 4)
    assert [read(file)["update"] for file in kept.all()] in ([2, 4], [3, 4])


def _die_before(call: int) -> None:
    """The call-th next call of the kind that a save makes ends this process, as kill -9 would."""
    count = itertools.count()

    def counted(function):
        def wrapped(*args, **kwargs):
            if next(count) == call:
                os._exit(9)
            return function(*args, **kwargs)

        return wrapped

    for name in ("replace", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    Path.unlink = counted(Path.unlink)
    files.pause = checkpoint.pause = counted(lambda: None)


# ---- going on from it ----------------------------------------------------------------------------------------


def test_a_damaged_one_is_refused_and_the_one_before_offered(trained, tmp_path, monkeypatch, capfd):
    path = copy(trained, tmp_path)
    *_, before, newest = checkpoints(path)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert run(monkeypatch, f"resume={path}") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {newest} is damaged") and f"; resume={before} goes on from" in line
    offered = line.split("resume=")[1].split(" goes on")[0]
    assert run(monkeypatch, f"resume={offered}") == 0
    assert leaves(read(checkpoints(path)[-1])) == leaves(read(checkpoints(trained)[-1]))


def test_the_last_one_damaged_says_that_there_is_none_before(trained, tmp_path, monkeypatch, capfd):
    path = copy(trained, tmp_path)
    for file in checkpoints(path)[1:]:
        file.unlink()
    checkpoints(path)[0].write_bytes(b"")
    assert run(monkeypatch, f"resume={path}") == 2
    assert capfd.readouterr().err.endswith("; there is none before it\n")


def test_fit_names_the_part_that_is_wrong():
    nan, rng = float("nan"), np.random.default_rng(5).bit_generator.state
    like = {"a": {"b": torch.zeros(2)}, "n": whole(9), "x": number, "rng": STATE["rng"]}
    right = {"a": {"b": torch.ones(2)}, "n": 9, "x": 0.5, "rng": rng}
    fit(right, like)
    for wrong, says in (
        ({"n": 10}, "n is not"), ({"n": -1}, "n is not"), ({"n": True}, "n is not"), ({"n": 1.0}, "n is not"),
        ({"x": nan}, "x is not"), ({"x": "1"}, "x is not"), ({"x": 10**400}, "x is not"),
        ({"more": 1}, "the state has"), ({"a": 3}, "a is not"), ({"a": {}}, "a has"), ({"a": {"c": 1}}, "a has"),
        ({"a": {"b": torch.ones(3)}}, r"a.b is torch.float32 of shape \(3,\), expected"),
        ({"a": {"b": torch.ones(2).double()}}, "a.b is torch.float64"), ({"a": {"b": np.ones(2)}}, "a.b is not"),
        ({"a": {"b": torch.tensor([1.0, nan])}}, "a.b holds numbers that are not finite"),
        ({"rng": {}}, "rng is not"), ({"rng": rng | {"bit_generator": "MT19937"}}, "rng is not"),
        ({"rng": rng | {"state": {"state": 2**200, "inc": 1}}}, "rng is not"), ({"rng": []}, "rng is not"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{says}"):
            fit(right | wrong, like)
    other = {"rng": {"bit_generator": "seed"}}  # a name in numpy.random that is no generator of ours
    with pytest.raises(ValueError, match=r"^rng is not"):
        fit(other, other)


# ---- a disk that fails ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_fails_the_run_in_one_line(tmp_path):
    """A tmpfs of 200 KiB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True)
    if mounted.returncode:
        disk.rmdir()
        pytest.skip("needs the right to mount")
    try:
        _fails_on(disk, "No space left on device [errno 28]")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_limit_on_file_size_fails_the_run_in_one_line(tmp_path):
    _fails_on(tmp_path, "File too large [errno 27]", "ulimit -f 60")


def test_a_read_only_folder_is_refused_in_one_line(trained, tmp_path, monkeypatch, capfd):
    path = copy(trained, tmp_path)
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", path, path], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        for words in ([f"resume={path}", "total_steps=9999"], [f"runs_dir={path}/below"]):
            assert run(monkeypatch, *words) == 1
            (line,) = capfd.readouterr().err.splitlines()
            assert line.startswith(f"error: {path}/") and line.endswith(": Read-only file system [errno 30]")
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def _fails_on(disk: Path, reason: str, before: str = "true") -> None:
    """A run ends there with one line, and what it saved before can be read."""
    words = [*SMALL, *CRITIC, "total_steps=1e6", "checkpoint.every=2", f"runs_dir={disk}"]
    done = _shell(disk, " ".join(words), before)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    path = only_run(disk)
    assert line.startswith(f"error: {path}/") and line.endswith(reason)
    assert read(checkpoints(path)[-1])["update"] == int(checkpoints(path)[-1].stem) > 0
    assert outcome(path) in ("failed", "running")  # the latter where even that could not be written
    assert not [name for name in os.listdir(path / "checkpoints") if name.endswith(".tmp")]


def _shell(folder: Path, words: str, before: str = "true") -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = f"{before}; exec {os.sys.executable} -m rl_natgrad.train {words}"
    return subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)


# ---- nothing that can run code -------------------------------------------------------------------------------

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "multiprocessing"}
SOURCES = sorted(Path(rl_natgrad.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_no_pickle_is_anywhere_in_the_package(source):
    """multiprocessing pickles what it sends; torch.load, torch.save and np.load can pickle too."""
    for node in ast.walk(ast.parse(source.read_text())):
        names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
        assert not {name.split(".")[0] for name in names} & PICKLES
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save"), ("np", "load")}
        assert not any(isinstance(node, ast.keyword) and node.arg == name for name in ("allow_pickle",))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "__import__")
