"""Fisher or Hessian: how far apart are they, does Newton's step still go down, and what does each cost?

Dense Hessians H of losses and Fishers F along trainings, float64; then CPU time and memory of products and solves.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from page import Answer, Claim, Table, interval, iqm, number
from problems import DATA, cosine, direction, ggn_error, snapshots, split
from runner import Row, main
from torch import Tensor
from trainings import SEEDS

from rl_natgrad.algos.problem import Problem, likelihood
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.compare import stats
from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.config.refusals import listing
from rl_natgrad.optim.fisher import GaussNewton
from rl_natgrad.optim.solvers import cg, cholesky, steihaug, woodbury
from rl_natgrad.policy.heads import Categorical
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.model import Model
from rl_natgrad.policy.networks import AutogradLinearization

ALONE = True  # it is timed
POLICIES = ("CartPole", "Acrobot", "Pendulum")
AT = {"rl": (1, 5, 15, 40), "nll": (0, 3, 10, 40)}  # updates before a look
RADIUS = 0.01  # nats, to which directions are scaled before their gains are compared
RTOL = 1e-10  # eigenvalues under so much of the largest are 0: two logits where one would do
STEP = {"delta": 0.1, "max_backtracks": 10, "shrink": 0.8}  # the natural steps of the likelihood models
CG = {"damping": 0.1, "max_iter": 10, "tol": 1e-10}  # the package's defaults
WIDTHS = (4, 8, 16, 32, 64, 128, 256)  # 4-h-h-2: P from 50 to 67,586
N = 2000
LARGEST = {"Cholesky": 5_000, "Woodbury": 20_000}  # parameters; beyond, seconds become minutes
PRODUCTS = ("gradient, autodiff", "F·v, chain rule", "F·v, autodiff", "H·v, autodiff")
SOLVES = ("CG, 10 iterations", "Cholesky", "Woodbury")
SCALING = 300  # parameters from which on slopes are taken: below it calls cost more than arithmetic


def jobs(smoke: bool) -> list[Row]:
    """Memory first, in processes that have not grown yet; then time; then a training each."""
    widths = (4, 16, 32) if smoke else WIDTHS
    repeats, seeds = (2, SEEDS[:2]) if smoke else (6, SEEDS)
    tasks = [("nll", task) for task in DATA] + [("rl", env) for env in POLICIES]
    tasks = [("nll", "cancer, logistic"), ("nll", "cancer, MLP"), ("rl", "CartPole")] if smoke else tasks
    return [
        *({"kind": "memory", "width": width} for width in widths),
        *({"kind": "cost", "width": width, "seed": seed} for seed in range(repeats) for width in widths),
        *({"kind": kind, "task": task, "seed": seed} for seed in seeds for kind, task in tasks),
    ]


def rows(job: Row) -> list[Row]:
    """What a job of its kind finds."""
    match job["kind"]:
        case "memory":
            width = job["width"]
            return [{"P": parameters(width), "method": name, "mib": peak(width, name)} for name in methods(width)]
        case "cost":
            return cost(job["width"], job["seed"])
        case "nll":
            return likelihoods(job["task"], job["seed"])
        case _:
            words = ("algo=trpo", f"env={job['task']}", "policy.hidden=[8,8]", f"seed={job['seed']}")
            found = snapshots(*words, at=AT["rl"])
            return [look(problem) | {"updates": update} for update, problem, _ in found]


# --- how far apart ----------------------------------------------------------------------------------


def likelihoods(task: str, seed: int) -> list[Row]:
    """A model fitted by natural steps, and looked at on the way."""
    data, found = split(task, seed), []
    for update in range(max(AT["nll"]) + 1):
        problem = data.problem()
        if update in AT["nll"]:
            found.append(look(problem) | {"updates": update, "loss": problem.loss_old})
        data.model.become(trpo(problem, solve=partial(cg, **CG), **STEP).theta)
    return found


def look(problem: Problem) -> Row:
    """H and F of one problem, and the directions that they give."""
    F, H, g = problem.fisher(), problem.hessian(), problem.grad()
    dense_F, dense_H = F.dense(), H.dense()
    dense_H = (dense_H + dense_H.T) / 2
    values, vectors = torch.linalg.eigh(dense_H)
    keep = values.abs() > RTOL * values.abs().max()
    newton = -(vectors[:, keep] @ ((vectors[:, keep].T @ g) / values[keep]))
    free, natural = steihaug(H, -g, **CG), cg(F, -g, **CG).x
    return {
        "negative": float((keep & (values < 0)).double().mean()),
        "apart": float((dense_H - dense_F).norm() / dense_H.norm()),
        "alike": float((dense_H * dense_F).sum() / (dense_H.norm() * dense_F.norm())),
        "newton_slope": cosine(g, newton), "free_slope": cosine(g, free.x), "natural_slope": cosine(g, natural),
        "left": free.indefinite,
        "free_natural": cosine(free.x, natural, dense_F.mv), "newton_natural": cosine(newton, natural, dense_F.mv),
        "newton_gain": gain(problem, dense_F, newton), "free_gain": gain(problem, dense_F, free.x),
        "natural_gain": gain(problem, dense_F, natural),
        "ggn_error": ggn_error(problem, dense_F), "difference_error": difference_error(problem),
    }  # fmt: skip


def gain(problem: Problem, F: Tensor, d: Tensor) -> float | None:
    """By how much the loss falls along d where the quadratic KL is RADIUS; None where d has no such length."""
    dFd = float(d @ F @ d)
    if not 0 < dFd < np.inf:
        return None
    return problem.loss_old - problem.evaluate(problem.theta + (2 * RADIUS / dFd) ** 0.5 * d)[0]


def difference_error(problem: Problem, length: float = 1e-5) -> float:
    """‖Hv − (∇loss(θ + εv) − ∇loss(θ − εv)) / 2ε‖ / ‖Hv‖ for a random v."""
    v = direction(problem)
    slope = torch.func.grad(problem.loss)
    by_differences = (slope(problem.theta + length * v) - slope(problem.theta - length * v)) / (2 * length)
    Hv = problem.hessian().mv(v)
    return float((Hv - by_differences).norm() / Hv.norm())


# --- what it costs ----------------------------------------------------------------------------------


def parameters(width: int) -> int:
    """P of 4-h-h-2."""
    return MLP((4, width, width, 2)).size


def problem_of(width: int, seed: int = 0, samples: int = N) -> Problem:
    """A classifier with two classes on random inputs, float64."""
    rng = torch.Generator().manual_seed(seed)
    net = MLP((4, width, width, 2), last_gain=1.0)
    x = torch.randn(samples, 4, generator=rng, dtype=torch.float64)
    y = torch.randint(2, (samples,), generator=rng)
    return likelihood(Model(net, Categorical(2), net.init(rng).double()), x, y)


def chained(problem: Problem) -> GaussNewton:
    """F = JᵀMJ by the chain rule, in the form that every head has (two classes could share more work)."""
    head, lin = problem.model.head, problem.model.linearize(problem.theta, problem.batch.obs)
    return GaussNewton(lin, head.metric(lin.z), lambda: head.root(lin.z))


def autodiffed(problem: Problem) -> GaussNewton:
    """The same F with J v and Jᵀu by automatic differentiation."""
    head, x = problem.model.head, problem.batch.obs
    lin = AutogradLinearization(lambda theta: problem.model.forward(theta, x), problem.theta, lambda: None)
    return GaussNewton(lin, head.metric(lin.z), lambda: head.root(lin.z))


def methods(width: int) -> list[str]:
    """Those that are feasible at this size."""
    P = parameters(width)
    return [*PRODUCTS, *(name for name in SOLVES if LARGEST.get(name, P) >= P)]


def method(problem: Problem, name: str) -> Callable[[], Tensor]:
    """What is timed. An operator is built here, once a batch; a solve builds its own each time."""
    v, g = direction(problem), problem.grad()
    match name:
        case "gradient, autodiff":
            leaf = problem.theta.clone().requires_grad_()
            return lambda: torch.autograd.grad(problem.loss(leaf), leaf)[0]
        case "F·v, chain rule":
            return partial(chained(problem).mv, v)
        case "F·v, autodiff":
            return partial(autodiffed(problem).mv, v)
        case "H·v, autodiff":
            return partial(problem.hessian().mv, v)
        case "CG, 10 iterations":
            return lambda: cg(chained(problem), -g, damping=0.1, max_iter=10, tol=0.0).x
        case "Cholesky":
            return lambda: cholesky(chained(problem), -g, damping=0.1, max_gib=8).x
        case _:
            return lambda: woodbury(chained(problem), -g, damping=0.1, max_gib=8).x


def cost(width: int, seed: int, rounds: int = 7, least: float = 0.01) -> list[Row]:
    """Median CPU milliseconds of a call, methods taking turns; what takes over half a second has one turn."""
    problem = problem_of(width, seed)
    called = {name: method(problem, name) for name in methods(width)}
    first = {name: seconds_of(call, 1) for name, call in called.items()}
    calls = {name: max(1, int(least / max(s, 1e-9))) for name, s in first.items()}
    times: dict[str, list[float]] = {name: [s] if s > 0.5 else [] for name, s in first.items()}  # else a warm-up
    for _ in range(rounds):
        for name, call in called.items():
            if first[name] <= 0.5:
                times[name].append(seconds_of(call, calls[name]))
    errors = equalities(problem, called)
    P = parameters(width)
    return [{"P": P, "method": name, "ms": 1e3 * float(np.median(t))} | errors for name, t in times.items()]


def seconds_of(call: Callable[[], Tensor], times: int) -> float:
    """CPU seconds of one call, a mean of so many."""
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times


def equalities(problem: Problem, called: dict[str, Callable[[], Tensor]]) -> Row:
    """What must agree: F·v both ways, and converged CG with Cholesky."""
    apart = lambda a, b: float((a - b).norm() / b.norm())  # noqa: E731
    found = {"product_error": apart(called["F·v, chain rule"](), called["F·v, autodiff"]())}
    if len(problem.theta) < 2_000 and "Cholesky" in called:
        exact = cg(chained(problem), -problem.grad(), damping=0.1, max_iter=2_000, tol=1e-12).x
        found["cg_error"] = apart(exact, called["Cholesky"]())
    return found


def peak(width: int, name: str) -> float:
    """MiB by which a process of its own grows at most, from θ and data to the result."""
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(problem_of(width), name, theirs))
    process.start()
    theirs.close()
    grown = ours.recv()
    process.join()
    return grown


def _peak(problem: Problem, name: str, pipe) -> None:
    size = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # noqa: E731  KiB, of Linux
    method(problem_of(4, samples=4), name)()  # libraries are loaded when they are first called
    before = size()
    method(problem, name)()
    pipe.send(size() - before)
    pipe.close()


# --- the page ---------------------------------------------------------------------------------------

SHAPES = "ov^sDPX"


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    looks = [row for row in rows if row["kind"] in ("nll", "rl")]
    times, memory = ([row for row in rows if row["kind"] == kind] for kind in ("cost", "memory"))
    cells = [seen(looks, task, k) for task in unique(looks, "task") for k in updates(looks, task)]
    apart = [row for row in looks if row["task"] != "cancer, logistic"]
    ups = [row for row in apart if row["newton_slope"] > 0]
    better = [row for row in apart if more(row)]
    policy = [row for row in looks if row["kind"] == "rl"]
    return Answer(
        title="Fisher or Hessian, and what either costs",
        question="How far is the Fisher F from the Hessian H of the loss itself, does a Newton step still lower "
        "the loss, and what do products and solves with either cost?",
        claims=[
            Claim("Hessian-free turns out to be equivalent to natural gradient", *equivalent(looks)),
            Claim("The Fisher is cheaper than the Hessian of the loss", *cheaper(times)),
            Claim("The Fisher and its inverse are intractable, having n² numbers", *intractable(times, memory)),
        ],
        sentence=f"Where the model isn't linear, {iqm(per_seed(apart, 'negative'), '.0%')} of H's eigenvalues are "
        f"negative (policies' surrogates: {iqm(per_seed(policy, 'negative'), '.0%')}). Newton's undamped step "
        f"−H⁻¹g goes *up* in {len(ups)} of {len(apart)} snapshots ({iqm(up_per_seed(policy), '.0%')} of the "
        f"policies'); at equal KL it lowers the loss more than the natural step in {len(better)}. CG on H leaves "
        f"at negative curvature in {sum(row['left'] for row in apart)}; what it has by then goes up in "
        f"{sum(row['free_slope'] >= 0 for row in looks)} of {len(looks)}, the natural step in "
        f"{sum(row['natural_slope'] >= 0 for row in looks)}. {trend(cells)}",
        run=f"{len(looks)} snapshots, float64: TRPO's policies after {listing([str(k) for k in AT['rl']])} updates "
        f"of 2,048 steps, networks [8, 8], seeds {span(policy)}, the loss being the surrogate; and likelihood "
        f"models on {listing(unique([r for r in looks if r['kind'] == 'nll'], 'task'))} ([8, 8]; the first has no "
        f"hidden layer), after {listing([str(k) for k in AT['nll']])} natural steps, a random split each seed. "
        f"Eigenvalues under {RTOL:g} of the largest count as 0 and are left out of H⁻¹. “CG on H” and the natural "
        "step have the same ten iterations and damping 0.1. Gains are compared where the quadratic KL is "
        f"{RADIUS:g} nats. Costs: a classifier 4-h-h-2, N = {N:,} samples, P = "
        f"{listing([f'{P:,}' for P in unique(times, 'P')])}, float64, one thread, {len(unique(times, 'seed'))} "
        "repeats in which the methods take turns. A product's operator is built once and not timed, a solve "
        "starts from θ. Brackets are 95 % intervals over seeds or repeats.",
        tables=[
            Table("H beside F", ["loss", "updates", "negative eigenvalues", "Newton goes up", "Newton gains more",
                  "CG on H leaves early", "‖H − F‖ / ‖H‖", "cosine of H and F",
                  "F-cosine of CG's steps on H and F"],
                  [line(cell) for cell in cells],
                  "“Gains more”: than the natural step at equal KL. The cosine of two matrices is that of their "
                  "entries; it does not depend on their scales, as the distance does."),
            Table("CPU milliseconds", ["P", *PRODUCTS, *SOLVES],
                  [[f"{P:,}", *(cell_ms(times, P, name) for name in (*PRODUCTS, *SOLVES))]
                   for P in unique(times, "P")]),
            Table("Exponents of P", ["", *PRODUCTS, *SOLVES],
                  [["time", *(shown_slope(slopes(times, name)) for name in (*PRODUCTS, *SOLVES))]],
                  f"Log-log slopes of the time over P ≥ {SCALING}."),
            Table("Peak memory, MiB", ["P", *PRODUCTS, *SOLVES],
                  [[f"{P:,}", *(cell_mib(memory, P, name) for name in (*PRODUCTS, *SOLVES))]
                   for P in unique(memory, "P")],
                  "By how much a process of its own (ru_maxrss of a fork) grows, operators included, one run "
                  "each; parts that fit into memory it had already are not seen."),
        ],
        plot=partial(draw, cells, times),
        caption="Left, the distance of H and F along each training; in the middle, how many Newton steps go up; "
        "right, time against size (lines: products; dashed: solves).",
        oracle="Logistic regression, where H = F: ‖H − F‖ / ‖H‖ is at most "
        f"{worst(looks, 'apart', 'cancer, logistic')} and the two CG steps agree to "
        f"{1 - min(r['free_natural'] for r in looks if r['task'] == 'cancer, logistic'):.0e}. The generalised "
        f"Gauss–Newton matrix JᵀMJ is ∇²KL to {worst(looks, 'ggn_error')} in all {len(looks)} snapshots; H·v is "
        f"the difference of two gradients to {worst(looks, 'difference_error')}. F·v by the chain rule and by "
        f"autodiff agree to {worst(times, 'product_error')}, CG to convergence and Cholesky to "
        f"{worst(times, 'cg_error')}.",
        cannot=[
            f"{len(cells)} rows of snapshots and {len(unique(times, 'P'))} sizes are shown, none corrected for "
            "their number; snapshots of one training are not independent, so intervals resample seeds.",
            "H is that of a batch: with 2,048 noisy advantages much of it is noise, and a true expected Hessian "
            "may have fewer negative eigenvalues.",
            "Newton's step is undamped and has no trust region of its own; damping by more than the most negative "
            "eigenvalue would always go down, and is another method.",
            "For the Normal likelihood in (μ, log σ) the second derivative of the loss in the outputs depends on "
            "the data, so that even a linear model has H ≠ F; for softmax it does not.",
            "The chain rule for F·v is written out by hand; one written out for H·v would be faster than autodiff "
            "too. Only the two autodiff columns compare the matrices. Tanh networks of two layers on one core; "
            "GPUs and other sizes of N differ.",
        ],
        literature=[
            "Martens 2010 (Deep learning via Hessian-free optimization): CG on the Gauss–Newton matrix.",
            "Pascanu & Bengio 2014 (Revisiting natural gradient for deep networks): where the two are the same.",
            "Martens 2020 (New insights and perspectives on the natural gradient method): Fisher and generalised "
            "Gauss–Newton.",
            "Furmston, Lever & Barber 2016 (Approximate Newton methods for policy search in Markov decision "
            "processes): drop terms of the policy's Hessian until it is definite.",
            "Pearlmutter 1994 (Fast exact multiplication by the Hessian).",
        ],
        size=(14, 4.4),
    )  # fmt: skip


def unique(rows: Sequence[Row], name: str) -> list:
    return list(dict.fromkeys(row[name] for row in rows))


def updates(rows: Sequence[Row], task: str) -> list[int]:
    return sorted({row["updates"] for row in rows if row["task"] == task})


def span(rows: Sequence[Row]) -> str:
    return f"{min(row['seed'] for row in rows)} to {max(row['seed'] for row in rows)}"


def more(row: Row) -> bool:
    """Whether Newton's step lowered the loss more than the natural one of the same length in the KL."""
    return row["newton_gain"] is not None and row["newton_gain"] > (row["natural_gain"] or 0.0)


