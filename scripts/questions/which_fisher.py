"""Which Fisher: the true one, one of sampled labels, one of the data's labels, one weighted by advantages?

How far each estimate is from the true Fisher, where its direction points, and what is learned with it: on
likelihood models, whose labels the data chose, and on policies, whose actions they chose themselves.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite

import numpy as np
import torch
from curvature import interval, unique
from page import Answer, Claim, Table, iqm, number
from problems import DATA, Split, cosine, ggn_error, snapshots, split
from runner import Row, main
from torch import Tensor
from trainings import SEEDS, smooth, updates

from rl_natgrad.algos.npg import npg
from rl_natgrad.algos.problem import Problem, empirical, gauss_newton
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.compare import stats
from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.config.refusals import listing
from rl_natgrad.optim.fisher import Fisher, GaussNewton, outer
from rl_natgrad.optim.solvers import cg
from rl_natgrad.policy.heads import Categorical, Head

KINDS = ("true", "sampled", "empirical", "A²-weighted")
AT = {"nll": (0, 10, 40), "rl": (1, 15, 40)}  # updates before a look
SIZES = (64, 256, 1024)  # samples of an estimate
DRAWS = 3  # estimates of each size, of which the root mean square error counts
DAMPING = 0.1  # the package's: λ = 0.1 · gᵀFg / gᵀg
SOLVE = partial(cg, damping=DAMPING, max_iter=10, tol=1e-10)
RADII = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
RULES = {"KL radius": RADII, "fixed rate": RATES}
FITTED = {"cancer, logistic": 60, "diabetes, Normal": 60, "digits, softmax": 40}  # updates of a fit
STEPS = {"CartPole": 60_000, "Pendulum": 100_000}
FISHERS = {"true": "gauss_newton", "empirical": "empirical"}


def jobs(smoke: bool) -> list[Row]:
    """Looks along trainings, fits by every Fisher, trainings by two."""
    seeds = SEEDS[:2] if smoke else SEEDS
    tasks = [*(("nll", task) for task in DATA), *(("rl", env) for env in STEPS)]
    tasks = [("nll", "cancer, logistic"), ("rl", "CartPole")] if smoke else tasks
    fitted, steps = (["cancer, logistic"], {"CartPole": 10_000}) if smoke else (FITTED, STEPS)
    return [
        *({"kind": kind, "task": task, "seed": seed} for seed in seeds for kind, task in tasks),
        *({"kind": "fit", "task": task, "seed": seed} for seed in seeds for task in fitted),
        *({"kind": "learn", "task": env, "fisher": name, "seed": seed, "steps": steps[env]}
          for seed in seeds for env in steps for name in FISHERS),
    ]  # fmt: skip


def rows(job: Row) -> list[Row]:
    """What a job of its kind finds."""
    match job["kind"]:
        case "nll":
            return likelihoods(job["task"], job["seed"])
        case "rl":
            words = ("algo=trpo", f"env={job['task']}", "policy.hidden=[8,8]", f"seed={job['seed']}")
            found = snapshots(*words, at=AT["rl"])
            return [row | {"updates": k}
                    for k, problem, other in found for row in look(problem, other, job["seed"])]  # fmt: skip
        case "fit":
            data = split(job["task"], job["seed"])
            return [fit(data, kind, rule, FITTED[job["task"]], job["seed"])
                    for rule in RULES for kind in KINDS[:3]]  # fmt: skip
        case _:
            words = ("algo=trpo", f"fisher={FISHERS[job['fisher']]}", f"env={job['task']}", f"seed={job['seed']}",
                     f"total_steps={job['steps']}")  # fmt: skip
            curve = smooth([found for found, _ in updates(*words)])
            return [{"end": float(curve[-1]), "mean": float(curve.mean())}]


# --- estimates and directions -----------------------------------------------------------------------


def likelihoods(task: str, seed: int) -> list[Row]:
    """A model fitted by natural steps, looked at on the way."""
    data, found = split(task, seed), []
    for k in range(max(AT["nll"]) + 1):
        problem = data.problem()
        if k in AT["nll"]:
            found += [row | {"updates": k, "loss": problem.loss_old}
                      for row in look(problem, data.problem("test"), seed)]  # fmt: skip
        data.model.become(trpo(problem, solve=SOLVE, delta=0.1, max_backtracks=10, shrink=0.8).theta)
    return found


def look(problem: Problem, other: Problem, seed: int) -> list[Row]:
    """A row for each Fisher: errors by N, direction, the KL that it predicts; other: independent samples."""
    rng, g = np.random.default_rng(seed), problem.grad()
    J, everything = problem.lin.jacobian(), torch.arange(len(problem.lin.z))
    F, F_other = problem.fisher().dense(), other.fisher().dense()
    d_true = direction(F, g)
    exact = {"sum_error": apart(summed(problem, J), F), "kl_error": ggn_error(problem, F)}
    found = []
    for kind in KINDS if "adv" in vars(problem.batch) else KINDS[:3]:
        drawn = {N: [torch.from_numpy(rng.integers(len(J), size=N)) for _ in range(DRAWS)] for N in SIZES}
        estimate = {N: [second_moment(factor(kind, problem, J, one, rng)) for one in drawn[N]] for N in SIZES}
        whole = second_moment(factor(kind, problem, J, everything, rng))
        d = direction(whole, g)
        predicted = float(d @ whole @ d)
        found.append({
            "fisher": kind, **{f"error_{N}": rms([apart(one, F) for one in estimate[N]]) for N in SIZES},
            "error_all": apart(whole, F), "cosine": cosine(d, d_true, F_other.mv),
            "kl_ratio": float(d @ F_other @ d) / predicted if predicted > 0 else None, **exact,
        })  # fmt: skip
    return [*found, {"fisher": "none", "cosine": cosine(-g, d_true, F_other.mv)}]


def factor(kind: str, problem: Problem, J: Tensor, rows: Tensor, rng: np.random.Generator) -> Tensor:
    """b (n, R, P) of the samples `rows`, whose mean b bᵀ estimates F; sampled labels are fresh ones each time."""
    head, z, batch = problem.model.head, problem.lin.z[rows], problem.batch.take(rows)
    if kind == "true":
        return torch.einsum("nkr,nkp->nrp", head.root(z), J[rows])
    label = draw(head, z, rng) if kind == "sampled" else batch.action
    b = torch.einsum("nk,nkp->np", scores(head, z, label), J[rows])
    if kind == "A²-weighted":
        b *= (batch.adv.abs() / problem.batch.adv.square().mean().sqrt())[:, None]
    return b[:, None]


def scores(head: Head, z: Tensor, y: Tensor) -> Tensor:
    """∇_z log p_z(y) (N, K)."""
    leaf = z.detach().requires_grad_()
    return torch.autograd.grad(head.log_prob(leaf, y).sum(), leaf)[0]


def draw(head: Head, z: Tensor, rng: np.random.Generator) -> Tensor:
    """A label for each sample, from the model itself."""
    return torch.from_numpy(head.sample(z.numpy(), head.noise(rng, (len(z),))))


def second_moment(factor: Tensor) -> Tensor:
    """Means of b bᵀ over samples, of factors (N, R, P)."""
    rows = factor.flatten(0, 1)
    return rows.T @ rows / len(factor)


def apart(A: Tensor, B: Tensor) -> float:
    """‖A − B‖ / ‖B‖, Frobenius."""
    return float((A - B).norm() / B.norm())


def rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def direction(F: Tensor, g: Tensor) -> Tensor:
    """−(F + λI)⁻¹ g, λ = DAMPING · gᵀFg / gᵀg."""
    lam = DAMPING * float(g @ F @ g) / float(g @ g)
    return torch.linalg.solve(F + lam * torch.eye(len(g), dtype=g.dtype), -g)


def summed(problem: Problem, J: Tensor) -> Tensor:
    """E[s sᵀ] with the expectation over labels exact: a sum over classes, or quadrature for a Normal.

    Both parts of a Normal's score are at most quadratic in the noise: five Gauss–Hermite nodes are exact.
    """
    head, z = problem.model.head, problem.lin.z
    if isinstance(head, Categorical):
        labels = [torch.full((len(z),), label) for label in range(head.n)]
        weights = list(z.softmax(-1).T)
    else:
        nodes, share = np.polynomial.hermite_e.hermegauss(5)
        labels = [z[:, :1] + z[:, 1:].exp() * node for node in nodes]
        weights = [torch.full((len(z),), w, dtype=z.dtype) for w in share / share.sum()]
    M = sum(w[:, None, None] * torch.einsum("nk,nl->nkl", s, s)
            for w, s in zip(weights, (scores(head, z, y) for y in labels), strict=True))  # fmt: skip
    return torch.einsum("nkp,nkl,nlq->pq", J, M, J) / len(z)


# --- fits -------------------------------------------------------------------------------------------


def curvature(kind: str, rng: np.random.Generator) -> Callable[[Problem], Fisher]:
    """A Fisher of one kind, as a problem takes it."""
    def sampled(at: Problem) -> GaussNewton:
        return outer(at.lin, scores(at.model.head, at.lin.z, draw(at.model.head, at.lin.z, rng)))

    return {"true": gauss_newton, "sampled": sampled, "empirical": empirical}[kind]


def fit(data: Split, kind: str, rule: str, length: int, seed: int) -> Row:
    """The best of all sizes of one rule, by the training loss at its end; and by validation, its test loss."""
    runs = {size: losses(data, kind, rule, size, length, seed) for size in RULES[rule]}
    ends = {size: found["train"][-1] for size, found in runs.items()}
    best = min(ends, key=lambda size: ends[size])
    chosen = min(runs, key=lambda size: min(runs[size]["validation"]))
    stop = int(np.argmin(runs[chosen]["validation"]))
    start = runs[best]["train"][0]
    finite = lambda value: value if isfinite(value) else None  # noqa: E731
    return {
        "rule": rule, "fisher": kind, "start": start, "train": finite(ends[best]), "size": best,
        "edge": best in (min(ends), max(ends)), "fell": sum(end < start for end in ends.values()),
        "test": finite(runs[chosen]["test"][stop]), "chosen": chosen, "stop": stop,
    }  # fmt: skip


def losses(data: Split, kind: str, rule: str, size: float, length: int, seed: int) -> dict[str, list[float]]:
    """NLL of each part before every update and at the end; infinite from where it is no number."""
    data = Split(replace(data.model), data.parts)  # its own θ
    matrix, found = curvature(kind, np.random.default_rng(seed)), {part: [] for part in data.parts}
    for k in range(length + 1):
        for part, losses in found.items():
            loss = data.problem(part).loss_old
            losses.append(loss if isfinite(loss) else float("inf"))
        if k < length:
            problem = data.problem(curvature=matrix)
            if rule == "fixed rate":
                update = npg(problem, solve=SOLVE, delta=1.0, lr=size)
            else:
                update = trpo(problem, solve=SOLVE, delta=size, max_backtracks=10, shrink=0.8)
            data.model.become(update.theta)
    return found


# --- the page ---------------------------------------------------------------------------------------


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    looks = [row for row in rows if row["kind"] in ("nll", "rl")]
    fits, learned = ([row for row in rows if row["kind"] == kind] for kind in ("fit", "learn"))
    places = [(task, k) for task in unique(looks, "task")
              for k in sorted({row["updates"] for row in looks if row["task"] == task})]
    exact = [row for row in looks if row["sum_error"] is not None]
    edges = [row for row in fits if row["edge"]]
    return Answer(
        title="Which Fisher?",
        question="The Fisher is an expectation over the labels (or actions) that the model itself would give. "
        "What is lost with one sampled label, with the label of the data (the empirical Fisher), with advantages "
        "as weights?",
        claims=[
            Claim("The Fisher is the curvature of the KL and the covariance of the score", *curved(exact, looks)),
            Claim("Its expectation is over the model's own predictions: data's labels won't do", *own(fits)),
            Claim("For a policy one action a state is enough (`fisher=empirical`)", *enough(learned, looks)),
        ],
        sentence=f"On likelihood models the direction of the empirical Fisher has an F-cosine of "
        f"{ranged(looks, 'nll', 'empirical', 'cosine')} to the true one's (the plain gradient's: "
        f"{ranged(looks, 'nll', 'none', 'cosine')}), but the KL of its step is up to "
        f"{greatest(looks, 'nll', 'empirical')} times what it predicts (the true Fisher: "
        f"{greatest(looks, 'nll', 'true')}; one sampled label: {greatest(looks, 'nll', 'sampled')}). "
        f"{labels(fits)} In policies one action a state gives {ranged(looks, 'rl', 'empirical', 'cosine')}, "
        f"weights A² {ranged(looks, 'rl', 'A²-weighted', 'cosine')}.",
        run=f"Looks: {listing(unique(looks, 'task'))} after {listing([str(k) for k in AT['nll']])} natural steps or "
        f"{listing([str(k) for k in AT['rl']])} updates of TRPO (networks [8, 8], batches of 2,048), seeds "
        f"{span(looks)}, each a split or a training, float64. F is the true Fisher of all samples; estimates from "
        f"N drawn with replacement, root mean square over {DRAWS}. Directions are −(F̂ + λI)⁻¹g from the training "
        f"samples, λ = {DAMPING} gᵀF̂g / gᵀg, compared by their cosine in the true F of independent samples. "
        f"Fits: {listing([f'{task} ({FITTED[task]} updates)' for task in unique(fits, 'task')])}; a KL radius with "
        f"a line search on the true KL (δ {listing([f'{d:g}' for d in RADII])}), or a fixed rate "
        f"({listing([f'{r:g}' for r in RATES])}); the best end of these counts for the training loss, and "
        "validation chooses size and update for the test loss. Trainings: TRPO with its defaults, "
        f"{listing([f'{env} for {steps(learned, env):,} steps' for env in unique(learned, 'task')])}. Brackets are "
        "95 % bootstrap intervals of the IQM over seeds.",
        tables=[
            Table("How far from F with 64 and 1,024 samples", ["model", "updates", *KINDS],
                  [[task, str(k), *(errors(looks, task, k, kind) for kind in KINDS)] for task, k in places],
                  "‖F̂ − F‖ / ‖F‖. The labels of the data, and A, belong to their samples: their error ends at a "
                  "bias. The sampled ones are fresh each time."),
            Table("F-cosine to the true natural direction", ["model", "updates", *KINDS[1:], "plain gradient"],
                  [[task, str(k), *(value(looks, task, k, kind, "cosine", ".3f") for kind in (*KINDS[1:], "none"))]
                   for task, k in places]),
            Table("KL of the step over the KL that F̂ predicts", ["model", "updates", *KINDS],
                  [[task, str(k), *(value(looks, task, k, kind, "kl_ratio", ".3g") for kind in KINDS)]
                   for task, k in places],
                  "1 where a trust region of that Fisher means what it says."),
            Table("Fits", ["model", "rule", "Fisher", "training NLL", "wins of true", "sizes that lower it",
                           "test NLL"],
                  [fitted(fits, task, rule, kind)
                   for task in unique(fits, "task") for rule in RULES for kind in KINDS[:3]],
                  "“Wins of true”: splits in which the true Fisher ends lower."),
            Table("TRPO", ["environment", "Fisher", "end", "mean of training"],
                  [[env, name, *(iqm([r[key] for r in learned if (r["task"], r["fisher"]) == (env, name)])
                                 for key in ("end", "mean"))]
                   for env in unique(learned, "task") for name in FISHERS]),
        ],
        plot=partial(draw_page, looks, fits, places),
        caption="Left, the error of estimates by N at the first and last look (lines: the model named; guide: "
        "slope −½); in the middle, F-cosine of the empirical Fisher's direction; right, training NLL at the end "
        "of fits at a fixed rate (linear below 0.001).",
        oracle="The exact sum of score products over all labels (quadrature for Normals) is JᵀMJ to "
        f"{max(r['sum_error'] for r in exact):.0e}, and that is ∇²KL to {max(r['kl_error'] for r in exact):.0e}, "
        f"in {len(exact)} looks. The error of sampled labels falls as N to the "
        f"{iqm(sampled_slopes(looks), '.2f')} at the first looks (expected −½). The empirical Fisher of a policy "
        f"is the one-sample true one: its F-cosine is {ranged(looks, 'rl', 'empirical', 'cosine')} where the "
        f"sampled one's is {ranged(looks, 'rl', 'sampled', 'cosine')}.",
        cannot=[
            "`fisher=empirical` of a policy isn't the empirical Fisher of Kunstner et al.: its actions come from "
            "the policy, so that it is the true Fisher from one sample a state. What is said of labels of data "
            "doesn't hold for it.",
            f"The best of {len(RADII)} radii and {len(RATES)} rates was taken on the training loss it reports, "
            f"the same number for each Fisher; in {len(edges)} of {len(fits)} fits the best is at an edge of its "
            "grid. Splits of one data set overlap, so that their wins are not independent.",
            "Small models with one label a sample. More sampled labels a sample, or a running mean over batches, "
            "would lie between sampled and true.",
            f"{len(places)} looks, {len(fits) // max(1, len(unique(fits, 'seed')))} fits a split and "
            f"{len(unique(learned, 'task'))} environments are shown, none corrected for their number.",
        ],
        literature=[
            "Kunstner, Balles & Hennig 2019 (Limitations of the empirical Fisher approximation for natural "
            "gradient descent).",
            "Martens 2020 (New insights and perspectives on the natural gradient method), on the empirical "
            "Fisher.",
            "Schulman et al. 2015 (Trust region policy optimization), appendix C: the Fisher from the KL, not "
            "from scores.",
        ],
        size=(14, 4.6),
    )  # fmt: skip


def span(rows: Sequence[Row]) -> str:
    return f"{min(row['seed'] for row in rows)} to {max(row['seed'] for row in rows)}"


def steps(rows: Sequence[Row], env: str) -> int:
    return next(row["steps"] for row in rows if row["task"] == env)


def at(looks: Sequence[Row], task: str, k: int, kind: str, name: str) -> list[float]:
    """One number of one Fisher at one look, by seed."""
    found = [row for row in looks if (row["task"], row["updates"], row["fisher"]) == (task, k, kind)]
    return [row[name] for row in found if row.get(name) is not None]


def value(looks: Sequence[Row], task: str, k: int, kind: str, name: str, show: str) -> str:
    found = at(looks, task, k, kind, name)
    return iqm(found, show) if found else "–"


def middles(looks: Sequence[Row], source: str, kind: str, name: str) -> list[float]:
    """IQM over seeds at each look of policies (rl) or likelihood models (nll)."""
    inside = [row for row in looks if row["kind"] == source]
    places = dict.fromkeys((row["task"], row["updates"]) for row in inside)
    found = [at(inside, task, k, kind, name) for task, k in places]
    return [float(stats.iqm(np.array(values))) for values in found if values]


def ranged(looks: Sequence[Row], source: str, kind: str, name: str) -> str:
    found = middles(looks, source, kind, name)
    return f"{number(min(found), '.2f')} to {number(max(found), '.2f')}" if found else "–"


def greatest(looks: Sequence[Row], source: str, kind: str) -> str:
    return number(max(middles(looks, source, kind, "kl_ratio"), default=float("nan")), ".3g")


def errors(looks: Sequence[Row], task: str, k: int, kind: str) -> str:
    found = [at(looks, task, k, kind, f"error_{N}") for N in (SIZES[0], SIZES[-1])]
    return " → ".join(f"{stats.iqm(np.array(values)):.2g}" for values in found) if all(found) else "–"


def sampled_slopes(looks: Sequence[Row]) -> list[float]:
    """d log error / d log N of sampled labels, each task's first look, a mean over tasks for each seed."""
    first = {task: min(r["updates"] for r in looks if r["task"] == task) for task in unique(looks, "task")}
    inside = [r for r in looks if r["fisher"] == "sampled" and r["updates"] == first[r["task"]]]
    slope = lambda r: float(np.polyfit(np.log(SIZES), np.log([r[f"error_{N}"] for N in SIZES]), 1)[0])  # noqa: E731
    return [float(np.mean([slope(r) for r in inside if r["seed"] == seed])) for seed in unique(inside, "seed")]


