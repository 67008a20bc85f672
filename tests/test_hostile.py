"""Run folders that somebody else has prepared: nothing in them is run, nothing outside them is touched."""

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from whole_runs import CRITIC, SMALL, checkpoints, copy, facts, only_run, run

from rl_natgrad.run.checkpoint import encode, read

MEMORY = 600 * 2**20  # bytes that refusing may take on top


class Evil:
    """What a pickle can do: make a file."""

    def __reduce__(self):
        return (os.mkdir, (os.environ["CANARY"],))


def newest(path: Path, data: bytes) -> None:
    checkpoints(path)[-1].write_bytes(data)


def state(change):
    """A checkpoint with a right checksum whose state was changed."""

    def prepare(path: Path, outside: Path) -> None:
        saved = read(checkpoints(path)[-1])
        change(saved)
        newest(path, encode(saved, "0.1.0"))

    return prepare


def part(name: str, value):
    """The same, with one part replaced; a function is given the part."""

    def change(saved: dict) -> None:
        *above, last = name.split("/")
        for key in above:
            saved = saved[key]
        saved[last] = value(saved[last]) if callable(value) else value

    return state(change)


def record(change):
    """A changed run.json."""

    def prepare(path: Path, outside: Path) -> None:
        data = json.loads((path / "run.json").read_text())
        change(data)
        (path / "run.json").write_text(json.dumps(data))

    return prepare


def setting(name: str, value):
    """A run.json whose config has another value."""

    def change(data: dict) -> None:
        *above, last = ["config", *name.split(".")]
        for key in above:
            data = data[key]
        data[last] = value

    return record(change)


def header(tensors: dict, body: bytes = b"", length: int | None = None):
    """A safetensors file by hand."""
    text = json.dumps(tensors).encode()
    return lambda path, outside: newest(path, struct.pack("<Q", length or len(text)) + text + body)


def bomb(**shape_and_offsets) -> dict:
    return {"__metadata__": {"rl_natgrad": "{}", "sha256": "0" * 64}, "x": {"dtype": "F32", **shape_and_offsets}}


def torch_zip(path: Path, outside: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"theta": Evil()}, buffer)
    newest(path, buffer.getvalue())


