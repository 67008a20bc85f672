"""Direction or length: which of them keeps a policy from collapsing?

Every direction (g, F⁻¹g) with every length (a fixed rate; the radius at which KL = δ; the same and a line search),
over five sizes of each, and Adam. Nothing is tuned: every size is reported.
"""

import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
from page import Answer, Claim, Table, iqm, number
from runner import Row, main
from trainings import SEEDS, smooth, updates

from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.compare.stats import improvement, wilson
from rl_natgrad.compare.stats import iqm as interquartile
from rl_natgrad.config.refusals import listing

RADII = ("0.001", "0.01", "0.1", "1", "10")
RULES = {  # what is printed: the words of a command, the key that sets the length, its sizes
    "g, rate": (["algo=pg", "optimizer=sgd"], "optimizer.lr", ("0.01", "0.1", "1", "10", "100")),
    "g, KL": (["algo=npg", "solver=identity"], "algo.delta", RADII),
    "g, KL, search": (["algo=trpo", "solver=identity"], "algo.delta", RADII),
    "F⁻¹g, rate": (["algo=npg"], "algo.lr", ("0.01", "0.1", "1", "10", "100")),
    "F⁻¹g, KL (NPG)": (["algo=npg"], "algo.delta", RADII),
    "F⁻¹g, KL, search (TRPO)": (["algo=trpo"], "algo.delta", RADII),
    "Adam": (["algo=pg", "optimizer=adam"], "optimizer.lr", ("0.0001", "0.001", "0.01", "0.1", "1")),
}
STEPS = {"CartPole": 60_000, "Pendulum": 100_000}
SMALL = 0.01  # nats: an update below it is called small
USUAL = 0.01  # nats: δ of the TRPO paper, and the default
HALF = 0.5  # of what a training had gained; one that loses more has collapsed


def jobs(smoke: bool) -> list[Row]:
    """A training each."""
    steps = {"CartPole": 10_000} if smoke else STEPS
    seeds = SEEDS[:2] if smoke else SEEDS
    return [
        {"env": env, "rule": rule, "size": size, "seed": seed, "steps": steps[env]}
        for env in steps for seed in seeds for rule, (_, _, sizes) in RULES.items()
        for size in sizes[env != "CartPole" :]  # the smallest, which hardly learns there, serves the oracle
    ]  # fmt: skip


def rows(job: Row) -> list[Row]:
    """How high the training came, how far it fell, and how far its updates went."""
    words, key, _ = RULES[job["rule"]]
    found = list(updates(*words, f"{key}={job['size']}", f"env={job['env']}", f"seed={job['seed']}",
                         f"total_steps={job['steps']}"))  # fmt: skip
    taken = [log for _, log in found if log["policy/step_norm"] > 0]
    kl = [log["policy/kl"] for log in taken]
    ratio = [log["policy/kl"] / log["policy/kl_predicted"] for log in taken if log.get("policy/kl_predicted")]
    median = lambda values: float(np.median(values)) if values else None  # noqa: E731
    return [rise_and_fall([r for r, _ in found]) | {
        "kl": median(kl), "kl_max": max(kl, default=None), "kl_ratio": median(ratio),
        "stayed": 1 - len(taken) / len(found), "finished": found[-1][1]["step"] >= job["steps"],
    }]  # fmt: skip


