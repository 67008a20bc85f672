"""PG, NPG, TRPO and PPO on six MuJoCo tasks, one setting each for all six, over equal steps and equal seconds.

What a step costs, of the four in turn; 240 trainings of 1,000,000 steps, seed by seed, so that every cell has about as
many: it may be stopped at any time. Then what was tried on other seeds, and the best of it where TRPO was far behind
what was published.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from page import Answer, Claim, Table, cells, iqm, minus, number
from runner import NoPage, Row, main
from trainings import NAMES, SEEDS, as_run, curve, text, updates

from rl_natgrad.compare import plot, stats, summary
from rl_natgrad.compare.options import AXES, Options
from rl_natgrad.compare.runs import Run
from rl_natgrad.compare.summary import FEW, Comparison
from rl_natgrad.config.refusals import listing

OPEN = True
ENVS = ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Humanoid")
STEPS, POINTS = 1_000_000, 50
ROUNDS, TIMED, TURN = 3, 98_304, 8_192  # of the clock: so many times so many steps of each algorithm, so many in a row
TRPO = {"algo": "trpo", "algo.delta": "0.03", "solver.damping": "0.02", "env.backend": "sync", "policy.log_std": "-0.5"}
FIRST = {  # where each began
    "trpo": TRPO,
    "ppo": {"algo": "ppo", "algo.decay_lr": "true", "env.backend": "sync", "policy.log_std": "-0.5"},
    "npg": TRPO | {"algo": "npg"},
    "pg": {"algo": "pg", "env.backend": "sync", "policy.log_std": "-0.5"},
}


def words(algo: str, changes: str = "") -> str:
    """An algorithm's first setting, but for these words."""
    return " ".join(f"{key}={value}" for key, value in (FIRST[algo] | dict(w.split("=") for w in changes.split())).items())