def curved(exact: Sequence[Row], looks: Sequence[Row]) -> tuple[str, str]:
    """Identities, and that sampling converges to them."""
    worst = max(max(row["sum_error"], row["kl_error"]) for row in exact)
    low, high = interval(sampled_slopes(looks))
    verdict = "false" if worst > 1e-8 else "true" if low <= -0.4 and high >= -0.6 else "not settled"
    return verdict, (
        f"JᵀMJ, the exact expectation of score products and ∇²KL agree to {worst:.0e} in {len(exact)} looks; "
        f"sampled labels approach it as N to the {iqm(sampled_slopes(looks), '.2f')}."
    )


def ends(fits: Sequence[Row], task: str, rule: str, kind: str) -> dict[int, float]:
    """Training NLL by seed, infinite where it diverged."""
    inside = [row for row in fits if (row["task"], row["rule"], row["fisher"]) == (task, rule, kind)]
    return {row["seed"]: np.inf if row["train"] is None else row["train"] for row in inside}


def wins(fits: Sequence[Row], task: str, rule: str, a: str, b: str) -> tuple[int, int]:
    """In how many splits `a` ends lower than `b`, of how many."""
    ours, theirs = ends(fits, task, rule, a), ends(fits, task, rule, b)
    return sum(ours[seed] < theirs[seed] for seed in ours), len(ours)


