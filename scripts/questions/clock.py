"""Updates or seconds: does the natural gradient win by the clock, and where?

Four kinds of first-order loop against four kinds of natural-gradient loop, tuned with equal trials, on likelihood
models of known and of made-up conditioning; and PG against TRPO. Tasks and loops are in clock_models.py.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from clock_models import FULL, LONG, METHODS, SHARES, TASKS, Race, between, lbfgs, race, targets, task
from page import Answer, Claim, Table, iqm, number
from runner import Row, main
from trainings import SEEDS

from rl_natgrad import Training
from rl_natgrad.algos.npg import npg
from rl_natgrad.algos.problem import likelihood
from rl_natgrad.compare import stats
from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.config.refusals import listing
from rl_natgrad.optim.solvers import cholesky
from rl_natgrad.policy.heads import DiagGaussian
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.model import Model
from rl_natgrad.training.iteration import NotFinite

ALONE = True  # it is timed
TUNING = range(1000, 1003)
CONTROL = {"CartPole": (475.0, 4.0), "Pendulum": (-200.0, 8.0)}  # return to reach, CPU seconds at most
LBFGS = "L-BFGS"
HISTORIES = (3, 5, 10, 20)
PATIENCE = 2  # a trial is given up at so many times the seconds of its method's best so far
REPEATED = 0.1  # CPU seconds: shorter runs are repeated, and the median counts


def jobs(smoke: bool) -> list[Row]:
    """A job a task: all its methods are tuned and reported in one process, taking turns."""
    trials, seeds = (2, 2) if smoke else (12, len(SEEDS))
    names, control = (["cancer, linear", "logistic, κ = 100"], ["CartPole"]) if smoke else (TASKS, CONTROL)
    plan = [{"part": "oracle", "task": "least squares"}]
    plan += [{"part": "model", "task": name, "trials": trials, "seeds": seeds} for name in names]
    return plan + [{"part": "control", "task": name, "trials": trials, "seeds": seeds} for name in control]


def rows(job: Row) -> list[Row]:
    """A row for what was chosen of each method, and one for each of its runs."""
    match job["part"]:
        case "oracle":
            return [{"kind": "oracle", "error": least_squares()}]
        case "model":
            return likelihoods(job)
    return control(job)


def least_squares(n: int = 200, d: int = 8) -> float:
    """max |θ' − lstsq| after one undamped natural step of length 1 from a random θ: Normal, μ = Wx + b, σ fixed.

    F is block diagonal in (W, b) and log σ, and its first block is XᵀX/σ², that of least squares.
    """
    rng, torch_rng = np.random.default_rng(0), torch.Generator().manual_seed(0)
    x = rng.standard_normal((n, d)) * np.geomspace(1, 1e-2, d)
    y = x @ rng.standard_normal(d) + rng.standard_normal(n)
    net = MLP((d, 2))
    theta = torch.randn(net.size, generator=torch_rng, dtype=torch.float64)
    weights, biases = net.layers(theta)[0]
    weights[1], biases[1] = 0.0, -0.5  # σ does not depend on x
    model = Model(net, DiagGaussian(1, std="state"), theta)
    problem = likelihood(model, torch.from_numpy(x), torch.from_numpy(y[:, None]))
    found = npg(problem, solve=partial(cholesky, damping=0.0, max_gib=1.0), delta=1.0, lr=1.0).theta
    best = np.linalg.lstsq(np.column_stack([x, np.ones(n)]), y, rcond=None)[0]
    W, b = net.layers(found.numpy())[0]
    return float(np.abs(np.append(W[0], b[0]) - best).max())


# --------------------------------------------------------------------------------------------- likelihood models


def likelihoods(job: Row) -> list[Row]:
    """Tuning on the middle target of seeds from 1000 up, then the runs on seeds from 100 up."""
    name, trials = job["task"], job["trials"]
    runners = {**{m: partial(tried, METHODS[m]) for m in METHODS}, LBFGS: tried_lbfgs}
    plans = {m: METHODS[m].trials(trials, k, task(name, 1000).net.size) for k, m in enumerate(METHODS)}
    plans[LBFGS] = [{"history": h} for h in HISTORIES]
    seeds = list(TUNING)[:2]
    known = {seed: (at := task(name, seed), targets(at, seed)) for seed in seeds}
    for method, run in runners.items():  # once untimed: what is loaded at a first call is not its cost
        run(known[1000][0], plans[method][0], 1000, {"middle": -math.inf}, 0.002)

    def attempt(method: str, settings: Row, seed: int, cap: float) -> tuple[float | None, float]:
        at, wanted = known[seed]
        found = runners[method](at, settings, seed, {"middle": wanted["middle"]}, cap)
        return (found.reached["middle"][0] if found.reached else None), -found.loss

    chosen = tune(plans, seeds, known[1000][0].cap / 2, attempt)
    at = known[1000][0]
    about = {"n": len(at.train[0]), "params": at.net.size, "cond": condition(at.train[0].numpy()),
             "cap": at.cap}
    result = [{"kind": "tuned", "method": m, **c, "settings": words(c["settings"]), **about}
              for m, c in chosen.items()]  # fmt: skip
    for seed in SEEDS[: job["seeds"]]:
        at = task(name, seed)
        wanted = targets(at, seed)
        found: dict[str, list[Race]] = {method: [] for method in runners}
        for _ in range(3):
            for method, run in runners.items():
                if not found[method] or found[method][0].seconds < REPEATED:
                    found[method].append(run(at, chosen[method]["settings"], seed, wanted, at.cap))
        result += [{"kind": "run", "method": m, "seed": seed, **report(races)} for m, races in found.items()]
    return result


def tried(method, at, settings, seed, wanted, cap) -> Race:
    return race(at, method, settings, seed, wanted, cap)


def tried_lbfgs(at, settings, seed, wanted, cap) -> Race:
    return lbfgs(at, settings["history"], seed, wanted, cap)


def tune(
    plans: dict[str, list[Row]], seeds: Sequence[int], cap: float,
    attempt: Callable[[str, Row, int, float], tuple[float | None, float]],
) -> dict[str, Row]:
    """Of each method the trial that reaches the target on most seeds, then soonest, then comes nearest.

    Methods take turns. A trial goes on to its next seed only where it has reached the target, and is given up
    after PATIENCE times the seconds that its method's best so far, if any reached it on all, took there, or `cap`.
    """
    best: dict[str, Row] = {}
    reached = dict.fromkeys(plans, 0)
    for i in range(max(map(len, plans.values()))):
        for method, plan in plans.items():
            if i >= len(plan):
                continue
            seconds, near, soonest = [], -math.inf, best.get(method, {}).get("seconds", [])
            for k, seed in enumerate(seeds):
                limit = min(cap, PATIENCE * soonest[k]) if len(soonest) == len(seeds) else cap
                took, near = attempt(method, plan[i], seed, limit)
                if took is None:
                    break
                seconds.append(took)
            reached[method] += len(seconds) == len(seeds)
            mean = sum(seconds) / len(seconds) if seconds else None
            key = (len(seconds), -mean if mean is not None else near if math.isfinite(near) else -math.inf)
            if method not in best or key > best[method]["key"]:
                best[method] = {"key": key, "settings": plan[i], "mean": mean, "seconds": seconds, "trial": i}
    return {
        m: {"settings": b["settings"], "trial": b["trial"], "trials_of": len(plans[m]), "reached": reached[m],
            "tuned": short(b["mean"])} for m, b in best.items()
    }  # fmt: skip


def report(races: Sequence[Race]) -> Row:
    """One run, whose seconds are the median of its repetitions."""
    first, row = races[0], {"test": short(races[0].test)}
    for name in SHARES:
        if all(name in r.reached for r in races):
            _, updates, epochs = first.reached[name]
            row[f"s_{name}"] = short(float(np.median([r.reached[name][0] for r in races])))
            row |= {"u_middle": updates, "epochs": short(epochs)} if name == "middle" else {}
    return row


def condition(x: np.ndarray) -> float | None:
    """Largest over smallest singular value of the features; None where they are dependent."""
    s = np.linalg.svd(x.astype(float), compute_uv=False)
    return short(s[0] / s[-1]) if s[-1] > 1e-6 * s[0] else None


def short(value: float | None) -> float | None:
    """Four digits; None for what is not a number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def words(settings: Row) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items() if not isinstance(value, str))