# What chose one setting for six tasks: changes of the first, on these three with so many seeds from 1001 on.
CHOOSING = ("HalfCheetah", "Hopper", "Walker2d")
CANDIDATES = {
    "ppo": {"": 2, "algo.decay_lr=false": 1, "algo.lam=0.9": 1, "algo.clip=0.1": 1, "policy.log_std=-1": 1,
            "algo.minibatch=256 algo.lr=0.001": 2},
    "npg": {"": 1, "algo.delta=0.01": 1, "algo.delta=0.06": 1, "solver.damping=0.1": 2, "policy.log_std=-1": 1,
            "algo.delta=0.02 horizon=128": 2},
    "pg": {"": 1, "optimizer.lr=0.0015": 2, "optimizer.lr=0.015": 1, "horizon=64": 1, "optimizer.lr=0.0015 horizon=64": 2,
           "policy.log_std=-1": 1},
}  # fmt: skip
SETTINGS = {
    "trpo": words("trpo"),
    "ppo": words("ppo", "algo.minibatch=256 algo.lr=0.001"),
    "npg": words("npg", "algo.delta=0.02 horizon=128"),
    "pg": words("pg", "optimizer.lr=0.0015"),
}
CHOSEN = {
    "trpo": "As the next tables say. Before, seed 1000 with damping 0.1: HalfCheetah 5,810, Hopper 2,653, Walker2d 3,396; seed 1001 "
    "with δ 0.01, damping 0.01, σ 1, λ 0.97, 8 × 512 steps, the critic's rate 0.001 and shrink 0.95: HalfCheetah 1,340, Walker2d 2,891.",
    "ppo": "The next table. It began as Schulman et al. 2017, table 3, with a falling rate and TRPO's σ.",
    "npg": "The next table. It began as TRPO's.",
    "pg": "The next table. It began with the general rate, chosen on CartPole, and TRPO's σ.",
}
# Trainings that chose, and what was tried where TRPO is behind: by task, on these seeds, the setting and changes of it.
TRIED = {
    "Walker2d": ((1001, 1002), [
        "", "solver.damping=0.1", "solver.damping=0.1 policy.log_std=-1", "solver.damping=0.1 algo.gamma=0.995",
        "solver.damping=0.1 critic.epochs=20", "algo.delta=0.02 solver.damping=0.1 horizon=128", "algo.gamma=0.995",
        "algo.lam=0.97", "algo.delta=0.05", "horizon=128", "algo.delta=0.02 horizon=128",
    ]),
    "HalfCheetah": ((1001, 1002), ["", "solver.damping=0.1 algo.gamma=0.995", "algo.delta=0.02 horizon=128"]),
    "Hopper": ((1001, 1002), [
        "", "solver.damping=0.1 algo.gamma=0.995", "policy.log_std=-1", "algo.delta=0.01", "horizon=128",
        "algo.delta=0.02 horizon=128",
    ]),
    "Ant": ((1001, 1002), [
        "", "solver.damping=0.1 algo.gamma=0.995", "policy.log_std=-1", "policy.log_std=-1.5", "policy.log_std=-2",
        "algo.delta=0.06 solver.max_iter=20", "horizon=128", "policy.hidden=[256,256]",
    ]),
    "Swimmer": ((1001, 1002, 1003, 1004), [
        "", "solver.damping=0.1 algo.gamma=0.995", "algo.gamma=0.999", "algo.gamma=0.9999", "algo.gamma=0.9999 algo.lam=0.98",
        "algo.gamma=0.9999 algo.lam=0.99", "algo.gamma=0.9999 policy.log_std=0",
        "algo.gamma=0.9999 policy.log_std=0 algo.delta=0.01 solver.damping=0.1 num_envs=2 horizon=1024",  # sb3-contrib's
    ]),
    "Humanoid": ((1001, 1002), [
        "", "policy.log_std=-1", "policy.log_std=-1.5", "policy.hidden=[256,256]", "policy.hidden=[256,256] policy.log_std=-1",
        "horizon=512",
    ]),
}  # fmt: skip
OWN = {"Swimmer": "algo.gamma=0.9999", "Ant": "policy.log_std=-1.5"}  # the best of these, on the seeds that are reported
# TRPO of other libraries, 1,000,000 steps. Measured: means of the last 100 training episodes, three seeds, on a
# machine of the same kind. Published, with the v3 tasks: evaluations with the most likely actions.
MEASURED = {
    "HalfCheetah": {"sb3-contrib": 2786, "tianshou": 3295},
    "Hopper": {"sb3-contrib": 1666, "tianshou": 1932},
    "Walker2d": {"sb3-contrib": 3554, "tianshou": 3831},
}
PUBLISHED = {
    "HalfCheetah": {"sb3-contrib": 1803, "tianshou": 4471}, "Hopper": {"sb3-contrib": 3372, "tianshou": 2046},
    "Walker2d": {"sb3-contrib": 4502, "tianshou": 3827}, "Ant": {"sb3-contrib": 3554, "tianshou": 2867},
    "Swimmer": {"sb3-contrib": 359, "tianshou": 41}, "Humanoid": {"tianshou": 810},
}  # fmt: skip


def jobs(smoke: bool) -> list[Row]:
    """A training each, all tasks and algorithms of a seed before the next seed; before them the clock's."""
    envs, seeds, steps, rounds = (ENVS[1:3], SEEDS[:1], 8_000, 1) if smoke else (ENVS, SEEDS, STEPS, ROUNDS)
    clock = [
        {"env": env, "algo": "clock", "seed": 1000 + n, "settings": "each", "steps": steps if smoke else TIMED}
        for env in envs for n in range(rounds)
    ]  # fmt: skip
    order = [(env, algo, seed, said) for seed in seeds for algo, said in SETTINGS.items() for env in envs]
    if not smoke:
        order += [
            (env, "choice", seed, words(algo, each))
            for seed in (1001, 1002) for algo, those in CANDIDATES.items() for each, n in those.items() for env in CHOOSING
            if seed <= 1000 + n
        ]  # fmt: skip
        order += [(env, "tried", seed, words("trpo", each)) for env, (some, tries) in TRIED.items() for each in tries for seed in some]
        order += [(env, "own", seed, words("trpo", changes)) for env, changes in OWN.items() for seed in seeds]
    return clock + [dict(zip(("env", "algo", "seed", "settings"), job, strict=True)) | {"steps": steps} for job in order]


def rows(job: Row) -> list[Row]:
    """The training's curve, or of each algorithm the CPU seconds of its steps."""
    here = [f"env={job['env']}", f"seed={job['seed']}"]
    if job["algo"] == "clock":
        return clocked(here, job["steps"])
    return [curve([*job["settings"].split(), *here], job["steps"], POINTS)]


