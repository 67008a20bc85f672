"""How large should a batch be? Returns, directions, and the sharpness of what is reached.

Three parts. train: TRPO and PG at four batch sizes, each with a radius or rate tuned at that size. direction: how
alike are the natural gradients of two halves of a batch. digits: what minibatches of four sizes reach, and how
sharp it is.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from page import Answer, Claim, Table, iqm, number
from problems import cosine
from runner import Row, main
from torch import Tensor
from trainings import SEEDS, updates

from rl_natgrad import Training
from rl_natgrad.algos.problem import Batch, Problem
from rl_natgrad.compare import stats
from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.config.refusals import listing
from rl_natgrad.optim.solvers import cg
from rl_natgrad.rollout.collector import Rollout

BATCHES = (128, 512, 2048, 8192)
GRIDS = {  # what is tuned, at every batch size alike; the grid goes on where its best point is its last
    "trpo": ("algo.delta", (0.003, 0.01, 0.03, 0.1, 0.3)),
    "pg": ("optimizer.lr", (0.001, 0.003, 0.01, 0.03, 0.1)),
}
NAMES = {"trpo": "TRPO", "pg": "PG (Adam)", "sgd": "SGD", "adam": "Adam"}
STEPS = 60_000
TUNING = range(1000, 1002)
SMALL = 128  # the claim's 64–128
POINTS, CHUNK = (2, 10, 25), 128  # updates at which directions are compared; steps of an environment in a batch
MINIBATCHES = (16, 64, 256, 0)  # 0 is all
RATES = {"sgd": (0.03, 0.1, 0.3, 1.0, 3.0), "adam": (0.001, 0.003, 0.01, 0.03, 0.1)}
TARGET, MOST = 0.05, 3000  # nats at which a fit ends; updates that it may take
KAPPA = 0.01  # nats: the KL at which the rise of the loss is read


def jobs(smoke: bool) -> list[Row]:
    """A training cell, a seed of the directions, or a split of the digits each."""
    envs = ["CartPole"] if smoke else ["CartPole", "Pendulum"]
    batches, steps = ((128, 2048), 8_000) if smoke else (BATCHES, STEPS)
    cells = [
        {"part": "train", "env": env, "algo": algo, "batch": batch, "steps": steps}
        for batch in batches for env in envs for algo in GRIDS
    ]  # fmt: skip
    few = slice(2 if smoke else None)
    return [
        *cells,
        *({"part": "direction", "env": env, "seed": seed} for seed in SEEDS[few] for env in envs),
        *({"part": "digits", "split": split} for split in range(10)[few]),
    ]


def rows(job: Row) -> list[Row]:
    return {"train": trained, "direction": directions, "digits": digits}[job["part"]](job)


# Training


def trained(job: Row) -> list[Row]:
    """Tunes the size of the step on TUNING, then trains ten times with the best."""
    key, grid = GRIDS[job["algo"]]

    def run(stage: str, size: float, seed: int) -> Row:
        found = list(updates(f"algo={job['algo']}", f"env={job['env']}", f"horizon={job['batch'] // 8}",
                             f"{key}={size:g}", f"seed={seed}", f"total_steps={job['steps']}"))  # fmt: skip
        return {"stage": stage, "size": size, "seed": seed} | curve(found, job["batch"], job["steps"])

    tried: dict[float, list[Row]] = {}
    best = tuned(grid, lambda size: tried.setdefault(size, [run("tune", size, seed) for seed in TUNING]), "mean")
    seeds = SEEDS if job["steps"] == STEPS else SEEDS[:2]
    return [row for found in tried.values() for row in found] + [run("report", best, seed) for seed in seeds]


def tuned(grid: Sequence[float], tried: Callable[[float], list[Row]], score: str) -> float:
    """The size with the highest mean score; the grid goes on by its own factor while the best is at an end."""
    means = {size: float(np.mean([row[score] for row in tried(size)])) for size in grid}
    for _ in range(4):
        order = sorted(means)
        best = max(means, key=means.__getitem__)
        if best not in (order[0], order[-1]):
            break
        size = float(f"{order[0] / 10**0.5 if best == order[0] else order[-1] * 10**0.5:.1g}")
        means[size] = float(np.mean([row[score] for row in tried(size)]))
    return max(means, key=means.__getitem__)


def curve(found: Sequence[tuple[float | None, dict]], batch: int, steps: int) -> Row:
    """Mean return over training and over its last sixth, from blocks of at least 2,048 steps for every batch size.

    A block's return is that of the episodes that ended in it, and stands at its middle.
    """
    per = max(1, 2048 // batch)
    x, y = [], []
    for start in range(0, len(found), per):
        block = [(r, log["rollout/episodes"]) for r, log in found[start : start + per] if r is not None]
        if block:
            x.append((start + min(per, len(found) - start) / 2) * batch)
            returns, ended = zip(*block, strict=True)
            y.append(np.average(returns, weights=ended))
    at = lambda low, high: stats.area(np.array(x), np.array(y), low * steps, high * steps)  # noqa: E731
    kl = [log["policy/kl"] for _, log in found if log["policy/step_norm"] > 0]
    return {"start": float(y[0]), "mean": at(0, 1), "end": at(5 / 6, 1), "updates": len(found),
            "kl": float(np.median(kl)) if kl else None}  # fmt: skip


# Directions


def directions(job: Row) -> list[Row]:
    """Cosines of the directions that two halves of the environments give, with one policy, at a few updates."""
    found = []
    with Training("algo=trpo", f"env={job['env']}", f"seed={job['seed']}", "num_envs=16", f"horizon={CHUNK}",
                  "total_steps=10_000_000") as run:  # fmt: skip
        while run.update < POINTS[-1]:
            if run.update + 1 in POINTS:
                run.collector.horizon = 8 * CHUNK
                long = run.collector.collect(run.policy)
                run.collector.horizon = CHUNK
                judge = problem(run, run.batch(run.collector.collect(run.policy)))
                found += [{"update": run.update + 1} | row for row in halves(run, long, judge)]
            run.iterate()
    return found


def problem(run, batch: Batch) -> Problem:
    return run.algorithm.problem(run.policy, batch, rows=None)


def halves(run, long: Rollout, judge: Problem) -> list[Row]:
    """A row for each number of samples per half. judge: whose Fisher the cosine is in, an independent batch."""
    T, B = long.reward.shape
    solve = partial(cg, **run.cfg.solver.model_dump(exclude={"name"}))
    go = lambda p: solve(p.fisher(), -p.grad()).x  # noqa: E731
    F, found, rng = judge.fisher(), [], np.random.default_rng(run.cfg.seed)
    for steps in (T // 32, T // 8, T // 4, T):
        starts = [k * T // 8 for k in range(8)][:: max(1, steps * 8 // T)]
        cosines, plain, shuffled = [], [], []
        for start in starts:
            batches = [run.batch(part(long, start, steps, envs)) for envs in (slice(B // 2), slice(B // 2, B))]
            a, b = (problem(run, batch) for batch in batches)
            da, db = go(a), go(b)
            cosines.append(cosine(da, db, F.mv))
            plain.append(cosine(a.grad(), b.grad()))
            order = torch.from_numpy(rng.permutation(len(batches[1].adv)))
            mixed = go(problem(run, replace(batches[1], adv=batches[1].adv[order])))
            shuffled.append(cosine(da, mixed, F.mv))
        twice = go(problem(run, Batch(*(torch.cat([t, t]) for t in vars(batches[0]).values()))))
        found.append({
            "n": steps * B // 2, "cosine": float(np.mean(cosines)), "plain": float(np.mean(plain)),
            "same": cosine(da, twice, F.mv), "shuffled": float(np.mean(shuffled)),
        })  # fmt: skip
    return found


def part(rollout: Rollout, start: int, steps: int, envs: slice) -> Rollout:
    """So many steps of some of the environments, as a rollout of its own."""
    rows = slice(start, start + steps)
    r, obs = rollout, rollout.obs[start : start + steps + 1, envs]
    cut = (array[rows, envs] for array in (r.action, r.reward, r.terminated, r.done, r.valid))
    return Rollout(obs, *cut, returns=[], lengths=[])


# Digits


def digits(job: Row) -> list[Row]:
    """Each optimizer and minibatch size, at the rate that validates best: test NLL, and sharpness."""
    from sklearn.datasets import load_digits

    from rl_natgrad.policy.activations import Relu
    from rl_natgrad.policy.mlp import MLP

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(job["split"]).permutation(len(x))
    data = [(torch.tensor(x[at] / 16, dtype=torch.float32), torch.from_numpy(y[at].astype(np.int64)))
            for at in np.split(order, [int(0.6 * len(x)), int(0.8 * len(x))])]  # fmt: skip
    net = MLP((64, 16, 10), Relu, 1.0)
    theta = net.init(torch.Generator().manual_seed(job["split"]))
    found = []
    for optimizer, rates in RATES.items():
        for size in MINIBATCHES:
            tried: dict[float, list[Row]] = {}

            def attempt(rate: float, size=size, optimizer=optimizer, tried=tried) -> list[Row]:
                return tried.setdefault(rate, [fit(net, theta, data, optimizer, rate, size, job["split"])])

            best = tried[tuned(rates, attempt, "score")][0]
            kept = {key: best[key] for key in ("rate", "reached", "updates", "train", "validation", "test")}
            kept |= {"optimizer": optimizer, "minibatch": size or len(data[0][0]), "trials": len(tried)}
            found.append(kept | sharpness(net, best["theta"], data[0], rescaled=not size))
    return found


def fit(net, theta: Tensor, data: Sequence, optimizer: str, rate: float, size: int, seed: int) -> Row:
    """Minibatches until the training NLL is TARGET, or MOST updates. score: −validation NLL, if it got there."""
    from rl_natgrad.optim.first_order import Adam

    (x, y), (xv, yv), (xt, yt) = data
    rng, theta, N = np.random.default_rng(seed), theta.clone(), len(x)
    size, step, loss = size or N, 0, nll(net, theta, x, y)
    adam = Adam(theta)
    while loss > TARGET and step < MOST and np.isfinite(loss):
        if (k := step % max(1, N // size)) == 0:
            order = torch.from_numpy(rng.permutation(N))
        at = order[k * size : (k + 1) * size]
        g = gradient(net, theta, x[at], y[at])
        adam.step(g, rate) if optimizer == "adam" else theta.sub_(g, alpha=rate)
        step += 1
        if step % 10 == 0:
            loss = nll(net, theta, x, y)
    validation, reached = nll(net, theta, xv, yv), bool(loss <= TARGET)
    return {"rate": rate, "reached": reached, "updates": step, "train": loss, "validation": validation,
            "test": nll(net, theta, xt, yt), "theta": theta,
            "score": -validation if reached else -1e3 - (loss if np.isfinite(loss) else 1e3)}  # fmt: skip


def gradient(net, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """∇ of the mean NLL (P,): Jᵀ(p − 1_y) / N."""
    lin = net.linearize(theta, x)
    return lin.vjp((lin.z.softmax(-1) - torch.nn.functional.one_hot(y, lin.z.shape[1])) / len(y))


@torch.no_grad()
def nll(net, theta: Tensor, x: Tensor, y: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(net.forward(theta, x), y))


def sharpness(net, theta: Tensor, data: tuple[Tensor, Tensor], rescaled: bool) -> Row:
    """The Hessian's top eigenvalue and the steepest rise to KAPPA; rescaled: both again, the layers rescaled by 5.

    Dinh et al. 2017: for ReLU, (5 W₁, 5 b₁, W₂ / 5, b₂) is the same function.
    """
    from rl_natgrad.algos.problem import likelihood
    from rl_natgrad.policy.heads import Categorical
    from rl_natgrad.policy.model import Model

    x, y, theta = data[0].double(), data[1], theta.double()
    scaled = theta.clone()
    (W1, b1), (W2, _) = net.layers(scaled)
    for tensor, factor in ((W1, 5), (b1, 5), (W2, 0.2)):
        tensor.mul_(factor)
    found = {}
    for name, at in (("", theta), ("_rescaled", scaled)) if rescaled else (("", theta),):
        p = likelihood(Model(net, Categorical(10), at), x, y)
        found |= {f"eigenvalue{name}": top_eigenvalue(p), f"rise{name}": steepest_rise(p, KAPPA)}
    return found


def top_eigenvalue(p: Problem) -> float:
    """λ_max of ∇²loss, by Lanczos."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    H, P = p.hessian(), p.theta.numel()
    mv = lambda v: H.mv(torch.from_numpy(np.ascontiguousarray(v.ravel()))).numpy()  # noqa: E731
    start = np.random.default_rng(0).normal(size=P)
    return float(eigsh(LinearOperator((P, P), mv, dtype=float), k=1, which="LA", tol=1e-4, v0=start)[0][0])


