"""Learning beside other libraries: TRPO at equal steps, ten seeds each; what is there already is not run again.

    python scripts/compare_peers.py [--env …] [--seeds 10] [--jobs 2] [--runs runs/peers]
    pip install "rl-natgrad[bench]"            brings the peers (see scripts/peers.py)

All have the same networks, batch, γ, λ, 10 CG iterations and normalised observations, and each its own critic
fit, damping and first σ (ours are those of configs/env).  δ means the same too: sb3-contrib's KL is a mean over
action dimensions, so there it is divided by these.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from rl_natgrad.compare import stats
from rl_natgrad.run.files import write_atomically
from rl_natgrad.run.records import find_runs, read_record, read_rows

OURS, PEERS = "rl_natgrad", ("sb3-contrib", "tianshou")


class Task(NamedTuple):
    steps: int
    delta: float = 0.01
    gamma: float = 0.99
    horizon: int = 256
    joints: int = 1


TASKS = {
    "CartPole-v1": Task(100_000),
    "Acrobot-v1": Task(100_000),
    "LunarLander-v3": Task(300_000, delta=0.02, gamma=0.995, horizon=128),  # as in configs/env/LunarLander.yaml
    "Hopper-v5": Task(300_000, delta=0.03, joints=3),  # as in configs/mujoco.yaml
    "HalfCheetah-v5": Task(300_000, delta=0.03, joints=6),
}


def command(who: str, env: str, seed: int, runs: Path) -> list[str]:
    task = TASKS[env]
    if who == OURS:
        words = [f"env={env}", f"seed={seed}", f"total_steps={task.steps}", f"horizon={task.horizon}"]
        words += [f"algo.delta={task.delta}", f"algo.gamma={task.gamma}", f"runs_dir={runs / who}"]
        return [sys.executable, "-m", "rl_natgrad.train", "algo=trpo", *words]
    name, delta = ("sb3", task.delta / task.joints) if who == "sb3-contrib" else (who, task.delta)
    options = {"seed": seed, "horizon": task.horizon, "delta": delta, "gamma": task.gamma, "evaluate": 20}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    script = str(Path(__file__).parent / "peers.py")
    return [sys.executable, script, name, env, str(task.steps), "--normalize", *words]


def finished(runs: Path) -> dict[tuple[str, str, int], tuple[float, float]]:
    """(who, environment, seed) → return of the last 100 episodes, and of the most likely actions at the end."""
    found = {}
    for path in find_runs([runs / OURS]) if (runs / OURS).is_dir() else []:
        record, rows = read_record(path), read_rows(path)
        if record["outcome"] == "finished":
            config = record["config"]
            last = [row["rollout/return"] for row in rows if "rollout/return" in row][-1]
            found[OURS, config["env"]["id"], config["seed"]] = (last, rows[-1]["eval/return"])
    for who in PEERS:
        for file in (runs / who).glob("*/*.json"):
            result = json.loads(file.read_text())
            found[who, file.parent.name, int(file.stem)] = (result["rows"][-1][1], result["eval"])
    return found


def train(who: str, env: str, seed: int, runs: Path) -> None:
    done = subprocess.run(command(who, env, seed, runs), capture_output=True, text=True)
    if done.returncode:
        print(f"failed  {who} {env} seed {seed}: {done.stderr.splitlines()[-1:]}", file=sys.stderr, flush=True)
    elif who != OURS:
        file = runs / who / env / f"{seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, done.stdout.splitlines()[-1].encode())


def table(found: dict, envs: list[str], column: int) -> list[str]:
    """Means, and the difference to the better peer with its interval, also in % of that peer's mean."""
    lines = ["| | rl_natgrad | sb3-contrib | tianshou | difference to the better peer | in % |"]
    lines.append("|---|---|---|---|---|---|")
    for env in envs:
        scores = {
            who: np.array([v[column] for (w, e, _), v in found.items() if (w, e) == (who, env)])
            for who in (OURS, *PEERS)
        }
        if any(len(each) < 2 for each in scores.values()):
            continue
        means = {who: each.mean() for who, each in scores.items()}
        better = max(PEERS, key=means.__getitem__)
        difference, (low, high) = stats.difference(scores[OURS], scores[better])
        unit = 100 / abs(means[better])
        cells = [f"{means[who]:.0f} ± {scores[who].std(ddof=1):.0f} ({len(scores[who])})" for who in scores]
        lines.append(
            f"| {env} | {' | '.join(cells)} | {difference:+.0f} [{low:+.0f}, {high:+.0f}] "
            f"| {difference * unit:+.0f} [{low * unit:+.0f}, {high * unit:+.0f}] |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--env", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--who", nargs="+", default=[OURS, *PEERS], choices=[OURS, *PEERS], help="trains these")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/peers"))
    args = parser.parse_args()
    known = finished(args.runs)
    jobs = [(who, env, seed) for env in args.env for seed in range(args.seeds) for who in args.who]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: train(*job, args.runs), [job for job in jobs if job not in known]))
    found = finished(args.runs)
    measures = ("Mean return of the last 100 episodes of training", "Return of the most likely actions at the end")
    for column, what in enumerate(measures):
        print(f"\n{what}: mean ± deviation (seeds); 95 % bootstrap intervals\n")
        print(*table(found, args.env, column), sep="\n")


if __name__ == "__main__":
    main()
