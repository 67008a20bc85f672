"""PG, NPG, TRPO or PPO on classic control? Their default settings, over equal steps, updates and seconds."""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from page import Answer, Claim, Table, cells, minus, solved
from runner import Row, main
from trainings import NAMES, SEEDS, WORDS, smooth, updates

from rl_natgrad import Training
from rl_natgrad.compare import plot, summary
from rl_natgrad.compare.options import AXES, Options
from rl_natgrad.compare.runs import Run
from rl_natgrad.compare.summary import Comparison
from rl_natgrad.config.refusals import listing

OPEN = True
STEPS = {"CartPole-v1": 100_000, "Acrobot-v1": 100_000, "Pendulum-v1": 200_000, "LunarLander-v3": 300_000}
POINTS = 50  # of a curve are kept
SAID = (("algo", "delta"), ("solver", "damping"), ("optimizer", "lr"), ("algo", "gamma"), ("algo", "lam"),
        ("", "num_envs"), ("", "horizon"))  # settings that the page tells, by group


def jobs(smoke: bool) -> list[Row]:
    """A training each."""
    steps = {"CartPole-v1": 20_000, "Pendulum-v1": 20_000} if smoke else STEPS
    seeds = SEEDS[:2] if smoke else SEEDS
    return [
        {"env": env, "algo": algo, "seed": seed, "steps": n}
        for env, n in steps.items() for seed in seeds for algo in NAMES
    ]  # fmt: skip


def rows(job: Row) -> list[Row]:
    """A line of settings, and the curve: means of three batches' own episodes."""
    words = [*WORDS.get(job["algo"], [f"algo={job['algo']}"]), f"env={job['env']}", f"seed={job['seed']}"]
    words.append(f"total_steps={job['steps']}")
    with Training(*words) as run:
        tree = run.cfg.tree()
    said = {key: (tree.get(group) or {}).get(key) if group else tree[key] for group, key in SAID}
    if tree["algo"]["name"] == "ppo":  # its rates are its own
        said |= {key: tree["algo"][key] for key in ("epochs", "minibatch", "clip")} | {"ppo_lr": tree["algo"]["lr"]}
    told, curve, spent, began = [], [], np.zeros(3), time.process_time()
    for found, log in updates(*words):
        told.append(found)
        spent += [log[f"time/{part}"] for part in ("collect", "update", "critic")]
        if found is not None and len(three := smooth(told)):
            point = {"step": log["step"], "update": log["update"], "seconds": time.process_time() - began}
            curve.append(point | {"return": float(three[-1])})
    kept = np.unique(np.linspace(0, len(curve) - 1, POINTS).round().astype(int))
    return [said | {"collecting": float(spent[0] / spent.sum())}, *(curve[k] for k in kept)]


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    envs = list(dict.fromkeys(row["env"] for row in rows))
    settings = [row for row in rows if row["step"] is None]
    groups = {env: {name: found for algo, name in NAMES.items() if (found := curves(rows, env, algo))} for env in envs}
    by_axis = {
        axis: [summary.compare(env, groups[env], Options([Path()], by=["env"], x=[axis])) for env in envs]
        for axis in AXES
    }
    steps = by_axis["steps"]
    compared = sum(len(comparison.pairs) for comparison in steps)
    n = {len(found) for env in envs for found in groups[env].values()}
    share = np.mean([row["collecting"] for row in settings])
    return Answer(
        title="PG, NPG, TRPO and PPO on classic control",
        question="Of the policy gradient (PG) with one step of Adam per batch or with several, the natural policy gradient "
        "(NPG), trust-region policy optimisation (TRPO) and proximal policy optimisation (PPO), which has learned most after "
        "equal steps, after equal updates and after equal time?",
        claims=[Claim(f"Which is ahead over {AXES[axis]}?", *map(minus, summary.ranking(found)))
                for axis, found in by_axis.items()],
        sentence=("" if len(settings) == len(jobs(False)) else f"**Not complete: {len(settings)} of {len(jobs(False))} "
                  "trainings.** The column n says how many seeds the algorithms have. ")
        + "“Ahead” is by interquartile mean (IQM) over seeds, with its 95 % bootstrap interval in brackets. Two "
        "algorithms are told apart where the 95 % interval of the probability that a run of one ends above a run of "
        "the other leaves out one half.",
        run=f"{len(settings)} trainings with seeds {min(r['seed'] for r in rows)} to {max(r['seed'] for r in rows)}: "
        f"{listing([f'{env} for {steps_of(rows, env):,} steps' for env in envs])}, with the settings that come with "
        f"each environment: {said(settings)}. A curve is the mean return of a batch's own episodes over three "
        "batches; a run's score is its mean over the last tenth of the range that every run covers.",
        tables=[
            *(Table(f"At equal {AXES[axis]}", *cells(*summary.overview(found))) for axis, found in by_axis.items()),
            Table("Which run ends higher, at equal steps", *cells(*summary.chances(steps))),
            Table("Which run ends higher, at equal seconds", *cells(*summary.chances(by_axis["seconds"]))),
            solved(steps),
            Table("What an update costs", *cost_table(steps),
                  before="Median CPU seconds per update, environment steps included."),
        ],
        plot=partial(plot.draw, comparisons=steps, axes=list(AXES), metric="return"),
        caption="Return over steps, updates and seconds: IQM over seeds with its 95 % bootstrap interval.",
        oracle="The trainings are those of `python -m rl_natgrad.train`, to the bit; their parts are tested on their own "
        "(the step against dense matrices in float64, episode ends and advantages by hand), and against two other "
        "libraries ([speed](../speed/README.md#learning-beside-other-libraries)).",
        cannot=[
            f"{listing(sorted(map(str, n)))} seeds per algorithm and environment. {compared} pairs are compared on each "
            f"axis; were there no difference in any, about {compared / 20:.1g} of them would still look different.",
            "Nothing is tuned alike: PG's rate was chosen on CartPole, LunarLander's horizon, γ and δ with TRPO; PPO and PG "
            "with several steps have Schulman et al.'s epochs, minibatches and clip. Another rate or δ may give another order: "
            "[tuning](../tuning/README.md) has each with the best of equally many settings.",
            "One batch size per environment, so steps and updates say the same.",
            f"Seconds are those of one thread of one machine, from the first environment on; {share:.0%} of them went into acting and "
            "stepping environments, the same work for all.",
            "The order is that at the end of the range. Where a curve still rises there, it is not the order in the long "
            "run. Small environments and networks: nothing follows for locomotion or images.",
        ],
        literature=["Agarwal et al. 2021 (Deep reinforcement learning at the edge of the statistical precipice): IQM, "
                    "intervals, probability of improvement."],
        size=(15, 3.6 * len(envs)),
    )  # fmt: skip


