"""What an update will cost, said before the first rollout."""

import time

import torch

from rl_natgrad.algos.learner import Learner
from rl_natgrad.config.schema import HAS_ROWS, Config
from rl_natgrad.optim.solvers import operations
from rl_natgrad.policy.policy import Policy
from rl_natgrad.training.threads import Threaded

SLOW = 1e10
"""Operations of a solve from which on it is announced: a third of a second, where a product does 4e10 in one."""


def notes(cfg: Config, learner: Learner, policy: Policy) -> list[str]:
    """What to know of a run's speed before it starts."""
    found = [said] if (said := _slow(cfg, policy)) else []
    if cfg.torch_threads > 1 and cfg.device == "cpu" and not isinstance(learner, Threaded):
        found.append(f"the policy's products are too small for {cfg.torch_threads} threads, and run on one")
    return found


def _slow(cfg: Config, policy: Policy) -> str:
    """A note where a dense solver will take a while for each update, with how long; empty elsewhere."""
    if cfg.solver is None:
        return ""
    N, M = samples(cfg, policy)
    P = policy.theta.numel()
    count = operations(cfg.solver.name, N, M, P)
    if count < SLOW:
        return ""
    one = count / _rate(policy.theta.device)
    updates = cfg.total_steps / (cfg.num_envs * cfg.horizon)
    return (
        f"solver={cfg.solver.name} on {M or P:,} × {P:,}: some {count:.0e} operations an update, {_digit(one)} s "
        f"here and now, {_digit(one * updates)} s in all; solver=cg, a smaller network or a smaller "
        "fisher.fraction takes less"
    )


def _digit(seconds: float) -> str:
    """1,000 of 1,234."""
    return f"{float(f'{seconds:.0e}'):,g}"


def _rate(device: torch.device) -> float:
    """Operations per second of a matrix product in float64."""
    A = torch.ones(512, 512, dtype=torch.float64, device=device)
    took = []
    for _ in range(3):  # the first one starts things
        start = time.perf_counter()
        float((A @ A)[0, 0])
        took.append(time.perf_counter() - start)
    return 2 * 512**3 / min(took)


def samples(cfg: Config, policy: Policy) -> tuple[int, int]:
    """N samples of the Fisher, but for the few rows that are resets, and its M rows."""
    assert cfg.fisher is not None
    N = max(1, round(cfg.fisher.fraction * cfg.num_envs * cfg.horizon))
    rank = 1 if cfg.fisher.name == "empirical" else policy.head.rank
    return N, N * rank * (cfg.fisher.name in HAS_ROWS)