def zip_slip(path: Path, outside: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("../../../../outside/slipped", "x")
    newest(path, buffer.getvalue())


def moved_out(name: str):
    """Something of the folder is a link to where it really is, outside."""

    def prepare(path: Path, outside: Path) -> None:
        inside = checkpoints(path)[-1] if name == "newest" else path / name
        inside.rename(outside / inside.name)
        inside.symlink_to(outside / inside.name)

    return prepare


def replaced(name: str, make):
    def prepare(path: Path, outside: Path) -> None:
        file = checkpoints(path)[-1] if name == "newest" else path / name
        file.unlink(missing_ok=True)
        make(file)

    return prepare


def sparse(size: int):
    def make(file: Path) -> None:
        file.touch()
        os.truncate(file, size)

    return make


def text(content: str):
    return lambda file: file.write_text(content)


def theta(change):
    return part("policy/theta", change)


REFUSED = {
    "pickle": lambda path, outside: newest(path, pickle.dumps(Evil())),
    "torch.save": torch_zip,
    "zip-slip": zip_slip,
    "huge-shape": header(bomb(shape=[2**40], data_offsets=[0, 2**42])),
    "overflowing-shape": header(bomb(shape=[2**62, 4], data_offsets=[0, 0])),
    "overlapping": header(bomb(shape=[2], data_offsets=[0, 8]) | {"y": {
        "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "huge-header": header({}, length=2**60),
    "nested-header": lambda path, outside: newest(path, struct.pack("<Q", 200_000) + b"[" * 200_000),
    "huge-file": replaced("newest", sparse(9 * 2**30)),
    "sparse-file": replaced("newest", sparse(2**20)),
    "other-format": lambda path, outside: newest(path, encode({}, "9.9").replace(b'mat\\": 1', b'mat\\": 2')),
    "nothing-in-it": lambda path, outside: newest(path, encode({}, "9.9")),
    "unknown-key": state(lambda saved: saved.update(extra=1)),
    "missing-key": state(lambda saved: saved.pop("rng")),
    "missing-run": state(lambda saved: saved.pop("run")),
    "unknown-inside": state(lambda saved: saved["critic"].update(extra=1)),
    "wrong-shape": theta(lambda x: x[:-1]),
    "wrong-dtype": theta(lambda x: x.double()),
    "array-for-tensor": theta(lambda x: x.numpy()),
    "text-for-tensor": theta("theta"),
    "nan": theta(lambda x: x * float("nan")),
    "inf-in-optimizer": part("learner/exp_avg", lambda x: x + float("inf")),
    "optimizer-of-another": state(lambda saved: saved["learner"].update(momentum=torch.zeros(3))),
    "optimizer-without": state(lambda saved: saved["learner"].pop("exp_avg_sq")),
    "negative-step": part("learner/step", lambda x: x - 100),
    "negative-steps": part("critic/fit/adam/steps", lambda x: x - 1000),
    "negative-counter": part("not_finite", -1),
    "counter-as-text": part("step", "12"),
    "other-update": part("update", 10**9),
    "returns-as-text": part("returns", ["1"] * 3),
    "too-many-returns": part("returns", [1.0] * 10**5),
    "deep-returns": part("returns", [[[[]]]]),
    "rng-of-another": part("rng/actions", np.random.MT19937(0).state),
    "rng-too-big": state(lambda saved: saved["rng"]["actions"]["state"].update(state=2**4000)),
    "action-out-of-space": part("envs/actions", lambda x: x + 77),
    "actions-too-few": part("envs/actions", lambda x: x[:-1]),
    "negative-episode": part("envs/episode", lambda x: x - 10**6),
    "snapshot-of-another": part("envs/kind", "CartPole"),
    "row-as-text": part("run/row", {"eval/return": "1"}),
    "best-as-text": part("run/best", "1"),
    "linked-checkpoint": moved_out("newest"),
    "linked-checkpoints": moved_out("checkpoints"),
    "linked-record": moved_out("run.json"),
    "linked-metrics": moved_out("metrics.jsonl"),
    "linked-lock": replaced(".lock", lambda file: file.symlink_to("/etc/hostname")),
    "pipe": replaced("newest", os.mkfifo),
    "folder-for-file": replaced("newest", os.mkdir),
    "pipe-for-record": replaced("run.json", os.mkfifo),
    "target": setting("policy", {"_target_": "os.mkdir", "name": "mlp"}),
    "target-inside": setting("env.kwargs", {"_target_": "os.mkdir"}),
    "unknown-setting": setting("policy.extra", 1),
    "wrong-setting": setting("horizon", "64"),
    "nan-setting": record(lambda data: data["config"].update(seed=float("nan"))),
    "imports": setting("env", {
        "id": "evil:Evil-v0", "backend": "sync", "allow_import": True, "timeout": 60.0, "normalize_obs": True,
        "normalize_return": True, "kwargs": {}}),
    "other-network": setting("policy.hidden", [16, 17]),
    "huge-network": setting("policy.hidden", [65536] * 16),
    "other-environments": setting("num_envs", 3),
    "endless-evaluation": setting("eval.episodes", 10**12),
    "other-environment": setting("env.id", "Acrobot-v1"),
    "no-config": record(lambda data: data.pop("config")),
    "config-as-text": record(lambda data: data.update(config="x")),
    "big-record": replaced("run.json", sparse(17 * 2**20)),
    "nested-record": replaced("run.json", text('{"config":' * 100_000)),
    "nested-setting": replaced("run.json", text('{"config": ' + '{"env":' * 900 + "1" + "}" * 901)),
    "list-record": replaced("run.json", text("[]")),
    "not-text": replaced("run.json", lambda file: file.write_bytes(b"\xff\xfe\x00")),
    "metrics-of-another": replaced("metrics.jsonl", text("hello\n")),
    "metrics-nested": replaced("metrics.jsonl", text("[" * 100_000 + "\n")),
    "metrics-as-text": replaced("metrics.jsonl", text('{"step": 1, "update": 1, "eval/return": "x"}\n')),
    "metrics-update": replaced("metrics.jsonl", text('{"step": 1, "update": "1"}\n')),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of PG, whose state has the most kinds of parts."""
    with pytest.MonkeyPatch.context() as patch:
        runs_dir = tmp_path_factory.mktemp("runs")
        words = ["algo=pg", "env.backend=sync", "total_steps=700", "checkpoint.every=1", f"runs_dir={runs_dir}"]
        assert run(patch, *SMALL, *CRITIC, *words) == 0
    return only_run(runs_dir)


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_folder_is_refused_in_one_line(trained, tmp_path, monkeypatch, capfd, name):
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("import os; os.mkdir(os.environ['CANARY'])")
    outside = tmp_path / "outside"
    outside.mkdir()
    path = copy(trained, tmp_path / "theirs")
    REFUSED[name](path, outside)
    before, memory = everything(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = run(monkeypatch, f"resume={path}", "total_steps=1500")
    out, err = capfd.readouterr()
    assert (code, err.count("\n"), out) == (2, 1, ""), err
    assert err.startswith("error: ") and len(err) < 1500 and "Traceback" not in err
    after = everything(tmp_path)
    assert after == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY // 1024


def everything(folder: Path) -> dict[str, tuple]:
    """Each file below a folder with what tells that it was written."""
    found = {str(file): file.lstat() for file in folder.rglob("*") if not file.is_dir() and file.name != ".lock"}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_run_that_claims_to_be_elsewhere_writes_here(trained, tmp_path, monkeypatch, capfd):
    path = copy(trained, tmp_path / "theirs")
    setting("runs_dir", str(tmp_path / "elsewhere"))(path, tmp_path)
    assert run(monkeypatch, f"resume={path}", "total_steps=1500") == 0
    assert not (tmp_path / "elsewhere").exists() and str(tmp_path / "elsewhere") not in capfd.readouterr().out


def test_a_link_where_a_temporary_file_will_be_is_not_followed(trained, tmp_path, monkeypatch):
    path = copy(trained, tmp_path / "theirs")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (f".run.json.{os.getpid()}.tmp", f".metrics.jsonl.{os.getpid()}.tmp"):
        (path / name).symlink_to(victim)
    assert run(monkeypatch, f"resume={path}", "total_steps=1500") == 0
    assert victim.read_text() == "mine" and facts(path)["rows"][-1]["step"] >= 1500


def test_importing_a_module_is_for_the_command_line_to_allow(trained, tmp_path, monkeypatch, capfd):
    path = copy(trained, tmp_path / "theirs")
    REFUSED["imports"](path, tmp_path)
    assert run(monkeypatch, f"resume={path}") == 2
    assert "write env.allow_import=true to allow that" in capfd.readouterr().err
    assert run(monkeypatch, f"resume={path}", "env.allow_import=true", "total_steps=1500") == 2
    assert "No module named 'evil'" in capfd.readouterr().err