def steepest_rise(p: Problem, kappa: float) -> float:
    """loss(θ + d) − loss(θ) for d = βF⁻¹∇loss, the steepest way up for its KL, with KL(θ ‖ θ + d) = κ as measured.

    F is damped by a hundredth of its own diagonal, so that a rescaled network gives the same number.
    """
    F = p.fisher().dense()
    D = torch.where(F.diagonal() > 0, F.diagonal(), torch.inf).rsqrt()
    damped = D[:, None] * F * D + 0.01 * torch.eye(len(D), dtype=F.dtype)
    d = D * torch.cholesky_solve((D * p.grad()).unsqueeze(-1), torch.linalg.cholesky(damped)).squeeze(-1)
    d = longest(p, d / float(d @ F @ d / (2 * kappa)) ** 0.5, kappa)
    return p.evaluate(p.theta + d)[0] - p.loss_old


def longest(p: Problem, d: Tensor, kappa: float) -> Tensor:
    """d times the factor at which the measured KL is κ, by bisection."""
    low, high = 0.0, 1.0
    while p.evaluate(p.theta + high * d)[1] < kappa and high < 1e3:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if p.evaluate(p.theta + middle * d)[1] <= kappa else (low, middle)
    return low * d


# The page


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    parts = {name: [row for row in rows if row["part"] == name] for name in ("train", "direction", "digits")}
    envs = list(dict.fromkeys(row["env"] for row in parts["train"]))
    cells = [cell for env in envs for algo in GRIDS for cell in trainings(parts["train"], env, algo)]
    fits = [cell for optimizer in RATES for cell in fitted(parts["digits"], optimizer)]
    compared = good(cells, fits, envs)
    looked = looks(parts["direction"], envs)
    splits = len({row["split"] for row in parts["digits"]})
    seeds = len({row["seed"] for row in parts["train"] if row["stage"] == "report"})
    points = sorted({row["update"] for row in parts["direction"]})
    again = [row for row in parts["digits"] if row["rise_rescaled"] is not None]
    factors = [row["eigenvalue_rescaled"] / row["eigenvalue"] for row in again]
    changes = [abs(row["rise_rescaled"] / row["rise"] - 1) for row in again]
    worst = min(row["same"] for row in parts["direction"])
    failed = sum(not row["reached"] for row in parts["digits"])
    return Answer(
        title="How large should a batch be?",
        question="A small batch gives many updates along noisy directions, a large one few along good ones. Which "
                 "learns "
        "more from the same experience, how alike are the natural gradients of two batches, and are the minima "
        "that large minibatches reach sharper?",
        claims=[Claim("A batch of 64–128 is good", *compared), Claim("Large batches reach sharp "
                                                                     "minimizers", *sharp(fits))],
        sentence=sentence(cells, looked, envs),
        run=f"**Training**: {listing(envs)}, {steps(parts['train']):,} steps, eight environments, batches of "
        f"{listing([f'{b:,}' for b in sorted({c['batch'] for c in cells})])} steps. For each, δ of TRPO and the "
        f"rate of Adam come from a grid of {len(GRIDS['pg'][1])} (half a decade apart, continued where the best "
        f"is at its end), by the mean return of {len(TUNING)} trainings on seeds from {TUNING[0]}; then {seeds} "
        f"trainings on seeds from {SEEDS[0]}. **Directions**: {listing(envs)}, TRPO's default training with 16 "
        f"environments, before updates {listing([str(p) for p in points])}: one policy steps them 1,024 times, and "
        "environments 1–8 and 9–16 are the two halves; the cosine of their CG directions is in the Fisher of a "
        f"third batch. **Digits**: 64-16-10 ReLU, {splits} splits of 60 % training, 20 % validation, 20 % test; "
        f"minibatches until the training NLL is {TARGET} or {MOST:,} updates, at the rate whose fit validates "
        "best. All fits end at one training loss, so that sharpness is not a matter of how far they went; "
        f"{failed} of {len(parts['digits'])} did not get there. "
        "*Rise*: of the training loss along its natural gradient, the steepest way up for its KL, to a KL of "
        f"{KAPPA} nats from the fit; unlike the eigenvalue it does not depend on the parametrisation.",
        tables=[
            Table("Returns", ["task, learner", "batch", "δ or rate", "updates", "median KL of an update",
                              "return over training, IQM", "at its end, IQM"], [line(c) for c in cells]),
            Table("Directions", ["task", "samples in a half", "F-cosine, natural", *("at update "
                                                                                     f"{p}" for p in points),
                                 "cosine, plain", "shuffled advantages"], [look(c, points) for c in looked],
                  before="IQM over seeds. The last columns are the plain gradient's cosine, and the natural one's "
                         "with "
                  "a half whose advantages were shuffled."),
            Table("Digits", ["optimizer", "minibatch", "rate, median", "updates, median", "top eigenvalue, IQM",
                             f"rise at {KAPPA} nats, IQM", "test NLL, IQM"], [fit_line(c) for c in fits]),
        ],
        plot=partial(draw, cells, looked, fits, envs),
        caption="Return averaged over training against the batch (IQM, 95 %); cosine between two halves; "
                "sharpness of the "
        "fits against the minibatch, as a multiple of the smallest one's.",
        oracle="A half whose samples are all there twice gives the same direction: the smallest cosine is "
               f"{worst:.6f} "
        f"(expected 1). Shuffled advantages give {mean_interval(parts['direction'])} on average (expected 0). "
        "Rescaling the two layers of a fit, which leaves its function as it is, multiplies the top eigenvalue by "
        f"{np.median(factors):.3g} (median) and changes the rise by at most "
        f"{max(changes):.1e} of itself.",
        cannot=[
            f"{len(cells)} cells of training and {len(fits)} of fits are shown, with intervals of their own; the "
            f"first claim rests on {len(envs) * len(GRIDS) + len(RATES)} comparisons, the second on "
            f"{2 * len(RATES)}, none corrected for their number.",
            "Equal experience is compared, not equal time; a batch from many environments in parallel costs less "
            "of it.",
            "The number of environments, λ and the critic's fit stay as they are. Shorter batches cut more "
            "episodes, so their advantages lean more on the critic: it is a part of what batch size means here.",
            "The digits are a small problem, and training stops early enough for every optimizer to get there; "
            "Keskar et al. have networks and data of another size.",
        ],
        literature=[
            "Keskar et al. 2017 (On large-batch training for deep learning): sharp minimizers.",
            "Dinh et al. 2017 (Sharp minima can generalize for deep nets): sharpness depends on the "
            "parametrisation.",
            "Ilyas et al. 2020 (A closer look at deep policy gradients): cosines of gradient estimates against "
            "samples.",
        ],
        size=(4.0 * (len(envs) + 2), 4.2),
    )  # fmt: skip


