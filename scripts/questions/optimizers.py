"""First-order optimizers: how wide is the range of rates at which each of them learns?

Nothing is tuned: every rate is reported. TRPO's δ stands beside the rates, on the axis that they share: the KL of
an update.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from page import Answer, Claim, Table, iqm, number
from runner import Row, main
from trainings import SEEDS, updates

from rl_natgrad.compare import stats
from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.config.refusals import listing
from rl_natgrad.optim import first_order

STEPS = {"CartPole": 40_000}
WARMUP = 5  # updates
EPSILONS = (1e-4, 1e-2)


def half_decades(first: float) -> tuple[float, ...]:
    """Seven rates from `first` = 10^k or 3·10^k, half a decade apart."""
    return tuple(float(f"{10 ** ((round(2 * np.log10(first)) + k) / 2):.0e}") for k in range(7))


OPTIMIZERS = {  # the first of its rates
    "sgd": 0.03, "momentum": 0.003, "nag": 0.003, "adagrad": 0.003, "adadelta": 0.1, "rmsprop": 0.0003,
    "adam": 0.0003, "radam": 0.003, "adamp": 0.0003,
}  # fmt: skip
NAMES = {
    "sgd": "SGD", "momentum": "momentum", "nag": "NAG", "adagrad": "Adagrad", "adadelta": "Adadelta",
    "rmsprop": "RMSprop", "adam": "Adam", "radam": "RAdam", "adamp": "AdamP", "trpo": "TRPO",
}  # fmt: skip
WARMED = ("adam",)
KEPT = 0.9  # of its best, within a method's range
PAPER = {"adadelta": 1.0}  # Zeiler's method has no rate: a multiplier of 1


def methods() -> dict[str, tuple[list[str], str, tuple[float, ...], Sequence[str]]]:
    """What is run: the words of a command, the key of its size, its sizes, on which tasks."""
    pg = lambda name, *more: ["algo=pg", f"optimizer={name}", *more]  # noqa: E731
    rates = {name: half_decades(first) for name, first in OPTIMIZERS.items()}
    found = {name: (pg(name), "optimizer.lr", rates[name], tuple(STEPS)) for name in OPTIMIZERS}
    for name in WARMED:
        words = pg(name, f"optimizer.warmup={WARMUP}")
        found[f"{name}, warm-up"] = words, "optimizer.lr", rates[name], ("CartPole",)
    for eps in EPSILONS:
        words = pg("adam", f"optimizer.eps={eps:g}")
        found[f"adam, ε {eps:g}"] = words, "optimizer.lr", rates["adam"], ("CartPole",)
    found["trpo"] = ["algo=trpo"], "algo.delta", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), tuple(STEPS)
    return found


def jobs(smoke: bool) -> list[Row]:
    """A rate of a method on a task each."""
    kept = ("sgd", "adagrad", "adadelta", "adam", "radam", "adamp", "adam, ε 0.01", "adam, warm-up", "trpo")
    return [
        {"env": env, "method": method, "size": size, "steps": 8_000 if smoke else STEPS[env],
         "seeds": 2 if smoke else len(SEEDS)}
        for method, (_, _, sizes, envs) in methods().items() if not smoke or method in kept
        for size in (sizes[::2] if smoke else sizes) for env in (envs[:1] if smoke else envs)
    ]  # fmt: skip


def rows(job: Row) -> list[Row]:
    """A training each: mean return over it and at its end, and how far its updates went."""
    words, key, _, _ = methods()[job["method"]]
    found = []
    for seed in SEEDS[: job["seeds"]]:
        given = [*words, f"{key}={job['size']:g}", f"env={job['env']}", f"seed={seed}"]
        returns, kls = [], []
        with projections() as tally:
            for mean, log in updates(*given, f"total_steps={job['steps']}"):
                returns += [mean] if mean is not None else returns[-1:]
                kls.append(log["policy/kl"] if log["policy/step_norm"] > 0 else 0.0)
        third = max(1, len(kls) // 3)
        found.append({
            "seed": seed, "start": returns[0], "mean": float(np.mean(returns)),
            "end": float(np.mean(returns[-max(1, third // 2) :])), "failed": log["step"] < job["steps"],
            "kl": float(np.median(kls)), "kl_first": kls[0],
            "kl_early": float(np.mean(kls[:third])), "kl_late": float(np.mean(kls[-third:])),
            "projected": tally[1] / tally[0] if tally[0] else None,
        })  # fmt: skip
    return found


@contextmanager
def projections() -> Iterator[list[int]]:
    """[AdamP's steps of a weight, those that it made shorter], counted within."""
    tally, tangent = [0, 0], first_order._tangent

    def counted(w, g, p, delta, eps):
        out = tangent(w, g, p, delta, eps)
        tally[0] += 1
        tally[1] += out is not p
        return out

    first_order._tangent = counted
    try:
        yield tally
    finally:
        first_order._tangent = tangent


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    envs = list(dict.fromkeys(row["env"] for row in rows))
    random = {env: float(np.median([row["start"] for row in rows if row["env"] == env])) for env in envs}
    lines = {
        (env, method): curve([r for r in rows if (r["env"], r["method"]) == (env, method)], random[env])
        for env in envs for method in dict.fromkeys(r["method"] for r in rows if r["env"] == env)
    }  # fmt: skip
    top = {env: max(line["best"] for (e, _), line in lines.items() if e == env) for env in envs}
    plain = [m for m in OPTIMIZERS if (envs[0], m) in lines]
    slope = sgd_slope(rows)
    projected = [row["projected"] for row in rows if row["method"] == "adamp" and row["projected"] is not None]
    failed = sum(row["failed"] for row in rows)
    return Answer(
        title="How hard is a learning rate to set?",
        question="Over how many decades of its rate does each first-order optimizer keep what it reaches at its "
                 "best? "
        "How much of that is the size of the step as the policy sees it, its KL?",
        claims=[
            Claim("The learning rate is very hard to set", *hard(lines, envs, plain)),
            Claim("Adagrad stops", *stops(rows, lines, envs)),
            Claim("Adadelta has no rate to set", *no_rate(lines, envs, top, random)),
            Claim("Adam's ε matters much", *epsilon(lines, envs[0])),
            Claim("RAdam and AdamP improve on Adam", *improved(lines, envs)),
        ],
        sentence=sentence(lines, envs, plain, top, random),
        run=f"{len(rows)} trainings: {listing([f'{env} for {steps(rows, env):,} steps' for env in envs])}, seeds "
        f"{min(r['seed'] for r in rows)} to {max(r['seed'] for r in rows)}, a step per batch of 2,048. Each "
        f"optimizer of configs/optimizer at seven rates, half a decade apart; with a warm-up over {WARMUP} "
        f"updates, or with another ε, on {envs[0]} alone; TRPO at six δ. Nothing is chosen: all rates are there. "
        "*Score*: return averaged over training, 0 at a random policy's and 1 at that of the best method and rate "
        f"of the task. *Width*: the decades of the rate, around the best, over which the score keeps {KEPT:.0%} "
        "of its own best; IQM over seeds, lines between the rates, and an interval over resampled seeds. ≥ means "
        "that it reaches an end of what was tried. *In KL*: the same in decades of the median KL of an update. "
        f"{failed} trainings ended because their numbers were no longer finite, and count with what they had "
        "until then.",
        tables=[
            Table(env, ["method", "best rate or δ", "score there", "median KL there", "width, decades of rate or "
                                                                                      "δ",
                        "width, decades of KL", "score at the file's rate"],
                  [row_of(lines[env, m], m, top[env], random[env]) for e, m in lines if e == env])
            for env in envs
        ],
        plot=partial(draw, lines, envs, plain, top, random),
        caption="Score (0 random, 1 the best of all) against the rate or δ, above, and against the median KL of "
                "an update, "
        "below: one axis for all of them. Crosses are TRPO.",
        oracle=f"At small rates the KL of SGD's first update grows as the rate to the power {slope:.2f} (expected "
               "2: the "
        "KL is quadratic). A momentum of 0 gives SGD's bits, and a projection that never triggers gives Adam, by "
        f"test. AdamP projects {np.mean(projected) if projected else 0:.1%} of its steps of a weight (tanh "
        "networks have no scale-invariant weights; the test that it makes is of a chance angle).",
        cannot=[
            f"{len(lines)} widths, each with its own interval, none corrected for their number. The best rate is "
            "the best on the very seeds that are reported, for all methods alike: scores at the best are a little "
            "too high.",
            "One step per batch of 2,048 samples, some twenty to thirty of them: rates for minibatches are "
            "others, and what needs hundreds of steps to show, such as Adagrad's decay or RAdam's first ones, "
            "shows less here.",
            "Half a decade between rates is coarse for widths below one; no schedule of the rate but the warm-up.",
            "Small tanh networks: AdamP is made for layers followed by normalisation, which these don't have.",
        ],
        literature=[
            "Duchi et al. 2011 (Adaptive subgradient methods): Adagrad.",
            "Zeiler 2012 (ADADELTA: an adaptive learning rate method).",
            "Kingma & Ba 2015 (Adam: a method for stochastic optimization).",
            "Liu et al. 2020 (On the variance of the adaptive learning rate and beyond): RAdam.",
            "Heo et al. 2021 (AdamP: slowing down the slowdown for momentum optimizers on scale-invariant "
            "weights).",
        ],
        size=(6.2 * len(envs) + 1.8, 7.6),
    )  # fmt: skip


def curve(rows: Sequence[Row], random: float) -> Row:
    """A method on a task: its rates, mean returns (rates, seeds), best, and the widths of its range."""
    sizes = sorted({row["size"] for row in rows})
    table = lambda key: np.array([  # noqa: E731
        [row[key] for row in sorted(rows, key=lambda r: r["seed"]) if row["size"] == size] for size in sizes
    ])  # fmt: skip
    means, x = table("mean"), np.log10(sizes)
    kl = np.median(table("kl"), 1)
    moved = np.maximum.accumulate(np.log10(np.maximum(kl, 1e-12)))  # a KL that falls again is not read twice
    middle = stats.iqm(means.T)
    at = int(np.argmax(middle))
    rng = np.random.default_rng(0)
    drawn = [means[:, rng.integers(means.shape[1], size=means.shape[1])] for _ in range(500)]
    again = [width(x, stats.iqm(draw.T) - random)[0] for draw in drawn]
    wide, ends = width(x, middle - random)
    return {
        "sizes": sizes, "means": means, "middle": middle, "at": at, "best": float(middle[at]), "kl": kl,
        "width": wide, "ends": ends, "between": tuple(np.quantile(again, (0.025, 0.975))),
        "width_kl": width(moved, middle - random)[0],
    }  # fmt: skip


def width(x: np.ndarray, gained: np.ndarray) -> tuple[float, bool]:
    """The length of x around the best over which KEPT of it is kept, linear between points; is it open-ended?"""
    at, level, length, open_end = int(np.argmax(gained)), KEPT * gained.max(), 0.0, False
    for step in (-1, 1):
        k = at
        while 0 <= k + step < len(x) and gained[k + step] >= level:
            k += step
        length += abs(x[k] - x[at])
        if 0 <= k + step < len(x):
            length += abs(x[k + step] - x[k]) * (gained[k] - level) / (gained[k] - gained[k + step])
        else:
            open_end = True
    return float(length), open_end


def hard(lines: dict, envs: Sequence[str], plain: Sequence[str]) -> tuple[str, str]:
    """The median width over optimizers: below half a decade, between, or a decade and more."""
    middle = {env: float(np.median([lines[env, m]["width"] for m in plain])) for env in envs}
    wide = {key: np.inf if line["ends"] else line["width"] for key, line in lines.items()}
    most = [float(np.median([wide[env, m] for m in plain])) for env in envs]
    verdict = "true" if max(most) < 0.5 else "false" if min(middle.values()) >= 1 else "half true"
    said = [f"{value:.2f} decades of its rate on {env} (TRPO's δ: {shown(lines[env, 'trpo'])})"
            for env, value in middle.items()]
    each = [f"{env}: {listing([f'{NAMES[m]} {shown(lines[env, m])}' for m in plain])}" for env in envs]
    return verdict, (
        f"The median optimizer keeps {KEPT:.0%} of its best over {listing(said)}. {'; '.join(each)}. "
        "Called very hard below half a decade (a factor of 3), where no ≥ could change that, not hard from a "
        "whole one."
    )


def shown(line: Row) -> str:
    low, high = line["between"]
    return f"{'≥ ' if line['ends'] else ''}{line['width']:.2f} [{low:.2f}, {high:.2f}]"


def stops(rows: Sequence[Row], lines: dict, envs: Sequence[str]) -> tuple[str, str]:
    """Late over early KL of an update at the best rate, beside SGD's; does it end below the best method?"""
    falls, said, behind = {}, [], []
    for env in envs:
        for method in ("adagrad", "sgd"):
            size = best_size(lines[env, method])
            inside = [r for r in rows if (r["env"], r["method"], r["size"]) == (env, method, size)]
            ratios = np.array([r["kl_late"] / max(r["kl_early"], 1e-12) for r in inside])
            low, high = stats.iqm_interval([ratios[:, None]])
            falls[env, method] = float(stats.iqm(ratios)), float(low[0]), float(high[0])
        others = [m for e, m in lines if e == env and m in OPTIMIZERS]
        best = max(others, key=lambda m, env=env: lines[env, m]["best"])
        two = (ends(rows, env, m, best_size(lines[env, m])) for m in (best, "adagrad"))
        p, (low, high) = stats.improvement(*two)
        behind += [env] * (low > 0.5)
        (a, la, ha), (s, ls, hs) = falls[env, "adagrad"], falls[env, "sgd"]
        said.append(f"{env}: {a:.2f} [{la:.2f}, {ha:.2f}], SGD {s:.2f} [{ls:.2f}, {hs:.2f}]; a run of "
                    f"{NAMES[best]} ends above one of Adagrad with P = {p:.2f} [{low:.2f}, "
                    f"{high:.2f}]")  # fmt: skip
    shrinks = [env for env in envs if falls[env, "adagrad"][2] < min(1, falls[env, "sgd"][1])]
    halted = [env for env in shrinks if falls[env, "adagrad"][0] < 0.1 and env in behind]
    verdict = "true" if len(halted) == len(envs) else "half true" if shrinks else "false"
    return verdict, (
        "KL of an update in the last third of training over that in the first, at the best rates: "
        f"{'; '.join(said)}. Its steps shrink more than SGD's on {listing(shrinks)}; it comes to a stop (below "
        f"0.1, and behind at the end) on {listing(halted)}."
    )


def ends(rows: Sequence[Row], env: str, method: str, size: float) -> np.ndarray:
    """Returns at the end, over seeds."""
    return np.array([r["end"] for r in rows if (r["env"], r["method"], r["size"]) == (env, method, size)])


def best_size(line: Row) -> float:
    return line["sizes"][line["at"]]


def no_rate(lines: dict, envs: Sequence[str], top: dict, random: dict) -> tuple[str, str]:
    """Does a multiplier of 1 do as well as its best, and as the best of all?"""
    own, all_, said = [], [], []
    for env in envs:
        line = lines[env, "adadelta"]
        at = line["middle"][line["sizes"].index(PAPER["adadelta"])] - random[env]
        own.append(at / (line["best"] - random[env]))
        all_.append(at / (top[env] - random[env]))
        said.append(f"{env} {own[-1]:.2f} of its best (at {best_size(line):g}) and {all_[-1]:.2f} of the best of "
                    f"all, width {shown(line)}")  # fmt: skip
    verdict = "true" if min(all_) >= KEPT else "half true" if min(own) >= KEPT else "false"
    return verdict, f"With the paper's multiplier of 1 its score is {'; '.join(said)}."


def epsilon(lines: dict, env: str) -> tuple[str, str]:
    """Scores for each ε at the best rate of ε = 1e-8, and at its own best."""
    base = lines[env, "adam"]
    found = {m: line for (e, m), line in lines.items() if e == env and m.startswith("adam, ε")}
    fixed, free, said = [], [], []
    for method, line in found.items():
        same = line["means"][line["sizes"].index(best_size(base))]
        _, (_, high) = stats.improvement(same, base["means"][base["at"]])
        _, (_, high_own) = stats.improvement(line["means"][line["at"]], base["means"][base["at"]])
        fixed.append(high < 0.5)
        free.append(high_own < 0.5)
        said.append(f"{method.removeprefix('adam, ')} {iqm(same)} there, {iqm(line['means'][line['at']])} at its "
                    f"own best rate {best_size(line):g}")  # fmt: skip
    verdict = "true" if any(free) else "half true" if any(fixed) else "false"
    return verdict, (
        f"{env}, return over training: ε 1e-08 {iqm(base['means'][base['at']])} at its best rate "
        f"{best_size(base):g}; {'; '.join(said)}. Lower at that rate for {sum(fixed)} of {len(found)} ε, and at "
        f"its own best for {sum(free)}."
    )


def improved(lines: dict, envs: Sequence[str]) -> tuple[str, str]:
    """P(a run of the one at its best rate is above one of Adam at its)."""
    better, worse, said = 0, 0, []
    for env in envs:
        for method in ("radam", "adamp"):
            mine, base = lines[env, method], lines[env, "adam"]
            p, (low, high) = stats.improvement(mine["means"][mine["at"]], base["means"][base["at"]])
            better, worse = better + (low > 0.5), worse + (high < 0.5)
            said.append(f"{NAMES[method]} on {env} {p:.2f} [{low:.2f}, {high:.2f}], width {shown(mine)} against "
                        f"{shown(base)}")  # fmt: skip
    n = 2 * len(envs)
    verdict = "true" if better == n else "half true" if better > worse else "false" if worse else "not settled"
    return verdict, (
        f"P(higher return over training than Adam, each at its best rate): {'; '.join(said)}. Better in {better} "
        f"of {n}, worse in {worse}."
    )


def sentence(lines: dict, envs: Sequence[str], plain: Sequence[str], top: dict, random: dict) -> str:
    """The best and the widest of each task, the KL at the best rates, and what a warm-up changes."""
    said = []
    for env in envs:
        here = {m: line for (e, m), line in lines.items() if e == env}
        best, widest = max(plain, key=lambda m: here[m]["best"]), max(plain, key=lambda m: here[m]["width"])
        score = lambda m, here=here, env=env: (here[m]["best"] - random[env]) / (top[env] - random[env])  # noqa: E731
        kls = [here[m]["kl"][here[m]["at"]] for m in plain]
        rates = [best_size(here[m]) for m in plain]
        said.append(
            f"On {env} the best optimizer is {NAMES[best]} ({score(best):.2f}; TRPO {score('trpo'):.2f}), the "
            f"widest {NAMES[widest]}. Their best rates span {np.log10(max(rates) / min(rates)):.1f} decades, the "
            f"KL of an update there {np.log10(max(kls) / min(kls)):.1f} (from {min(kls):.2g} to {max(kls):.2g} "
            f"nats; TRPO's best {here['trpo']['kl'][here['trpo']['at']]:.2g})"
        )
    env = envs[0]
    warm = [f"{NAMES[m]} {lines[env, m]['best']:,.0f} to {lines[env, f'{m}, warm-up']['best']:,.0f}, width "
            f"{shown(lines[env, m])} to {shown(lines[env, f'{m}, warm-up'])}"
            for m in WARMED if (env, f"{m}, warm-up") in lines]  # fmt: skip
    return f"{'. '.join(said)}. A warm-up changes the best return on {env} so: {'; '.join(warm)}."


def sgd_slope(rows: Sequence[Row]) -> float:
    """d log KL / d log rate of SGD's first update, between the two smallest rates; mean over tasks and seeds."""
    sizes = sorted({row["size"] for row in rows if row["method"] == "sgd"})[:2]
    logs = {size: {(r["env"], r["seed"]): np.log(r["kl_first"]) for r in rows
                   if r["method"] == "sgd" and r["size"] == size} for size in sizes}  # fmt: skip
    first, second = (logs[size] for size in sizes)
    return float(np.mean([second[key] - first[key] for key in first]) / np.log(sizes[1] / sizes[0]))


def steps(rows: Sequence[Row], env: str) -> int:
    return next(row["steps"] for row in rows if row["env"] == env)


def label(method: str) -> str:
    name, comma, more = method.partition(",")
    return NAMES[name] + comma + more


DEFAULTS = {  # as configs/ has them; a test compares
    "sgd": 0.1, "momentum": 0.05, "nag": 0.05, "adagrad": 0.05, "adadelta": 1.0, "rmsprop": 0.01, "adam": 0.005,
    "radam": 0.01, "adamp": 0.005, "trpo": 0.01,
}  # fmt: skip


def row_of(line: Row, method: str, top: float, random: float) -> list[str]:
    scores = (line["means"] - random) / (top - random)
    default = DEFAULTS[method.partition(",")[0]]
    between = np.interp(np.log10(default), np.log10(line["sizes"]), (line["middle"] - random) / (top - random))
    size = f"{best_size(line):g}" + (" (end of the grid)" if line["at"] in (0, len(line["sizes"]) - 1) else "")
    return [label(method), size, iqm(scores[line["at"]], ".2f"), f"{line['kl'][line['at']]:.2g}", shown(line),
            f"{line['width_kl']:.2f}", number(float(between), ".2f")]  # fmt: skip


def draw(lines: dict, envs: Sequence[str], plain: Sequence[str], top: dict, random: dict, figure) -> None:
    panels = figure.subplots(2, len(envs), squeeze=False)
    styles: list[Callable | str] = ["o-", "s-", "^--", "D-", "v-", "P-", "o-", "s--", "^:"]
    look = dict(zip(plain, zip([*COLOURS, COLOURS[0], COLOURS[1]], styles, strict=False), strict=False))
    look["trpo"] = "0.45", "x-"
    for column, env in zip(panels.T, envs, strict=True):
        for method, (colour, style) in look.items():
            line = lines[env, method]
            y = (line["middle"] - random[env]) / (top[env] - random[env])
            for panel, x in zip(column, (line["sizes"], np.maximum(line["kl"], 1e-7)), strict=True):
                panel.plot(x, y, style, color=colour, label=label(method), markersize=4, linewidth=1.2)
                panel.set_xscale("log")
        column[0].set(title=env, xlabel="rate, or δ of TRPO", ylabel="score")
        column[1].set(xlabel="median KL of an update, nats", ylabel="score")
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False, fontsize="small")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
