"""Does the natural gradient step depend on how the policy is written?

A tanh network is written as a sigmoid network, the same function, and both take the step that a batch gives; a
Gaussian's log σ is written as σ, σ² and 1/σ²; and both networks learn, from one function with the same chance.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from invariance_runs import (
    CHOSEN,
    DAMPINGS,
    DELTA,
    EVERY,
    LEARNERS,
    LEARNING_NET,
    SMALL,
    SMALL_NET,
    SPREAD_DELTAS,
    THINNED,
    TINY,
    TUNING_SEEDS,
    jobs,
    rows,
)
from page import Answer, Claim, Table, interval, iqm, number
from reparametrised import SPREADS
from runner import Row, main
from trainings import SEEDS

from rl_natgrad.compare import stats
from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.config.refusals import listing

__all__ = ["answer", "jobs", "rows"]


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    snaps = [row for row in rows if row["kind"] == "step"]
    spread = [row for row in rows if row["kind"] == "spread"]
    learnt = [row for row in rows if row["kind"] == "learn"]
    tuned = [row for row in learnt if row["seed"] in TUNING_SEEDS]
    learnt = [row for row in learnt if row["seed"] in SEEDS]
    envs = list(dict.fromkeys(row["env"] for row in snaps))
    nets = list(dict.fromkeys(row["net"] for row in snaps))
    cells = [cell(snaps, env, net) for env in envs for net in nets]
    lessons = [
        lesson(learnt, env, learner) for env, learner in dict.fromkeys((r["env"], r["learner"]) for r in learnt)
    ]
    slopes = {c: slope(spread, c) for c in SPREADS if c != "log σ"}
    return Answer(
        title="Does the natural step depend on how the policy is written?",
        question="The natural gradient is said not to depend on the parameters that a policy is written in: tanh "
        "or sigmoid units, variance or 1/variance. Of which direction, and of which step, is that true?",
        claims=[
            Claim("Replacing a sigmoid activation with a tanh function would change the standard gradient, but "
                  "not the natural gradient", *replaced(snaps, cells)),
            Claim("Whether a Gaussian's spread is given by its variance or by 1/variance, a natural step covers "
                  "the same distance", *same_distance(spread, slopes)),
        ],
        sentence="\n\n".join([early_stopping(snaps, nets), trade_off(snaps, nets), *taught(lessons, cells)]),
        run=what_was_run(snaps, spread, learnt, tuned, envs, nets),
        tables=tables(snaps, spread, tuned, cells, lessons, slopes, nets),
        plot=partial(draw, snaps, spread, lessons, envs, nets),
        caption="Above: D of the direction against the damping (0 is the SVD, ∞ the plain gradient); the KL of a "
        "step of δ = 0.01, in δs; D of other coordinates of the spread against δ. Solid CartPole, dashed "
        "Pendulum. Below: return averaged over training in both networks, IQM and its interval.",
        oracle=oracle(snaps, slopes, learnt),
        cannot=[
            f"{len(cells)} cells of steps and {len(lessons)} of learning are compared, each with its own "
            "interval, none corrected for their number. Steps have five seeds, too few for fine differences.",
            "One change of activation, which is affine in θ. A map that bends θ costs invariance at every finite "
            "step, as the spread shows.",
            "Where a step has hundreds of nats both policies are nearly certain of their actions, and D of the "
            "step says little; D of the direction has not that weakness.",
            f"Learning is of {LEARNING_NET} and {SMALL_NET} alone; of {THINNED} steps are made from "
            f"{1 / EVERY:.1%} of each batch. The critic is the same tanh network throughout.",
            *unlike_chosen(tuned),
        ],
        literature=[
            "Song, Song & Ermon 2018 (Accelerating natural gradient with higher-order invariance): invariance "
            "needs infinitesimal steps; integrators and geodesic corrections keep more of it at finite ones.",
            "Martens 2020 (New insights and perspectives on the natural gradient method): the method's "
            "invariance is approximate, and some other curvature matrices have it too, but not the Hessian.",
            "van Oostrum, Müller & Ay 2022 (Invariance properties of the natural gradient in overparametrised "
            "systems): what is left of it where there are more parameters than the model needs.",
        ],
        size=(14, 8),
    )  # fmt: skip


def tables(snaps, spread, tuned, cells, lessons, slopes, nets) -> list[Table]:
    """All that is shown as numbers."""
    solvers = dict.fromkeys(row["solver"] for row in snaps)
    two = [f"{net}: {what}" for net in nets for what in ("D", "KL/δ")]
    return [
        Table("The step that is taken", ["environment", "network", "plain gradient", "TRPO's direction",
              "their ratio", "on other states", "after the line search"], [line(c) for c in cells],
              f"D at δ = {DELTA}, CG with 10 iterations and the environment's default damping; IQM over seeds of "
              "the median over snapshots, and its interval. The ratio is TRPO's D over the plain gradient's: "
              "below 1 is nearer to invariance. On other states: of a batch that the step was not made from. "
              "After the line search: between the steps that TRPO takes, where both networks take one."),
        Table("What damping does", ["solver", *two], [damped(snaps, nets, solver) for solver in solvers],
              f"D of the direction (δ → 0), and the KL of the step of δ = {DELTA}, in δs; medians over "
              "environments, snapshots and seeds. g is the plain gradient, CG has the default damping, exact λ "
              "solves (F + λI) d = −g by factoring, λ in units of gᵀFg / gᵀg; pinv (of F) and SVD (of its rows) "
              "are undamped."),
        Table("Other coordinates of the spread", ["coordinate", *(f"D at {d:g}" for d in SPREAD_DELTAS[::2]),
              "slope", f"KL/δ at {SPREAD_DELTAS[0]:g}", f"KL/δ at {DELTA:g}"],
              [coordinate(spread, slopes, c) for c in SPREADS],
              "D against log σ, medians over seeds; slope: of log D against log δ, up to δ = 1e-4."),
        Table("Learning", ["environment", "learner", "network", "tanh", "sigmoid, tanh's size", "lost",
              "sigmoid, its own size"], [learned(found) for found in lessons],
              "Return averaged over training, IQM of seeds and its interval; size: δ or learning rate. Lost: "
              "what the sigmoid network falls short of tanh's at the same size, as a share of what tanh gained "
              "over its first batch, paired by seed; below 0 sigmoid is better; a dash where tanh did not gain "
              "for certain."),
        Table("How the sizes were chosen", ["environment", "learner", "network", "return at each size"],
              tuning(tuned), "Return averaged over training, mean of the seeds "
              f"{listing([str(seed) for seed in TUNING_SEEDS])}; the highest is chosen."),
    ]  # fmt: skip


def values(snaps: Sequence[Row], key: str, **where: Any) -> list[float]:
    """What is there of a column, in the rows that are so."""
    return [row[key] for row in snaps if row[key] is not None and all(row[k] == v for k, v in where.items())]


def by_seed(snaps: Sequence[Row], key: str, **where: Any) -> np.ndarray:
    """Median over a seed's snapshots, a number a seed."""
    seeds = sorted({row["seed"] for row in snaps})
    return np.array([np.median(found) for seed in seeds if (found := values(snaps, key, seed=seed, **where))])