def per_seed(rows: Sequence[Row], name: str) -> list[float]:
    """Means over all snapshots of a seed: the unit that is resampled."""
    return [float(np.mean([r[name] for r in rows if r["seed"] == seed])) for seed in unique(rows, "seed")]


def up_per_seed(rows: Sequence[Row]) -> list[float]:
    return per_seed([row | {"up": row["newton_slope"] > 0} for row in rows], "up")


def seen(rows: Sequence[Row], task: str, k: int) -> Row:
    """A line of the table: the seeds of one task after k updates."""
    inside = [row for row in rows if (row["task"], row["updates"]) == (task, k)]
    return {
        "task": task, "updates": k, "n": len(inside), "up": sum(row["newton_slope"] > 0 for row in inside),
        "more": sum(map(more, inside)), "left": sum(row["left"] for row in inside),
        **{name: [row[name] for row in inside] for name in ("negative", "apart", "alike", "free_natural")},
    }  # fmt: skip


def trend(cells: Sequence[Row]) -> str:
    """How the distance of H and F moves along each training."""
    found = []
    for task in unique(cells, "task"):
        inside = [iqm(cell["apart"], ".2f") for cell in cells if cell["task"] == task and task != "cancer, "
                                                                                                  "logistic"]
        found += [f"{task} {inside[0]} → {inside[-1]}"] if inside else []
    return f"‖H − F‖ / ‖H‖, first snapshot → last: {'; '.join(found)}."