# ------------------------------------------------------------------------------------------------------- control


def pg(u: float, rng: np.random.Generator) -> Row:
    """A trial of PG with Adam."""
    return {"algo": "pg", "optimizer.lr": between(1e-3, 1e-1, u), **batch_and_critic(rng)}


def trpo(u: float, rng: np.random.Generator) -> Row:
    """A trial of TRPO."""
    return {"algo": "trpo", "algo.delta": between(3e-3, 0.3, u), **batch_and_critic(rng),
            "solver.max_iter": int(rng.choice([3, 5, 10])), "fisher.fraction": float(rng.choice([0.1, 0.3, 1.0]))}


def batch_and_critic(rng: np.random.Generator) -> Row:
    return {"horizon": int(rng.choice([32, 64, 128, 256])), "critic.epochs": int(rng.choice([2, 5, 10]))}


def control(job: Row) -> list[Row]:
    """The same for PG and TRPO, to a return."""
    env, trials = job["task"], job["trials"]
    threshold, cap = CONTROL[env]
    rng = np.random.default_rng(0)
    plans = {name: [draw((i + rng.random()) / trials, rng) for i in range(trials)]
             for name, draw in (("PG", pg), ("TRPO", trpo))}  # fmt: skip
    for method in plans:
        learn(env, plans[method][0], 1000, threshold, 0.1)

    def attempt(method: str, settings: Row, seed: int, limit: float) -> tuple[float | None, float]:
        found = learn(env, settings, seed, threshold, limit)
        return found.get("s_middle"), found["near"]

    chosen = tune(plans, TUNING, cap, attempt)
    result = [{"kind": "tuned", "method": m, **c, "settings": words(c["settings"]), "threshold": threshold,
               "cap": cap} for m, c in chosen.items()]  # fmt: skip
    for seed in SEEDS[: job["seeds"]]:
        for method, c in chosen.items():
            result.append({"kind": "run", "method": method, "seed": seed,
                           **learn(env, c["settings"], seed, threshold, cap)})  # fmt: skip
    return result