def ahead(fits: Sequence[Row], rule: str, a: str, b: str) -> list[str]:
    """Tasks in which `a` ends lower clearly: its Wilson interval is above a half."""
    return [task for task in unique(fits, "task") if stats.wilson(*wins(fits, task, rule, a, b))[0] > 0.5]


def own(fits: Sequence[Row]) -> tuple[str, str]:
    """Is the empirical Fisher worse than the true one, and is it the data's labels that make it so?"""
    tasks = unique(fits, "task")
    rate, radius = (ahead(fits, rule, "true", "empirical") for rule in ("fixed rate", "KL radius"))
    fault = ahead(fits, "fixed rate", "sampled", "empirical")
    level = all(k <= n / 2 for k, n in (wins(fits, task, "fixed rate", "true", "empirical") for task in tasks))
    verdict = ("true" if len(rate) == len(fault) == len(tasks) else "half true" if rate
               else "false" if level else "not settled")  # fmt: skip
    return verdict, (
        f"Fits end clearly lower with the true Fisher than with the empirical one on {len(rate)} of {len(tasks)} "
        f"data sets at a fixed rate and on {len(radius)} with a KL radius; at a fixed rate a label sampled from "
        f"the model is clearly better than the data's on {len(fault)}. {blame(fault, rate, tasks)}"
    )