def rise_and_fall(returns: Sequence[float | None]) -> Row:
    """Where a training began (the first batch, of a random policy), its best mean of three batches, its end, and how
    far it fell from a best, all as returns."""
    curve, start = smooth(returns), next(r for r in returns if r is not None)
    fallen = (np.maximum.accumulate(curve) - curve).max()
    return {"start": start, "best": float(curve.max()), "end": float(curve[-1]), "mean": float(curve.mean()),
            "fallen": float(fallen)}  # fmt: skip


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    envs = list(dict.fromkeys(row["env"] for row in rows))
    learned = {env: learning(rows, env) for env in envs}
    rows = [row | {"fall": fall(row, *learned[row["env"]])} for row in rows]
    rows = [row | {"collapsed": row["fall"] is not None and row["fall"] > HALF} for row in rows]
    cells = [group(rows, env, rule, size) for env in envs for rule in RULES for size in sizes(rows, env, rule)]
    trpo = [r for r in rows if "TRPO" in r["rule"]]
    over = [r for r in trpo if r["kl_max"] is not None and r["kl_max"] > float(r["size"]) * (1 + 1e-9)]
    small = [c for c in cells if c["kl"] is not None and c["kl"] <= SMALL]
    quiet = [c for c in small if c["collapsed"] == 0]
    first = lambda kind: {env: radius(cells, env, kind) for env in envs}  # noqa: E731
    npg, trpo_first = first("F⁻¹g, KL (NPG)"), first("F⁻¹g, KL, search (TRPO)")
    best = {env: {d: best_of(cells, env, d) for d in ("g", "F", "A")} for env in envs}
    return Answer(
        title="Direction or length: what keeps a policy from collapsing?",
        question="The natural gradient turns the gradient, and its KL radius sizes the step. Which of the two, or the "
        "line search after them, keeps a policy from collapsing, and which makes it learn?",
        claims=[
            Claim("The natural gradient is worth having for direct control of movement in the space of predicted "
                  "distributions", *control(best, envs)),
            Claim("TRPO avoids catastrophic collapse", *avoids(cells, envs)),
        ],
        sentence=sentence(cells, npg, trpo_first, envs),
        run=f"{len(rows)} trainings: {listing([f'{env} for {steps(rows, env):,} steps' for env in envs])}, seeds "
        f"{seeds(rows)}, the defaults but for the rule and its size. A return is the mean of a batch's own episodes; a "
        "training's curve is its means over three batches. Its gain is from a random policy's return to its own best; "
        "it has *collapsed* where it fell from a best by more than half of that gain. What gained less than a quarter of "
        "what the best training of all did has not learned, and is not called collapsed. "
        f"{sum(not row['finished'] for row in rows)} trainings ended early, as ten updates in a row were not finite; "
        "their end is their last three batches.",
        tables=[Table(f"{env}", ["rule", "size", "median KL of an update", "collapsed", "deepest fall / gain", "end, IQM"],
                      [line(c) for c in cells if c["env"] == env]) for env in envs],
        plot=partial(draw, cells, envs),
        caption="Above, the return at the end, below, the share of trainings that collapsed, both against the KL of the "
        "median update: one axis for rules whose sizes are rates and radii.",
        oracle=f"TRPO's measured KL is above δ in {len(over)} of {len(trpo)} trainings (expected 0). Measured over "
        f"predicted KL, median of NPG's updates: {ratios(rows)}: it goes to 1 as δ goes to 0, as a quadratic model's "
        f"must. Of the {len(small)} cells whose median update is at most {SMALL} nats, {len(quiet)} have no "
        "collapse at all.",
        cannot=[
            f"{len(cells)} cells are shown, each with its own interval and none corrected for their number; neighbouring "
            "sizes that agree say more than one cell.",
            f"Small networks, {listing(envs)} alone, one batch size (2,048), no decay of rate or radius. Adam restarts nothing after "
            "a bad step, and is one of many first-order methods; results/optimizers has the others.",
            "A collapse is defined by a threshold (half). The deepest falls are in data.csv for another one.",
        ],
        literature=[
            "Kakade 2001 (A natural policy gradient): the direction with a fixed rate.",
            "Schulman et al. 2015 (Trust region policy optimization), appendix C: radius and search.",
            "Peters & Schaal 2008 (Natural actor-critic): the rate of a natural step set by a bound on the KL.",
        ],
        size=(4.6 * len(envs), 7.6),
    )  # fmt: skip


def learning(rows: Sequence[Row], env: str) -> tuple[float, float]:
    """A random policy's return, and the best that any training reached."""
    inside = [row for row in rows if row["env"] == env]
    return float(np.median([row["start"] for row in inside])), max(row["best"] for row in inside)


