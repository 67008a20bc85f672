"""What `invariance` runs: the same policy written twice, a step or a training of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from reparametrised import SPREADS, Kept, Spread, apart, distance, divergence, to_sigmoid
from runner import Row
from torch import Tensor
from trainings import SEEDS

from rl_natgrad import Training
from rl_natgrad.algos.problem import Batch, Problem
from rl_natgrad.config import compose
from rl_natgrad.optim.solvers import Solver, cg, cholesky, identity, pinv, svd, woodbury
from rl_natgrad.optim.steps import FullStep, Step, backtrack, to_radius
from rl_natgrad.policy.policy import Policy
from rl_natgrad.training import iteration
from rl_natgrad.training.build import build_policy

NETS = ("[2]", "[4]", "[16,16]", "[64,64]")
SNAPSHOTS = (1, 10, 25)  # updates whose batch is looked at
STEP_SEEDS = SEEDS[:5]
TINY = 1e-8  # nats: as near to the limit as rounding allows
CLOSELY = ("g", "CG 10", "SVD")  # what is also looked at on other states, after a search and at a tiny δ
DAMPINGS = (1e-1, 1e-3, 1e-5, 1e-7, 1e-9)
DELTA = 0.01  # the default
THINNED, EVERY = (
    "[64,64]",
    8,
)  # it is looked at on every eighth sample: dense solves for its 4,610 parameters are slow
SPREAD_DELTAS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)

# Learning: the words of a command, the key that sets the step, its sizes.
LEARNERS = {
    "TRPO": (["algo=trpo"], "algo.delta", (0.003, 0.01, 0.03, 0.1, 0.3)),
    "PG-Adam": (["algo=pg", "optimizer=adam"], "optimizer.lr", (0.01, 0.03, 0.1, 0.3, 1.0)),
    "SGD": (["algo=pg", "optimizer=sgd"], "optimizer.lr", (0.1, 0.3, 1.0, 3.0, 10.0)),
}
LEARNING_NET, SMALL_NET = "[16,16]", "[4]"
SMALL = {  # on the small network, where the undamped step is invariant to many digits; δ is the default
    "TRPO, damped": ["algo=trpo"],
    "TRPO, undamped": ["algo=trpo", "solver=svd", "solver.rtol=1e-12", "algo.max_backtracks=100"],
}
STEPS = {"CartPole": 60_000, "Pendulum": 100_000}
TUNING_SEEDS = (1000, 1001)
# The size whose return, averaged over training and the tuning seeds, is highest: of tanh, of sigmoid.
CHOSEN = {
    ("CartPole", "TRPO"): (0.1, 0.03), ("CartPole", "PG-Adam"): (0.1, 0.3), ("CartPole", "SGD"): (3.0, 3.0),
    ("Pendulum", "TRPO"): (0.03, 0.03), ("Pendulum", "PG-Adam"): (0.03, 0.03), ("Pendulum", "SGD"): (1.0, 0.3),
}  # fmt: skip


def jobs(smoke: bool) -> list[Row]:
    """Snapshots of a training each, then trainings."""
    envs, few = (("CartPole",), slice(2)) if smoke else (tuple(STEPS), slice(None))
    steps = {"CartPole": 6_000} if smoke else STEPS
    snapshots = [{"kind": "step", "env": env, "net": net, "seed": seed}
                 for env in envs for net in NETS[few] for seed in STEP_SEEDS[few]]  # fmt: skip
    spreads = [{"kind": "spread", "env": "Pendulum", "seed": seed} for seed in STEP_SEEDS[few]]
    tuning = [learning(env, learner, size, seed, steps[env], "both")
              for env in envs for learner, (_, _, sizes) in LEARNERS.items() for size in sizes[few]
              for seed in TUNING_SEEDS[few][: 1 if smoke else None]]  # fmt: skip
    return snapshots + spreads + tuning + [
        learning(env, learner, size, seed, steps[env], which)
        for env in envs for seed in SEEDS[few] for learner, size, which in reported(env)
    ]  # fmt: skip


def learning(env: str, learner: str, size: float, seed: int, steps: int, which: str) -> Row:
    return {
        "kind": "learn",
        "env": env,
        "learner": learner,
        "size": size,
        "seed": seed,
        "steps": steps,
        "which": which,
    }


def reported(env: str) -> Iterator[tuple[str, float, str]]:
    """What learns on the reporting seeds: both networks at tanh's size, and sigmoid at its own where it has "
    "one."""
    for learner in LEARNERS:
        tanh, sigmoid = CHOSEN[env, learner]
        yield learner, tanh, "both"
        if sigmoid != tanh:
            yield learner, sigmoid, "sigmoid"
    if env == "CartPole":
        yield from ((learner, DELTA, "both") for learner in SMALL)


