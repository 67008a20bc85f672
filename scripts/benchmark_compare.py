"""How long compare takes, as a whole process, on made-up runs of 300 updates.

    python scripts/benchmark_compare.py

30 runs are to take under 5 s, and 300 on all three axes under 30 s.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fake_runs import learning_curve, write_run


def seconds(seeds: int, *options: str) -> float:
    """Wall time of one comparison of three algorithms with so many seeds each."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for algo, end in (("pg", 380), ("npg", 470), ("trpo", 495)):
            for seed in range(seeds):
                curve = learning_curve(300, end + rng.normal(0, 12), rng)
                write_run(Path(root), algo, seed, returns=curve)
        command = [sys.executable, "-m", "rl_natgrad.compare", root, *options]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


if __name__ == "__main__":
    print(f" 30 runs                  {seconds(10):5.1f} s  (under 5)")
    print(f"300 runs, all three axes  {seconds(100, 'x=steps,updates,seconds'):5.1f} s  (under 30)")
