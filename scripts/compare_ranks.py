"""Do two ranks that learn together learn what one process learns? Ten seeds each; what is there is not run again.

    python scripts/compare_ranks.py [--env CartPole HalfCheetah] [--seeds 10] [--runs runs/ranks]
    python scripts/compare_ranks.py --render            only the tables, from results/scaling/data.csv

One training at a time, TRPO with the configured settings and `sync` environments.  A return is the mean of the
last 100 episodes, at the end or averaged over the updates; differences are by pairs of one seed.
"""

import argparse
import csv
from itertools import product
from pathlib import Path

import numpy as np
from benchmark_ranks import train

from rl_natgrad.compare.stats import paired
from rl_natgrad.run.records import find_runs, read_record, read_rows

DATA = Path(__file__).parents[1] / "results/scaling/data.csv"
STEPS = {"CartPole": 100_000, "HalfCheetah": 300_000}
ONE, TWO = "one process", "2 ranks"
WAYS = {ONE: [], TWO: ["distributed.mode=sharded"]}
FIRST = 100  # seed


def folder(way: str) -> str:
    """Of the runs of one way."""
    return way.replace(" ", "-")


def finished(runs: Path) -> dict[tuple[str, str, int], tuple[float, float]]:
    """(environment, way, seed) → return of the last 100 episodes at the end, and its mean over the updates."""
    found = {}
    for way in WAYS:
        at = runs / folder(way)
        for path in find_runs([at]) if at.is_dir() else []:
            record, rows = read_record(path), read_rows(path)
            if record["outcome"] == "finished":
                curve = [row["rollout/return"] for row in rows if "rollout/return" in row]
                env = record["config"]["env"]["id"].split("-")[0]
                found[env, way, record["config"]["seed"]] = (curve[-1], float(np.mean(curve)))
    return found


def write(found: dict) -> None:
    with DATA.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["environment", "way", "seed", "at the end", "over training"])
        table.writerows([*key, *(f"{value:.2f}" for value in found[key])] for key in sorted(found))


def read() -> dict:
    with DATA.open() as file:
        _, *rows = csv.reader(file)
    return {(env, way, int(seed)): (float(end), float(over)) for env, way, seed, end, over in rows}


def table(found: dict) -> list[str]:
    """Means, and the differences to one process with their intervals."""
    lines = ["| | | seeds | at the end | difference | over training | difference |"]
    lines.append("|:--|:--|--:|--:|--:|--:|--:|")
    for env in STEPS:
        for way in WAYS:
            seeds = [seed for e, w, seed in found if (e, w) == (env, way) and (env, ONE, seed) in found]
            if len(seeds) < 2:
                continue
            cells = []
            for column in (0, 1):
                x, y = (np.array([found[env, who, seed][column] for seed in seeds]) for who in (way, ONE))
                mean, (low, high) = paired(x, y)
                cells += [f"{x.mean():,.0f} ± {x.std(ddof=1):,.0f}"]
                cells += ["" if way == ONE else f"{mean:+,.1f} [{low:+,.1f}, {high:+,.1f}]"]
            lines.append(f"| {env} | {way} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--env", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("runs/ranks"))
    parser.add_argument("--render", action="store_true", help="trains nothing")
    args = parser.parse_args()
    if not args.render:
        for env in args.env:
            for seed, way in product(range(FIRST, FIRST + args.seeds), WAYS):
                if (env, way, seed) not in finished(args.runs):
                    words = [f"env={env}", "env.backend=sync", f"total_steps={STEPS[env]}", f"seed={seed}"]
                    words += [*WAYS[way], f"runs_dir={args.runs / folder(way)}"]
                    train(1 if way == ONE else 2, words)
        write(read() | finished(args.runs))
    print(*table(read()), sep="\n")


if __name__ == "__main__":
    main()
