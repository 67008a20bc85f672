"""Where an update's time goes, and how far that is from the arithmetic it cannot avoid.

    python scripts/profile_update.py                      N = 2048, 5000, 25000 samples, 64×64 tanh, one thread
    python scripts/profile_update.py 2048 --hidden 256 256 --env HalfCheetah

floor: 8·P·N operations of a Fisher product (J and Jᵀ, two matrix products each per layer), at the rate that
the better of torch and numpy has in an (N, 64)·(64, 64) product of the same run.  A metric of rank one (two
actions, or one output) needs half of them.  Rounds of all rows alternate; medians.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from rl_natgrad.algos.problem import Batch, Problem, kl_hessian
from rl_natgrad.config import compose
from rl_natgrad.envs.make import make
from rl_natgrad.optim.fisher import GaussNewton
from rl_natgrad.policy.networks import AutogradLinearization
from rl_natgrad.training import build
from rl_natgrad.training.threads import use_threads

CRITICS = {
    "critic: adam": ["critic=adam"],
    "critic: lbfgs": ["critic=lbfgs"],
    "critic: one Gauss–Newton step": ["critic=trust_region", "critic.steps=1"],
}


def medians(rows: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each row; every round runs all of them in turn."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for round_ in range(rounds + 2):
        for name, work in rows.items():
            start = time.perf_counter()
            work()
            if round_ >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in times.items()}


def problem(env: str, N: int, words: list[str]):
    """The local picture of N random samples, and all that learns from it."""
    cfg = compose.load([f"env={env}", *words])
    made = make(cfg.env, 1, 0)
    made.close()
    policy = build.build_policy(cfg, made.observation_space, made.action_space)
    rng = np.random.default_rng(0)
    obs = torch.from_numpy(rng.normal(size=(N, *made.observation_space.shape)).astype(np.float32))
    noise = policy.noise(rng, (N,))
    policy.become(policy.theta + 0.1 * torch.randn(policy.theta.shape, generator=torch.Generator().manual_seed(0)))
    action = torch.from_numpy(policy.act(obs.numpy(), noise))
    adv = torch.from_numpy(rng.normal(size=N))
    batch = Batch(obs, action, adv.float(), adv, adv)
    return cfg, made.observation_space, policy, batch


def profile(env: str, N: int, hidden: list[int], rounds: int) -> list[str]:
    words = [f"policy.hidden={hidden}", f"critic.hidden={hidden}"]
    cfg, space, policy, batch = problem(env, N, words)
    one = Problem(policy, batch)
    fisher, P = one.fisher(), policy.theta.numel()
    v = torch.randn(P, generator=torch.Generator().manual_seed(1))
    by_autograd = AutogradLinearization(lambda t: policy.forward(t, batch.obs), policy.theta, lambda: None)
    metric = policy.head.metric(one.lin.z)
    trick = GaussNewton(by_autograd, metric, lambda: None)
    double = replace(one, curvature=kl_hessian).fisher()
    a, w = np.ones((N, 64), np.float32), np.ones((64, 64), np.float32)
    ta, tw = torch.from_numpy(a), torch.from_numpy(w)
    learner = build.build_algorithm(cfg, policy).learner
    rows: dict[str, Callable[[], object]] = {
        "(N,64)·(64,64) numpy": lambda: a @ w,
        "(N,64)·(64,64) torch": lambda: ta @ tw,
        "product: chain rule": lambda: fisher.mv(v),
        "product: double-backward trick": lambda: trick.mv(v),
        "product: double backprop of the KL": lambda: double.mv(v),
        "linearise": lambda: Problem(policy, batch).lin,
        "loss and its gradient": lambda: Problem(policy, batch).grad(),
        "one trial of the line search": lambda: one.evaluate(policy.theta),
        "policy update": lambda: learner(Problem(policy, batch)),
    }
    for name, critic_words in CRITICS.items():
        critic = build.build_critic(compose.load([f"env={env}", *critic_words, f"critic.hidden={hidden}"]), space)
        rows[name] = lambda critic=critic: critic.fit(batch)
    ms = medians(rows, rounds)
    info = learner(Problem(policy, batch)).info
    rate = 2 * N * 64 * 64 / (1e-3 * min(ms["(N,64)·(64,64) numpy"], ms["(N,64)·(64,64) torch"]))
    floor = 8 * P * N / rate * 1e3
    products = int(info["solver/iterations"]) + 1  # and the radius
    lines = [f"{env}, N = {N:,}, {'×'.join(map(str, hidden))}, P = {P:,}; {rate / 1e9:.0f} GFLOP/s"]
    lines += [f"  {'floor of a product':<36}{floor:9.3f} ms"]
    lines += [f"  {name:<36}{each:9.3f} ms" for name, each in ms.items()]
    own, backprop, update = (ms[name] for name in list(rows)[2::2][:1] + list(rows)[4:5] + ["policy update"])
    lines += [
        f"  double backprop / chain rule  {backprop / own:5.2f}   chain rule / floor  {own / floor:5.2f}   "
        f"update ({products} products, {info['line_search/tries']:.0f} trials) / their floor  "
        f"{update / products / floor:5.2f}"
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("N", nargs="*", type=int, default=[2048, 5000, 25000])
    parser.add_argument("--env", default="CartPole")
    parser.add_argument("--hidden", nargs="+", type=int, default=[64, 64])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    use_threads(1)
    for N in args.N:
        print(*profile(args.env, N, args.hidden, args.rounds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
