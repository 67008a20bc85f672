"""The page that classic_control.py writes. Every number and every verdict on it is computed from the runs."""

from collections.abc import Iterable, Sequence

import numpy as np

from rl_natgrad.compare.options import AXES
from rl_natgrad.compare.runs import Run
from rl_natgrad.compare.summary import FEW, LAST, Comparison, Group, duration, few, number, with_interval
from rl_natgrad.run.records import read_record, read_rows

ALGOS = {"pg": "PG", "npg": "NPG", "trpo": "TRPO"}
ByAxis = dict[str, list[Comparison]]
PAGE = """\
# PG, NPG and TRPO on classic control

**Question.** Of the policy gradient (PG, with Adam), the natural policy gradient (NPG) and trust-region policy
optimisation (TRPO), which has learned most after equal steps, after equal updates and after equal time?

## Answer

{answers}

"Highest" is by interquartile mean (IQM) over seeds, with its 95 % bootstrap interval in brackets. Two algorithms
are told apart where the 95 % interval of the probability that a run of one ends above a run of the other leaves
out one half.{caution}

## Command

    {command}

trains {count} runs ({hours} hours of one core in all), and writes this page and the figure. It can be stopped and
started again.

![curves](curves.png)

## Where the runs end

A run's score is its mean training return (of the last 100 episodes) over the last tenth of the range that every
run covers.

{tables}

## How soon the environment counts as solved

Median over all seeds of the first update whose return reaches Gymnasium's threshold; a seed that never reaches it
counts as later than all others.

{speed}

## What an update costs

Median seconds per update, environment steps included.

{cost}

## What these runs cannot show

{caveats}
Made with {versions}; {revision}.
"""

CAVEATS = """\
- {seeds} seeds per algorithm and environment. {compared} pairs are compared on each axis; were there no difference
  in any, about {by_luck} of them would still look different.
- Settings are the defaults: {settings}. PG's learning rate was chosen on CartPole, and LunarLander's own horizon,
  γ and δ with TRPO. Another learning rate or δ may give another order.
- One batch size, so steps and updates say the same; runs with several batch sizes could tell them apart.
- Seconds are those of one machine with several runs at once. {collecting} of the time went into acting and
  stepping environments, the same work for all three; where that is cheaper or networks are larger, the cost of
  an update counts for more.
- Returns are those of training, of sampled actions and averaged over the last 100 episodes: they lag behind the
  policy, and the greedy policy may do better.
- The order is that at the end of the range. Where a curve still rises there, it is not the order in the long run.
- Small environments with few observed numbers, and small networks: nothing follows for locomotion or images.
"""



def readme(by_axis: ByAxis, fact: dict[str, str], notes: Sequence[str], command: str) -> str:
    """The whole page; every number and every verdict on it comes from the arguments."""
    answers = "\n".join(f"- {answer(axis, comparisons)}" for axis, comparisons in by_axis.items())
    tables = "\n\n".join(
        f"### At equal {AXES[axis]}\n\n{markdown(*end_table(axis, comparisons))}"
        for axis, comparisons in by_axis.items()
    )
    compared = sum(len(comparison.pairs) for comparison in by_axis["steps"])
    caveats = CAVEATS.format(**fact, compared=compared, by_luck=f"{compared / 20:.1g}")
    hint = any(few(comparison) for comparison in by_axis["steps"])
    left_out = "".join(f"- {note}\n" for note in notes)
    return PAGE.format(
        answers=answers, caution=f" **Under {FEW} seeds: hints.**" if hint else "", command=command,
        tables=tables, speed=markdown(*speed_table(by_axis["steps"])),
        cost=markdown(*cost_table(by_axis["steps"])), caveats=caveats + left_out, **fact,
    )  # fmt: skip


def answer(axis: str, comparisons: Sequence[Comparison]) -> str:
    """One sentence: who ends highest where, on this axis."""
    verdicts: dict[tuple[str, ...], list[str]] = {}
    for comparison in comparisons:
        first = max(comparison.groups, key=lambda group: group.iqm)
        at = f"{comparison.env} ({interval(first)})"
        verdicts.setdefault(leaders(comparison), []).append(at)
    parts = []
    for names, places in verdicts.items():
        if len(names) == 1:
            parts.append(f"{names[0]} ends highest on {listed(places)}")
        elif len(names) == len(ALGOS):
            parts.append(f"{listed(names)} cannot be told apart on {listed(places)}")
        else:
            parts.append(f"{listed(names)} end highest on {listed(places)}, where they cannot be told apart")
    same = ""
    if axis == "updates" and (steps := steps_per_update(comparisons)):
        same = f" (as over steps: an update takes {steps:,.0f} of them with every algorithm)"
    return f"**Over {AXES[axis]}**{same}, {'; '.join(parts)}."


def leaders(comparison: Comparison) -> tuple[str, ...]:
    """The algorithm with the highest IQM, and those it cannot be told apart from, in the order of ALGOS."""
    first = max(comparison.groups, key=lambda group: group.iqm).label
    behind = set()
    for pair in comparison.pairs:
        if pair.interval and first in (pair.left, pair.right) and not pair.interval[0] <= 0.5 <= pair.interval[1]:
            behind.add(pair.right if pair.left == first else pair.left)
    labels = [group.label for group in comparison.groups if group.label not in behind]
    return tuple(ALGOS[label] for label in sorted(labels, key=list(ALGOS).index))