def clocked(here: Sequence[str], steps: int) -> list[Row]:
    """A row an algorithm, `clock` the seconds of so many steps. All train in turn, in one process, so that what else the
    machine does falls on each alike. Not counted: the first update."""
    trainings = {algo: updates(*said.split(), *here, f"total_steps={2 * steps}") for algo, said in SETTINGS.items()}
    first = {algo: next(training)[1]["step"] for algo, training in trainings.items()}
    done, spent = dict(first), dict.fromkeys(trainings, 0.0)
    for turn in range(TURN, steps + TURN, TURN):
        for algo, training in trainings.items():
            began = time.process_time()
            while done[algo] - first[algo] < min(turn, steps):
                done[algo] = int(next(training)[1]["step"])
            spent[algo] += time.process_time() - began
    cost = {algo: spent[algo] * steps / (done[algo] - first[algo]) for algo in trainings}
    return [{"timed": algo, "curve": None, "clock": text([seconds]), "greedy": None} for algo, seconds in cost.items()]


def answer(rows: Sequence[Row]) -> Answer:
    """The page, of as many trainings as there are."""
    if not (ran := [row for row in rows if row["algo"] in SETTINGS]):
        raise NoPage(f"none of the trainings of seeds {SEEDS[0]} to {SEEDS[-1]} is there; without only=… they run too")
    by_axis = {axis: comparisons(rows, axis) for axis in ("steps", "seconds")}
    steps, total = ran[0]["steps"], len(SETTINGS) * len(ENVS) * len(SEEDS)
    return Answer(
        title="PG, NPG, TRPO and PPO on MuJoCo",
        question="Which of the policy gradient (PG, one Adam step per batch), the natural policy gradient (NPG), TRPO and "
        f"PPO has learned most on six MuJoCo tasks after {steps:,} steps, and after equal time, with one setting each "
        "for all six? And how far is TRPO from other libraries'?",
        claims=[
            reached(rows, "TRPO reaches the best of two other libraries measured here", "curve", MEASURED),
            reached(rows, "TRPO reaches the best that was published for it", "greedy", PUBLISHED),
            *(Claim(f"Which is ahead over {AXES[axis]}?", *map(minus, summary.ranking(found))) for axis, found in by_axis.items()),
        ],
        sentence=("" if len(ran) == total else f"**Not complete: {len(ran)} of {total} trainings.** The column n "
                  "says how many seeds a cell has. ")
        + "“Ahead” is by interquartile mean (IQM) over seeds, with its 95 % bootstrap interval in brackets. Two algorithms "
        "are told apart where the 95 % interval of the probability that a run of one ends above a run of the other "
        f"leaves out one half; with under {FEW} seeds nothing is.",
        run=f"{len(ran)} trainings of {steps:,} steps, seeds {min(r['seed'] for r in ran)} to "
        f"{max(r['seed'] for r in ran)}, 8 environments × 256 steps an update where the setting says no other, 64×64 tanh, "
        "Gymnasium's v5 tasks. Returns are undiscounted, of training episodes with sampled actions; a run's score is the mean over the last tenth.",
        tables=[
            *(Table(f"At equal {AXES[axis]}", *cells(*summary.overview(found))) for axis, found in by_axis.items()),
            Table("Which run ends higher, at equal steps", *cells(*summary.chances(by_axis["steps"]))),
            Table("The lowest and the highest run", *extremes(rows), before="Last tenth. The IQM leaves out a quarter at either end."),
            Table("Beside other libraries", *beside(rows),
                  before="TRPO. Measured: training, as above, and means of the last 100 training episodes of three seeds "
                  "with sb3-contrib and tianshou on a machine of the same kind. Published, for the v3 tasks: 20 "
                  "episodes with the most likely actions at the end (ours); sb3-contrib (three seeds) and "
                  "tianshou (ten), evaluations during training, some settings chosen for the task."),
            Table("What a second does", *speed(rows),
                  before=f"Thousands of environment steps per second of one core, learning included: of {ROUNDS} rounds in which "
                  f"the four train in turn, in one process, for {TIMED:,} steps each. “Seconds” on this page are steps at this "
                  "pace: the trainings ran on different days, and a shared machine is not as fast on each."),
            Table("Settings", ["", "words", "how chosen"],
                  [[NAMES[a], f"`{said}`", CHOSEN[a]] for a, said in SETTINGS.items()],
                  before="One for all six tasks, which comes with them: `algo=trpo env=Ant` says the same. What is not named is the "
                  "general default."),
            Table("How the settings were chosen", *candidates(rows),
                  before="By the mean, over three tasks, of the last tenth's return as a share of the better library's above: of equally many "
                  "settings on seed 1001, the best two also on 1002. TRPO's are of the next table."),
            Table("What was tried", *tried(rows),
                  before="TRPO, by the mean return of the last tenth and of greedy episodes at the end, means over so many of the "
                  "seeds 1001 to 1004. None of the reported seeds is among them."),
            Table("With a setting of its own", *own(rows),
                  before="The best of what was tried, where the one setting for all six was far behind what was published, on the "
                  "reported seeds."),
        ],
        plot=partial(draw, by_axis),
        caption="Return over steps and seconds: IQM over seeds with its 95 % bootstrap interval.",
        oracle="The trainings are those of `python -m rl_natgrad.train`, to the bit; their parts are tested on their own, "
        "and learning is compared with two other libraries' ([speed](../speed/README.md#learning-beside-other-libraries), "
        "and above).",
        cannot=[
            "One setting for six tasks is no tuning: each algorithm can do better on each task with its own.",
            "The settings were chosen with some effort, not with as much as in [tuning](../tuning/README.md): six settings of "
            "PPO, NPG and PG, more of TRPO; PG's rate is the lowest that was tried.",
            "Published numbers are of other versions of the tasks (v3) and of evaluations, ours of v5.",
            "Seconds are CPU seconds of one thread of one machine, at the pace of each training's beginning, where episodes are short.",
            "Earlier runs, of older defaults (seeds 0 to 2, commit 1217e3c and before, δ 0.03): HalfCheetah 3,760, Hopper "
            "2,304, Walker2d 3,873, means of the last 100 training episodes.",
        ],
        literature=[
            "Agarwal et al. 2021 (Deep reinforcement learning at the edge of the statistical precipice): IQM, intervals, "
            "probability of improvement, performance profiles.",
            "sb3-contrib's documentation of TRPO, section Results; tianshou's pull request 340 (TRPO benchmark release): "
            "the published numbers.",
        ],
        size=(12, 3.4 * (len(by_axis["steps"]) + 1)),
    )  # fmt: skip