def blame(fault: Sequence[str], rate: Sequence[str], tasks: Sequence[str]) -> str:
    """What the loss is due to."""
    if not rate:
        return "So no loss is shown that would need a reason."
    if not fault:
        return "So what is lost is lost by one label instead of the expectation, not by whose label it is."
    where = "" if len(fault) == len(tasks) else f" on {listing(fault)}; elsewhere it is one label instead of all"
    return f"So it matters whose labels they are{where}."


def labels(fits: Sequence[Row]) -> str:
    """Training losses at a fixed rate."""
    found = []
    for task in unique(fits, "task"):
        three = [shown(list(ends(fits, task, "fixed rate", kind).values())) for kind in KINDS[:3]]
        found.append(f"{task} {' / '.join(three)}")
    return f"At a fixed rate the fits end at (true / sampled / empirical) {'; '.join(found)}."


def shown(values: Sequence[float]) -> str:
    finite = [v for v in values if np.isfinite(v)]
    return f"{stats.iqm(np.array(finite)):.2g}" if finite else "diverged"


def fitted(fits: Sequence[Row], task: str, rule: str, kind: str) -> list[str]:
    inside = [row for row in fits if (row["task"], row["rule"], row["fisher"]) == (task, rule, kind)]
    k, n = wins(fits, task, rule, "true", kind)
    return [task, rule, kind, iqm([r["train"] for r in inside if r["train"] is not None], ".2g"),
            "–" if kind == "true" else f"{k} of {n}", f"{np.mean([r['fell'] for r in inside]):.1f} of "
                                                      f"{len(RULES[rule])}",
            iqm([r["test"] for r in inside if r["test"] is not None], ".3f")]  # fmt: skip