def learn(env: str, settings: Row, seed: int, threshold: float, cap: float) -> Row:
    """Seconds, updates and steps until the batches' own episodes reach a mean return, or nothing by `cap` seconds.

    The mean is over the last three batches, and over as many more as ten episodes need, so that a small batch is
    not lucky by two episodes.
    """
    asked = [f"{key}={value}" for key, value in settings.items()]
    began, row, recent, near = time.process_time(), {}, deque(), -math.inf
    with Training(*asked, f"env={env}", f"seed={seed}") as run:
        row["startup"] = short(time.process_time() - began)
        began = time.process_time()
        while (seconds := time.process_time() - began) < cap and "s_middle" not in row:
            gathered = run.gather()
            recent.append(gathered.rollout.returns)
            while len(recent) > 3 and sum(map(len, list(recent)[1:])) >= 10:
                recent.popleft()
            returns = [r for batch in recent for r in batch]
            if len(recent) >= 3 and len(returns) >= 10:
                near = max(near, float(np.mean(returns)))
            if near >= threshold:
                seconds = time.process_time() - began
                row |= {"s_middle": short(seconds), "u_middle": run.update, "steps": run.step}
            try:
                run.learn_from(gathered)
            except NotFinite:
                break
    return row | {"near": short(near) if math.isfinite(near) else -1e9}


