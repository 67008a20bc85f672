"""Seconds from process start to a training return of 475 on CartPole: TRPO against the plain policy gradient.

    python scripts/wall_clock.py [--seeds 10] [--budget 300000] [--finals …]

PG gets the best of five learning rates and three batch sizes, TRPO the best of five radii and the same sizes, with
the Fisher on a tenth of the samples: all are tried on seeds 1000 to 1002, and the two fastest of each then run
beside TRPO with its defaults on seeds from 100 up, always one process at a time.  A run that does not get there
counts with the time of its whole budget.  Medians over seeds.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

from rl_natgrad.run.records import read_rows

RETURN = 475
RATES, RADII, HORIZONS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), (16, 64, 256)
PG = [f"algo=pg optimizer.lr={rate:g} horizon={T}" for rate, T in itertools.product(RATES, HORIZONS)]
TRPO = [
    f"algo=trpo fisher.fraction=0.1 algo.delta={delta:g} horizon={T}"
    for delta, T in itertools.product(RADII, HORIZONS)
]


class Reached(NamedTuple):
    seconds: float
    training: float  # of them, without start-up
    steps: int
    updates: int
    there: bool


def run(words: str, seed: int, budget: int) -> Reached:
    """One process. Its start-up is what passes until its first line is on the screen."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "rl_natgrad.train", *words.split(), f"seed={seed}"]
        command += [f"total_steps={budget}", f"runs_dir={runs}", "eval.episodes=1"]
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
    parser.add_argument("--finals", nargs="+", help='known settings instead, as "algo=pg optimizer.lr=0.03"')
    args = parser.parse_args()
    print("| | seconds | of them training | reach 475 | steps | updates | seconds per seed (* not reached) |")
    print("|---|---|---|---|---|---|---|")
    fastest = args.finals or [words for grid in (TRPO, PG) for words in two_fastest(grid, args.budget)]
    final: dict[str, list[Reached]] = {words: [] for words in ("algo=trpo", *fastest)}
    for seed in range(100, 100 + args.seeds):
        for words, runs in final.items():
            runs.append(run(words, seed, args.budget))
    for words, runs in final.items():
        print(summary(words, runs), flush=True)


def two_fastest(grid: list[str], budget: int) -> list[str]:
    """Of three seeds each."""
    tried = {words: [run(words, seed, budget) for seed in range(1000, 1003)] for words in grid}
    for words, runs in tried.items():
        print(summary(f"tried: {words}", runs), flush=True)
    return sorted(grid, key=lambda words: statistics.median(r.seconds for r in tried[words]))[:2]


if __name__ == "__main__":
    main()