def trainings(rows: Sequence[Row], env: str, algo: str) -> list[Row]:
    """A cell for each batch size."""
    found = []
    for batch in sorted({row["batch"] for row in rows}):
        inside = [row for row in rows if (row["env"], row["algo"], row["batch"]) == (env, algo, batch)]
        report = [row for row in inside if row["stage"] == "report"]
        size = report[0]["size"]
        tuning = [row for row in inside if row["stage"] == "tune"]
        sizes = {row["size"] for row in tuning}
        kls = [row["kl"] for row in report if row["kl"] is not None]
        found.append({
            "env": env, "algo": algo, "batch": batch, "size": size, "updates": report[0]["updates"],
            "edge": size in (min(sizes), max(sizes)), "kl": float(np.median(kls)) if kls else None,
            "tuned": float(np.mean([row["mean"] for row in tuning if row["size"] == size])),
            "means": np.array([row["mean"] for row in report]), "ends": np.array([row["end"] for row in report]),
        })  # fmt: skip
    return found


def fitted(rows: Sequence[Row], optimizer: str) -> list[Row]:
    """A cell for each minibatch size, each value an array over splits in their order."""
    inside = sorted((row for row in rows if row["optimizer"] == optimizer), key=lambda row: row["split"])
    sizes = sorted({row["minibatch"] for row in inside})
    keys = ("rate", "updates", "eigenvalue", "rise", "test", "validation")
    return [
        {"optimizer": optimizer, "minibatch": size, "full": size == sizes[-1]}
        | {key: np.array([row[key] for row in inside if row["minibatch"] == size]) for key in keys}
        for size in sizes
    ]