def line(cell: Row) -> list[str]:
    low, high = stats.wilson(cell["up"], cell["n"])
    return [cell["task"], str(cell["updates"]), iqm(cell["negative"], ".0%"),
            f"{cell['up']} of {cell['n']} [{low:.0%}, {high:.0%}]",
            *(f"{cell[k]} of {cell['n']}" for k in ("more", "left")),
            *(iqm(cell[name], ".2f") for name in ("apart", "alike", "free_natural"))]  # fmt: skip


def equivalent(looks: Sequence[Row]) -> tuple[str, str]:
    """Identical with the Gauss–Newton matrix; and with the Hessian itself?"""
    exact = max(row["ggn_error"] for row in looks) < 1e-8
    curved = [row for row in looks if row["task"] != "cancer, logistic"]
    same = [row for row in curved if row["free_natural"] >= 0.99]
    share = iqm(per_seed([row | {"same": row["free_natural"] >= 0.99} for row in curved], "same"), ".0%")
    verdict = "false" if not exact else "true" if len(same) >= 0.95 * len(curved) else "half true"
    matrix = "is the Fisher" if exact else "is *not* the Fisher"
    return verdict, (
        f"With the Gauss–Newton matrix of the KL, which Hessian-free methods use, it {matrix} (to "
        f"{worst(looks, 'ggn_error')}). With the Hessian itself CG's step has an F-cosine of 0.99 or more to the "
        f"natural step in {len(same)} of {len(curved)} snapshots of models that are not linear ({share} per seed)."
    )