def median(snaps: Sequence[Row], key: str, **where: Any) -> float | None:
    return float(np.median(found)) if (found := values(snaps, key, **where)) else None


def cell(snaps: Sequence[Row], env: str, net: str) -> Row:
    """One network in one environment: D of the default step beside that of the plain gradient."""
    at, key = {"env": env, "net": net}, f"D {DELTA:g}"
    plain, natural = by_seed(snaps, key, solver="g", **at), by_seed(snaps, key, solver="CG 10", **at)
    log = np.log10(natural / plain)
    return at | {
        "plain": plain, "natural": natural, "low": interval(natural)[0], "high": interval(natural)[1],
        "ratio": 10 ** float(stats.iqm(log)),
        "ratio low": 10 ** interval(log)[0], "ratio high": 10 ** interval(log)[1],
        "others": by_seed(snaps, "others", solver="CG 10", **at),
        "searched": by_seed(snaps, "searched", solver="CG 10", **at),
    }  # fmt: skip


INVARIANT = 0.01  # a step is called invariant where D is at most this
EXACT = 1e-8  # and a direction where D is at most this: the rest is rounding
SMALL_NETS = ("[2]", "[4]")


def replaced(snaps: Sequence[Row], cells: Sequence[Row]) -> tuple[str, str]:
    """True of the direction, undamped; and of the step?"""
    worst = max(v for net in SMALL_NETS for v in values(snaps, "D 0", solver="SVD", net=net))
    plain = [c for c in cells if interval(c["plain"])[0] > INVARIANT]
    good = [c for c in cells if c["high"] <= INVARIANT]
    nearer, farther = [c for c in cells if c["ratio high"] < 1], [c for c in cells if c["ratio low"] > 1]
    exact = worst <= EXACT
    verdict = "false" if not exact else "true" if len(good) == len(plain) == len(cells) else "half true"
    natural = [float(stats.iqm(c["natural"])) for c in cells]
    direction = (
        f"Undamped, the natural direction is the same in both networks: D is at most {worst:.0e} for "
        f"{listing(SMALL_NETS)}."
        if exact
        else f"Even undamped the direction of {listing(SMALL_NETS)} differs, D up to {worst:.1g}."
    )
    return verdict, (
        f"{direction} The step that TRPO takes by default is invariant (D ≤ {INVARIANT:g}) in {len(good)} of "
        f"{len(cells)} cells of environment and network: its D is {min(natural):.2g} to {max(natural):.2g}. The "
        f"plain gradient's step changes (D > {INVARIANT:g}) in {len(plain)} of {len(cells)}. TRPO's is nearer to "
        f"invariance than the plain one in {len(nearer)}, farther in {len(farther)}, and not told apart from it "
        f"in {len(cells) - len(nearer) - len(farther)}."
    )


