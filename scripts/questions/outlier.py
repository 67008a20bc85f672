"""One bad batch: what a single wrong reward does to an update, and to what follows.

A training stops in its middle and goes on twice from the same state, once with one reward of one batch × 1,000.
"""

import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from page import Answer, Claim, Table, interval, iqm
from runner import Row, main
from trainings import SEEDS

from rl_natgrad import Training
from rl_natgrad.compare import stats
from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.config.refusals import listing
from rl_natgrad.training import iteration, state

FACTOR = 1000.0
BEFORE = {"CartPole": 8, "Pendulum": 15}  # updates before the bad batch
AFTER = 10
DELTA = 0.01
LEARNERS = {  # what is printed: the words of a command, the key of its rate
    "SGD": (["algo=pg", "optimizer=sgd"], "optimizer.lr"),
    "Adam": (["algo=pg", "optimizer=adam"], "optimizer.lr"),
    "NPG, rate": (["algo=npg"], "algo.lr"),
    "NPG": (["algo=npg"], None),
    "TRPO": (["algo=trpo"], None),
}
FIRST_ORDER = ("SGD", "Adam")
RADIUS = ("NPG", "TRPO")
RATES = {  # (task, normalised) → rates at which the median update is near DELTA, on seed 1000
    ("CartPole", True): {"SGD": 0.3, "Adam": 0.01, "NPG, rate": 1.0},
    ("CartPole", False): {"SGD": 0.1, "Adam": 0.01, "NPG, rate": 0.1},
    ("Pendulum", True): {"SGD": 1.0, "Adam": 0.01, "NPG, rate": 1.0},
    ("Pendulum", False): {"SGD": 0.03, "Adam": 0.01, "NPG, rate": 0.03},
}


def jobs(smoke: bool) -> list[Row]:
    """A training and its two ways on each."""
    return [
        {"env": env, "learner": learner, "normalized": normalized, "seed": seed}
        for seed in (SEEDS[:3] if smoke else SEEDS)
        for env in (["CartPole"] if smoke else BEFORE) for normalized in (True, False) for learner in LEARNERS
    ]  # fmt: skip


