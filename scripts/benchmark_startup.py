"""Seconds from the shell to --help and to the first environment step, beside the bare imports; medians.

    python scripts/benchmark_startup.py [rounds]
"""

import statistics
import subprocess
import sys
import tempfile
import time

TRAIN = [sys.executable, "-m", "rl_natgrad.train"]
COMMANDS = {
    "import hydra, gymnasium": [sys.executable, "-c", "import hydra, gymnasium; print()"],
    "--help": [*TRAIN, "--help"],
    "import torch, gymnasium, hydra": [sys.executable, "-c", "import torch, gymnasium, hydra; print()"],
    "training": [*TRAIN, "total_steps=1", "eval.episodes=1"],
}


def first_line(command: list[str]) -> float:
    """Seconds until a process writes its first line; of training that is when stepping begins."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        took = time.perf_counter() - start
        process.communicate()
    return took


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as runs:
        COMMANDS["training"].append(f"runs_dir={runs}")
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                times[name].append(first_line(command))
    median = {name: statistics.median(each) for name, each in times.items()}
    for name, seconds in median.items():
        print(f"{name:<32}{seconds:6.2f} s")
    names = list(COMMANDS)
    for bare, ours, limit in ((names[0], names[1], 0.3), (names[2], names[3], 0.5)):
        print(f"{ours} − {bare}: {median[ours] - median[bare]:+.2f} s (at most {limit})")


if __name__ == "__main__":
    main()