def same_distance(spread: Sequence[Row], slopes: dict[str, float]) -> tuple[str, str]:
    """Whether the realised KL is that of log σ, at the smallest δ and at the default."""
    small, usual = off(spread, SPREAD_DELTAS[0]), off(spread, DELTA)
    verdict = "true" if usual <= 0.01 else "half true" if small <= 0.01 else "false"
    return verdict, (
        f"In the limit of small steps: at δ = {SPREAD_DELTAS[0]:g} the KL that a step realises differs from log "
        f"σ's by at most {small:.2%} in any coordinate, at δ = {DELTA} by up to {usual:.1%}. The new policies "
        f"themselves part as δ to the power {min(slopes.values()):.3f} to {max(slopes.values()):.3f} (½ is what "
        f"theory has for a bent map): D is up to {max(r['D'] for r in spread if r['delta'] == DELTA):.2g} at δ = "
        f"{DELTA}."
    )


def off(spread: Sequence[Row], delta: float) -> float:
    """The largest |KL / KL of log σ − 1| over coordinates, medians over seeds."""
    kl = {c: median(spread, "kl", coordinate=c, delta=delta) for c in SPREADS}
    return max(abs(value / kl["log σ"] - 1) for value in kl.values())


def slope(spread: Sequence[Row], name: str) -> float:
    """Of log D against log δ up to 1e-4, median over seeds."""
    found = []
    for seed in sorted({row["seed"] for row in spread}):
        at = [r for r in spread if r["seed"] == seed and r["coordinate"] == name and r["delta"] < 2e-4]
        found.append(np.polyfit(np.log([r["delta"] for r in at]), np.log([r["D"] for r in at]), 1)[0])
    return float(np.median(found))


def early_stopping(snaps: Sequence[Row], nets: Sequence[str]) -> str:
    """Is it that CG stops early, or that it is damped?"""
    few, many = ([r["D 0"] for r in snaps if r["solver"] == name] for name in ("CG 10", "CG 200"))
    alike = [abs(a / b - 1) <= 0.1 for a, b in zip(few, many, strict=True) if a and b]
    share = float(np.mean(alike))
    blame = (
        "damping breaks it, not early stopping"
        if share >= 0.8
        else "damping and early stopping both break it"
        if share >= 0.2
        else "early stopping breaks it"
    )
    exact = {net: median(snaps, "D 0", solver="SVD", net=net) for net in nets}
    lost = [net for net, D in exact.items() if D is not None and D > INVARIANT]
    found = (
        f"What breaks it? CG with 10 iterations and with 200 have the same D, to a tenth, in {share:.0%} of "
        f"{len(alike)} snapshots: {blame}. Undamped, by the SVD of F's rows, the direction's median D is "
        f"{listing([f'{D:.1g} for {net}' for net, D in exact.items() if D is not None])}."
    )
    return found + (
        f" On {listing(lost)} not even that is invariant: double precision cannot tell F's smallest eigenvalues "
        "from 0, "
        "they must be cut, and which are cut depends on the parameters." if lost else ""
    )  # fmt: skip