# -------------------------------------------------------------------------------------------------------- answer


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    models = [t for t in dict.fromkeys(r["task"] for r in rows if r["part"] == "model")]
    envs = [t for t in dict.fromkeys(r["task"] for r in rows if r["part"] == "control")]
    duels = {t: Duel(rows, t) for t in models}
    fights = {t: Fight(rows, t) for t in envs}
    error = next(r["error"] for r in rows if r["part"] == "oracle")
    n_seeds = len({r["seed"] for r in rows if r["kind"] == "run"})
    tuned = [r for r in rows if r["kind"] == "tuned" and r["method"] != LBFGS]
    trials = max(r["trials_of"] for r in tuned)
    edges = [r for r in tuned if r["trial"] in (0, r["trials_of"] - 1)]
    comparisons = len(duels) * (len(SHARES) + 1) + len(fights)
    return Answer(
        title="Updates or seconds: where does the natural gradient win by the clock?",
        question="A natural-gradient update goes further than a first-order one, and costs more. Counted in "
        "CPU seconds to a training loss or a return, each method tuned with as many trials, which arrives "
        "first, and on what does it depend?",
        claims=[
            Claim("It converges much faster than SGD in terms of the number of updates", *by_updates(duels)),
            Claim("The wall time per update is high enough to cancel that", *by_seconds(duels, fights)),
        ],
        sentence=sentence(duels, fights),
        run=what_was_run(duels, fights, n_seeds, trials),
        tables=[
            Table("Seconds of natural gradient over seconds of the best first-order method",
                  ["task", "N", "P", "κ of x", *SHARES, "updates", "against full batches only", "arrive"],
                  [d.line() for d in duels.values()],
                  "Ratios, IQM over splits with its 95 % interval: below 1 the natural gradient is sooner. "
                  "*updates* is the same for updates, to the middle target. *arrive*: the share of splits on "
                  "which natural and first-order reach the middle target. A run that does not arrive counts "
                  "with its last second; the ratio is then a bound (≤ where the rival did not arrive, ≥ where "
                  "natural did not, ? where both did not). Updates have no such limit: there * says that "
                  "splits on which either did not arrive are left out."),
            Table("Every method, to the middle target",
                  ["task", "method", "seconds, median", "updates", "epochs", "arrive", "test NLL", "settings"],
                  [line for d in duels.values() for line in d.lines()],
                  "The test NLL is that of the look with the best validation NLL on the way to the strict "
                  "target. Bold: chosen of its kind, on the tuning seeds."),
            Table("PG and TRPO", ["task", "method", "arrive", "seconds, IQM", "updates, median", "steps, median",
                                  "start-up, s", "settings"],
                  [line for f in fights.values() for line in f.lines()]),
        ],
        plot=partial(draw, duels, fights),
        caption="Left, seconds of the natural gradient over those of the best first-order method, to three "
        "training losses; middle, the same for updates to the middle loss. Left of the line at 1 the natural "
        "gradient is ahead. Bars are 95 % intervals. Right, the training seconds of every PG and TRPO run; "
        "hollow ones did not arrive.",
        oracle="One undamped natural step with a constant σ is least squares: the largest difference from "
        f"numpy.linalg.lstsq is {error:.0e} (float64, expected below 1e-10). The gradient written out for the "
        "first-order loops, the losses of the line search and both heads are compared with the package's own "
        "in the test.",
        cannot=[
            f"{comparisons} ratios are shown, each with its own interval, none corrected for their number.",
            "One machine, one thread, small models in float32. Where a product of a matrix costs less than "
            "starting it, a natural step is cheap beside its overhead; with larger networks and several "
            "threads the ratios move. Seconds elsewhere are others; updates are not.",
            "Each target is a training loss. Whoever stops by validation may not need the strict one.",
            f"The settings are those that come first to the middle target among {trials} trials a method. "
            f"{len(edges)} of the {len(tuned)} chosen trials lie in the outermost part of the range of their "
            "rate or δ, and might be beaten beyond it.",
            "The made-up features are ill-conditioned along random axes, and every axis matters as much for y. "
            "With axes that are the features, Adam would help more; with small axes that do not matter, "
            "conditioning would not.",
        ],
        literature=[
            "Martens 2010 (Deep learning via Hessian-free optimization): CG on curvature products, started "
            "from the last direction, against first-order training of deep autoencoders.",
            "Pascanu & Bengio 2014 (Revisiting natural gradient for deep networks): Hessian-free as natural "
            "gradient.",
            "Hestenes & Stiefel 1952 (Methods of conjugate gradients for solving linear systems).",
        ],
        size=(15, 1.6 + 0.42 * max(len(duels), 6)),
    )  # fmt: skip


