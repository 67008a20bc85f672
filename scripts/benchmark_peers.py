"""Training speed beside other libraries: TRPO with the same batch, networks, δ and 10 CG iterations, end to end.

    python scripts/benchmark_peers.py                                CartPole, Hopper, HalfCheetah; 5 rounds
    python scripts/benchmark_peers.py --env CartPole --rounds 1      a quick look
    pip install "rl-natgrad[bench]"                                  brings the peers (see scripts/peers.py)

steps/s: of whole processes at n and at 3n steps, subtracted, so that starting and ending cost nothing.
collect, policy, critic: milliseconds per update of 2048 steps, as each library's process measured them.
Processes alternate; medians, and the ratio to the faster peer is the median of the rounds' ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

from rl_natgrad.config import compose
from rl_natgrad.run.records import read_rows

BATCH = 2048
MUJOCO = ["sync", "split", "envpool"]
BACKENDS = {"CartPole": ["native"], "Hopper": MUJOCO, "HalfCheetah": MUJOCO}
# n / 2048. Equal on MuJoCo, where a gait costs more to simulate than a fall: HalfCheetah's collection takes half
# as long again after forty updates.
UPDATES = {"native": 40, "sync": 8, "split": 8, "envpool": 8, "sb3": 8, "tianshou": 8}


class Run(NamedTuple):
    """One process."""

    seconds: float
    steps: int
    parts: tuple[float, float, float]  # milliseconds of collection, policy and critic per update
    reached: float  # mean return of the last 100 episodes


def ours(env: str, backend: str, updates: int) -> Run:
    with tempfile.TemporaryDirectory() as runs:
        words = [f"env={env}", f"env.backend={backend}", "algo=trpo", "algo.delta=0.01", "eval.episodes=1"]
        words += [f"total_steps={BATCH * updates - 1000}", f"runs_dir={runs}"]
        start = time.perf_counter()
        command = [sys.executable, "-m", "rl_natgrad.train", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - start
        (path,) = Path(runs).glob("*/*/*/")
        rows = [row for row in read_rows(path) if "time/collect" in row]
    laps = ("collect", "update", "critic")
    parts = tuple(1e3 * statistics.median(row[f"time/{lap}"] for row in rows) for lap in laps)
    reached = [row["rollout/return"] for row in rows if "rollout/return" in row]
    return Run(took, int(rows[-1]["step"]), parts, reached[-1] if reached else float("nan"))


def peer(name: str, env: str, updates: int) -> Run:
    start = time.perf_counter()
    command = [sys.executable, str(Path(__file__).parent / "peers.py"), name, env, str(BATCH * updates)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    took, result = time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1])
    parts = tuple(1e3 * BATCH * result[part] / result["steps"] for part in ("collect", "policy", "critic"))
    return Run(took, result["steps"], parts, result["rows"][-1][1])


def one(who: str, env: str, id: str, updates: int) -> Run:
    return peer(who, id, updates) if who in ("sb3", "tianshou") else ours(env, who, updates)


def benchmark(env: str, backends: list[str] | None, rounds: int) -> list[str]:
    """Rows of a Markdown table."""
    id = compose.load([f"env={env}"]).env.id
    names = [*(each for each in BACKENDS[env] if not backends or each in backends), "sb3", "tianshou"]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    long: dict[str, list[Run]] = {name: [] for name in names}
    for round_ in range(rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            short, whole = (one(name, env, id, k * UPDATES[name]) for k in (1, 3))
            speeds[name].append((whole.steps - short.steps) / (whole.seconds - short.seconds))
            long[name].append(whole)
            print(f"{env} round {round_ + 1} {name}: {speeds[name][-1]:,.0f} steps/s", file=sys.stderr, flush=True)
    faster = [max(speeds["sb3"][i], speeds["tianshou"][i]) for i in range(rounds)]
    lines = []
    for name in names:
        speed = statistics.median(speeds[name])
        ratio = statistics.median(mine / theirs for mine, theirs in zip(speeds[name], faster, strict=True))
        parts = [statistics.median(run.parts[i] for run in long[name]) for i in range(3)]
        reached = statistics.median(run.reached for run in long[name])
        who = {"sb3": "sb3-contrib", "tianshou": "tianshou"}.get(name, f"rl_natgrad, {name}")
        lines.append(
            f"| {id} | {who} | {speed:,.0f} | {parts[0]:.0f} | {parts[1]:.1f} | {parts[2]:.1f} "
            f"| {reached:.0f} at {long[name][0].steps:,} | {ratio:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--env", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--backend", nargs="+", choices=list(UPDATES)[:4], help="only these of this project's")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print("| environment | | steps/s | collect, ms | policy, ms | critic, ms | return reached | × faster peer |")
    print("|---|---|---|---|---|---|---|---|")
    for env in args.env:
        print(*benchmark(env, args.backend, args.rounds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