def trade_off(snaps: Sequence[Row], nets: Sequence[str]) -> str:
    """Is there a damping at which the step is invariant and the quadratic model holds?"""
    solvers = [s for s in dict.fromkeys(row["solver"] for row in snaps) if s not in ("g", "CG 50", "CG 200")]
    found = []
    for net in nets:
        for solver in solvers:
            D, kl = (median(snaps, key, net=net, solver=solver) for key in ("D 0", "kl"))
            if D is not None and D <= INVARIANT and kl is not None and 0.5 <= kl <= 2:
                found.append(f"{net} with “{solver}”")
    kls = {net: median(snaps, "kl", solver="SVD", net=net) for net in nets}
    kept = [row["accepted"] for row in snaps if row["solver"] == "SVD"]
    said = listing(
        [f"{net} {kl:,.0f}" if kl < 1e5 else f"{net} {kl:.0e}" for net, kl in kls.items() if kl is not None]
    )
    price = (
        f"What invariance costs: undamped, a step meant to have a KL of δ = {DELTA} has, in δs, {said} (medians), "
        f"and TRPO's line search (up to ten times 0.8) finds a step in {sum(kept) / (2 * len(kept)):.0%} of the "
        "cases. "
    )
    pairs = len(nets) * len(solvers)
    if found:
        return price + (
            f"An invariant direction (D ≤ {INVARIANT:g}) whose step has between half and twice its δ is found in "
            f"{len(found)} of {pairs} pairs of network and solver: {listing(found)}."
        )
    return price + (
        f"None of {pairs} pairs of network and solver has both an invariant direction (D ≤ {INVARIANT:g}) and a "
        "step that has between half and twice its δ: here exact invariance and a valid quadratic model exclude "
        "each other. The default damping buys the second with the first."
    )


def lesson(learnt: Sequence[Row], env: str, learner: str) -> Row:
    """What both networks learnt: returns averaged over training, and sigmoid's at its own size."""
    at = [r for r in learnt if (r["env"], r["learner"]) == (env, learner)]
    size, own = CHOSEN.get((env, learner), (DELTA, DELTA))
    series = lambda network, size: sorted(  # noqa: E731
        (r for r in at if r["network"] == network and np.isclose(r["size"], size)), key=lambda r: r["seed"]
    )
    tanh, sigmoid = series("tanh", size), series("sigmoid", size)
    mean = lambda found: np.array([r["mean"] for r in found])  # noqa: E731
    found = {"tanh": mean(tanh), "sigmoid": mean(sigmoid), "retuned": mean(series("sigmoid", own))}
    gains = found["tanh"] - [r["first"] for r in tanh]
    gained = float(np.median(gains)) if interval(gains)[0] > 0 else 0.0
    return found | {
        "env": env, "learner": learner, "net": SMALL_NET if learner in SMALL else LEARNING_NET,
        "size": size, "own": own,
        "lost": (found["tanh"] - found["sigmoid"]) / gained if gained > 0 else None,
        "lost, own": (found["tanh"] - found["retuned"]) / gained if gained > 0 else None,
        "parted": [r["parted"] for r in sigmoid], "updates": sigmoid[0]["updates"],
        "stayed": sum(r["stayed"] for r in tanh) / sum(r["updates"] for r in tanh),
    }  # fmt: skip