def looks(rows: Sequence[Row], envs: Sequence[str]) -> list[Row]:
    """For each task and number of samples: cosines by seed, over all updates and at each."""
    found = []
    for env in envs:
        for n in sorted({row["n"] for row in rows}):
            inside = [row for row in rows if (row["env"], row["n"]) == (env, n)]
            seeds = sorted({row["seed"] for row in inside})
            by_seed = lambda key, inside=inside, seeds=seeds: np.array([  # noqa: E731
                np.mean([row[key] for row in inside if row["seed"] == seed]) for seed in seeds
            ])  # fmt: skip
            at = {p: np.array([row["cosine"] for row in inside if row["update"] == p])
                  for p in sorted({row["update"] for row in inside})}  # fmt: skip
            found.append({"env": env, "n": n, "cosine": by_seed("cosine"), "plain": by_seed("plain"),
                          "shuffled": by_seed("shuffled"), "at": at})  # fmt: skip
    return found


def good(cells: Sequence[Row], fits: Sequence[Row], envs: Sequence[str]) -> tuple[str, str]:
    """Is a batch of 64–128 no worse than the best other? That one is chosen on other seeds, or by validation."""
    worse, better, said = [], [], []
    for env in envs:
        for algo in GRIDS:
            inside = [c for c in cells if (c["env"], c["algo"]) == (env, algo)]
            small = min(inside, key=lambda c: abs(np.log(c["batch"] / SMALL)))
            rival = max((c for c in inside if c is not small), key=lambda c: c["tuned"])
            p, (low, high) = stats.improvement(rival["means"], small["means"])
            name = f"{NAMES[algo]} on {env}"
            worse += [name] * (low > 0.5)
            better += [name] * (high < 0.5)
            said.append(f"{name} {number(float(stats.iqm(small['means'])))} with {small['batch']:,} and "
                        f"{number(float(stats.iqm(rival['means'])))} with {rival['batch']:,} "
                        f"(P = {p:.2f} [{low:.2f}, {high:.2f}] that the latter is higher)")  # fmt: skip
    for optimizer in RATES:
        inside = [c for c in fits if c["optimizer"] == optimizer]
        small = next(c for c in inside if c["minibatch"] == 64)
        rival = min((c for c in inside if c is not small), key=lambda c: float(np.mean(c["validation"])))
        low, high = corrected(small["test"] - rival["test"])
        name = f"{NAMES[optimizer]} on the digits"
        worse += [name] * (low > 0)
        better += [name] * (high < 0)
        said.append(f"{name}: test NLL with 64 minus that with {rival['minibatch']:,} "
                    f"{number(float(np.mean(small['test'] - rival['test'])), '.3f')} [{number(low, '.3f')}, "
                    f"{number(high, '.3f')}]")  # fmt: skip
    verdict = "true" if not worse else "false" if len(worse) > len(said) / 2 else "half true"
    return verdict, (
        f"It is worse than the best other size, chosen on other seeds or by validation, in {len(worse)} of "
        f"{len(said)} cases ({listing(worse)}), and better in {len(better)} ({listing(better)}). Return over "
        f"training: {'; '.join(said)}."
    )