def fall(row: Row, random: float, top: float) -> float | None:
    """The deepest fall as a share of all that the training gained over a random policy; None where it gained less
    than a quarter of what there was to gain, and so had nothing to lose."""
    gained = row["best"] - random
    return row["fallen"] / gained if gained >= (top - random) / 4 else None


def sizes(rows: Sequence[Row], env: str, rule: str) -> list[float]:
    return sorted({row["size"] for row in rows if (row["env"], row["rule"]) == (env, rule)})


def group(rows: Sequence[Row], env: str, rule: str, size: float) -> Row:
    """One cell: ten seeds."""
    inside = [row for row in rows if (row["env"], row["rule"], row["size"]) == (env, rule, size)]
    kls = [row["kl"] for row in inside if row["kl"] is not None]
    ends = np.array([row["end"] for row in inside])
    return {
        "env": env, "rule": rule, "size": size, "n": len(inside), "ends": ends, "end": float(interquartile(ends)),
        "collapsed": sum(row["collapsed"] for row in inside),
        "fall": max((row["fall"] for row in inside if row["fall"] is not None), default=None),
        "kl": float(np.median(kls)) if kls else None,
    }  # fmt: skip


def radius(cells: Sequence[Row], env: str, rule: str) -> str:
    """The smallest δ at which more than a tenth of the trainings collapse."""
    found = [c["size"] for c in cells if (c["env"], c["rule"]) == (env, rule) and c["collapsed"] > c["n"] / 10]
    return f"{min(found):g}" if found else "no δ tried"


def best_of(cells: Sequence[Row], env: str, direction: str) -> Row:
    """The cell of a direction (first letter of its rule) with the highest end."""
    return max((c for c in cells if c["env"] == env and c["rule"][0] == direction), key=lambda c: c["end"])


def control(best: dict[str, dict[str, Row]], envs: Sequence[str]) -> tuple[str, str]:
    """Is it the length that counts? Where the plain direction at its best length ends as high as the natural one."""
    alike = [env for env in envs if overlap(best[env]["g"], best[env]["F"])]
    said = listing([f"{env} at {number(best[env]['g']['end'])} and {number(best[env]['F']['end'])}" for env in envs])
    verdict = "true" if len(alike) == len(envs) else "false" if not alike else "half true"
    return verdict, (
        "With the same control of the KL, the direction decides: at the best length of either, the plain and the natural "
        f"gradient end {said} (IQM)." if alike != list(envs) else
        f"With the same control of the KL the direction does not matter: they end {said} (IQM)."
    )


def overlap(a: Row, b: Row) -> bool:
    """Whether the 95 % interval of P(a run of b ends above one of a) holds a half."""
    _, (low, high) = improvement(b["ends"], a["ends"])
    return low <= 0.5 <= high


def avoids(cells: Sequence[Row], envs: Sequence[str]) -> tuple[str, str]:
    """TRPO's collapses at the δ of its paper and below, and above, beside those of rules without its search."""
    def count(rules: Sequence[str], low: float, high: float) -> tuple[int, int]:
        inside = [c for c in cells if c["rule"] in rules and low <= c["size"] <= high]
        return sum(c["collapsed"] for c in inside), sum(c["n"] for c in inside)

    def rate(k: int, n: int) -> str:
        return f"{k} of {n} [{wilson(k, n)[0]:.0%}, {wilson(k, n)[1]:.0%}]"

    trpo, npg, plain = ["F⁻¹g, KL, search (TRPO)"], ["F⁻¹g, KL (NPG)"], ["g, KL", "g, KL, search"]
    small, middle, large = count(trpo, 0, USUAL), count(trpo, 0.1, 0.1), count(trpo, 1, 10)
    never = small[0] + middle[0] + large[0] == 0
    verdict = "true" if never else "half true" if small[0] == 0 else "false"
    alike = "" if small[0] else (
        f"; nor do NPG, in {rate(*count(npg, 0, USUAL))}, and the plain gradient of the same KL, in "
        f"{rate(*count(plain, 0, USUAL))}: it is the small step that prevents it, not the search"
        if count(npg, 0, USUAL)[0] + count(plain, 0, USUAL)[0] == 0 else "; without the search others do there")
    return verdict, (
        f"It collapses in {rate(*small)} trainings with δ ≤ {USUAL}{alike}. With δ = 0.1 it does in {rate(*middle)}, with "
        f"1 and 10 in {rate(*large)}, NPG in {rate(*count(npg, 0.1, 0.1))} and {rate(*count(npg, 1, 10))} (Wilson intervals)."
    )


