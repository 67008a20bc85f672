"""What a device makes of thousands of environments, and of large batches.

    python scripts/benchmark_device.py                                 on the CPU, CartPole
    python scripts/benchmark_device.py --device cuda --env CartPole HalfCheetah Humanoid
    python scripts/benchmark_device.py --device cuda --num-envs        the second table alone

First table: steps per second of stepping with actions computed before, of collection, and of trainings with
experiment=device, beside those of the same task with the general settings; the memory that a training takes at
most (of the process, or on the GPU).  Second: milliseconds of one policy update (TRPO, 10 CG iterations) and of
one fit of the critic.  The fastest of `--rounds` counts, since on a shared machine noise only slows.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from gymnasium import spaces

from rl_natgrad.algos.problem import Batch, Problem
from rl_natgrad.config import compose
from rl_natgrad.config.experiment import unfold
from rl_natgrad.run.records import read_rows
from rl_natgrad.training import build
from rl_natgrad.training.iteration import Training, as_tensor

NUM_ENVS = [256, 1024, 4096, 16384]
NETWORKS = {  # hidden layers of policy and critic (none: a CNN of images), samples
    "64×64": ([64, 64], 2048), "256×256": ([256, 256], 2048), "1024×1024": ([1024, 1024], 2048),
    "cnn": (None, 256), "64×64, large": ([64, 64], 98304), "256×256, large": ([256, 256], 98304),
}  # fmt: skip


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of what the device does."""
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def stepping(words: list[str], device: str) -> tuple[float, float]:
    """Steps per second of stepping alone, and of collection."""
    with Training(compose.load(words)) as run:
        rollout = run.collector.collect(run.policy)  # the first is slower

        def raw() -> None:
            for action in rollout.action:
                run.envs.step(action)

        def collect() -> None:
            run.collector.collect(run.policy)

        return rollout.steps / timed(raw, device), rollout.steps / timed(collect, device)


def training(words: list[str], updates: int, device: str) -> tuple[float, float]:
    """Steps per second from the first update to the last, and the MiB that it took at most."""
    if device != "cpu":  # here, where its memory can be seen
        free = torch.cuda.mem_get_info()[0]
        with Training(compose.load(words)) as run:
            run.iterate()
            first = run.step
            took = timed(lambda: [run.iterate() for _ in range(updates - 1)], device)
            return (run.step - first) / took, (free - torch.cuda.mem_get_info()[0]) / 2**20
    cfg = compose.load(words)
    with tempfile.TemporaryDirectory() as folder:
        more = [f"total_steps={updates * cfg.num_envs * cfg.horizon}", "eval.episodes=1", f"runs_dir={folder}"]
        more = [word for word in words if not word.startswith("total_steps=")] + more
        process = subprocess.Popen([sys.executable, "-m", "rl_natgrad.train", *more], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit("training failed")
        (path,) = Path(folder).glob("*/*/*/")
        rows = [row for row in read_rows(path) if "time/collect" in row]
    steps, seconds = (rows[-1][tag] - rows[0][tag] for tag in ("step", "time/elapsed"))
    return steps / seconds, usage.ru_maxrss / 2**10


def environments(device: str, env: str, num_envs: list[int], rounds: int, updates: int) -> None:
    """Prints the first table of one task."""
    rows = {"general": ([f"env={env}"], 60)}
    for B in num_envs:
        [words] = unfold(["experiment=device", f"env={env}", f"num_envs={B}", f"device={device}"])
        rows[f"{B:,}"] = words, updates
    best = dict.fromkeys(rows, (0.0, 0.0, 0.0))
    memory = dict.fromkeys(rows, 0.0)
    for _ in range(rounds):
        for name, (words, n) in rows.items():
            where = "cpu" if name == "general" else device
            raw, collect = stepping(words, where)
            train, memory[name] = training(words, n, where)
            best[name] = tuple(map(max, zip(best[name], (raw, collect, train), strict=True)))
    print(f"{env:<24}{'raw':>12}{'collect':>12}{'train':>12}{'MiB':>8}{'raw ×':>8}{'train ×':>8}")
    for name, (raw, collect, train) in best.items():
        speeds = f"{raw:12,.0f}{collect:12,.0f}{train:12,.0f}{memory[name]:8,.0f}"
        before = best["general"]
        print(f"{name:<24}{speeds}{raw / before[0]:8.1f}{train / before[2]:8.1f}", flush=True)


def update(hidden: list[int] | None, N: int, device: str, repeats: int) -> tuple[float, float]:
    """Median milliseconds of (policy update, critic fit) after one that is not counted, on a made-up batch."""
    layers = ["policy=cnn", "critic.epochs=1"]
    if hidden:
        layers = [f"policy.hidden={hidden}", f"critic.hidden={hidden}"]
    cfg = compose.load([*layers, f"device={device}", *(["critic.minibatches=16"] if N > 2048 else [])])
    shape = (17,) if hidden else (4, 84, 84)
    space = spaces.Box(-np.inf, np.inf, shape, np.float32) if hidden else spaces.Box(0, 255, shape, np.uint8)
    policy = build.build_policy(cfg, space, spaces.Discrete(6))
    critic, learner = build.build_critic(cfg, space), build.build_algorithm(cfg, policy).learner
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(N, *shape)).astype(np.float32) if hidden else rng.integers(0, 256, (N, *shape), "u1")
    adv = torch.from_numpy(rng.normal(size=N)).to(device)
    action = torch.from_numpy(rng.integers(0, 6, N)).to(device)
    batch = Batch(as_tensor(obs, device), action, adv.float(), adv, adv)
    took = [(timed(lambda: learner(Problem(policy, batch)), device), timed(lambda: critic.fit(batch), device))
            for _ in range(repeats + 1)]  # fmt: skip
    policy_s, critic_s = (statistics.median(seconds) for seconds in zip(*took[1:], strict=True))
    return 1e3 * policy_s, 1e3 * critic_s


def updates_table(devices: list[str], repeats: int) -> None:
    """Prints the second table."""
    print(f"{'network':<16}{'samples':>8}" + "".join(f"{d + ' policy':>14}{d + ' critic':>14}" for d in devices))
    for name, (hidden, N) in NETWORKS.items():
        cells = [f"{ms:14.1f}" for device in devices for ms in update(hidden, N, device, repeats)]
        print(f"{name.split(',')[0]:<16}{N:8,}" + "".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--env", nargs="+", default=["CartPole"])
    parser.add_argument("--num-envs", nargs="*", type=int, default=NUM_ENVS, help="none: the second table alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10, help="of each training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for env in args.env if args.num_envs else []:
        environments(args.device, env, args.num_envs, args.rounds, args.updates)
    updates_table(list(dict.fromkeys(["cpu", args.device])), args.rounds)


if __name__ == "__main__":
    main()