def sharp(fits: Sequence[Row]) -> tuple[str, str]:
    """Full batch against the smallest minibatch: log ratios of eigenvalue and rise, paired by split."""
    found: dict[str, list[tuple[float, float]]] = {"eigenvalue": [], "rise": []}
    said = []
    for optimizer in RATES:
        inside = [c for c in fits if c["optimizer"] == optimizer]
        few, full = inside[0], inside[-1]
        words = []
        for key, name in (("eigenvalue", "top eigenvalue"), ("rise", f"rise at {KAPPA} nats")):
            logs = np.log(full[key] / few[key])
            low, high = corrected(logs)
            found[key].append((low, high))
            words.append(f"{name} × {np.exp(np.mean(logs)):.2f} [{np.exp(low):.2f}, {np.exp(high):.2f}]")
        low, high = corrected(full["test"] - few["test"])
        words.append(f"test NLL {number(float(np.mean(full['test'] - few['test'])), '+.3f')} "
                     f"[{number(low, '+.3f')}, {number(high, '+.3f')}]")  # fmt: skip
        said.append(f"{NAMES[optimizer]}: {', '.join(words)}")
    above = {key: sum(low > 0 for low, _ in ends) for key, ends in found.items()}
    below = {key: sum(high < 0 for _, high in ends) for key, ends in found.items()}
    n = len(RATES)
    if above["eigenvalue"] == above["rise"] == n:
        verdict = "true"
    elif above["eigenvalue"] + above["rise"] > 0:
        verdict = "half true"
    elif below["eigenvalue"] + below["rise"] > 0:
        verdict = "false"
    else:
        verdict = "not settled"
    return verdict, (
        f"All data at once against minibatches of 16, at one training loss: {'; '.join(said)}. Sharper by the "
        f"eigenvalue with {above['eigenvalue']} of {n} optimizers (flatter with {below['eigenvalue']}); by the "
        f"rise, which does not depend on the parametrisation, with {above['rise']} (flatter with {below['rise']})."
    )


