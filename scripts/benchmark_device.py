"""Time of one policy update and one critic fit per device and network, on the same made-up batch.

    python scripts/benchmark_device.py [repeats]

TRPO, 10 CG iterations, 2048 samples; medians in milliseconds. Without a GPU only the CPU's column appears.
"""

import statistics
import sys
import time

import numpy as np
import torch
from gymnasium import spaces

from rl_natgrad.algos.problem import Batch, Problem
from rl_natgrad.config import compose
from rl_natgrad.training import build
from rl_natgrad.training.iteration import as_tensor

NETWORKS = {
    "mlp 64×64": (["policy.hidden=[64,64]", "critic.hidden=[64,64]"], (17,)),
    "mlp 256×256": (["policy.hidden=[256,256]", "critic.hidden=[256,256]"], (17,)),
    "mlp 1024×1024": (["policy.hidden=[1024,1024]", "critic.hidden=[1024,1024]"], (17,)),
    "cnn": (["policy=cnn", "critic.epochs=1"], (4, 84, 84)),
}


def times(overrides: list[str], shape: tuple[int, ...], device: str, repeats: int, N: int) -> tuple[float, float]:
    """Median milliseconds of (policy update, critic fit) after one that is not counted."""
    cfg = compose.load([*overrides, f"device={device}"])
    image = len(shape) == 3
    space = spaces.Box(0, 255, shape, np.uint8) if image else spaces.Box(-np.inf, np.inf, shape, np.float32)
    policy = build.build_policy(cfg, space, spaces.Discrete(6))
    critic, learner = build.build_critic(cfg, space), build.build_algorithm(cfg, policy).learner
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 256, (N, *shape), np.uint8) if image else rng.normal(size=(N, *shape)).astype(np.float32)
    adv = torch.from_numpy(rng.normal(size=N)).to(device)
    action = torch.from_numpy(rng.integers(0, 6, N)).to(device)
    batch = Batch(as_tensor(obs, device), action, adv.float(), adv, adv)
    policy_ms, critic_ms = [], []
    for _ in range(repeats + 1):
        for work, record in ((learner, policy_ms), (critic.fit, critic_ms)):
            start = time.perf_counter()
            work(Problem(policy, batch) if work is learner else batch)
            if device != "cpu":
                torch.cuda.synchronize()
            record.append(1e3 * (time.perf_counter() - start))
    return statistics.median(policy_ms[1:]), statistics.median(critic_ms[1:])


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    torch.set_num_threads(1)
    print(f"{'network':<16}" + "".join(f"{d + ' policy':>14}{d + ' critic':>14}" for d in devices))
    for name, (overrides, shape) in NETWORKS.items():
        N = 256 if len(shape) == 3 else 2048
        cells = [f"{ms:14.1f}" for device in devices for ms in times(overrides, shape, device, repeats, N)]
        print(f"{name:<16}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
