"""Seconds from process start to a training return of 475 on CartPole: TRPO against the plain policy gradient.

    python scripts/wall_clock.py [--seeds 10] [--budget 300000] [--rivals …]

PG gets the best of five learning rates and three batch sizes: all are tried with three seeds, the three fastest
then run beside TRPO with its defaults, one process at a time, taking turns.  A run that does not get there counts
with the time of its whole budget.  Medians over seeds.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

from rl_natgrad.run.records import read_rows

RETURN = 475
RATES, HORIZONS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (16, 64, 256)  # × 8 environments


class Reached(NamedTuple):
    seconds: float
    training: float  # of them, without start-up
    steps: int
    updates: int
    there: bool


def run(words: tuple[str, ...], seed: int, budget: int) -> Reached:
    """One process. Its start-up is what passes until its first line is on the screen."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "rl_natgrad.train", *words, f"seed={seed}", f"total_steps={budget}"]
        command += [f"runs_dir={runs}", "eval.episodes=1"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        process.stdout.readline()
        startup = time.perf_counter() - start
        process.communicate()
        assert process.returncode == 0, command
        (path,) = Path(runs).glob("*/*/*/")
        rows = [row for row in read_rows(path) if "time/elapsed" in row]
    there = next((row for row in rows if row.get("rollout/return", 0) >= RETURN), None)
    row = there or rows[-1]
    training = row["time/elapsed"]
    return Reached(startup + training, training, int(row["step"]), int(row["update"]), there is not None)


def summary(name: str, runs: list[Reached]) -> str:
    seconds, training, steps, updates, _ = map(statistics.median, zip(*runs, strict=True))
    there = sum(r.there for r in runs)
    each = " ".join(f"{r.seconds:.1f}{'' if r.there else '*'}" for r in runs)
    cells = f"{seconds:.1f} | {training:.2f} | {there} of {len(runs)} | {steps:,.0f} | {updates:,.0f}"
    return f"| {name} | {cells} | {each} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=int, default=300_000)
    parser.add_argument("--rivals", nargs="+", help='known settings instead, as "PG, Adam 0.03, 2048 steps"')
    args = parser.parse_args()
    grid = {
        f"PG, Adam {rate:g}, {8 * horizon} steps": ("algo=pg", f"optimizer.lr={rate}", f"horizon={horizon}")
        for rate, horizon in itertools.product(RATES, HORIZONS)
    }
    print("| | seconds | of them training | reach 475 | steps | updates | seconds per seed (* not reached) |")
    print("|---|---|---|---|---|---|---|")
    fastest = args.rivals or try_all(grid, args.budget)
    finals = {"TRPO": ("algo=trpo",), **{name: grid[name] for name in fastest}}
    final: dict[str, list[Reached]] = {name: [] for name in finals}
    for seed in range(args.seeds):
        for name, words in finals.items():
            final[name].append(run(words, seed, args.budget))
    for name, runs in final.items():
        print(summary(name, runs), flush=True)


def try_all(grid: dict[str, tuple[str, ...]], budget: int) -> list[str]:
    """The three fastest of three seeds each."""
    jobs = [(words, seed) for words in grid.values() for seed in range(3)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        tried = list(pool.map(lambda job: run(*job, budget), jobs))
    by_name = {name: tried[3 * i : 3 * i + 3] for i, name in enumerate(grid)}
    for name, runs in by_name.items():
        print(summary(f"tried: {name}", runs), flush=True)
    return sorted(grid, key=lambda name: statistics.median(r.seconds for r in by_name[name]))[:3]


if __name__ == "__main__":
    main()
