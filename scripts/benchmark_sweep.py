"""What a sweep's start-up costs: CartPole jobs with -m, one after another, and in hand-written shell loops.

python scripts/benchmark_sweep.py                    30 jobs, 3 rounds, on as many cores as there are
python scripts/benchmark_sweep.py jobs=4 rounds=1    a quick look
"""

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ["env=CartPole", "total_steps=20000"]
DEFAULTS = {"jobs": 30, "rounds": 3, "cores": len(os.sched_getaffinity(0))}
TRAIN = [sys.executable, "-m", "rl_natgrad.train"]


def loop(seeds: range, runs: str) -> str:
    """A shell loop as a user would write it."""
    command = shlex.join([*TRAIN, *WORDS, f"runs_dir={runs}"])
    return f"for s in {' '.join(map(str, seeds))}; do {command} seed=$s > /dev/null || exit 1; done"


def commands(jobs: int, cores: int, runs: str) -> dict[str, list[str]]:
    parallel = " & ".join(f"({loop(range(core, jobs, cores), runs)})" for core in range(cores))
    return {
        "sweep": [*TRAIN, "-m", *WORDS, f"seed=range({jobs})", f"runs_dir={runs}", f"sweep.jobs={cores}"],
        "one after another": ["sh", "-c", loop(range(jobs), runs)],
        f"{cores} shell loops": ["sh", "-c", f"{parallel} & wait"],
    }


def seconds(command: list[str], runs: str, jobs: int) -> float:
    """Wall time of one command; every job must have finished."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - start
    ended = len(list(Path(runs).glob("*/*/*/run.json")))
    assert ended == jobs, f"{ended} of {jobs} jobs ended"
    return took


def main() -> None:
    given = DEFAULTS | {key: int(value) for key, value in (word.split("=") for word in sys.argv[1:])}
    times: dict[str, list[float]] = {}
    for round_ in range(given["rounds"]):
        order = list(commands(given["jobs"], given["cores"], "").keys())
        for name in order[round_ % 3 :] + order[: round_ % 3]:  # so that none is always the first
            with tempfile.TemporaryDirectory() as runs:
                command = commands(given["jobs"], given["cores"], runs)[name]
                times.setdefault(name, []).append(seconds(command, runs, given["jobs"]))
                print(f"round {round_ + 1}  {name:<18} {times[name][-1]:6.1f} s", flush=True)
    median = {name: statistics.median(each) for name, each in times.items()}
    loops = f"{given['cores']} shell loops"
    print(f"{given['jobs']} jobs on {given['cores']} cores, medians of {given['rounds']} rounds")
    for name, limit in (("one after another", 0.6), (loops, 1.15)):
        print(f"sweep / {name:<18} {median['sweep'] / median[name]:.3f}  (at most {limit})")


if __name__ == "__main__":
    main()
