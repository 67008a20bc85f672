"""Ten thousand updates: what a run takes of the machine stays bounded."""

import os

import pytest
from whole_runs import only_run, run

from rl_natgrad.run.checkpoint import Checkpoints
from rl_natgrad.run.records import read_rows

TINY = ["num_envs=2", "horizon=4", "policy.hidden=[4]", "critic.hidden=[4]", "critic.epochs=1",
        "solver.max_iter=2", "eval.episodes=1", "eval.every=1000", "env.backend=sync"]  # fmt: skip
UPDATES = 10_000


@pytest.mark.slow
def test_10_000_updates_keep_memory_files_and_disk_bounded(monkeypatch, tmp_path):
    taken = []
    save = Checkpoints.save

    def measured(self, state, update):
        save(self, state, update)
        if update % 1000 == 0:
            kept = sum(file.stat().st_size for file in tmp_path.glob("*/*/*/checkpoints/*"))
            taken.append((resident_bytes(), len(os.listdir("/proc/self/fd")), kept))

    monkeypatch.setattr(Checkpoints, "save", measured)
    # An update of 8 rows has about 7 steps, some rows being resets.
    assert run(monkeypatch, *TINY, "total_steps=85000", f"runs_dir={tmp_path}") == 0
    path = only_run(tmp_path)
    rows = read_rows(path)
    assert rows[-1]["update"] >= UPDATES and len(taken) >= 10
    memory, files, kept = zip(*taken[1:], strict=True)  # the first thousand fill caches
    print(f"memory {memory[0] / 2**20:.1f} to {memory[-1] / 2**20:.1f} MiB, {files[-1]} files, {max(kept)} bytes")
    assert max(memory) - memory[0] < 16 * 2**20
    assert max(files) == min(files)
    assert max(kept) < 100_000  # they hold the actions of open episodes
    assert len(os.listdir(path / "checkpoints")) == 4  # the newest 3 and the best
    logs = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    assert logs / len(rows) < 2000  # bytes per update


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