def corrected(differences: np.ndarray) -> tuple[float, float]:
    """Over splits that share their data: Nadeau and Bengio's interval, a fifth of the data being the test set."""
    low, high = stats.corrected_interval(differences, 0.2)
    return float(low), float(high)


def sentence(cells: Sequence[Row], looked: Sequence[Row], envs: Sequence[str]) -> str:
    """The best batch, and how good its directions are."""
    said = []
    for env in envs:
        score = lambda c: float(stats.iqm(c["means"]))  # noqa: E731
        best = [max((c for c in cells if (c["env"], c["algo"]) == (env, a)), key=score) for a in GRIDS]
        batches = [f"{NAMES[c['algo']]} returns most over training with a batch of {c['batch']:,}" for c in best]
        inside = [c for c in looked if c["env"] == env]
        cosines = [f"{number(float(stats.iqm(c['cosine'])), '.2f')} with {c['n']:,}" for c in inside]
        said.append(f"On {env} {listing(batches)}; the cosine between the natural gradients of two halves is "
                    f"{listing(cosines)} samples each")  # fmt: skip
    edges = [f"{NAMES[c['algo']]} on {c['env']} with {c['batch']:,}" for c in cells if c["edge"]]
    close = f" The best radius or rate is at the end of what was tried for {listing(edges)}." if edges else ""
    return ". ".join(said) + "." + close