def rows(job: Row) -> list[Row]:
    """What a job measured."""
    return {"step": steps, "spread": spreads, "learn": learn}[job["kind"]](job)


def steps(job: Row) -> list[Row]:
    """Every solver's step from every snapshot, in both networks, and how far apart the two new policies are."""
    words = [f"env={job['env']}", f"seed={job['seed']}", f"policy.hidden={job['net']}"]
    every, found = EVERY if job["net"] == THINNED else 1, []
    with Training(*words) as run:
        for update in range(1, max(SNAPSHOTS) + 1):
            gathered = run.gather()
            if update in SNAPSHOTS:
                batch, other = thin(gathered.batch, every), thin(run.gather().batch, every)  # of the same policy
                twins = written_twice(run, words)
                found += [
                    {"update": update} | row for row in compared(*twins, batch, other, run.cfg.solver.damping)
                ]
            if update < max(SNAPSHOTS):
                run.learn_from(gathered)
    return found


def thin(batch: Batch, every: int) -> Batch:
    """Every so many samples, in double precision."""
    kept = Batch(**{name: t[::every] for name, t in vars(batch).items()})
    return replace(kept, obs=kept.obs.double(), adv=kept.adv.double())


def written_twice(run: iteration.Training, words: Sequence[str]) -> tuple[Policy, Policy]:
    """The run's policy, as a tanh network and as a sigmoid network, in double precision."""
    tanh = Policy(run.policy.net, run.policy.head, run.policy.theta.double(), run.policy.observe)
    cfg, theta = compose.load([*words, "policy.activation=sigmoid"]), to_sigmoid(tanh, tanh.theta)
    return tanh, build_policy(cfg, run.envs.observation_space, run.envs.action_space, theta=theta)


def solvers(P: int, M: int, damping: float) -> dict[str, Solver]:
    """What is tried, by its name in the tables."""
    exact = partial(cholesky, max_gib=4.0) if P <= M else partial(woodbury, max_gib=4.0)
    found: dict[str, Solver] = {"g": identity}
    found |= {f"CG {k}": partial(cg, damping=damping, max_iter=k, tol=1e-10) for k in (10, 50, 200)}
    found |= {f"exact {lam:g}": partial(exact, damping=lam) for lam in DAMPINGS}
    if P <= M:
        found["pinv"] = partial(pinv, rtol=1e-13, max_gib=4.0)
    return found | {"SVD": partial(svd, rtol=1e-12, max_gib=4.0)}


@dataclass(frozen=True)
class Taker:
    """A policy that takes a solver's step. Args: F: of the problem, kept."""

    policy: Policy
    problem: Problem
    F: Kept
    solve: Solver

    @cached_property
    def unit(self) -> FullStep | None:
        """The step of radius 1 nat; None where the solve failed."""
        return to_radius(self.solve(self.F, -self.problem.grad()), self.F, 1.0)

    def theta(self, delta: float) -> Tensor:
        """θ' (P,) of the whole step of radius δ; NaN where there is none."""
        return self.problem.theta + (delta**0.5 * self.unit.length * self.unit.d if self.unit else float("nan"))

    def outputs(self, delta: float, obs: Tensor) -> Tensor:
        """z (N, K) there."""
        return self.policy.forward(self.theta(delta), obs)

    def slope(self) -> Tensor:
        """J d (N, K): what the step does to first order."""
        return self.problem.lin.jvp(self.theta(1.0) - self.problem.theta)

    def searched(self) -> Step:
        """TRPO's step: the whole one at δ, shortened until the loss is lower and the measured KL ≤ δ."""
        full = replace(self.unit, length=DELTA**0.5 * self.unit.length) if self.unit else None
        return backtrack(self.problem, full, delta=DELTA, shrink=0.8, max_backtracks=10)