def cheaper(times: Sequence[Row]) -> tuple[str, str]:
    """H·v over F·v by the same autodiff, paired by repeat, at every size."""
    found = {P: ratios(times, P, "H·v, autodiff", "F·v, autodiff") for P in unique(times, "P")}
    ends = {P: interval(values) for P, values in found.items()}
    above, below = [P for P in ends if ends[P][0] > 1], [P for P in ends if ends[P][1] < 1]
    verdict = ("true" if len(above) == len(ends) else "false" if len(below) == len(ends)
               else "half true" if above else "not settled")  # fmt: skip
    middle = {P: float(stats.iqm(np.array(values))) for P, values in found.items()}
    chain = {P: float(stats.iqm(np.array(ratios(times, P, "H·v, autodiff", "F·v, chain rule")))) for P in found}
    return verdict, (
        f"By the same automatic differentiation a product with H takes {min(middle.values()):.2f} to "
        f"{max(middle.values()):.2f} times one with F, more at {len(above)} of {len(ends)} sizes and less at "
        f"{len(below)} (95 %). The chain rule written out makes F·v {min(chain.values()):.1f} to "
        f"{max(chain.values()):.1f} times cheaper than H·v, but that is the writing's merit."
    )


def intractable(times: Sequence[Row], memory: Sequence[Row]) -> tuple[str, str]:
    """The matrix against its products."""
    matrix, products = slopes(times, "Cholesky"), slopes(times, "CG, 10 iterations")
    largest = max(unique(times, "P"))
    free = [row for row in memory if row["method"] == "CG, 10 iterations" and row["P"] == largest]
    slower = {P: ratios(times, P, "Cholesky", "CG, 10 iterations") for P in unique(times, "P")}
    crossing = [P for P, found in slower.items() if found and np.median(found) > 1]
    if not matrix or not products or interval(matrix)[0] <= 1.5:
        verdict = "not settled" if not matrix or not products or interval(matrix)[1] > 1.5 else "false"
    else:
        low, high = interval(products)
        verdict = "half true" if high < 1.5 else "true" if low >= 1.5 else "not settled"
    return verdict, (
        f"The dense solve's time grows as P to the {shown_slope(matrix)}, and 8 P² bytes would be "
        f"{8 * largest**2 / 2**30:,.1f} GiB at P = {largest:,}. But the step needs neither F nor F⁻¹: ten "
        f"products in CG grow as P to the {shown_slope(products)}, at P = {largest:,} "
        f"{cell_ms(times, largest, 'CG, 10 iterations')} ms and {number(free[0]['mib']) if free else '–'} MiB. CG "
        f"is cheaper than Cholesky {f'from P = {min(crossing):,} on' if crossing else 'at no size tried'}."
    )


