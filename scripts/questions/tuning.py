"""The page of scripts/tune.py: after equal tuning, which algorithm is ahead, and what does one get untuned?"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from page import Answer, Claim, Table, cells, iqm, minus, number, solved
from runner import Row
from trainings import NAMES, as_run
from tune import ALGOS, CONTINUOUS, DEFAULT, STEPS, Plan, knobs, score

from rl_natgrad.compare import plot, stats, summary
from rl_natgrad.compare.options import AXES, Options
from rl_natgrad.compare.summary import Comparison
from rl_natgrad.config import compose
from rl_natgrad.config.refusals import listing

SCRIPT = "scripts/tune.py"
DRAWS = 10_000  # of the bootstrap


def answer(found: Sequence[Row]) -> Answer:
    """The page, of as many trainings as there are."""
    by_axis = {axis: compared(found, axis) for axis in AXES}
    steps = by_axis["steps"]
    spread = {env: trials(found, env) for env in tuned(found)}
    plan, sizes = Plan(), [len(knobs(env, algo)) for env in spread for algo in ALGOS]
    return Answer(
        title="Equal tuning: PG, NPG, TRPO and PPO",
        question="After equally many tries of its own settings, which algorithm learns most? And what does one get untuned?",
        claims=[
            *(Claim(f"Which is ahead over {AXES[axis]}, each with its best setting?", *map(minus, summary.ranking(each)))
              for axis, each in by_axis.items()),
            suffers(spread),
        ],
        sentence=(f"**Not complete: without {listing(left)}.** " if (left := [env for env in DEFAULT if env not in spread]) else "")
        + "“Ahead” is by interquartile mean (IQM) over seeds, with its 95 % bootstrap interval in brackets. Two algorithms "
        "are told apart where the 95 % interval of the probability that a run of one ends above a run of the other leaves out one half.",
        run=f"Per task and algorithm {plan.trials} settings, quasi-random over the ranges below, on seed {plan.first[0]}; the "
        f"best {plan.best} by the mean of the last tenth again on {plan.again[0]} to {plan.again[-1]}; the best of these, by all four seeds, on "
        f"{plan.final[0]} to {plan.final[-1]}, on which nothing was chosen; and there too the settings that come with the task. "
        f"{sum(row['env'] in spread for row in found):,} trainings: "
        f"{listing([f'{env} for {STEPS[env]:,} steps' for env in spread])}.",
        tables=[
            *(Table(f"The best setting of each, at equal {AXES[axis]}", *cells(*summary.overview(each)))
              for axis, each in by_axis.items()),
            Table("Which run ends higher, at equal steps", *cells(*summary.chances(steps))),
            Table("Which run ends higher, at equal seconds", *cells(*summary.chances(by_axis["seconds"]))),
            solved(steps),
            Table("What tuning gains", *gains(compared(found, "steps", "default"), steps),
                  before="The settings that come with the task, and the best of the trials, both on the ten fresh seeds: the return "
                  "at the end (the last tenth of the steps) and over all of training, and the chance that a tuned run ends higher."),
            Table("What the settings returned that were tried", *cells(*quartiles(spread)),
                  before="Of each algorithm's trials: means over the last tenth of the steps, one seed."),
            Table("The best settings", *best(found)),
            Table("What was tried", *ranges(), before="Log σ uniform; rates, δ, damping, clip and 1 − λ log-uniform; each "
                  "of a few values as likely. Anything else is as it comes with the environment."),
        ],
        plot=partial(draw, steps, spread),
        caption="Left: of an algorithm's trials, the share that returned less. Right: the best setting's return over steps, "
        "IQM over ten fresh seeds with its 95 % bootstrap interval.",
        oracle="The trainings are those of `python -m rl_natgrad.train`, to the bit, with the words of the tables; that the choice is made "
        "without the seeds that are reported is tested (`pytest tests/test_tune.py`).",
        cannot=[
            f"{plan.trials} trials of {min(sizes)} to {max(sizes)} settings each: none is the best possible, and a setting may have won by luck with its "
            "seeds. What is told apart is so after that much tuning.",
            "The spread is over these ranges. Wider ones make every algorithm look worse, and narrower ones better.",
            "Tuning was for the return at equal steps, and the batch was among what was tuned: at equal updates a large one has seen more.",
            "Seconds are CPU seconds of one thread of one machine that did other things as well.",
        ],
        literature=["Agarwal et al. 2021 (Deep reinforcement learning at the edge of the statistical precipice): IQM, intervals, "
                    "probability of improvement.",
                    "Engstrom et al. 2020 (Implementation matters in deep policy gradients): why both have the same code around them."],
        size=(12, 3.4 * max(len(spread), 1)),
    )  # fmt: skip


def tuned(found: Sequence[Row]) -> list[str]:
    """The tasks whose algorithms have all been through."""
    through = {(row["env"], row["algo"]) for row in found if row["round"] == "final" and row["end"] is not None}
    return [env for env in STEPS if all((env, algo) in through for algo in NAMES)]


def compared(found: Sequence[Row], axis: str, which: str = "final") -> list[Comparison]:
    """Of each task that is tuned, the runs of the best settings, or of those that come with it (which = "default")."""
    comparisons = []
    for env in tuned(found):
        mine = [row for row in found if (row["env"], row["round"]) == (env, which) and row["end"] is not None]
        groups = {name: [as_run(row) for row in mine if row["algo"] == algo] for algo, name in NAMES.items()}
        there = {name: runs for name, runs in groups.items() if runs}
        if there:
            name = compose.load([f"env={env}"]).env.id
            comparisons.append(summary.compare(name, there, Options([Path()], by=["env"], x=[axis])))
    return comparisons


def gains(defaults: Sequence[Comparison], best: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Of each task and algorithm, before and after."""
    before = {(c.env, group.label): group for c in defaults for group in c.groups}
    lines = []
    for c in best:
        for group in c.groups:
            if first := before.get((c.env, group.label)):
                chance = summary.with_interval("{:.2f}".format, *stats.improvement(group.finals, first.finals))
                scores = (first.finals, group.finals, first.areas, group.areas)
                lines.append([c.env, group.label, *map(iqm, scores), chance])
    return ["task", "algorithm", "at the end, as it comes", "at the end, tuned", "over training, as it comes",
            "over training, tuned", "P(tuned ends higher)"], lines  # fmt: skip


