"""Equal tuning: what each algorithm reaches with the best of equally many settings, and what with any of them.

    python scripts/tune.py [env=CartPole,Acrobot,Pendulum,LunarLander] [algo=pg,ppo] [jobs=2] [smoke=1] [render]

Each algorithm has as many trials on each task: settings of its own knobs, quasi-random over their ranges (Halton).
All are trained on seed 1000, the best four again on 1001 to 1003, and the best of these on 100 to 109, on which
nothing is ever chosen; there too the settings that come with the environment, which anything else here has.

What is missing is run, a training a job, and kept in runs/questions/tune.jsonl: it can be stopped and started.
results/tuning/ has every training so far and, once a task has its winners, the page; `render` makes that alone.
smoke=1 tries everything in a minute, below runs/questions/smoke.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

sys.path.insert(0, str(Path(__file__).parent / "questions"))

from runner import ROOT, Row, collected, from_csv, read, render, to_csv, work
from trainings import SEEDS, WORDS, shares, updates

from rl_natgrad.envs.cores import cores
from rl_natgrad.run.files import write_atomically

STEPS = {
    "CartPole": 100_000, "Acrobot": 100_000, "Pendulum": 200_000, "LunarLander": 300_000,
    "Hopper": 300_000, "HalfCheetah": 300_000,
}  # fmt: skip
DEFAULT = ("CartPole", "Acrobot", "Pendulum", "LunarLander")
CONTINUOUS = ("Pendulum", "Hopper", "HalfCheetah")
POINTS = 50  # of a curve are kept


class Plan(NamedTuple):
    """How much is run: trials per algorithm and task, the seeds of each round, how many go into the second."""

    trials: int = 24
    first: Sequence[int] = (1000,)
    again: Sequence[int] = (1001, 1002, 1003)
    best: int = 4
    final: Sequence[int] = SEEDS
    share: float = 1.0  # of STEPS


SMOKE = Plan(trials=3, again=(1001,), best=2, final=SEEDS[:2], share=0.1)

Knob = Callable[[float], str]
"""u in [0, 1) ↦ a value as it is written on a command line."""


def log(low: float, high: float) -> Knob:
    """Log-uniform."""
    return lambda u: f"{low * (high / low) ** u:.3g}"


def linear(low: float, high: float) -> Knob:
    """Uniform."""
    return lambda u: f"{low + (high - low) * u:.3g}"


def one_of(*values: int) -> Knob:
    """Each as likely."""
    return lambda u: str(values[int(u * len(values))])


def horizon(far: float, near: float) -> Knob:
    """λ with a log-uniform 1 − λ."""
    return lambda u: f"{1 - far * (near / far) ** u:.3g}"


EVERY = {"horizon": one_of(32, 64, 128, 256), "algo.lam": horizon(0.2, 0.005), "critic.lr": log(3e-4, 1e-2)}
NATURAL = {"algo.delta": log(1e-3, 0.3), "solver.damping": log(1e-3, 1.0), "solver.max_iter": one_of(5, 10, 20)}
MINIBATCHES = {
    "algo.lr": log(1e-4, 3e-3), "algo.epochs": one_of(2, 5, 10, 20), "algo.minibatch": one_of(64, 128, 256)
}  # fmt: skip
ALGOS: dict[str, tuple[list[str], Mapping[str, Knob]]] = {
    "pg": (["algo=pg"], {"optimizer.lr": log(1e-3, 1e-1)}),
    "pg-steps": (WORDS["pg-steps"], MINIBATCHES),
    "npg": (["algo=npg"], NATURAL),
    "trpo": (["algo=trpo"], NATURAL),
    "ppo": (["algo=ppo"], MINIBATCHES | {"algo.clip": log(0.05, 0.5)}),
}
"""The words of an algorithm, and its own knobs beside those that EVERY one has."""


def knobs(env: str, algo: str) -> dict[str, Knob]:
    """What is tuned."""
    sigma = {"policy.log_std": linear(-2, 0.5)} if env in CONTINUOUS else {}
    return {**ALGOS[algo][1], **EVERY, **sigma}


def settings(env: str, algo: str, trials: int) -> list[str]:
    """The words of each trial. More trials begin with those of fewer."""
    keys = knobs(env, algo)
    points = qmc.Halton(len(keys), seed=0).random(trials)
    return [" ".join(f"{k}={at(u)}" for (k, at), u in zip(keys.items(), point, strict=True)) for point in points]


def rounds(env: str, algo: str, plan: Plan, done: Callable[[Sequence[Row]], Sequence[Row]]) -> Iterator[list[Row]]:
    """The jobs of one round after the other; done: the rows of jobs, once these are through."""
    steps = max(1, int(STEPS[env] * plan.share))
    words = [*settings(env, algo, plan.trials), ""]  # the last, −1: as it comes with the environment

    def jobs(name: str, trials: Sequence[int], seeds: Sequence[int]) -> list[Row]:
        return [{"env": env, "algo": algo, "round": name, "trial": trial, "seed": seed, "steps": steps,
                 "settings": words[trial]} for trial in trials for seed in seeds]  # fmt: skip

    first = jobs("first", range(plan.trials), plan.first)
    yield first
    again = jobs("again", ranked(done(first))[: plan.best], plan.again)
    yield again
    finalists = {job["trial"] for job in again}
    both = [row for row in [*done(first), *done(again)] if row["trial"] in finalists]
    yield [*jobs("final", ranked(both)[:1], plan.final), *jobs("default", [-1], plan.final)]


def ranked(rows: Sequence[Row]) -> list[int]:
    """Trials, the best first: by mean return at the end, then over all of training; failed ones last."""
    def key(trial: int) -> tuple[float, float]:
        mine = [row for row in rows if row["trial"] == trial]
        return score([row["end"] for row in mine]), score([row["mean"] for row in mine])

    return sorted(dict.fromkeys(row["trial"] for row in rows), key=key, reverse=True)


def score(returns: Sequence[float | None]) -> float:
    """Their mean; −∞ where a training failed."""
    return float(np.mean(returns)) if None not in returns else -np.inf  # type: ignore[arg-type]


def rows(job: Row) -> list[Row]:
    """A training: mean return of the episodes ended in its last tenth, and in all of it; None if it failed.
    One that is reported has its curve and its number of updates too."""
    words = [*ALGOS[job["algo"]][0], *job["settings"].split(), f"env={job['env']}", f"seed={job['seed']}"]
    found, spent, began, log = [], [], time.process_time(), {"step": 0.0}
    for mean, log in updates(*words, f"total_steps={job['steps']}"):
        spent.append((log["step"], time.process_time() - began))
        if mean is not None:
            found.append((log["step"], mean, log["rollout/episodes"]))
    if log["step"] < job["steps"] or not found:
        return [{"end": None, "mean": None}]
    step, returns, episodes = np.array(found).T
    last = step > 0.9 * job["steps"]
    last[-1] = True
    row = {"end": float(np.average(returns[last], weights=episodes[last])),
           "mean": float(np.average(returns, weights=episodes))}  # fmt: skip
    if job["round"] in ("final", "default"):
        row |= shares([(at, mean) for at, mean, _ in found], spent, job["steps"], POINTS) | {"updates": len(spent)}
    return [row]


def main(module: ModuleType, argv: Sequence[str]) -> int:
    """Exit code: 0, 1 (a training raised), 2 (refused), 130 (stopped)."""
    given = {"env": ",".join(DEFAULT), "algo": ",".join(ALGOS), "jobs": str(cores()), "smoke": "0", "render": "0"}
    known = set(given)
    given |= dict(word.split("=", 1) if "=" in word else (word, "1") for word in argv)
    envs, algos = given["env"].split(","), given["algo"].split(",")
    if given.keys() - known or not set(envs) <= STEPS.keys() or not set(algos) <= ALGOS.keys():
        print(f"error: expected [env=…] of {', '.join(STEPS)}, [algo=…] of {', '.join(ALGOS)}, [jobs=N], "
              f"[smoke=1] and [render], got {' '.join(argv)}", file=sys.stderr)  # fmt: skip
        return 2
    import tuning  # the page, which knows this module

    smoke = given["smoke"] == "1"
    out = (ROOT / "runs/questions/smoke" if smoke else ROOT / "results") / "tuning"
    code = 0
    if given["render"] == "0":
        kept = ROOT / "runs/questions" / f"tune{'-smoke' if smoke else ''}.jsonl"
        code = trained(module, envs, algos, SMOKE if smoke else Plan(), kept, int(given["jobs"]))
        if not read(kept):
            return code
        out.mkdir(parents=True, exist_ok=True)
        data = to_csv(*collected([line["job"] for line in read(kept)], kept))
        write_atomically(out / "data.csv", data.encode())
        print(f"wrote   {(out / 'data.csv').relative_to(ROOT)}")
    elif not (out / "data.csv").exists():
        print(f"error: there is no {out / 'data.csv'} yet; without `render` it is made", file=sys.stderr)
        return 1
    if tuning.tuned(from_csv((out / "data.csv").read_text())[0]):
        render(tuning, out)
        print(f"wrote   {out.relative_to(ROOT)}/README.md, figure.png")
    return code


def trained(
    module: ModuleType, envs: Sequence[str], algos: Sequence[str], plan: Plan, kept: Path, at_once: int
) -> int:
    """A round of all, and then the next. Returns the exit code."""
    running = [rounds(env, algo, plan, lambda jobs: collected(jobs, kept)[0]) for env in envs for algo in algos]
    for each in zip(*running, strict=True):
        if code := work(module, [job for jobs in each for job in jobs], kept, at_once):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