class Duel:
    """Natural against first-order on one likelihood model: the winners of tuning, split by split."""

    def __init__(self, rows: Sequence[Row], name: str):
        mine = [r for r in rows if r["task"] == name and r["part"] == "model"]
        self.name = name
        self.tuned = {r["method"]: r for r in mine if r["kind"] == "tuned"}
        self.runs = {m: [r for r in mine if r["kind"] == "run" and r["method"] == m] for m in self.tuned}
        kinds = {kind: [m for m in self.tuned if m in METHODS and METHODS[m].family == kind] for kind in FAMILIES}
        self.natural, self.rival = (min(kinds[kind], key=self._tuned) for kind in FAMILIES)
        self.full = min((m for m in FULL if m in self.tuned), key=self._tuned)
        self.about = next(iter(self.tuned.values()))
        self.cap = self.about["cap"]

    def _tuned(self, method: str) -> tuple[int, float]:
        """What a method is chosen by: trials that arrived at all, then its seconds in tuning."""
        found = self.tuned[method]
        return int(found["reached"] == 0), found["tuned"] if found["tuned"] is not None else math.inf

    def took(self, method: str, key: str) -> np.ndarray:
        """Seconds or updates of each split, nan where it did not arrive."""
        return np.array([math.nan if r.get(key) is None else r[key] for r in self.runs[method]])

    def ratio(self, target: str, unit: str = "s", rival: str | None = None) -> "Ratio":
        """natural / rival."""
        x, y = self.took(self.natural, f"{unit}_{target}"), self.took(rival or self.rival, f"{unit}_{target}")
        return Ratio.of(x, y, self.cap if unit == "s" else None)

    def line(self) -> list[str]:
        share = [arrived(self.took(m, "s_middle")) for m in (self.natural, self.rival)]
        cond = self.about["cond"]
        return [self.name, f"{self.about['n']:,}", f"{self.about['params']:,}",
                "singular" if cond is None else f"{cond:,.0f}", *(str(self.ratio(t)) for t in SHARES),
                str(self.ratio("middle", "u")), str(self.ratio("middle", rival=self.full)),
                ", ".join(share)]  # fmt: skip

    def lines(self) -> list[list[str]]:
        return [self._line(method) for method in self.tuned]

    def _line(self, method: str) -> list[str]:
        seconds, updates = self.took(method, "s_middle"), self.took(method, "u_middle")
        chosen = method in (self.natural, self.rival)
        return [self.name, f"**{method}**" if chosen else method, milli(seconds), middle(updates),
                middle(self.took(method, "epochs"), ".1f"), arrived(seconds),
                middle(self.took(method, "test"), ".3f"), self.tuned[method]["settings"]]  # fmt: skip


class Ratio:
    """IQM of a quotient over splits with its interval, on the log scale; `bound` says where it is only a bound."""

    def __init__(self, value: float, low: float, high: float, bound: str):
        self.value, self.low, self.high, self.bound = value, low, high, bound

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, cap: float | None) -> "Ratio":
        """x / y, where what did not arrive counts as `cap`, or is left out with its partner where there is "
        "none."""
        lost, beaten = bool(np.isnan(x).any()), bool(np.isnan(y).any())
        if cap is None:
            both = ~np.isnan(x) & ~np.isnan(y)
            x, y, bound = x[both], y[both], "*" if lost or beaten else ""
        else:
            x, y = np.where(np.isnan(x), cap, x), np.where(np.isnan(y), cap, y)
            bound = "?" if lost and beaten else "≥ " if lost else "≤ " if beaten else ""
        if len(x) == 0:
            return cls(math.nan, math.nan, math.nan, bound)
        return cls(*middle_half(tuple(np.log(x / y))), bound)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        before, after = (self.bound, "") if self.bound in ("≤ ", "≥ ") else ("", self.bound)
        return f"{before}{digits(self.value)}{after} [{digits(self.low)}, {digits(self.high)}]"

    @property
    def won(self) -> bool:
        """Natural is ahead for certain; where natural did not always arrive, it is not."""
        return self.high < 1 and self.bound in ("", "≤ ", "*")

    @property
    def lost(self) -> bool:
        """Natural is behind for certain."""
        return self.low > 1 and self.bound in ("", "≥ ", "*")