def comparisons(rows: Sequence[Row], axis: str) -> list[Comparison]:
    """Those of each task that has runs, algorithms in the order of SETTINGS."""
    found = []
    for env in (env for env in ENVS if any(of(rows, env, algo) for algo in SETTINGS)):
        groups = {NAMES[algo]: timed(of(rows, env, algo), pace(rows, env, algo)) for algo in SETTINGS}
        there = {name: runs for name, runs in groups.items() if runs}
        found.append(summary.compare(f"{env}-v5", there, Options([Path()], by=["env"], x=[axis])))
    return found


def pace(rows: Sequence[Row], env: str, algo: str) -> float:
    """Steps per CPU second, of all rounds together, as no round was as fast for one alone; nan before any."""
    there = [row for row in of(rows, env, "clock") if row["timed"] == algo]
    return sum(row["steps"] for row in there) / sum(float(row["clock"]) for row in there) if there else np.nan


def timed(rows: Sequence[Row], pace: float) -> list[Run]:
    """The runs, their seconds being steps at this pace."""
    runs = [as_run(row) for row in rows]
    return [replace(run, x={**run.x, "seconds": run.x["steps"] / pace}) for run in runs]


def of(rows: Sequence[Row], env: str, algo: str) -> list[Row]:
    """Those of an algorithm on a task."""
    return [row for row in rows if (row["env"], row["algo"]) == (env, algo)]


def scores(runs: Sequence[Row], key: str) -> list[float]:
    """Of each run: the mean over the last tenth of training (key = "curve"), or of greedy episodes at the end."""
    if key == "greedy":
        return [row["greedy"] for row in runs]
    ends = [as_run(row) for row in runs]
    return [stats.area(r.x["steps"], r.y, 0.9 * row["steps"], row["steps"]) for r, row in zip(ends, runs, strict=True)]


def reached(rows: Sequence[Row], claim: str, key: str, others: Mapping[str, Mapping[str, int]]) -> Claim:
    """Whether TRPO's IQM is at least the best of the others', on how many tasks."""
    parts, above, few = [], 0, False
    for env, theirs in others.items():
        ours, best = scores(of(rows, env, "trpo"), key), max(theirs.values())
        few |= len(ours) < FEW
        if ours:
            above += float(stats.iqm(sorted(ours))) >= best
        parts.append(f"{env} {iqm(ours)} against {best:,}")
    word = "not settled" if few else {len(others): "true", 0: "false"}.get(above, "half true")
    seeds = sorted({len(of(rows, env, "trpo")) for env in others})
    return Claim(claim, word, f"{listing(parts)} ({listing(map(str, seeds), 'or')} seeds).")