def mean_interval(rows: Sequence[Row]) -> str:
    """The mean cosine with shuffled advantages, and its interval over seeds."""
    seeds = sorted({row["seed"] for row in rows})
    means = [np.mean([row["shuffled"] for row in rows if row["seed"] == seed]) for seed in seeds]
    return iqm(means, ".3f")


def steps(rows: Sequence[Row]) -> int:
    return rows[0]["steps"]


def line(cell: Row) -> list[str]:
    kl = "–" if cell["kl"] is None else f"{cell['kl']:.2g}"
    return [f"{cell['env']}, {NAMES[cell['algo']]}", f"{cell['batch']:,}", f"{cell['size']:g}",
            f"{cell['updates']:,}", kl, iqm(cell["means"]), iqm(cell["ends"])]  # fmt: skip


def look(cell: Row, points: Sequence[int]) -> list[str]:
    return [cell["env"], f"{cell['n']:,}", iqm(cell["cosine"], ".2f"),
            *(number(float(stats.iqm(cell["at"][p])), ".2f") for p in points), iqm(cell["plain"], ".2f"),
            number(float(stats.iqm(cell["shuffled"])), ".2f")]  # fmt: skip


def fit_line(cell: Row) -> list[str]:
    size = f"all {cell['minibatch']:,}" if cell["full"] else f"{cell['minibatch']}"
    return [NAMES[cell["optimizer"]], size, f"{np.median(cell['rate']):g}", f"{np.median(cell['updates']):,.0f}",
            iqm(cell["eigenvalue"], ".3g"), iqm(cell["rise"], ".3g"), iqm(cell["test"], ".3f")]  # fmt: skip