def sentence(cells: Sequence[Row], npg: dict[str, str], trpo: dict[str, str], envs: Sequence[str]) -> str:
    """Where trainings end highest, from which δ on they collapse, and how often."""
    where = lambda found: listing([f"{env} {found[env]}" for env in envs])  # noqa: E731
    highest = []
    for env in envs:
        inside = [c for c in cells if c["env"] == env]
        best = max(inside, key=lambda c: c["end"])
        alike = sum(round(c["end"]) == round(best["end"]) for c in inside) - 1
        others = f", as do {alike} other cells" if alike > 1 else ", as does one other cell" if alike else ""
        highest.append(f"{env} at {number(best['end'])} with “{best['rule']}” and {best['size']:g}{others}")
    rate = lambda kind: sum(c["collapsed"] for c in kind) / max(1, sum(c["n"] for c in kind))  # noqa: E731
    natural = [c for c in cells if c["rule"].startswith("F⁻¹g, KL")]
    plain = [c for c in cells if c["rule"].startswith("g, KL")]
    return (
        f"Highest ends {'; '.join(highest)}. The smallest δ at which more than one training in ten collapses is, without a "
        f"search, {where(npg)}; with it, {where(trpo)}. Over all δ {rate(natural):.0%} of the trainings with a natural step "
        f"collapsed, and {rate(plain):.0%} of those with a plain one of the same KL."
    )


def ratios(rows: Sequence[Row]) -> str:
    """Measured over predicted KL at each δ."""
    found = {}
    for row in rows:
        if "NPG" in row["rule"] and row["kl_ratio"] is not None:
            found.setdefault(row["size"], []).append(row["kl_ratio"])
    return ", ".join(f"{np.median(v):.2f} at δ = {size:g}" for size, v in sorted(found.items(), reverse=True))


def line(cell: Row) -> list[str]:
    low, high = wilson(cell["collapsed"], cell["n"])
    return [cell["rule"], f"{cell['size']:g}", "–" if cell["kl"] is None else f"{cell['kl']:.2g}",
            f"{cell['collapsed']} of {cell['n']} [{low:.0%}, {high:.0%}]",
            "–" if cell["fall"] is None else f"{cell['fall']:.2f}",
            iqm(cell["ends"])]  # fmt: skip


def steps(rows: Sequence[Row], env: str) -> int:
    return next(row["steps"] for row in rows if row["env"] == env)


def seeds(rows: Sequence[Row]) -> str:
    found = sorted({row["seed"] for row in rows})
    return f"{found[0]} to {found[-1]}"


def draw(cells: Sequence[Row], envs: Sequence[str], figure) -> None:
    panels = figure.subplots(2, len(envs), squeeze=False, sharex="col")
    marks = dict(zip(RULES, "ovsovsD", strict=True))
    for column, env in zip(panels.T, envs, strict=True):
        for colour, rule in zip(COLOURS, RULES, strict=True):
            inside = [c for c in cells if (c["env"], c["rule"]) == (env, rule) and c["kl"]]
            for panel, key in zip(column, ("end", "share"), strict=True):
                y = [c["end"] if key == "end" else c["collapsed"] / c["n"] for c in inside]
                panel.plot([c["kl"] for c in inside], y, marker=marks[rule], color=colour, label=rule, markersize=4,
                           linewidth=1.2, linestyle="-" if rule[0] == "F" else "--")  # fmt: skip
                panel.set_xscale("log")
        column[0].set_title(env)
        column[1].set_xlabel("median KL of an update, nats")
    panels[0, 0].set_ylabel("return at the end, IQM")
    panels[1, 0].set_ylabel("share of trainings that collapsed")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