def compared(tanh: Policy, sigmoid: Policy, batch: Batch, other: Batch, damping: float) -> Iterator[Row]:
    """A row for each solver: how far apart its steps in the two networks end, and the KL that tanh's reached."""
    head, problems = tanh.head, (Problem(tanh, batch), Problem(sigmoid, batch))
    z, kept = problems[0].lin.z, [Kept(problem.fisher()) for problem in problems]
    z_other, scale = tanh.forward(tanh.theta, other.obs), float(z.abs().max())
    M, P = kept[0].shape()
    for name, solve in solvers(P, M, damping).items():
        a, b = (Taker(*each, solve) for each in zip((tanh, sigmoid), problems, kept, strict=True))
        row = {"solver": name, "same": float((z - problems[1].lin.z).abs().max()) / scale if name == "g" else None}
        row["D 0"] = apart(head, z, a.slope(), b.slope())
        row[f"D {DELTA:g}"] = distance(head, z, a.outputs(DELTA, batch.obs), b.outputs(DELTA, batch.obs))
        row["kl"] = divergence(head, z, a.outputs(DELTA, batch.obs)) / DELTA
        if name in CLOSELY:
            row[f"D {TINY:g}"] = distance(head, z, a.outputs(TINY, batch.obs), b.outputs(TINY, batch.obs))
            row["others"] = distance(head, z_other, a.outputs(DELTA, other.obs), b.outputs(DELTA, other.obs))
            s, t = a.searched(), b.searched()
            ends = tanh.forward(s.theta, batch.obs), sigmoid.forward(t.theta, batch.obs)
            row["searched"] = distance(head, z, *ends) if s.accepted and t.accepted else None
            row["accepted"] = s.accepted + t.accepted
        yield {key: short(value) for key, value in row.items()}


def short(value: Any) -> Any:
    """Three digits: D is looked at in powers of ten, and the table of all rows stays small."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.3g}") if np.isfinite(value) else None


def spreads(job: Row) -> list[Row]:
    """The undamped step of a linear Gaussian policy with its spread in other coordinates, against log σ."""
    found, solve = [], partial(svd, rtol=1e-12, max_gib=4.0)
    with Training(f"env={job['env']}", f"seed={job['seed']}", "policy.hidden=[]") as run:
        for _ in range(9):
            run.learn_from(run.gather())
        batch, policy = thin(run.gather().batch, 1), run.policy
    policy = Policy(policy.net, policy.head, policy.theta.double(), policy.observe)
    written = {c: Spread.of(policy, c) for c in SPREADS}
    takers = {c: Taker(p, q := Problem(p, batch), Kept(q.fisher()), solve) for c, p in written.items()}
    z = takers["log σ"].problem.lin.z
    for delta in SPREAD_DELTAS:
        ends = {c: taker.outputs(delta, batch.obs) for c, taker in takers.items()}
        found += [{"coordinate": c, "delta": delta, "D": distance(policy.head, z, ends["log σ"], end),
                   "kl": divergence(policy.head, z, end) / delta} for c, end in ends.items()]  # fmt: skip
    return found


def learn(job: Row) -> list[Row]:
    """Trainings that begin as the same function with the same random numbers, one a network."""
    if small := SMALL.get(job["learner"]):
        words = [*small, f"policy.hidden={SMALL_NET}"]
    else:
        given, key, _ = LEARNERS[job["learner"]]
        words = [*given, f"{key}={job['size']:g}", f"policy.hidden={LEARNING_NET}"]
    words += [f"env={job['env']}", f"seed={job['seed']}", f"total_steps={job['steps']}", "dtype=float64"]
    curves = {network: curve(words, network) for network in ("tanh", "sigmoid")[job["which"] != "both" :]}
    found = [
        {"network": network, "first": returns[0], "mean": float(np.mean(returns)),
         "updates": len(returns), "stayed": stayed} for network, (returns, stayed) in curves.items()
    ]  # fmt: skip
    if job["which"] == "both":
        found[1]["parted"] = parted(*(returns for returns, _ in curves.values()))
    return found


def curve(words: Sequence[str], network: str) -> tuple[list[float], int]:
    """Returns of the batches in which episodes ended; how many updates took no step."""
    returns, stayed = [], 0
    with Training(*words, f"policy.activation={network}") as run:
        if (
            network == "sigmoid"
        ):  # its own random numbers are the tanh network's, and another function: written anew
            run.policy.become(to_sigmoid(run.policy, run.policy.theta))
        while run.step < run.cfg.total_steps:
            gathered = run.gather()
            returns += [float(np.mean(r))] if (r := gathered.rollout.returns) else returns[-1:]
            try:
                stayed += run.learn_from(gathered)["policy/step_norm"] == 0
            except iteration.NotFinite:  # the policy stays as it is for good
                left = (run.cfg.total_steps - run.step) // gathered.rollout.steps
                return returns + returns[-1:] * left, stayed + left
    return returns, stayed


def parted(a: Sequence[float], b: Sequence[float]) -> int | None:
    """The first batch whose returns differ, counted from 1."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False), 1) if abs(x - y) > 1e-9 * abs(x)), None)
