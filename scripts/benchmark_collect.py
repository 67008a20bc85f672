"""Environment steps per second of collection against raw stepping, and against two peers, in one run.

    python scripts/benchmark_collect.py --env CartPole Hopper --num-envs 8 64 --backend sync native
    pip install "rl-natgrad[bench]"     brings the peers; one that is not installed is left out

raw: the backend stepped with actions computed before.  collect: policy, normaliser and checks on top, as in
training.  checks: the share of collection that looking at each rollout takes.  Rounds of all rows alternate
and the fastest of each counts, since on a shared machine noise only slows.  Reset rows are no steps.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import peers
import torch
from gymnasium import make as make_env

from rl_natgrad.config import compose
from rl_natgrad.envs.checks import Checks
from rl_natgrad.envs.errors import EnvSetupError
from rl_natgrad.envs.make import make
from rl_natgrad.rollout.collector import Collector
from rl_natgrad.training import build

HORIZON = 256
Round = Callable[[], tuple[int, float]]  # steps, seconds


clock = time.perf_counter


def timed(work: Callable[[], int]) -> tuple[int, float]:
    """Steps and seconds of one round."""
    start = clock()
    steps = work()
    return steps, clock() - start


def ours(env: str, backend: str, num_envs: int) -> tuple[dict[str, Round], Callable[[], None]]:
    """Rounds of raw stepping, of collection and of its checks; and what closes the environments."""
    cfg = compose.load([f"env={env}", f"env.backend={backend}", f"num_envs={num_envs}"])
    made = make(cfg.env, num_envs, cfg.seed)
    policy = build.build_policy(cfg, made.observation_space, made.action_space)
    check = Checks(cfg.env.id, made.observation_space)
    collector = Collector(made, HORIZON, np.random.default_rng(0), check)
    rollout = collector.collect(policy)

    def raw() -> int:
        step = made.step
        for action in rollout.action:
            step(action)
        return rollout.steps

    def collect() -> int:
        return collector.collect(policy).steps

    def checks() -> int:
        check(rollout.obs, rollout.reward, rollout.done, collector.episode_length)
        return rollout.steps

    return {name: lambda work=work: timed(work) for name, work in
            {"raw": raw, "collect": collect, "checks": checks}.items()}, made.close  # fmt: skip


def gymnasium(env: str, num_envs: int) -> Round:
    """Gymnasium's own SyncVectorEnv, stepped with random actions computed before."""
    from gymnasium.vector import SyncVectorEnv

    id = compose.load([f"env={env}"]).env.id
    made = SyncVectorEnv([lambda: make_env(id, disable_env_checker=True)] * num_envs)
    made.action_space.seed(0)
    actions = [made.action_space.sample() for _ in range(HORIZON)]
    made.reset(seed=0)

    def work() -> int:
        ends = 0
        for action in actions:
            _, _, terminated, truncated, _ = made.step(action)
            ends += np.count_nonzero(terminated | truncated)
        return HORIZON * num_envs - ends

    return lambda: timed(work)


def peer(name: str) -> Callable[[str, int], Round]:
    """Rounds of another library's own collection, with its default policy (64 × 64 tanh)."""

    def rounds(env: str, num_envs: int) -> Round:
        id = compose.load([f"env={env}"]).env.id
        work = peers.PEERS[name](id, 0, peers.Settings(num_envs, HORIZON)).collect()
        return lambda: timed(work)

    rounds.__name__ = name
    return rounds


def fastest(rounds: dict[tuple, Round], seconds: float) -> dict[tuple, float]:
    """Steps per second of each row's fastest round; rows take turns until each had `seconds`."""
    best, spent = dict.fromkeys(rounds, 0.0), dict.fromkeys(rounds, 0.0)
    for one in rounds.values():
        one()  # the first is slower
    while min(spent.values()) < seconds:
        for row, one in rounds.items():
            if spent[row] < seconds:
                steps, took = one()
                best[row], spent[row] = max(best[row], steps / took), spent[row] + took
    return best


def benchmark(env: str, num_envs: int, backends: list[str], seconds: float) -> list[str]:
    """One table row per backend and per peer."""
    rounds: dict[tuple, Round] = {}
    closing = []
    for backend in backends:
        try:
            mine, close = ours(env, backend, num_envs)
        except EnvSetupError as error:
            print(f"left out: {error}")
            continue
        closing.append(close)
        rounds |= {(backend, what): one for what, one in mine.items()}
    for made in (gymnasium, peer("sb3"), peer("tianshou")):
        try:
            rounds[made.__name__, "raw" if made is gymnasium else "collect"] = made(env, num_envs)
        except ImportError as error:
            print(f"left out: {made.__name__}: {error}")
    best = fastest(rounds, seconds)
    for close in closing:
        close()
    rows = []
    for who in dict.fromkeys(who for who, _ in best):
        raw, collect, checks = (best.get((who, what)) for what in ("raw", "collect", "checks"))
        share = f"{collect / raw:6.0%}" if raw and collect else " " * 6
        cost = f"{collect / checks:6.1%}" if checks and collect else " " * 6
        speeds = "".join(f"{speed:12,.0f}" if speed else " " * 12 for speed in (raw, collect))
        rows.append(f"{env:16}{num_envs:4}  {who:10}{speeds}  {share}  {cost}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--env", nargs="+", default=["CartPole", "Hopper", "HalfCheetah"])
    parser.add_argument("--num-envs", nargs="+", type=int, default=[8])
    parser.add_argument("--backend", nargs="+", default=["sync", "native", "async", "split", "envpool"])
    parser.add_argument("--seconds", type=float, default=5.0, help="per row")
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine; not for async, split, envpool")
    args = parser.parse_args()
    if args.cpu_time:
        global clock
        clock = time.process_time
    torch.set_num_threads(1)
    print(f"{'environment':16}{'B':>4}  {'':10}{'raw':>12}{'collect':>12}  {'share':>6}  {'checks':>6}")
    for env in args.env:
        for num_envs in args.num_envs:
            print(*benchmark(env, num_envs, args.backend, args.seconds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