class Fight:
    """TRPO against PG on one environment."""

    def __init__(self, rows: Sequence[Row], name: str):
        mine = [r for r in rows if r["task"] == name and r["part"] == "control"]
        self.name, self.tuned = name, {r["method"]: r for r in mine if r["kind"] == "tuned"}
        self.threshold, self.cap = (self.tuned["TRPO"][key] for key in ("threshold", "cap"))
        self.runs = {m: [r for r in mine if r["kind"] == "run" and r["method"] == m] for m in ("PG", "TRPO")}

    def took(self, method: str, key: str = "s_middle") -> np.ndarray:
        return np.array([math.nan if r.get(key) is None else r[key] for r in self.runs[method]])

    def chance(self, key: str = "s_middle") -> tuple[float, tuple[float, float]]:
        """P(a TRPO run arrives before a PG run); neither arriving is a tie."""
        late = lambda method: np.nan_to_num(self.took(method, key), nan=1e12)  # noqa: E731
        return stats.improvement(late("PG"), late("TRPO"))

    def ratio(self, unit: str = "s") -> Ratio:
        return Ratio.of(self.took("TRPO", f"{unit}_middle"), self.took("PG", f"{unit}_middle"),
                        self.cap if unit == "s" else None)

    @property
    def won(self) -> bool:
        return self.chance()[1][0] > 0.5

    @property
    def lost(self) -> bool:
        return self.chance()[1][1] < 0.5

    def lines(self) -> list[list[str]]:
        return [[self.name, m, arrived(self.took(m)), self.seconds(m),
                 middle(self.took(m, "u_middle")), middle(self.took(m, "steps")),
                 middle(self.took(m, "startup"), ".2f"), self.tuned[m]["settings"]]
                for m in self.runs]  # fmt: skip

    def seconds(self, method: str) -> str:
        """IQM with its interval; a bound where a run that did not arrive counts with all its seconds."""
        took = self.took(method)
        return ("≥ " if np.isnan(took).any() else "") + iqm(np.where(np.isnan(took), self.cap, took), ".2f")

    def said(self) -> str:
        chance, (low, high) = self.chance()
        return (f"{self.name} to {number(self.threshold)}: TRPO {middle(self.took('TRPO'), '.2f')} s, PG "
                f"{middle(self.took('PG'), '.2f')} s (medians; {arrived(self.took('TRPO'))} and "
                f"{arrived(self.took('PG'))} arrive), P(TRPO is faster) {chance:.2f} [{low:.2f}, {high:.2f}]")


@cache
def middle_half(logs: tuple[float, ...]) -> tuple[float, float, float]:
    """exp of the IQM and of both ends of its interval."""
    values = np.array(logs)
    low, high = stats.iqm_interval([values[:, None]], replicates=10_000)
    return math.exp(stats.iqm(values)), math.exp(low[0]), math.exp(high[0])


FAMILIES = ("natural", "first-order")


