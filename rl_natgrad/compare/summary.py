"""The numbers of a comparison: what each group reached, and how likely one beats another."""

import csv
import io
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from rl_natgrad.compare import stats
from rl_natgrad.compare.options import AXES, CompareError, Options
from rl_natgrad.compare.runs import Run
from rl_natgrad.compare.stats import Array
from rl_natgrad.config.refusals import listing

LAST = 0.1  # the final score of a run is its mean over this last share of the common range
FEW = 5  # seeds; below, a bootstrap interval is too narrow to be trusted


@dataclass(frozen=True)
class Group:
    """One row of the table. Scores are per run; an interval is None at n = 1."""

    label: str
    runs: Sequence[Run]
    finals: Array
    areas: Array
    iqm: float
    interval: tuple[float, float] | None
    reached: int | None
    to_reach: Mapping[str, float]


@dataclass(frozen=True)
class Pair:
    """P(a run of `left` ends above a run of `right`)."""

    left: str
    right: str
    chance: float
    interval: tuple[float, float] | None

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out one half."""
        return self.interval is not None and not self.interval[0] <= 0.5 <= self.interval[1]


@dataclass(frozen=True)
class Comparison:
    """All that is said about one environment. known_once: every run has the metric at one step alone, its end."""

    env: str
    axis: str
    range: tuple[float, float]
    threshold: float | None
    groups: list[Group]
    pairs: list[Pair]
    known_once: bool = False


def compare(env: str, members: Mapping[str, Sequence[Run]], options: Options) -> Comparison:
    """Groups and pairs of one environment on the first axis, over the range that all its runs cover.
    Raises: CompareError where the runs have no range, or no such axis, in common."""
    axis = options.x[0]
    runs = [run for group in members.values() for run in group]
    for wanted in options.x:
        missing = next((run.path for run in runs if wanted not in run.x), None)
        if missing:
            raise CompareError(f"x={wanted}: {missing} has no time/elapsed")
    known_once = options.metric.startswith("eval/") and all(len(run.y) == 1 for run in runs)
    if known_once:  # by the final evaluation: runs end at slightly different steps
        ends = [float(run.x[axis][0]) for run in runs]
        span: tuple[float, float] | None = (min(ends), max(ends))
    else:
        span = stats.common_range([run.x[axis] for run in runs])
    if span is None:
        short = min(runs, key=lambda run: run.x[axis][-1])
        end = f"{short.path} ends at {short.x[axis][-1]:,.0f}, before another begins"
        raise CompareError(f"{env}: the runs share no range of {axis}: {end}")
    threshold = options.threshold
    if threshold is None and options.metric.endswith("/return") and not known_once:
        threshold = _reward_threshold(env)
    groups = [_summarise(label, group, axis, span, threshold, known_once) for label, group in members.items()]
    pairs = []
    for left, right in combinations(groups, 2):
        chance, interval = stats.improvement(left.finals, right.finals)
        alone = min(len(left.runs), len(right.runs)) < 2
        pairs.append(Pair(left.label, right.label, chance, None if alone else interval))
    return Comparison(env, axis, span, threshold, groups, pairs, known_once)


def _summarise(
    label: str, runs: Sequence[Run], axis: str, span: tuple[float, float], threshold: float | None,
    known_once: bool,
) -> Group:  # fmt: skip
    low, high = span
    start = high - LAST * (high - low)
    if known_once:
        finals = areas = np.array([run.y[0] for run in runs])
    else:
        finals = np.array([stats.area(run.x[axis], run.y, start, high) for run in runs])
        areas = np.array([stats.area(run.x[axis], run.y, low, high) for run in runs])
    ends = stats.iqm_interval([finals[:, None]], replicates=10_000) if len(runs) > 1 else None
    interval = (float(ends[0][0]), float(ends[1][0])) if ends else None
    reached, to_reach = None, {}
    if threshold is not None:
        reached = sum(bool((run.y >= threshold).any()) for run in runs)
        for name in AXES:
            firsts = [stats.first_reach(run.x[name], run.y, threshold) for run in runs if name in run.x]
            to_reach[name] = statistics.median(firsts) if len(firsts) == len(runs) else math.nan  # of inf too
    return Group(label, runs, finals, areas, float(stats.iqm(finals)), interval, reached, to_reach)


def band(runs: Sequence[Run], axis: str, points: int = 200) -> tuple[Array, Array, Array | None, Array | None]:
    """Grid, IQM and its interval (None at n = 1) along the range that these runs cover."""
    low, high = stats.common_range([run.x[axis] for run in runs]) or (math.nan, math.nan)
    grid = np.unique(np.linspace(low, high, points))
    curves = stats.on_grid([(run.x[axis], run.y) for run in runs], grid)
    ends = stats.iqm_interval([curves]) if len(runs) > 1 else (None, None)
    return grid, stats.iqm(curves), *ends


def _reward_threshold(env: str) -> float | None:
    """The return at which Gymnasium calls the environment solved. An id with a module would run its code: None."""
    if ":" in env:
        return None
    import gymnasium

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return gymnasium.spec(env).reward_threshold
        except gymnasium.error.Error:
            return None


def few(comparison: Comparison) -> str | None:
    """A word of caution where a group has few seeds."""
    small = [f"{group.label} (n = {len(group.runs)})" for group in comparison.groups if len(group.runs) < FEW]
    caution = f"caution: under {FEW} seeds in {', '.join(small)}: take intervals and ranks as hints"
    return caution if small else None


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    header = ["group", "n", "final mean", "IQM [95 %]"] + ["area"] * (not comparison.known_once)
    if comparison.threshold is not None:
        header += [f"{axis} to {comparison.threshold:g}" for axis in AXES] + ["reached"]
    rows = []
    for group in comparison.groups:
        cells = [group.label, str(len(group.runs)), number(group.finals.mean())]
        cells += [with_interval(number, group.iqm, group.interval)]
        cells += [number(group.areas.mean())] * (not comparison.known_once)
        if comparison.threshold is not None:
            cells += [duration(group.to_reach[axis], axis) for axis in AXES]
            cells += [f"{group.reached}/{len(group.runs)}"]
        rows.append(cells)
    return header, rows


def leaders(comparison: Comparison) -> list[str]:
    """The group with the highest IQM, and those not told apart from it, whose P(A > B) may be one half."""
    first = max(comparison.groups, key=lambda group: group.iqm).label
    behind = set()
    for pair in comparison.pairs:
        if pair.told_apart and first in (pair.left, pair.right):
            behind.add(pair.right if pair.left == first else pair.left)
    return [group.label for group in comparison.groups if group.label not in behind]


def ranking(comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """Who ends highest, in a word and in a sentence. Groups of few seeds are left out, and named."""
    places: dict[tuple[str, str], list[str]] = {}
    words, left_out = [], []
    for whole in comparisons:
        comparison = _of_many(whole)
        small = [group.label for group in whole.groups if group not in comparison.groups]
        left_out += [f"{listing(small)} on {whole.env}"] * bool(small)
        if len(comparison.groups) < 2:
            continue
        first, ahead = max(comparison.groups, key=lambda group: group.iqm), leaders(comparison)
        place = f"{comparison.env} ({with_interval(number, first.iqm, first.interval)})"
        if not any(pair.told_apart for pair in comparison.pairs):
            said = f"{listing(ahead)} cannot be told apart on", ""
        else:
            rest = [label for label in ahead if label != first.label]
            said = f"{first.label} ends highest on", f", not told apart from {listing(rest)}" if rest else ""
        places.setdefault(said, []).append(place)
        words.append(listing(ahead))
    parts = [f"{who} {listing(where)}{beside}" for (who, beside), where in places.items()]
    if left_out:
        parts.append(f"not ranked, with under {FEW} seeds: {'; '.join(left_out)}")
    word = "it depends on the task" if len(set(words)) > 1 else (words or ["not settled"])[0]
    return word, f"{'; '.join(parts) or 'nothing to rank'}."


def _of_many(comparison: Comparison) -> Comparison:
    """The groups of at least FEW seeds."""
    groups = [group for group in comparison.groups if len(group.runs) >= FEW]
    labels = {group.label for group in groups}
    return replace(comparison, groups=groups, pairs=[p for p in comparison.pairs if {p.left, p.right} <= labels])


def overview(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of IQMs, a row per environment and a column per group."""
    labels = list(dict.fromkeys(group.label for comparison in comparisons for group in comparison.groups))
    rows = []
    for c in comparisons:
        low, high = c.range
        ends = [low, high] if c.known_once else [high - LAST * (high - low), high]
        said = {group.label: with_interval(number, group.iqm, group.interval) for group in c.groups}
        seeds = "/".join(dict.fromkeys(str(len(group.runs)) for group in c.groups))
        row = [c.env, " to ".join(duration(end, c.axis) for end in ends), seeds]
        rows.append(row + [said.get(label, "–") for label in labels])
    return ["environment", AXES[comparisons[0].axis], "n", *labels], rows