def trials(found: Sequence[Row], env: str) -> dict[str, np.ndarray]:
    """Algorithm → its trials' scores on a task, from the lowest; −∞ of those that failed."""
    first = [row for row in found if (row["env"], row["round"]) == (env, "first")]
    groups = {name: [row for row in first if row["algo"] == algo] for algo, name in NAMES.items()}
    return {
        name: np.sort([score([r["end"] for r in mine if r["trial"] == t]) for t in {r["trial"] for r in mine}])
        for name, mine in groups.items()
    }


def quartiles(spread: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[list[str], list[list[str]]]:
    """Of the trials of each task and algorithm."""
    lines = []
    for env, each in spread.items():
        for name, scores in each.items():
            ends = (scores[0], *np.quantile(scores, [0.25, 0.5, 0.75], method="nearest"), scores[-1])
            lines.append([env, name, str(len(scores)), *map(number, ends)])
    return ["task", "algorithm", "trials", "worst", "lower quartile", "median", "upper quartile", "best"], lines


def suffers(spread: Mapping[str, Mapping[str, np.ndarray]]) -> Claim:
    """Whose median trial is nearest to the best, where 0 is a task's worst trial of all and 1 its best."""
    rng = np.random.default_rng(0)
    middle, drawn = dict.fromkeys(NAMES.values(), 0.0), dict.fromkeys(NAMES.values(), np.zeros(DRAWS))
    for each in spread.values():
        every = np.concatenate([*each.values()])
        low, high = every[np.isfinite(every)].min(), every.max()
        for name, scores in each.items():
            units = (np.maximum(scores, low) - low) / (high - low)
            middle[name] += np.median(units) / len(spread)
            again = rng.choice(units, (DRAWS, len(units)))
            drawn[name] = drawn[name] + np.median(again, axis=1) / len(spread)
    order = sorted(middle, key=lambda name: middle[name], reverse=True)
    level = [name for name in order if np.quantile(drawn[order[0]] - drawn[name], 0.025) <= 0]
    ends = {name: np.quantile(draws, [0.025, 0.975]) for name, draws in drawn.items()}
    told = [f"{name} {middle[name]:.2f} [{ends[name][0]:.2f}, {ends[name][1]:.2f}]" for name in order]
    return Claim("Which suffers least untuned?", listing(level) if spread else "not settled",
                 "The median of its trials, with 0 a task's worst trial of all and 1 its best, mean over tasks, trials resampled "
                 f"for its 95 % interval: {', '.join(told)}." + (" Those named are not told apart." if len(level) > 1 else ""))  # fmt: skip


def best(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The words of each winner."""
    settings = {(row["env"], row["algo"]): row["settings"] for row in found if row["round"] == "final"}
    return ["task", "algorithm", "settings"], [[env, NAMES[algo], f"`{words}`"] for (env, algo), words in settings.items()]


def ranges() -> tuple[list[str], list[list[str]]]:
    """What each algorithm's knobs were drawn from: the ends, or all values of a choice."""
    tried: dict[tuple[str, str], list[str]] = {}
    for algo in ALGOS:
        for key, at in knobs(CONTINUOUS[0], algo).items():
            values = list(dict.fromkeys(at(u) for u in np.linspace(0, 1 - 1e-12, 20)))
            among = ", ".join(values) if len(values) < 5 else f"{values[0]} to {values[-1]}"
            tried.setdefault((key, among), []).append(NAMES[algo])
    every = len(ALGOS)
    lines = [[f"`{key}`", among, "all" if len(who) == every else listing(who)] for (key, among), who in tried.items()]
    return ["setting", "values", "of"], lines


def draw(compared: Sequence[Comparison], spread: Mapping[str, Mapping[str, np.ndarray]], figure) -> None:
    """Spread of the trials, and curves of the winners, a row a task."""
    left, right = figure.subfigures(1, 2)
    plot.draw(right, compared, ["steps"], "return")
    for panel, (env, each) in zip(left.subplots(len(spread), 1, squeeze=False)[:, 0], spread.items(), strict=True):
        for (name, scores), colour in zip(each.items(), plot.COLOURS, strict=False):
            panel.plot(np.linspace(0, 1, len(scores)), scores, label=name, color=colour, linewidth=1.6)
        panel.set_title(f"{env}: trials, from the worst to the best", fontsize="medium")
        panel.set_ylabel("return")
        panel.set_xlabel("share of the trials")