def curves(rows: Sequence[Row], env: str, algo: str) -> list[Run]:
    """The runs of an algorithm, as `rl_natgrad.compare` has them."""
    found = []
    inside = [row for row in rows if (row["env"], row["algo"]) == (env, algo) and row["step"] is not None]
    for seed in dict.fromkeys(row["seed"] for row in inside):
        points = [row for row in inside if row["seed"] == seed]
        column = lambda key, points=points: np.array([point[key] for point in points], float)  # noqa: E731
        x = {"steps": column("step"), "updates": column("update"), "seconds": column("seconds")}
        found.append(Run(Path(env, algo, str(seed)), {"env.id": env, "seed": seed}, x, column("return")))
    return found


def steps_of(rows: Sequence[Row], env: str) -> int:
    return next(row["steps"] for row in rows if row["env"] == env)


def said(settings: Sequence[Row]) -> str:
    """The settings that matter most, as the runs had them."""
    def values(key: str) -> str:
        return " or ".join(dict.fromkeys(f"{row[key]:g}" for row in settings if row.get(key) is not None)) or "–"

    minibatches = (f" and at {values('ppo_lr')} for PPO and PG with several steps, {values('epochs')} epochs of "
                   f"minibatches of {values('minibatch')}, clip {values('clip')}")  # fmt: skip
    return (f"δ = {values('delta')}, damping {values('damping')}, Adam at {values('lr')} for PG"
            f"{minibatches if values('epochs') != '–' else ''}, "
            f"γ = {values('gamma')}, λ = {values('lam')}, {values('num_envs')} environments × "
            f"{values('horizon')} steps")  # fmt: skip


def cost_table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Seconds per update of each algorithm on each environment."""
    def each(comparison: Comparison, name: str) -> str:
        runs = [run for group in comparison.groups if group.label == name for run in group.runs]
        return f"{np.median([run.x['seconds'][-1] / run.x['updates'][-1] for run in runs]):.3f}" if runs else "–"

    return ["environment", *NAMES.values()], [[c.env, *(each(c, name) for name in NAMES.values())] for c in comparisons]


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