def taught(lessons: Sequence[Row], cells: Sequence[Row]) -> list[str]:
    """What it means for learning."""
    usual = [f for f in lessons if f["learner"] in LEARNERS and f["lost"] is not None]
    little = {
        name: [f for f in usual if f["learner"] == name and interval(f["lost"])[1] <= 0.1] for name in LEARNERS
    }
    much = {name: [f for f in usual if f["learner"] == name and interval(f["lost"])[0] > 0.1] for name in LEARNERS}
    verdict = listing([
        f"{name} loses at most a tenth in {len(little[name])} and more than a tenth in {len(much[name])} of "
        f"{sum(f['learner'] == name for f in usual)} environments" for name in LEARNERS
    ])  # fmt: skip
    losses = [f"{f['env']} {f['learner']} {share(f['lost'])}" for f in usual]
    idle = [f"{f['env']} {f['learner']}" for f in lessons if f["learner"] in LEARNERS and f["lost"] is None]
    found = [
        "What it means for learning: from the same function, at the size chosen for tanh, the sigmoid network "
        f"loses this share of tanh's gain: {listing(losses)}. By the intervals {verdict}."
    ]
    trpo = sum(f["learner"] == "TRPO" for f in lessons)
    if len(little["TRPO"]) == trpo and max(c["low"] for c in cells) > INVARIANT:
        found[0] += " So TRPO learns alike in both networks, though its steps in them are not the same."
    if idle:
        found[0] += f" Left out, as tanh's return did not rise for certain: {listing(idle)}."
    if again := [f for f in usual if f["own"] != f["size"]]:
        said = listing([f"{f['env']} {f['learner']} {share(f['lost, own'])}" for f in again])
        found[0] += f" With a size of its own it loses {said}."
    small = {f["learner"]: f for f in lessons if f["learner"] in SMALL}
    return [*found, undamped(*(small[name] for name in SMALL))] if len(small) == len(SMALL) else found


def undamped(damped: Row, exact: Row) -> str:
    """The learner whose step is invariant, beside the same one with damping."""
    low, high = interval(exact["tanh"] - damped["tanh"])
    verdict = "less than" if high < 0 else "more than" if low > 0 else "as much, by the interval, as"
    return (
        f"And an invariant learner? On {SMALL_NET} in {damped['env']}, δ = {DELTA}, undamped and with a search "
        f"that goes on until the measured KL is within δ, {same_curves(exact)}. Its return is "
        f"{iqm(exact['tanh'])} with tanh and {iqm(exact['sigmoid'])} with sigmoid, and {exact['stayed']:.0%} of "
        f"its updates find no step. With the default damping {same_curves(damped)}, and the return is "
        f"{iqm(damped['tanh'])} and {iqm(damped['sigmoid'])}. The invariant learner learns {verdict} the damped "
        "one."
    )


def same_curves(f: Row) -> str:
    """How long the trainings of both networks are the same."""
    ends = [k for k in f["parted"] if k]
    n = len(f["parted"])
    said = f"{n - len(ends)} of {n} pairs of trainings have the same return in every batch"
    return f"{said}; the others part at batch {np.median(ends):.0f} of {f['updates']} (median)" if ends else said


def share(x: np.ndarray | None) -> str:
    """IQM and interval in per cent; a dash where tanh gained nothing."""
    if x is None:
        return "–"
    low, high = interval(x)
    return f"{number(100 * float(stats.iqm(x)))} % [{number(100 * low)}, {number(100 * high)}]"


def what_was_run(snaps, spread, learnt, tuned, envs, nets) -> str:
    seeds = sorted({row["seed"] for row in snaps})
    learners = sorted({row["seed"] for row in learnt})
    tried = max(len({r["size"] for r in tuned if r["learner"] == learner}) for learner in LEARNERS)
    lengths = listing([f"{env} {n:,} steps" for env, n in dict.fromkeys((r["env"], r["steps"]) for r in learnt)])
    return (
        f"Snapshots at updates {listing([str(u) for u in sorted({r['update'] for r in snaps})])} of TRPO's own "
        f"trainings on {listing(envs)}, networks {listing(nets)}, seeds {seeds[0]} to {seeds[-1]}: each policy is "
        "written as a tanh network and, by an affine map of θ, as the sigmoid network that is the same function; "
        "both take the step of each solver from the same batch in double precision. D = √(E KL(π_A ‖ π_B) / E "
        "KL(π_old ‖ π_A)) is how far apart the two new policies are, in lengths of the step: 0 is invariance, 1 "
        f"is as far from each other as from the old one. {THINNED} is looked at on every {EVERY}th sample of its "
        f"batches. The spread: {len({r['seed'] for r in spread})} linear Gaussian policies on Pendulum, undamped. "
        f"Learning: {len(learnt)} trainings, seeds {learners[0]} to {learners[-1]}, in double precision, "
        f"{lengths}; the sigmoid network begins as the tanh network's function, with the same random numbers for "
        f"environments and actions. Sizes were chosen by {len(tuned)} more trainings, {tried} sizes "
        "for each learner and network, on seeds that nothing is reported on."
    )