def rows(job: Row) -> list[Row]:
    """KL of the update on the bad batch and of its twin, the KL usual before it, and returns after both."""
    words, key = LEARNERS[job["learner"]]
    words = [*words, f"env={job['env']}", f"seed={job['seed']}", "total_steps=1_000_000",
             f"algo.normalize_adv={str(job['normalized']).lower()}"]  # fmt: skip
    if key:
        words += [f"{key}={RATES[job['env'], job['normalized']][job['learner']]}"]
    else:
        words += [f"algo.delta={DELTA}"]
    with Training(*words) as run:
        before = [update(run) for _ in range(BEFORE[job["env"]])]
        begun = state.of(run)
    (plain, theta), (bad, moved), (_, same) = (
        branch(words, begun, factor, updates)
        for factor, updates in ((None, AFTER + 1), (FACTOR, AFTER + 1), (1.0, 1))
    )
    usual = float(np.median([kl for _, kl in before[len(before) // 2 :]]))
    late = lambda found, part: mean([r for r, _ in found[part]])  # noqa: E731
    first, second = slice(1, 1 + AFTER // 2), slice(1 + AFTER // 2, None)  # the bad batch came before its update
    turned = torch.nn.functional.cosine_similarity(theta, moved, 0)
    return [{
        "usual": usual, "twin": plain[0][1], "kl": bad[0][1],
        "cosine": float(turned), "unchanged": bool((theta == same).all()),
        "random": before[0][0], "before": late([*before, plain[0]], slice(-3, None)),
        "first_plain": late(plain, first), "first_bad": late(bad, first),
        "second_plain": late(plain, second), "second_bad": late(bad, second),
    }]  # fmt: skip


def branch(words: Sequence[str], begun: dict, factor: float | None, updates: int) -> tuple[list, torch.Tensor]:
    """So many updates from a state, one reward of the first batch times factor; and that update's step (P,)."""
    with Training(*words) as run:
        state.load(run, begun)
        found, theta = [update(run, factor)], run.policy.theta - begun["policy"]["theta"]
        return found + [update(run) for _ in range(updates - 1)], theta


def update(run: iteration.Training, factor: float | None = None) -> tuple[float | None, float]:
    """(mean return of the batch's episodes, KL of the update); a factor changes one reward of the batch.

    The returns are those before the change: it is what the learner sees, not what happened.
    """
    collect = run.collector.collect
    kept = []

    def changed(policy):
        kept.append(collect(policy))
        if factor is not None:
            at = np.argwhere(kept[0].valid)
            t, b = at[np.random.default_rng(run.cfg.seed).integers(len(at))]
            kept[0].reward[t, b] *= factor
        return kept[0]

    run.collector.collect = changed
    log = run.iterate()
    run.collector.collect = collect
    return (float(np.mean(kept[0].returns)) if kept[0].returns else None), log.get("policy/kl", 0.0)


def mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    envs = list(dict.fromkeys(row["env"] for row in rows))
    cells = [group(rows, env, normalized, learner)
             for env in envs for normalized in (True, False) for learner in LEARNERS]  # fmt: skip
    radius = [c for c in cells if c["learner"] in RADIUS]
    over = sum(row["kl"] > DELTA * (1 + 1e-6) for row in rows if row["learner"] == "TRPO")
    trpo = sum(row["learner"] == "TRPO" for row in rows)
    harmed = [c for c in cells if c["harm"][1] < 0]
    return Answer(
        title="What does one bad batch do?",
        question="One reward of one batch is a thousand times too large. How far does the update on it go, beside "
                 "the "
        "usual one, and what does it cost? Does a bound on the KL protect a policy from it?",
        claims=[
            Claim("Outliers may make drastic changes", *drastic(cells)),
            Claim("With the natural gradient, a single update can't make too much of an impact",
                  *protected(cells, over, trpo)),
        ],
        sentence=sentence(cells, harmed),
        run=f"{len(rows)} trainings on {listing(envs)}, seeds {min(r['seed'] for r in rows)} to "
        f"{max(r['seed'] for r in rows)}, batches of 2,048 steps: "
        f"{listing([f'{BEFORE[e]} updates on {e}' for e in envs])}, then the state is copied, and {AFTER + 1} more "
        "updates are made twice: as they are, and with one reward of the first of these batches (a random step, "
        f"the same for all learners of a seed) times {FACTOR:,.0f}. The learner sees that reward, in advantages "
        "and in the critic's targets; the returns reported leave it out. *Relative KL*: that of the update on "
        f"the bad batch over the one on the same batch as it was. δ is {DELTA}; the rates are those at which the "
        f"usual update of seed 1000 is nearest to {DELTA} nats, in steps of half a decade, so that all learners "
        "usually go about as far (the tables say how far). Advantages are normalised per batch, or raw.",
        tables=[
            Table(f"{env}, advantages {'normalised' if normalized else 'raw'}",
                  ["learner", "usual KL, median", "relative KL, IQM", "cosine of the two steps, IQM",
                   f"return of the next {AFTER // 2} batches, undisturbed − random", "change of it",
                   f"change in the {AFTER // 2} after these"],
                  [line(c) for c in cells if (c["env"], c["normalized"]) == (env, normalized)])
            for env in envs for normalized in (True, False)
        ],
        plot=partial(draw, cells, envs),
        caption="KL of the update on the bad batch relative to the same update undisturbed (left, log scale; 1 is "
                "no "
        "change), and what it changes of the return of the next batches (right; 0 is no change). IQM and 95 % "
        "interval.",
        oracle=f"A factor of 1 gives the parameters of the undisturbed update, bit for bit, in "
        f"{sum(row['unchanged'] for row in rows)} of {len(rows)} trainings (expected all): both ways on start "
        f"from one state. TRPO's KL is above δ in {over} of {trpo} bad updates (expected 0).",
        cannot=[
            f"{len(cells)} cells, each with its own intervals, none corrected for their number; {len(harmed)} of "
            f"the {len(cells)} intervals of the first change of return lie below 0.",
            "One outlier, in one batch, at one time of training. Wrong rewards that come again and again are "
            "another question, and so are outliers in the observations.",
            "The critic learns from the wrong reward too, as it would in earnest; what the returns lose may be "
            "its doing.",
            "The rates are set for an equal usual KL, not for the best learning; SGD learns little at some of "
            "them.",
            f"The {len(radius)} cells with a radius are bounded by construction: what they show is what the bound "
            "is spent on.",
        ],
        literature=[
            "Schulman et al. 2015 (Trust region policy optimization): the bound on the KL.",
            "Kakade 2001 (A natural policy gradient): the natural gradient with a fixed rate.",
        ],
        size=(11, 3.4 * len(envs)),
    )  # fmt: skip


def group(rows: Sequence[Row], env: str, normalized: bool, learner: str) -> Row:
    """One cell: a learner on ten seeds; changes are paired by seed."""
    inside = [row for row in rows if (row["env"], row["normalized"], row["learner"]) == (env, normalized, learner)]
    ratios = np.array([row["kl"] / row["twin"] for row in inside if row["twin"]])
    change = lambda part: np.array([row[f"{part}_bad"] - row[f"{part}_plain"] for row in inside])  # noqa: E731
    gained = np.array([row["first_plain"] - row["random"] for row in inside])
    return {
        "env": env, "normalized": normalized, "learner": learner, "ratios": ratios, "gained": gained,
        "ratio": float(stats.iqm(ratios)), "between": interval(ratios), "harm": interval(change("first")),
        "usual": float(np.median([row["usual"] for row in inside])), "first": change("first"),
        "cosine": np.array([row["cosine"] for row in inside]), "second": change("second"),
    }  # fmt: skip


def drastic(cells: Sequence[Row]) -> tuple[str, str]:
    """Do the learners without a bound go much further than usual?"""
    free = [c for c in cells if c["learner"] not in RADIUS]
    far, less = [c for c in free if c["between"][0] > 10], [c for c in free if c["between"][1] < 1]
    verdict = "true" if len(far) > len(free) / 2 else "half true" if far else "false"
    words = [f"{name(c)} {c['ratio']:.3g} times" for c in free]
    return verdict, (
        f"Without a bound on the KL the bad update goes more than ten times as far as its twin in {len(far)} of "
        f"{len(free)} cells ({listing([name(c) for c in far])}), and less far than it in {len(less)} "
        f"({listing([name(c) for c in less])}): {'; '.join(words)}."
    )


def protected(cells: Sequence[Row], over: int, n: int) -> tuple[str, str]:
    """Is the bound kept, and does a first-order step shrink where the natural one does not?"""
    trpo = [c for c in cells if c["learner"] == "TRPO"]
    pairs = [(c, t) for t in trpo for c in cells if c["learner"] in FIRST_ORDER
             and (c["env"], c["normalized"]) == (t["env"], t["normalized"])]  # fmt: skip
    smaller = [c for c, t in pairs if c["between"][1] < t["between"][0]]
    far = [c for c, t in pairs if c["between"][0] > 2 * t["between"][1]]
    worse = [c for c in cells if c["learner"] in RADIUS and c["harm"][1] < 0]
    if over:
        verdict = "false"
    elif not smaller and not worse:
        verdict = "true"
    elif far:
        verdict = "half true"
    else:
        verdict = "false"
    ratios = listing([f"{t['env']} ({way(t)}) {t['ratio']:.2f}" for t in trpo])
    used = "all of it as ever" if all(t["between"][0] > 0.5 for t in trpo) else "less of it, somewhere"
    cosines = listing([f"{float(stats.iqm(t['cosine'])):.2f}" for t in trpo])
    return verdict, (
        f"TRPO's KL is above δ in {over} of {n} bad updates. It uses {used}: relative to its twin {ratios}, "
        f"along another direction (cosines {cosines}). Relative to their twins, SGD or Adam goes less far than "
        f"TRPO in {len(smaller)} of {2 * len(trpo)} comparisons "
        f"({listing([name(c) for c in smaller])}), and more than twice as far in {len(far)} "
        f"({listing([name(c) for c in far])}). NPG's or TRPO's returns are lower after it in {len(worse)} of "
        f"{2 * len(trpo)} cells ({listing([name(c) for c in worse])})."
    )


def sentence(cells: Sequence[Row], harmed: Sequence[Row]) -> str:
    """Lengths of normalised and plain advantages, and the harm."""
    said = []
    for normalized in (True, False):
        for kind, learners in (("SGD", ("SGD",)), ("Adam", ("Adam",)), ("NPG with a fixed rate", ("NPG, rate",)),
                               ("NPG and TRPO", RADIUS)):  # fmt: skip
            found = [c["ratio"] for c in cells if c["normalized"] == normalized and c["learner"] in learners]
            said.append(f"{kind} {short(min(found))}–{short(max(found))}")
    half = len(said) // 2
    return (
        "KL of the bad update over its twin's, lowest to highest cell, with normalised advantages: "
        f"{listing(said[:half])}; with raw advantages: {listing(said[half:])}. The next {AFTER // 2} batches return "
        f"less than they would have in {len(harmed)} of {len(cells)} "
        f"cells{': ' + listing([name(c) for c in harmed]) if harmed else ''}."
    )


def name(cell: Row) -> str:
    return f"{cell['learner']} on {cell['env']} ({way(cell)})"


def way(cell: Row) -> str:
    return "normalised" if cell["normalized"] else "raw"


def line(cell: Row) -> list[str]:
    return [cell["learner"], f"{cell['usual']:.2g}", iqm(cell["ratios"], ".3g"), iqm(cell["cosine"], ".2f"),
            iqm(cell["gained"]), iqm(cell["first"], "+,.0f"), iqm(cell["second"], "+,.0f")]  # fmt: skip


def short(ratio: float) -> str:
    """0.048, 8.4, 170."""
    return f"{ratio:.0f}" if ratio >= 99.5 else f"{ratio:.2g}"


def draw(cells: Sequence[Row], envs: Sequence[str], figure) -> None:
    panels = figure.subplots(len(envs), 2, squeeze=False)
    y = np.arange(len(LEARNERS))
    for (left, right), env in zip(panels, envs, strict=True):
        for normalized, colour, mark, shift in ((True, COLOURS[0], "o", 0.15), (False, COLOURS[1], "s", -0.15)):
            inside = [c for c in cells if (c["env"], c["normalized"]) == (env, normalized)]
            label = f"advantages {'normalised' if normalized else 'raw'}"
            for panel, middle, ends in (
                (left, [c["ratio"] for c in inside], [c["between"] for c in inside]),
                (right, [float(stats.iqm(c["first"])) for c in inside], [c["harm"] for c in inside]),
            ):
                spread = np.abs(np.array(ends).T - np.array(middle))
                panel.errorbar(middle, y + shift, xerr=spread, fmt=mark, color=colour, label=label, capsize=2)
        for panel, neutral in ((left, 1), (right, 0)):
            panel.axvline(neutral, color="0.6", linewidth=0.8)
            panel.set_yticks(y, list(LEARNERS))
            panel.invert_yaxis()
            panel.set_title(env)
        left.set_xscale("log")
        left.set_xlabel("KL of the bad update / KL of its twin")
        right.set_xlabel(f"change of the return of the next {AFTER // 2} batches")
    panels[0, 1].legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