def chances(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the probabilities of improvement, a row per pair and a column per environment."""
    said = [{row[0]: row[1] for row in pair_table(comparison)[1]} for comparison in comparisons]
    names = list(dict.fromkeys(name for each in said for name in each))
    rows = [[name, *(each.get(name, "–") for each in said)] for name in names]
    return ["P(A > B) [95 %]", *(comparison.env for comparison in comparisons)], rows


def pair_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the probabilities of improvement."""
    said = [with_interval("{:.2f}".format, pair.chance, pair.interval) for pair in comparison.pairs]
    rows = [[f"{pair.left} > {pair.right}", chance] for pair, chance in zip(comparison.pairs, said, strict=True)]
    return ["A > B", "P(A > B) [95 %]"], rows


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """One line per group, unrounded; empty where there is nothing to say, inf for a threshold not reached."""
    rows = []
    for comparison in comparisons:
        for group in comparison.groups:
            low, high = group.interval or (None, None)
            n = len(group.runs)
            rows.append({
                "environment": comparison.env, "group": group.label, "n": n,
                "seeds": " ".join(str(run.config.get("seed")) for run in group.runs),
                "axis": comparison.axis, "from": comparison.range[0], "to": comparison.range[1],
                "final_mean": group.finals.mean(), "final_std": group.finals.std(ddof=1) if n > 1 else None,
                "iqm": group.iqm, "iqm_low": low, "iqm_high": high, "area": group.areas.mean(),
                "threshold": comparison.threshold, "reached": group.reached,
                **{f"{axis}_to_threshold": group.to_reach.get(axis) for axis in AXES},
            })  # fmt: skip
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def title(comparison: Comparison) -> str:
    """What was compared where: the environment, and the part of the axis."""
    low, high = comparison.range
    known = "known once, at " if comparison.known_once else ""
    return f"{comparison.env}, {known}{AXES[comparison.axis]} {low:,.0f} to {high:,.0f}"


def normalised(comparisons: Sequence[Comparison]) -> dict[str, list[Array]]:
    """Label → final scores of its runs, an array (n,) per environment, 0 for the worst run there, 1 for the best.

    Only of groups that every environment has.
    """
    labels = [{group.label for group in comparison.groups} for comparison in comparisons]
    common = [group.label for group in comparisons[0].groups if group.label in set.intersection(*labels)]
    found: dict[str, list[Array]] = {label: [] for label in common}
    for comparison in comparisons:
        finals = np.concatenate([group.finals for group in comparison.groups])
        low, width = finals.min(), np.ptp(finals) or 1.0
        for group in comparison.groups:
            if group.label in found:
                found[group.label].append((group.finals - low) / width)
    return found


def number(value: float) -> str:
    """489.1, -91.3, 0.0523."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def with_interval(show: Callable[[float], str], value: float, interval: tuple[float, float] | None) -> str:
    """489.1 [470.2, 500.0]; the value alone where there is no interval."""
    return show(value) if interval is None else f"{show(value)} [{show(interval[0])}, {show(interval[1])}]"


def duration(value: float, axis: str) -> str:
    """A point of an axis for people: 12,288 steps, 6 updates, 3.1 seconds; - where it is not known."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "not reached"
    return f"{value:,.1f}" if axis == "seconds" else f"{value:,.0f}"