def line(c: Row) -> list[str]:
    return [c["env"], c["net"], iqm(c["plain"], ".2g"), iqm(c["natural"], ".2g"),
            f"{c['ratio']:.2f} [{c['ratio low']:.2f}, {c['ratio high']:.2f}]", iqm(c["others"], ".2g"),
            iqm(c["searched"], ".2g")]  # fmt: skip


def damped(snaps: Sequence[Row], nets: Sequence[str], solver: str) -> list[str]:
    show = lambda v: "–" if v is None else f"{v:.2g}"  # noqa: E731
    return [solver, *(show(median(snaps, key, net=net, solver=solver)) for net in nets for key in ("D 0", "kl"))]


def coordinate(spread: Sequence[Row], slopes: dict[str, float], name: str) -> list[str]:
    at = [median(spread, "D", coordinate=name, delta=delta) for delta in SPREAD_DELTAS[::2]]
    kl = [median(spread, "kl", coordinate=name, delta=delta) for delta in (SPREAD_DELTAS[0], DELTA)]
    return [
        name,
        *(f"{v:.2g}" for v in at),
        f"{slopes[name]:.4f}" if name in slopes else "–",
        *(f"{v:.4f}" for v in kl),
    ]


def learned(f: Row) -> list[str]:
    own = f"{iqm(f['retuned'])} at {f['own']:g}" if f["own"] != f["size"] else "the same"
    return [
        f["env"],
        f["learner"],
        f["net"],
        f"{iqm(f['tanh'])} at {f['size']:g}",
        iqm(f["sigmoid"]),
        share(f["lost"]),
        own,
    ]


def tuning(tuned: Sequence[Row]) -> list[list[str]]:
    return [
        [env, learner, network, ", ".join(f"{size:g}: {number(value)}" for size, value in scores(
            tuned, env, learner, network).items())]
        for env, learner, network in dict.fromkeys((r["env"], r["learner"], r["network"]) for r in tuned)
    ]  # fmt: skip


def scores(tuned: Sequence[Row], env: str, learner: str, network: str) -> dict[float, float]:
    """Mean return over training and tuning seeds, by size."""
    at = [r for r in tuned if (r["env"], r["learner"], r["network"]) == (env, learner, network)]
    return {
        size: float(np.mean([r["mean"] for r in at if r["size"] == size]))
        for size in sorted({r["size"] for r in at})
    }


def unlike_chosen(tuned: Sequence[Row]) -> list[str]:
    """Says so where the sizes that were used are not the best of the tuning, or its best is at an edge."""
    found = []
    for env, learner in dict.fromkeys((r["env"], r["learner"]) for r in tuned):
        for network, used in zip(("tanh", "sigmoid"), CHOSEN[env, learner], strict=True):
            at = scores(tuned, env, learner, network)
            best = max(at, key=at.__getitem__)
            if not np.isclose(best, used):
                found.append(
                    f"{env}, {learner}, {network}: {used:g} was used, though {best:g} did best in tuning."
                )
            if best in (min(at), max(at)):
                found.append(
                    f"{env}, {learner}, {network}: the best size tried, {best:g}, is at the edge of the grid."
                )
    return found