def enough(learned: Sequence[Row], looks: Sequence[Row]) -> tuple[str, str]:
    """Is TRPO as good with one action a state, and does its direction say so too?"""
    said, worse, close, envs = [], 0, 0, unique(learned, "task")
    for env in envs:
        x, y = (np.array([r["mean"] for r in learned if (r["task"], r["fisher"]) == (env, name)])
                for name in ("empirical", "true"))  # fmt: skip
        chance, (low, high) = stats.improvement(x, y)
        said.append(f"{env} {chance:.2f} [{low:.2f}, {high:.2f}]")
        worse, close = worse + (high < 0.5), close + (low > 0.2)
    least = min(middles(looks, "rl", "empirical", "cosine"))
    verdict = ("false" if worse == len(envs) else "half true" if worse or least < 0.9
               else "true" if close == len(envs) else "not settled")  # fmt: skip
    return verdict, (
        "The chance that a training with `fisher=empirical` has the higher mean return than one with the true "
        f"Fisher is {listing(said)}; at 2,048 actions its direction has an F-cosine of at least {least:.2f}. An "
        "interval with 0.5 in it is no proof of equality."
    )


def draw_page(looks: Sequence[Row], fits: Sequence[Row], places: Sequence[tuple[str, int]], figure) -> None:
    left, middle, right = figure.subplots(1, 3)
    tasks = list(dict.fromkeys(task for task, _ in places))
    task = next(t for t in tasks if t in DATA)
    first, last = (pick(k for t, k in places if t == task) for pick in (min, max))
    for colour, kind in zip(COLOURS, KINDS[:3], strict=False):
        for k, style in ((first, "--"), (last, "-")):
            y = [stats.iqm(np.array(at(looks, task, k, kind, f"error_{N}"))) for N in SIZES]
            left.plot(SIZES, y, style, marker="o^s"[KINDS.index(kind)], color=colour, markersize=5,
                      label=f"{kind}, {k} updates")  # fmt: skip
    anchor = stats.iqm(np.array(at(looks, task, first, "sampled", f"error_{SIZES[0]}")))
    left.plot(SIZES, [0.7 * anchor * (N / SIZES[0]) ** -0.5 for N in SIZES], ":", color="black", label="slope −½")
    left.set(xscale="log", yscale="log", xlabel="samples N", ylabel="‖F̂ − F‖ / ‖F‖, IQM", title=task)
    for j, name in enumerate(tasks):
        ks = [k for t, k in places if t == name]
        y = [stats.iqm(np.array(at(looks, name, k, "empirical", "cosine"))) for k in ks]
        middle.plot(range(1, len(ks) + 1), y, marker="ov^sDP"[j], color=COLOURS[j], markersize=5, label=name,
                    linestyle="--" if name in DATA else "-")  # fmt: skip
    middle.set(xlabel="look, early to late", xticks=range(1, 4), ylabel="F-cosine, empirical to true, IQM")
    fitted_tasks = unique(fits, "task")
    for j, kind in enumerate(KINDS[:3]):
        for i, name in enumerate(fitted_tasks):
            y = [v for v in ends(fits, name, "fixed rate", kind).values() if np.isfinite(v)]
            right.plot([i + 0.2 * (j - 1)] * len(y), y, linestyle="", marker="o^s"[j], color=COLOURS[j],
                       markersize=5, alpha=0.7, label=None if i else kind)  # fmt: skip
    right.set_yscale("symlog", linthresh=1e-3)
    right.set(ylabel="training NLL at the end, nats", xticks=range(len(fitted_tasks)))
    right.set_xticklabels([name.replace(", ", ",\n") for name in fitted_tasks])
    for panel in (left, middle, right):
        panel.legend(fontsize="x-small", frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3, handlelength=3)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