def extremes(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """What one seed may give."""
    found = []
    for env in ENVS:
        ends = [scores(of(rows, env, algo), "curve") for algo in SETTINGS]
        found.append([f"{env}-v5", *(f"{number(min(each))} to {number(max(each))}" if each else "–" for each in ends)])
    return ["", *(NAMES[algo] for algo in SETTINGS)], found


def beside(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Ours and others', measured and published."""
    found = []
    for env in ENVS:
        row = [f"{env}-v5", str(len(of(rows, env, "trpo")))]
        for key, theirs in (("curve", MEASURED), ("greedy", PUBLISHED)):
            row.append(iqm(scores(of(rows, env, "trpo"), key)))
            row += [f"{theirs[env][who]:,}" if who in theirs.get(env, {}) else "–" for who in ("sb3-contrib", "tianshou")]
        found.append(row)
    return ["", "n", "measured: ours", "sb3-contrib", "tianshou", "greedy: ours", "sb3-contrib, published",
            "tianshou, published"], found  # fmt: skip


def candidates(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """A row a setting: means over seeds, and the share of the better library's, mean over tasks. TRPO's are of what was
    tried on all of these tasks."""
    found = []
    everywhere = [each for each in TRIED[CHOOSING[0]][1] if all(each in TRIED[env][1] for env in CHOOSING)]
    for algo, those in (CANDIDATES | {"trpo": everywhere}).items():
        for changes in those:
            there = [row for row in rows if row["algo"] in ("choice", "tried") and row["settings"] == words(algo, changes)]
            each = {env: [row for row in there if row["env"] == env] for env in CHOOSING}
            if all(each.values()):
                means = {env: float(np.mean(scores(runs, "curve"))) for env, runs in each.items()}
                share = np.mean([mean / max(MEASURED[env].values()) for env, mean in means.items()])
                seeds = sorted({len(runs) for runs in each.values()})
                found.append([NAMES[algo], f"`{changes}`" if changes else "as it began", *map(number, means.values()),
                              f"{share:.2f}", listing(map(str, seeds), "or")])  # fmt: skip
    return ["", "changed", *(f"{env}-v5" for env in CHOOSING), "share", "seeds"], found


def tried(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """A row a try, in the words that were changed."""
    found = []
    for env, (_, tries) in TRIED.items():
        for changes in tries:
            runs = [row for row in of(rows, env, "tried") if row["settings"] == words("trpo", changes)]
            if runs:
                means = [number(float(np.mean(scores(runs, key)))) for key in ("curve", "greedy")]
                found.append([f"{env}-v5", f"`{changes}`" if changes else "the setting above", *means, str(len(runs))])
    return ["", "changed", "last tenth", "greedy", "seeds"], found


def own(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Beside the one setting, and the best that was published."""
    found = []
    for env, changes in OWN.items():
        if runs := of(rows, env, "own"):
            both = [iqm(scores(each, key)) for each in (of(rows, env, "trpo"), runs) for key in ("curve", "greedy")]
            found.append([f"{env}-v5", f"`{changes}`", str(len(runs)), *both, f"{max(PUBLISHED[env].values()):,}"])
    return ["", "changed", "n", "one setting: last tenth", "greedy", "its own: last tenth", "greedy", "published"], found


def speed(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Steps per CPU second."""
    found = []
    for env in ENVS:
        each = [pace(rows, env, algo) / 1000 for algo in SETTINGS]
        found.append([f"{env}-v5", *(number(e, ".2g") if np.isfinite(e) else "–" for e in each)])
    return ["", *(NAMES[algo] for algo in SETTINGS)], found


def draw(by_axis: dict[str, list[Comparison]], figure) -> None:
    """A row of panels per task, and the profile over all tasks below."""
    tasks = by_axis["steps"]
    above, below = figure.subfigures(2, 1, height_ratios=[len(tasks), 1])
    plot.draw(above, tasks, ["steps", "seconds"], "return")
    plot.draw_profile(below, tasks, "return")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