def oracle(snaps: Sequence[Row], slopes: dict[str, float], learnt: Sequence[Row]) -> str:
    same = max(values(snaps, "same", solver="g"))
    worst = {key: max(v for net in SMALL_NETS for v in values(snaps, key, solver="SVD", net=net))
             for key in ("D 0", f"D {TINY:g}", f"D {DELTA:g}", "others")}  # fmt: skip
    first: dict[tuple, set] = {}
    for r in learnt:
        first.setdefault((r["env"], r["learner"] in SMALL, r["seed"]), set()).add(f"{r['first']:.5g}")
    alike = sum(len(found) == 1 for found in first.values())
    return (
        f"Both networks are the same function: their outputs differ by at most {same:.0e} of the largest "
        "(expected 1e-15). For an affine map the undamped step is invariant at every length: the worst D of "
        f"{listing(SMALL_NETS)} is {worst['D 0']:.0e} of the direction, {max(worst.values()):.0e} at any δ and on "
        "other states (expected under 1e-8: rounding times the condition number). For a bent map log D rises "
        f"with log δ by a slope of ½: {listing([f'{c} {v:.4f}' for c, v in slopes.items()])}. Both networks' first "
        f"batches have the same return for {alike} of {len(first)} seeds (expected all)."
    )


def draw(snaps: Sequence[Row], spread: Sequence[Row], lessons: Sequence[Row], envs, nets, figure) -> None:
    panels = figure.subplot_mosaic("AABBCC;DDDEEE")
    at = {"SVD": 1e-11, **{f"exact {lam:g}": lam for lam in DAMPINGS}, "g": 10.0}
    for panel, key in ((panels["A"], "D 0"), (panels["B"], "kl")):
        for net, colour, mark in zip(nets, COLOURS, "ovsD", strict=False):
            for env, dash in zip(envs, ("-", "--"), strict=False):
                found = {x: median(snaps, key, env=env, net=net, solver=name) for name, x in at.items()}
                points = sorted((x, max(y, 1e-16)) for x, y in found.items() if y is not None)
                panel.plot(*zip(*points, strict=True), dash, marker=mark, color=colour, markersize=4,
                           label=net if env == envs[0] else None)  # fmt: skip
        panel.set(xscale="log", yscale="log", xlabel="damping λ, in units of gᵀFg / gᵀg")
        panel.set_xticks([1e-11, *DAMPINGS, 10], ["0", *(f"{lam:.0e}" for lam in DAMPINGS), "∞"], fontsize="small")
        panel.minorticks_off()
    panels["A"].set_ylabel("D of the direction, tanh against sigmoid")
    panels["B"].set_ylabel(f"KL realised at δ = {DELTA:g}, in δs")
    panels["B"].axhline(1, color="0.6", linewidth=0.8)
    panels["A"].legend(frameon=False, fontsize="small", title="network", loc="lower right")
    for name, colour, mark in zip((c for c in SPREADS if c != "log σ"), COLOURS, "ovs", strict=False):
        D = [median(spread, "D", coordinate=name, delta=delta) for delta in SPREAD_DELTAS]
        panels["C"].plot(SPREAD_DELTAS, D, mark, color=colour, label=name, markersize=5)
    start = median(spread, "D", coordinate="σ", delta=SPREAD_DELTAS[0]) / 2
    panels["C"].plot(
        SPREAD_DELTAS, [start * (d / SPREAD_DELTAS[0]) ** 0.5 for d in SPREAD_DELTAS], color="0.4", label="slope ½"
    )
    panels["C"].set(xscale="log", yscale="log", xlabel="δ, nats", ylabel="D against log σ")
    panels["C"].legend(frameon=False, fontsize="small")
    for name, env in zip("DE", [*envs, None], strict=False):
        if env is None:
            panels[name].axis("off")
            continue
        returns(panels[name], [f for f in lessons if f["env"] == env])
        panels[name].set(title=env, ylabel="return averaged over training")


def returns(panel, lessons: Sequence[Row]) -> None:
    series = {"tanh": "tanh", "sigmoid": "sigmoid, tanh's size", "retuned": "sigmoid, its own size"}
    for (key, label), shift, colour, mark in zip(series.items(), (-0.2, 0, 0.2), COLOURS, "osv", strict=False):
        middle = np.array([float(stats.iqm(f[key])) for f in lessons])
        ends = np.array([interval(f[key]) for f in lessons]).T
        panel.errorbar(np.arange(len(lessons)) + shift, middle, np.abs(ends - middle), fmt=mark, color=colour,
                       label=label, capsize=3, markersize=5)  # fmt: skip
    panel.set_xticks(range(len(lessons)), [f"{f['learner']}\n{f['net']}" for f in lessons])
    panel.margins(y=0.25)
    panel.legend(frameon=False, fontsize="small", loc="upper center", ncol=3)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