def ratios(times: Sequence[Row], P: int, a: str, b: str) -> list[float]:
    """Times of a over those of b at one size, repeat by repeat."""
    ms = {(row["seed"], row["method"]): row["ms"] for row in times if row["P"] == P}
    return [ms[seed, a] / ms[seed, b] for seed in unique(times, "seed") if (seed, a) in ms and (seed, b) in ms]


def slopes(times: Sequence[Row], name: str) -> list[float]:
    """d log ms / d log P of each repeat; none where fewer than two sizes were run."""
    found = []
    for seed in unique(times, "seed"):
        points = [(row["P"], row["ms"]) for row in times
                  if (row["seed"], row["method"]) == (seed, name) and row["P"] >= SCALING]  # fmt: skip
        if len(points) > 1:
            found.append(float(np.polyfit(*np.log(points).T, 1)[0]))
    return found


def shown_slope(values: Sequence[float]) -> str:
    return iqm(values, ".2f")


def cell_ms(times: Sequence[Row], P: int, name: str) -> str:
    found = [row["ms"] for row in times if (row["P"], row["method"]) == (P, name)]
    return iqm(found, ".3g") if found else "–"


def cell_mib(memory: Sequence[Row], P: int, name: str) -> str:
    found = [row["mib"] for row in memory if (row["P"], row["method"]) == (P, name)]
    return ("under 1" if found[0] < 1 else number(found[0])) if found else "–"


