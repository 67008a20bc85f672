"""PG, NPG or TRPO on classic control? Their default settings, over equal steps, updates and seconds."""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from page import Answer, Claim, Table
from runner import Row, main
from trainings import SEEDS, smooth, updates

from rl_natgrad import Training
from rl_natgrad.compare import summary
from rl_natgrad.compare.options import AXES, Options
from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.compare.runs import Run
from rl_natgrad.compare.summary import LAST, Comparison, Group, duration, number, with_interval
from rl_natgrad.config.refusals import listing

ALGOS = {"pg": "PG", "npg": "NPG", "trpo": "TRPO"}
STEPS = {"CartPole-v1": 100_000, "Acrobot-v1": 100_000, "Pendulum-v1": 200_000, "LunarLander-v3": 300_000}
POINTS = 50  # of a curve are kept
SAID = (("algo", "delta"), ("solver", "damping"), ("optimizer", "lr"), ("algo", "gamma"), ("algo", "lam"),
        ("", "num_envs"), ("", "horizon"))  # settings that the page tells, by group
PAIRS = (("trpo", "pg"), ("npg", "pg"), ("trpo", "npg"))


def jobs(smoke: bool) -> list[Row]:
    """A training each."""
    steps = {"CartPole-v1": 20_000, "Pendulum-v1": 20_000} if smoke else STEPS
    seeds = SEEDS[:2] if smoke else SEEDS
    return [
        {"env": env, "algo": algo, "seed": seed, "steps": n}
        for env, n in steps.items() for seed in seeds for algo in ALGOS
    ]  # fmt: skip