def draw(cells: Sequence[Row], looked: Sequence[Row], fits: Sequence[Row], envs: Sequence[str], figure) -> None:
    panels = figure.subplots(1, len(envs) + 2)
    for panel, env in zip(panels, envs, strict=False):
        for algo, colour, mark in zip(GRIDS, COLOURS, "os", strict=False):
            inside = [c for c in cells if (c["env"], c["algo"]) == (env, algo)]
            x, y = [c["batch"] for c in inside], [c["means"] for c in inside]
            bars(panel, x, y, NAMES[algo], colour, f"{mark}-")
        panel.set(title=env, xlabel="batch, steps", ylabel="return averaged over training, IQM")
    panel = panels[-2]
    for env, colour, mark in zip(envs, COLOURS[2:], "^D", strict=False):
        inside = [c for c in looked if c["env"] == env]
        for key, style, name in (("cosine", "-", "natural, in F"), ("plain", ":", "plain")):
            bars(panel, [c["n"] for c in inside], [c[key] for c in inside], f"{env}, {name}", colour, mark + style)
    panel.set(title="Directions", xlabel="samples in a half", ylabel="cosine of two halves")
    panel = panels[-1]
    for optimizer, colour, mark in zip(RATES, COLOURS, "os", strict=False):
        inside = [c for c in fits if c["optimizer"] == optimizer]
        for key, style, name in (("eigenvalue", "-", "top eigenvalue"), ("rise", "--", f"rise at {KAPPA} nats")):
            ratios = [c[key] / inside[0][key] for c in inside]
            bars(panel, [c["minibatch"] for c in inside], ratios, f"{NAMES[optimizer]}, "
                                                                  f"{name}", colour, mark + style)
    panel.set(title="Digits", xlabel="minibatch", ylabel="multiple of the smallest minibatch's")
    for panel in panels:
        panel.legend(fontsize="x-small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def bars(panel, x: Sequence[float], values: Sequence[np.ndarray], name: str, colour: str, style: str) -> None:
    """IQMs with their bootstrap intervals."""
    middle = np.array([stats.iqm(v) for v in values])
    ends = np.array([stats.iqm_interval([v[:, None]]) for v in values])[:, :, 0]
    panel.errorbar(x, middle, [middle - ends[:, 0], ends[:, 1] - middle], fmt=style, color=colour, label=name,
                   markersize=4, linewidth=1.2, capsize=2)  # fmt: skip
    panel.set_xscale("log")
    panel.set_xticks(x, [f"{v:,}" for v in x])
    panel.minorticks_off()


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