def worst(rows: Sequence[Row], name: str, task: str | None = None) -> str:
    found = [row[name] for row in rows if row.get(name) is not None and task in (None, row.get("task"))]
    return f"{max(found):.0e}" if found else "–"


def draw(cells: Sequence[Row], times: Sequence[Row], figure) -> None:
    left, middle, right = figure.subplots(1, 3)
    for k, task in enumerate(t for t in unique(cells, "task") if t != "cancer, logistic"):
        inside = [cell for cell in cells if cell["task"] == task]
        look = {"marker": SHAPES[k], "color": COLOURS[k], "markersize": 5, "linewidth": 1.2, "label": task,
                "linestyle": "--" if task in DATA else "-"}  # fmt: skip
        at = range(1, len(inside) + 1)
        left.plot(at, [stats.iqm(np.array(cell["apart"])) for cell in inside], **look)
        middle.plot([x + 0.04 * (k - 2.5) for x in at], [cell["up"] / cell["n"] for cell in inside], **look)
    left.set(yscale="log", ylabel="‖H − F‖ / ‖H‖, IQM")
    middle.set(ylim=(-0.05, 1.05), ylabel="share of Newton steps that go up")
    for panel in (left, middle):
        panel.set(xlabel="snapshot, early to late", xticks=range(1, 5))
    left.legend(fontsize="x-small", frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3)
    for k, name in enumerate((*PRODUCTS, *SOLVES)):
        sizes = [P for P in unique(times, "P") if any((r["P"], r["method"]) == (P, name) for r in times)]
        ms = [np.median([r["ms"] for r in times if (r["P"], r["method"]) == (P, name)]) for P in sizes]
        right.plot(sizes, ms, marker=SHAPES[k], color=COLOURS[k], label=name, markersize=5, linewidth=1.2,
                   linestyle="--" if name in SOLVES else "-")  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="parameters P", ylabel="CPU milliseconds")
    right.legend(fontsize="x-small", frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