def digits(value: float) -> str:
    """Two digits, without an exponent."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def arrived(values: np.ndarray) -> str:
    return f"{int((~np.isnan(values)).sum())} of {len(values)}"


def middle(values: np.ndarray, show: str = ",.0f") -> str:
    """The median, runs that did not arrive being the slowest; a dash where half of them did not."""
    value = float(np.median(np.nan_to_num(values, nan=math.inf))) if len(values) else math.inf
    return number(value, show) if math.isfinite(value) else "–"


def milli(values: np.ndarray) -> str:
    return "–" if (text := middle(values, ".4f")) == "–" else text


def ways(duels: dict[str, Duel], fights: dict[str, Fight]) -> dict[str, list[str]]:
    """Tasks on which natural gradient wins, loses, or neither, by the clock to the middle target."""
    found: dict[str, list[str]] = {"won": [], "lost": [], "open": []}
    for name, duel in duels.items():
        ratio = duel.ratio("middle")
        found["won" if ratio.won else "lost" if ratio.lost else "open"].append(f"{name} ({ratio})")
    for name, fight in fights.items():
        found["won" if fight.won else "lost" if fight.lost else "open"].append(f"{name} ({fight.ratio()})")
    return found


def by_updates(duels: dict[str, Duel]) -> tuple[str, str]:
    """Much faster: at most half the updates, for certain."""
    ratios = {name: duel.ratio("middle", "u") for name, duel in duels.items()}
    known = {name: r for name, r in ratios.items() if not math.isnan(r.value)}
    fewer = [name for name, r in known.items() if r.high < 0.5]
    slower = [name for name, r in known.items() if r.low > 0.5]
    verdict = ("not settled" if not known or not (fewer or slower) else "true" if len(fewer) == len(known)
               else "false" if not fewer else "half true")  # fmt: skip
    said = ""
    if known:
        low, high = (pick(known, key=lambda n: known[n].value) for pick in (min, max))
        said = f" Natural over first-order updates: from {known[low]} on {low} to {known[high]} on {high}."
    return verdict, (
        f"The natural loop that is fastest by the clock needs less than half the updates on {len(fewer)} of "
        f"{len(duels)} tasks.{said}"
    )


def by_seconds(duels: dict[str, Duel], fights: dict[str, Fight]) -> tuple[str, str]:
    found = ways(duels, fights)
    won, lost, opened = (len(found[key]) for key in ("won", "lost", "open"))
    verdict = "not settled" if won == lost == 0 else "true" if won == 0 else "false" if lost == 0 else "half true"
    return verdict, (
        f"By the clock natural gradient is ahead on {won} of {won + lost + opened} tasks, behind on {lost}, and "
        f"on {opened} the interval holds 1."
    )


def sentence(duels: dict[str, Duel], fights: dict[str, Fight]) -> str:
    """Where it wins, where not, and what it depends on."""
    found = ways(duels, fights)
    said = [
        f"{words} {listing(found[key])}."
        for key, words in (("won", "Natural gradient wins by the clock on"), ("lost", "It loses on"),
                           ("open", "It cannot be told apart on")) if found[key]
    ]  # fmt: skip
    said.append(
        "In brackets: seconds of natural over first-order to the middle target, or of TRPO over PG; IQM and its "
        "95 % interval."
    )
    parts = [" ".join(said)]
    if ladder := [d for d in duels.values() if d.name in LADDER]:
        at = listing([f"{d.ratio('middle')} at {TASKS[d.name]['kappa']:,}" for d in ladder])
        parts.append(f"By the condition number κ of the features, the same logistic regression: {at}.")
    apart = [d.ratio("middle", rival=LBFGS) for d in duels.values() if LBFGS in d.tuned]
    full = sum(d.ratio("middle", rival=d.full).won for d in duels.values())
    every = sum(d.ratio("middle").won for d in duels.values())
    parts.append(
        "The choice of rivals matters: against those that look at all samples in every update it would win on "
        f"{full} of {len(duels)} likelihood models, against all rivals on {every}. L-BFGS, which uses gradients "
        "alone but makes a curvature of them, is no rival of the claim and stands apart: natural gradient is "
        f"ahead of it on {sum(r.won for r in apart)} of {len(apart)}, behind on {sum(r.lost for r in apart)}."
    )
    kinds = [d.natural for d in duels.values()]
    dense = sum("iterations 0" in d.tuned[d.natural]["settings"] for d in duels.values())
    each = ", ".join(f"“{kind}” {kinds.count(kind)} times" for kind in dict.fromkeys(kinds))
    parts.append(f"The fastest natural loop was {each}; {dense} of these with the dense F instead of CG.")
    return "\n\n".join([*parts, *(f"{f.said()}." for f in fights.values())])


LADDER = [name for name, about in TASKS.items() if about["data"] == "logistic" and not about.keys() & {"n", "d"}]


def quoted(family: str) -> str:
    return "; ".join(f"“{method}”" for method in METHODS if METHODS[method].family == family)


def what_was_run(duels, fights, n_seeds: int, trials: int) -> str:
    likelihood = (
        f"{len(duels)} likelihood models, 60 % of the samples to train, 20 % to choose, 20 % to test; float32, "
        "one thread. Each of four first-order loops "
        f"({quoted('first-order')}) and four natural ones "
        f"({quoted('natural')}) has {trials} random trials, its "
        "rate or δ spread evenly over its range, on two tuning splits (seeds 1000 and 1001), chosen for the "
        f"seconds to the middle target; then {n_seeds} other splits, on which nothing is chosen, all methods "
        "taking turns in one process; the faster of the four counts as natural, and as first-order. A target "
        f"leaves {listing([f'{share:.1%} ({name})' for name, share in SHARES.items()])} of the way from a "
        f"split's first training loss to that of {LONG} iterations of L-BFGS in float64 from the same start. "
        "Losses are looked at off the clock, after each update at first and then each 5 % more of them. Runs "
        f"shorter than {REPEATED:g} s are repeated three times. The first-order loops run a chain rule written "
        "out into kept arrays and torch's fused Adam; the natural ones the package's linearisation, CG or "
        "Cholesky, radius and line search, with the same loss and gradient formulas."
    )
    names = listing([f"{f.name} ({number(f.threshold)}, at most {f.cap:g} s)" for f in fights.values()])
    rl = (
        f"PG with Adam and TRPO on {names}: {trials} random trials each (PG: rate, horizon, critic epochs; "
        f"TRPO: δ, horizon, critic epochs, CG iterations, share of the rows for F) on seeds {TUNING[0]} to "
        f"{TUNING[-1]}, the soonest then on {n_seeds} seeds. A return is the mean of the batch's own episodes "
        "over three batches, or over as many as ten episodes need. Seconds are of training; start-up is shown "
        "apart."
    )
    return f"{likelihood}\n\n{rl}" if fights else likelihood


def draw(duels: dict[str, Duel], fights: dict[str, Fight], figure) -> None:
    seconds, updates, control = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])
    names = list(duels)[::-1]
    for k, (target, mark) in enumerate(zip(SHARES, "o^s", strict=True)):
        ratios, y = [duels[n].ratio(target) for n in names], np.arange(len(names)) + 0.22 * (1 - k)
        _bars(seconds, ratios, y, COLOURS[k], mark, f"to the {target} loss")
    _bars(updates, [duels[n].ratio("middle", "u") for n in names], np.arange(len(names)), COLOURS[1], "^", "")
    for panel, unit in ((seconds, "seconds"), (updates, "updates")):
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_xscale("log")
        panel.set_xlabel(f"{unit}, natural / best first-order")
        panel.set_ylim(-0.6, len(names) - 0.4)
        panel.set_yticks(range(len(names)), names if panel is seconds else [])
    seconds.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    places = [(f, m) for f in fights.values() for m in ("PG", "TRPO")][::-1]
    for y, (fight, method) in enumerate(places):
        took = fight.took(method)
        there, spread = ~np.isnan(took), y + np.linspace(-0.2, 0.2, len(took))
        colour, mark = (COLOURS[0], "o") if method == "TRPO" else (COLOURS[1], "s")
        control.plot(took[there], spread[there], mark, color=colour, markersize=5)
        control.plot(np.full((~there).sum(), fight.cap), spread[~there], mark, color=colour, markersize=5,
                     fillstyle="none")  # fmt: skip
    control.set_xscale("log")
    low, high = control.get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low <= t <= high]
    control.set_xticks(ticks, [f"{t:g}" for t in ticks])
    control.set_xticks([], minor=True)
    control.set_yticks(range(len(places)), [f"{f.name}, {m}" for f, m in places])
    control.set_ylim(-0.6, max(len(places), 1) - 0.4)
    control.set_xlabel("CPU seconds of training to the return")


def _bars(panel, ratios: Sequence[Ratio], y: np.ndarray, colour: str, mark: str, label: str) -> None:
    value, low, high = (np.array([getattr(r, key) for r in ratios]) for key in ("value", "low", "high"))
    panel.errorbar(value, y, xerr=[value - low, high - value], fmt=mark, color=colour, markersize=5, capsize=2,
                   linewidth=1.1, label=label)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