def steps_per_update(comparisons: Sequence[Comparison]) -> float | None:
    """Environment steps of an update where all runs agree to 2 %, else None."""
    ratios = [run.x["steps"][-1] / run.x["updates"][-1] for c in comparisons for g in c.groups for run in g.runs]
    return float(np.mean(ratios)) if max(ratios) <= 1.02 * min(ratios) else None


def end_table(axis: str, comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """IQM and interval of each algorithm on each environment, and who beats whom."""
    header = ["environment", axis, "seeds", *ALGOS.values()]
    pairs = [("trpo", "pg"), ("npg", "pg"), ("trpo", "npg")]
    header += [f"P({ALGOS[a]} > {ALGOS[b]})" for a, b in pairs]
    rows = []
    for comparison in comparisons:
        groups = by_algo(comparison)
        end = comparison.range[1] - LAST * (comparison.range[1] - comparison.range[0]), comparison.range[1]
        row = [comparison.env, " to ".join(duration(x, axis) for x in end)]
        row.append("/".join(dict.fromkeys(str(len(group.runs)) if group else "0" for group in groups)))
        row += [interval(group) if group else "-" for group in groups]
        rows.append(row + [chance(comparison, a, b) for a, b in pairs])
    return header, rows


def speed_table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Steps, updates and seconds to the threshold, one row per environment and algorithm."""
    rows = []
    for c in (c for c in comparisons if c.threshold is not None):
        for group in filter(None, by_algo(c)):
            times = [duration(group.to_reach[axis], axis) for axis in AXES]
            reached = f"{group.reached} of {len(group.runs)}"
            rows.append([c.env, f"{c.threshold:g}", ALGOS[group.label], *times, reached])
    return ["environment", "threshold", "algorithm", *AXES, "seeds that reach it"], rows


def cost_table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Seconds per update of each algorithm on each environment."""
    rows = []
    for c in comparisons:
        row = [c.env]
        for group in by_algo(c):
            each = [run.x["seconds"][-1] / run.x["updates"][-1] for run in group.runs] if group else []
            row.append(f"{np.median(each):.3f}" if each else "-")
        rows.append(row)
    return ["environment", *ALGOS.values()], rows


def by_algo(comparison: Comparison) -> list[Group | None]:
    """The groups in the order of ALGOS; None for one without runs."""
    found = {group.label: group for group in comparison.groups}
    return [found.get(algo) for algo in ALGOS]


def chance(comparison: Comparison, a: str, b: str) -> str:
    """P(a run of a ends above a run of b) with its interval."""
    for pair in comparison.pairs:
        if {pair.left, pair.right} == {a, b}:
            flip = (lambda p: p) if pair.left == a else (lambda p: 1 - p)
            ends = sorted(map(flip, pair.interval)) if pair.interval else None
            return f"{flip(pair.chance):.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")
    return "-"


def interval(group: Group) -> str:
    """IQM [low, high]."""
    return with_interval(number, group.iqm, group.interval)


def facts(found: Sequence[Run]) -> dict[str, str]:
    """What the runs say of themselves."""
    records = [read_record(run.path) for run in found]
    rows = [row for run in found for row in read_rows(run.path)]
    spent = [sum(row.get(f"time/{part}", 0.0) for row in rows) for part in ("collect", "update", "critic")]
    members: dict[tuple, int] = {}
    for run in found:
        key = run.env, run.config["algo.name"]
        members[key] = members.get(key, 0) + 1
    few, most = min(members.values()), max(members.values())
    versions = [record.get("versions", {}) for record in records]
    libraries = ("rl_natgrad", "torch", "gymnasium", "python")
    return {
        "count": str(len(found)),
        "hours": f"{sum(run.x['seconds'][-1] for run in found) / 3600:.2g}",
        "seeds": str(few) if few == most else f"{few} to {most}",
        "settings": settings([record["config"] for record in records]),
        "collecting": f"{spent[0] / sum(spent):.0%}" if sum(spent) else "An unknown part",
        "versions": distinct(", ".join(f"{name} {v.get(name, '?')}" for name in libraries) for v in versions),
        "revision": distinct(_revision(record.get("git") or {}) for record in records),
    }


def _revision(git: dict) -> str:
    return f"commit {str(git.get('hash'))[:12]}{' with local changes' if git.get('dirty') else ''}"


def settings(configs: Sequence[dict]) -> str:
    """The settings that matter most, as the runs have them."""

    def said(key: str) -> str:
        group, _, leaf = key.rpartition(".")
        nodes = [config.get(group) or {} if group else config for config in configs]
        return distinct(str(node[leaf]) for node in nodes if node.get(leaf) is not None) or "-"

    return (
        f"δ = {said('algo.delta')}, damping {said('solver.damping')}, Adam at {said('optimizer.lr')} for PG, "
        f"γ = {said('algo.gamma')}, λ = {said('algo.lam')}, {said('num_envs')} environments × {said('horizon')} "
        f"steps, layers {said('policy.hidden')}"
    )


def distinct(texts: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(texts))


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