def rows(job: Row) -> list[Row]:
    """A line of settings, and the curve: means of three batches' own episodes."""
    words = [f"algo={job['algo']}", f"env={job['env']}", f"seed={job['seed']}", f"total_steps={job['steps']}"]
    with Training(*words) as run:
        tree = run.cfg.tree()
    said = {key: (tree.get(group) or {}).get(key) if group else tree[key] for group, key in SAID}
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
    groups = {env: {algo: curves(rows, env, algo) for algo in ALGOS} for env in envs}
    by_axis = {
        axis: [summary.compare(env, groups[env], Options([Path()], by=["env"], x=[axis])) for env in envs]
        for axis in AXES
    }
    compared = sum(len(comparison.pairs) for comparison in by_axis["steps"])
    n = {len(found) for env in envs for found in groups[env].values()}
    share = np.mean([row["collecting"] for row in settings])
    return Answer(
        title="PG, NPG and TRPO on classic control",
        question="Of the policy gradient (PG, with Adam), the natural policy gradient (NPG) and trust-region policy "
        "optimisation (TRPO), which has learned most after equal steps, after equal updates and after equal time?",
        claims=[Claim(f"Which is ahead over {AXES[axis]}?", *verdict(axis, found)) for axis, found in by_axis.items()],
        sentence="“Ahead” is by interquartile mean (IQM) over seeds, with its 95 % bootstrap interval in brackets. Two "
        "algorithms are told apart where the 95 % interval of the probability that a run of one ends above a run of "
        "the other leaves out one half.",
        run=f"{len(settings)} trainings with seeds {min(r['seed'] for r in rows)} to {max(r['seed'] for r in rows)}: "
        f"{listing([f'{env} for {steps_of(rows, env):,} steps' for env in envs])}, with the settings that come with "
        f"each environment: {said(settings)}. A curve is the mean return of a batch's own episodes over three "
        "batches; a run's score is its mean over the last tenth of the range that every run covers.",
        tables=[
            *(Table(f"At equal {AXES[axis]}", *end_table(axis, found)) for axis, found in by_axis.items()),
            Table("How soon the environment counts as solved", *speed_table(by_axis["steps"]),
                  before="Median over all seeds of the first point of the curve that reaches Gymnasium's threshold; a "
                  "seed that never does counts as later than all others."),
            Table("What an update costs", *cost_table(by_axis["steps"]),
                  before="Median CPU seconds per update, environment steps included."),
        ],
        plot=partial(draw, by_axis),
        caption="Return over steps, updates and seconds: IQM over seeds with its 95 % bootstrap interval.",
        oracle="The trainings are those of `python -m rl_natgrad.train`, to the bit; their parts are tested on their own "
        "(the step against dense matrices in float64, episode ends and advantages by hand), and against two other "
        "libraries ([speed](../speed/README.md#learning-beside-other-libraries)).",
        cannot=[
            f"{listing(sorted(map(str, n)))} seeds per algorithm and environment. {compared} pairs are compared on each "
            f"axis; were there no difference in any, about {compared / 20:.1g} of them would still look different.",
            "PG takes one Adam step per batch, with a rate that was chosen on CartPole; LunarLander's horizon, γ and δ "
            "were chosen with TRPO. Another rate or δ may give another order.",
            "One batch size per environment, so steps and updates say the same.",
            f"Seconds are those of one thread of one machine, from the first environment on; {share:.0%} of them went into acting and "
            "stepping environments, the same work for all three.",
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
        return " or ".join(dict.fromkeys(f"{row[key]:g}" for row in settings if row[key] is not None)) or "–"

    return (f"δ = {values('delta')}, damping {values('damping')}, Adam at {values('lr')} for PG, "
            f"γ = {values('gamma')}, λ = {values('lam')}, {values('num_envs')} environments × "
            f"{values('horizon')} steps")  # fmt: skip


def verdict(axis: str, comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """Who ends highest where, in a word and in a sentence."""
    by_leaders: dict[tuple[str, ...], list[str]] = {}
    for comparison in comparisons:
        first = max(comparison.groups, key=lambda group: group.iqm)
        by_leaders.setdefault(leaders(comparison), []).append(f"{comparison.env} ({interval(first)})")
    parts = []
    for names, places in by_leaders.items():
        if len(names) == 1:
            parts.append(f"{names[0]} ends highest on {listing(places)}")
        elif len(names) == len(ALGOS):
            parts.append(f"{listing(names)} cannot be told apart on {listing(places)}")
        else:
            parts.append(f"{listing(names)} end highest on {listing(places)}, where they cannot be told apart")
    ahead = {names for names in by_leaders}
    word = listing(next(iter(ahead))) if len(ahead) == 1 else "it depends on the task"
    text = "; ".join(parts)
    return word, text[0].upper() + text[1:] + "."


def leaders(comparison: Comparison) -> tuple[str, ...]:
    """The algorithm with the highest IQM, and those it cannot be told apart from, in the order of ALGOS."""
    first = max(comparison.groups, key=lambda group: group.iqm).label
    behind = set()
    for pair in comparison.pairs:
        if pair.interval and first in (pair.left, pair.right) and not pair.interval[0] <= 0.5 <= pair.interval[1]:
            behind.add(pair.right if pair.left == first else pair.left)
    return tuple(name for algo, name in ALGOS.items() if algo not in behind)


def end_table(axis: str, comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """IQM and interval of each algorithm on each environment, and who beats whom."""
    header = ["environment", AXES[axis], "seeds", *ALGOS.values(), *(f"P({ALGOS[a]} > {ALGOS[b]})" for a, b in PAIRS)]
    rows = []
    for comparison in comparisons:
        groups = by_algo(comparison)
        low, high = comparison.range
        row = [comparison.env, f"{duration(high - LAST * (high - low), axis)} to {duration(high, axis)}"]
        row.append("/".join(dict.fromkeys(str(len(group.runs)) for group in groups)))
        row += map(interval, groups)
        rows.append(row + [chance(comparison, a, b) for a, b in PAIRS])
    return header, rows


def speed_table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Steps, updates and seconds to the threshold, one row per environment and algorithm."""
    rows = []
    for c in (c for c in comparisons if c.threshold is not None):
        for group in by_algo(c):
            times = [duration(group.to_reach[axis], axis) for axis in AXES]
            reached = f"{group.reached} of {len(group.runs)}"
            rows.append([c.env, f"{c.threshold:g}", ALGOS[group.label], *times, reached])
    return ["environment", "threshold", "algorithm", *AXES.values(), "seeds that reach it"], rows


def cost_table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Seconds per update of each algorithm on each environment."""
    each = lambda group: [run.x["seconds"][-1] / run.x["updates"][-1] for run in group.runs]  # noqa: E731
    rows = [[c.env, *(f"{np.median(each(group)):.3f}" for group in by_algo(c))] for c in comparisons]
    return ["environment", *ALGOS.values()], rows


def by_algo(comparison: Comparison) -> list[Group]:
    """The groups in the order of ALGOS."""
    found = {group.label: group for group in comparison.groups}
    return [found[algo] for algo in ALGOS]


def chance(comparison: Comparison, a: str, b: str) -> str:
    """P(a run of a ends above a run of b) with its interval."""
    pair = next(pair for pair in comparison.pairs if {pair.left, pair.right} == {a, b})
    flip = (lambda p: p) if pair.left == a else (lambda p: 1 - p)
    ends = sorted(map(flip, pair.interval)) if pair.interval else None
    return f"{flip(pair.chance):.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def interval(group: Group) -> str:
    """IQM [low, high]."""
    return with_interval(number, group.iqm, group.interval).replace("-", "−")


def draw(by_axis: dict[str, list[Comparison]], figure) -> None:
    """One row of panels per environment, one column per axis."""
    from matplotlib.ticker import EngFormatter

    comparisons = by_axis["steps"]
    panels = figure.subplots(len(comparisons), len(AXES), squeeze=False, sharey="row")
    for row, comparison in zip(panels, comparisons, strict=True):
        for panel, axis in zip(row, AXES, strict=True):
            for colour, group in zip(COLOURS, by_algo(comparison), strict=False):
                grid, middle, low, high = summary.band(group.runs, axis)
                panel.plot(grid, middle, color=colour, label=ALGOS[group.label], linewidth=1.6)
                if low is not None:
                    panel.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
            if comparison.threshold is not None:
                panel.axhline(comparison.threshold, color="0.6", linewidth=0.8, linestyle=":")
            panel.set_xlabel(AXES[axis])
            if axis == "steps":
                panel.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
            panel.set_title(comparison.env, fontsize="medium")
        row[0].set_ylabel("return")
        row[0].legend(frameon=False, fontsize="small")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
