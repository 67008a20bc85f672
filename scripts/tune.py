"""Equal tuning: what each algorithm reaches with the best of equally many settings, and what with any of them.

    python scripts/tune.py [env=CartPole,Acrobot,Pendulum,LunarLander] [algo=pg,ppo] [jobs=2] [smoke=1]

Each algorithm has as many trials on each task: settings of its own knobs, quasi-random over their ranges (Halton).
All are trained on seeds 1000 and 1001, the best three again on 1002 to 1004, and the best of these on 100 to 109,
on which nothing is ever chosen.  What is no knob here is as it comes with the environment.

What is missing is run, a training a job, and kept in runs/questions/tune.jsonl: it can be stopped and started.
results/tuning/data.csv has every training so far, the table that is printed a line per task and algorithm.
smoke=1 tries everything in a minute, below runs/questions/smoke.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

sys.path.insert(0, str(Path(__file__).parent / "questions"))

from page import iqm, number
from runner import ROOT, Row, collected, read, to_csv, work
from trainings import SEEDS, updates

from rl_natgrad.compare.report import markdown_table
from rl_natgrad.envs.cores import cores
from rl_natgrad.run.files import write_atomically

STEPS = {
    "CartPole": 100_000, "Acrobot": 100_000, "Pendulum": 200_000, "LunarLander": 300_000,
    "Hopper": 300_000, "HalfCheetah": 300_000,
}  # fmt: skip
DEFAULT = ("CartPole", "Acrobot", "Pendulum", "LunarLander")
CONTINUOUS = ("Pendulum", "Hopper", "HalfCheetah")


class Plan(NamedTuple):
    """How much is run: trials per algorithm and task, the seeds of each round, how many go into the second."""

    trials: int = 24
    first: Sequence[int] = (1000, 1001)
    again: Sequence[int] = (1002, 1003, 1004)
    best: int = 3
    final: Sequence[int] = SEEDS
    share: float = 1.0  # of STEPS


SMOKE = Plan(trials=3, first=(1000,), again=(1002,), best=2, final=SEEDS[:2], share=0.04)

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
    "pg-steps": (["algo=ppo", "algo.surrogate=none"], MINIBATCHES),
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
    words, steps = settings(env, algo, plan.trials), max(1, int(STEPS[env] * plan.share))

    def jobs(name: str, trials: Sequence[int], seeds: Sequence[int]) -> list[Row]:
        return [{"env": env, "algo": algo, "round": name, "trial": trial, "seed": seed, "steps": steps,
                 "settings": words[trial]} for trial in trials for seed in seeds]  # fmt: skip

    first = jobs("first", range(plan.trials), plan.first)
    yield first
    again = jobs("again", ranked(done(first))[: plan.best], plan.again)
    yield again
    finalists = {job["trial"] for job in again}
    both = [row for row in [*done(first), *done(again)] if row["trial"] in finalists]
    yield jobs("final", ranked(both)[:1], plan.final)


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
    """A training: mean return of the episodes ended in its last tenth, and in all of it; None if it failed."""
    words = [*ALGOS[job["algo"]][0], *job["settings"].split(), f"env={job['env']}", f"seed={job['seed']}"]
    found, log = [], {"step": 0.0}
    for mean, log in updates(*words, f"total_steps={job['steps']}"):
        if mean is not None:
            found.append((log["step"], mean, log["rollout/episodes"]))
    if log["step"] < job["steps"] or not found:
        return [{"end": None, "mean": None}]
    step, returns, episodes = np.array(found).T
    last = step > 0.9 * job["steps"]
    last[-1] = True
    return [{"end": float(np.average(returns[last], weights=episodes[last])),
             "mean": float(np.average(returns, weights=episodes))}]  # fmt: skip


def table(found: Sequence[Row]) -> str:
    """Of each task and algorithm what the winner returns at the end, and how its trials spread."""
    lines = []
    for env, algo in dict.fromkeys((row["env"], row["algo"]) for row in found):
        mine = [row for row in found if (row["env"], row["algo"]) == (env, algo)]
        final = [row for row in mine if row["round"] == "final"]
        trials = [score([r["end"] for r in mine if r["round"] == "first" and r["trial"] == t]) for t in
                  dict.fromkeys(r["trial"] for r in mine)]  # fmt: skip
        quarters = np.quantile(trials, [0.25, 0.5, 0.75], method="nearest")
        told = iqm([r["end"] for r in final]) if final and None not in [r["end"] for r in final] else "–"
        lines.append([env, algo, told, *map(number, (*quarters, max(trials))), str(len(trials)),
                      final[0]["settings"] if final else "–"])  # fmt: skip
    header = ["task", "algorithm", "winner, IQM", "trials: lower quartile", "median", "upper quartile", "best",
              "how many", "the winner's settings"]  # fmt: skip
    return markdown_table(header, lines)


def main(module: ModuleType, argv: Sequence[str]) -> int:
    """Exit code: 0, 1 (a training raised), 2 (refused), 130 (stopped)."""
    given = {"env": ",".join(DEFAULT), "algo": ",".join(ALGOS), "jobs": str(cores()), "smoke": "0"}
    known = set(given)
    given |= dict(word.partition("=")[::2] for word in argv)
    envs, algos = given["env"].split(","), given["algo"].split(",")
    if given.keys() - known or not set(envs) <= STEPS.keys() or not set(algos) <= ALGOS.keys():
        print(f"error: expected [env=…] of {', '.join(STEPS)}, [algo=…] of {', '.join(ALGOS)}, [jobs=N] and "
              f"[smoke=1], got {' '.join(argv)}", file=sys.stderr)  # fmt: skip
        return 2
    smoke = given["smoke"] == "1"
    plan = SMOKE if smoke else Plan()
    kept = ROOT / "runs/questions" / f"tune{'-smoke' if smoke else ''}.jsonl"
    out = (ROOT / "runs/questions/smoke" if smoke else ROOT / "results") / "tuning"
    done = lambda jobs: collected(jobs, kept)[0]  # noqa: E731
    running = [rounds(env, algo, plan, done) for env in envs for algo in algos]
    code = 0
    for each in zip(*running, strict=True):  # a round of all, and then the next
        if code := work(module, [job for jobs in each for job in jobs], kept, int(given["jobs"])):
            break
    if not read(kept):
        return code
    every, about = collected([line["job"] for line in read(kept)], kept)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "data.csv", to_csv(every, about).encode())
    print(table(every))
    print(f"wrote   {(out / 'data.csv').relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
