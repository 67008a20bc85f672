"""Is Adam's denominator curvature?

Along trainings, Adam's v̂ against the diagonal of the Fisher, and its direction against CG's. v̂ is kept beside the
training, from the gradient of the whole batch and from those of minibatches of 64 at the same θ. And TRPO learns
with the diagonal in place of the Fisher, beside TRPO with all of it and with none.
"""

import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from page import Answer, Claim, Table, iqm, number
from problems import cosine
from runner import Row, main
from torch import Tensor
from trainings import SEEDS, smooth, updates

from rl_natgrad import Training
from rl_natgrad.algos.problem import Batch
from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.compare.stats import improvement, iqm_interval
from rl_natgrad.compare.stats import iqm as interquartile
from rl_natgrad.config.refusals import listing
from rl_natgrad.optim.fisher import Fisher, GaussNewton
from rl_natgrad.optim.solvers import cg, diagonal
from rl_natgrad.policy.heads import Categorical
from rl_natgrad.policy.mlp import MLP

LEARNERS = {"Adam": ["algo=pg"], "TRPO": ["algo=trpo"]}
SNAPSHOTS = (3, 8, 16)  # updates of a policy at which v̂ is looked at
EPOCHS = (1, 5, 20)  # of a likelihood model in minibatches
STEPS = (10, 50, 200)  # of one with the whole batch
DATA = {"digits": (64, 32, 10), "cancer": (30, 16, 2)}
RATES = {"64": 1e-3, "full": 1e-2}
SOLVERS = ("identity", "diagonal", "cg")
LEARNING = {"CartPole": 60_000, "Pendulum": 80_000}
MINIBATCH, FISHER = 64, 256  # samples of a minibatch; of a likelihood model's Fisher
DIRECTIONS = {"plain": "−g", "diagonal": "−g / (diag F + λ)", "root": "−g / √v̂", "adam": "−m̂ / √v̂"}


class Moments:
    """Adam's running means of g and g², corrected for their start at 0. Kingma & Ba 2015, algorithm 1."""

    def __init__(self, P: int, betas: tuple[float, float] = (0.9, 0.999)):
        self.betas, self.t = betas, 0
        self.sums = [torch.zeros(P, dtype=torch.float64) for _ in betas]

    def add(self, g: Tensor) -> None:
        self.t += 1
        for total, beta, value in zip(self.sums, self.betas, (g, g.square()), strict=True):
            total.mul_(beta).add_(value, alpha=1 - beta)

    def hat(self) -> tuple[Tensor, Tensor]:
        """m̂ and v̂ (P,)."""
        m, v = (total / (1 - beta**self.t) for total, beta in zip(self.sums, self.betas, strict=True))
        return m, v


def jobs(smoke: bool) -> list[Row]:
    """A training each, measured within or by its returns."""
    seeds, last = (SEEDS[:2], SNAPSHOTS[0]) if smoke else (SEEDS, SNAPSHOTS[-1])
    steps = dict.fromkeys(LEARNING, 10_240) if smoke else LEARNING
    return [
        *({"part": "policy", "case": env, "learner": learner, "seed": seed, "updates": last}
          for env in LEARNING for learner in LEARNERS for seed in seeds),
        *({"part": "model", "case": data, "learner": batch, "seed": seed}
          for data in DATA for batch in RATES for seed in seeds),
        *({"part": "learning", "case": env, "learner": solver, "seed": seed, "steps": steps[env]}
          for env in LEARNING for seed in seeds for solver in SOLVERS),
    ]  # fmt: skip


def rows(job: Row) -> list[Row]:
    """What one training showed."""
    return {"policy": policy, "model": model, "learning": learning}[job["part"]](job)


def policy(job: Row) -> list[Row]:
    """A row a snapshot and size of batch. The F of the cosines is of a second batch of the same policy."""
    words = [*LEARNERS[job["learner"]], f"env={job['case']}", f"seed={job['seed']}", "total_steps=1e9"]
    rng, found = np.random.default_rng(job["seed"]), []
    with Training(*words) as run:
        moments = {kind: Moments(run.policy.theta.numel()) for kind in RATES}
        for update in range(1, job["updates"] + 1):
            gathered = run.gather()
            problem = run.problem(gathered.batch)
            moments["full"].add(problem.grad())
            for some in minibatches(len(gathered.batch.obs), rng):
                moments["64"].add(run.problem(part(gathered.batch, some)).grad())
            if update in SNAPSHOTS:
                other = run.problem(run.gather().batch).fisher()
                samples = {"64": MINIBATCH, "full": len(gathered.batch.obs)}
                found += [
                    {"update": update, "batch": kind, "samples": samples[kind]}
                    | compared(*moments[kind].hat(), problem.grad(), problem.fisher(), other) for kind in RATES
                ]  # fmt: skip
            run.learn_from(gathered)
    return found


def part(batch: Batch, rows: Tensor) -> Batch:
    """Some of the samples."""
    return Batch(batch.obs[rows], batch.action[rows], batch.adv[rows], batch.ret[rows], batch.value[rows])


def minibatches(N: int, rng: np.random.Generator) -> list[Tensor]:
    """N samples in whole minibatches, in a random order."""
    order = torch.from_numpy(rng.permutation(N))
    return list(order[: N // MINIBATCH * MINIBATCH].split(MINIBATCH))


def model(job: Row) -> list[Row]:
    """A row a snapshot of a network that Adam fits to classes. The F of the cosines is of test samples."""
    from sklearn import datasets

    load = {"digits": datasets.load_digits, "cancer": datasets.load_breast_cancer}[job["case"]]
    X, y = load(return_X_y=True)
    rng = np.random.default_rng(job["seed"])
    order = rng.permutation(len(X))
    X = (X - X.mean(0)) / np.maximum(X.std(0), 1e-8)
    x, y = torch.from_numpy(X[order]), torch.from_numpy(y[order].astype(np.int64))
    cut = len(x) * 4 // 5
    train, test, whole = torch.arange(cut), torch.arange(cut, len(x)), job["learner"] == "full"
    net = MLP(DATA[job["case"]], last_gain=1.0)
    theta = net.init(torch.Generator().manual_seed(job["seed"])).double()
    moments, found, update = Moments(len(theta)), [], 0
    snapshots = STEPS if whole else EPOCHS
    for epoch in range(1, snapshots[-1] + 1):
        for some in [train] if whole else minibatches(cut, rng):
            moments.add(gradient(net, theta, x[some], y[some]))
            m, v = moments.hat()
            theta = theta - RATES[job["learner"]] * m / (v.sqrt() + 1e-8)
            update += 1
        if epoch in snapshots:
            g = gradient(net, theta, x[train], y[train])
            F, other = fisher(net, theta, x[train[:FISHER]]), fisher(net, theta, x[test[:FISHER]])
            found.append({"update": update, "batch": job["learner"], "samples": cut if whole else MINIBATCH}
                         | compared(m, v, g, F, other))  # fmt: skip
    return found


def gradient(net: MLP, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """∇ −E log p(y|x) (P,)."""
    lin = net.linearize(theta, x)
    return lin.vjp((lin.z.softmax(-1) - torch.nn.functional.one_hot(y, lin.z.shape[-1])) / len(y))


def fisher(net: MLP, theta: Tensor, x: Tensor) -> GaussNewton:
    """The true Fisher of a softmax."""
    lin, head = net.linearize(theta, x), Categorical(net.sizes[-1])
    return GaussNewton(lin, head.metric(lin.z), lambda: head.root(lin.z))


def compared(m: Tensor, v: Tensor, g: Tensor, F: Fisher, other: Fisher) -> Row:
    """v̂ beside diag F, over the parameters that have an effect, and F-cosines to CG's direction."""
    curvature = torch.linalg.vector_norm(F.rows(), dim=0).double().square()
    seen = curvature > 0
    to = {
        "plain": -g, "root": -g / (v.sqrt() + 1e-8), "adam": -m / (v.sqrt() + 1e-8),
        "diagonal": diagonal(F, -g, damping=0.1, max_gib=8.0).x,
    }  # fmt: skip
    natural = cg(F, -g, damping=0.1, max_iter=10, tol=1e-10).x
    return {
        "spearman": spearman(v[seen], curvature[seen]),
        "ratio": float((v[seen] / curvature[seen]).median()),
    } | {name: cosine(d.to(g.dtype), natural, other.mv) for name, d in to.items()}  # fmt: skip


def spearman(x: Tensor, y: Tensor) -> float:
    """The correlation of ranks; ties are broken by place."""
    ranks = torch.stack([x, y]).argsort(-1).argsort(-1).double()
    return float(torch.corrcoef(ranks)[0, 1])


def learning(job: Row) -> list[Row]:
    """How high TRPO came with one solver."""
    found = updates("algo=trpo", f"solver={job['learner']}", "fisher.fraction=0.25", f"env={job['case']}",
                    f"seed={job['seed']}", f"total_steps={job['steps']}")  # fmt: skip
    curve = smooth([returned for returned, _ in found])
    return [{"mean": float(curve.mean()), "end": float(curve[-1])}]


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    cells = groups([row for row in rows if row["part"] != "learning"])
    learned = [row for row in rows if row["part"] == "learning"]
    small = [c for c in cells if c["batch"] == "64"]
    verdict, said = denominator(cells)
    return Answer(
        title="Is Adam's denominator curvature?",
        question="Adam divides by √v̂, a running mean of squared gradients. Is v̂ the diagonal of the Fisher, and "
        "does dividing by its root turn the gradient towards the natural one?",
        claims=[Claim("RMSProp and Adam approximate second derivatives", verdict, said)],
        sentence=f"{scale(cells)} {whole_batch(cells)} {diagonal_too(cells)} {learns(learned)}",
        run=f"Policies: {listing(list(LEARNING))} trained by PG with Adam and by TRPO, defaults, looked at after "
        f"{listing([str(u) for u in SNAPSHOTS])} updates of 2,048 samples. v̂ (β₂ = 0.999) is kept beside the "
        f"training, once from the batch's gradient, once from those of its minibatches of {MINIBATCH} at the same "
        "θ. Models: softmax networks with one hidden layer on digits and on breast cancer, trained by Adam, in "
        f"minibatches ({listing([str(e) for e in EPOCHS])} epochs, rate {RATES['64']:g}) or with the whole batch "
        f"({listing([str(u) for u in STEPS])} updates, rate {RATES['full']:g}). CG's direction has damping 0.1 and "
        "10 iterations, diag F damping 0.1. Cosines are in the true F of samples that made none of the "
        "directions. Learning: TRPO with other solvers and a quarter of the samples in F, "
        f"{listing([f'{e} for {n:,} steps' for e, n in ran(learned).items()])}. Seeds "
        f"{min(r['seed'] for r in rows)} to {max(r['seed'] for r in rows)} for all; nothing was tuned.",
        tables=[
            Table("v̂ beside diag F", ["training", "batch of v̂", "Spearman", "v̂ / diag F", "times its samples"],
                  [[c["label"], batch(c), iqm(c["spearman"], ".2f"), power(c["ratio"]), power(c["scaled"])]
                   for c in cells],
                  "IQM over seeds with its 95 % bootstrap interval; a seed's value is its mean over snapshots (of "
                  "logarithms for ratios, which are medians over parameters). Parameters without effect, whose "
                  "diag F is 0, are left out."),
            Table("F-cosine to CG's direction", ["training", "batch of v̂", *DIRECTIONS.values()],
                  [[c["label"], batch(c), *(iqm(c[d], ".2f") for d in DIRECTIONS)] for c in cells],
                  "λ is 0.1 times the curvature along g."),
            Table("Learning", ["environment", "solver", "return over training", "at the end", "P(above identity)"],
                  [line for env in ran(learned) for line in lines(learned, env)],
                  "IQM of seeds. The last column is the probability that a run with this solver has the higher "
                  "mean return over training."),
        ],
        plot=partial(draw, cells, small),
        caption="Left, do v̂ and diag F put the parameters in the same order; middle, how large v̂ is beside diag "
        "F, times the samples of its batch; right, how near directions come to CG's, with v̂ of minibatches.",
        oracle="In the tests: with one sample at a time the mean of g² is the diagonal of the empirical Fisher; "
        "the running means are torch's; diag F has rank correlation 1 with itself, and CG run to the end F-cosine "
        f"1 with Cholesky. Here: where v̂ is only the noise of a minibatch, it is diag F over {MINIBATCH} times "
        f"the mean square of the advantage, which is 1; that is the middle panel's 1, and minibatches come to "
        f"{spread(small)}.",
        cannot=[
            f"{len(cells)} cells with several intervals each, none corrected for their number. The two batches of "
            "a policy share the training.",
            "Small networks and short trainings. v̂'s memory of 1,000 gradients is longer than most of them, so "
            "it also holds the curvature of older parameters.",
            "Nothing is said of how well Adam optimises: a denominator may help by other ways than curvature. The "
            "solvers' damping was not tuned.",
        ],
        literature=[
            "Kingma & Ba 2015 (Adam: a method for stochastic optimization), algorithm 1.",
            "Martens 2020 (New insights and perspectives on the natural gradient method): the empirical Fisher "
            "and methods of this kind.",
            "Kunstner et al. 2019 (Limitations of the empirical Fisher approximation for natural gradient "
            "descent).",
        ],
        size=(14, 1.8 + 0.36 * len(cells)),
    )  # fmt: skip


def groups(rows: Sequence[Row]) -> list[Row]:
    """A cell a training and batch of v̂: each measure as an array over seeds."""
    of = lambda row: (row["case"], row["learner"] if row["part"] == "policy" else "", row["batch"])  # noqa: E731
    found = []
    for key in dict.fromkeys(map(of, rows)):
        inside = [row for row in rows if of(row) == key]
        case, learner, batch = key
        cell = {"label": f"{case}, {learner}" if learner else case, "batch": str(batch)}
        logs = [row | {"ratio": np.log10(row["ratio"]), "scaled": np.log10(row["ratio"] * row["samples"])}
                for row in inside]  # fmt: skip
        for name in ("spearman", "ratio", "scaled", *DIRECTIONS):
            cell[name] = np.array([np.mean([row[name] for row in logs if row["seed"] == seed])
                                   for seed in dict.fromkeys(row["seed"] for row in inside)])  # fmt: skip
        found.append(cell)
    return found


def denominator(cells: Sequence[Row]) -> tuple[str, str]:
    """The verdict: the same order of parameters, and a direction nearer to CG's."""
    order = [ends(c["spearman"]) for c in cells]
    turn = [ends(c["root"] - c["plain"]) for c in cells]
    same, other = sum(low > 0.5 for low, _ in order), sum(high < 0.5 for _, high in order)
    nearer, farther = sum(low > 0 for low, _ in turn), sum(high < 0 for _, high in turn)
    if same == nearer == len(cells):
        verdict = "true"
    elif same or nearer:
        verdict = "half true"
    else:
        verdict = "false" if other or farther else "not settled"
    middles = [float(interquartile(c["spearman"])) for c in cells]
    return verdict, (
        f"v̂ puts the parameters in nearly the order of diag F (Spearman's interval above 0.5) in {same} of "
        f"{len(cells)} cells, with IQMs from {number(min(middles), '.2f')} to {number(max(middles), '.2f')}. "
        f"Dividing the gradient by √v̂ takes it nearer to CG's direction than it was in {nearer}, further away in "
        f"{farther}."
    )


def scale(cells: Sequence[Row]) -> str:
    """How large v̂ is."""
    low, high = ends_of([10 ** float(interquartile(c["ratio"])) for c in cells])
    return f"v̂ is {low:.1g} to {high:.1g} of diag F" + (": its size is another." if high < 0.5 or low > 2 else ".")


def whole_batch(cells: Sequence[Row]) -> str:
    """What a whole batch makes of v̂, the square of a mean."""
    of = lambda name, kind: [float(interquartile(c[name])) for c in cells if c["batch"] == kind]  # noqa: E731
    noise = {kind: [10**value for value in of("scaled", kind)] for kind in RATES}
    ranks = {kind: of("spearman", kind) for kind in RATES}
    said = lambda values, show: "{} to {}".format(*(number(v, show) for v in ends_of(values)))  # noqa: E731
    return (
        "The noise of a batch alone would make v̂, times its samples, equal to diag F. It is "
        f"{said(noise['64'], '.2g')} of it with minibatches, and {said(noise['full'], '.2g')} with whole batches, "
        "where v̂ is the square of a mean rather than the mean of squares; the rank correlations are "
        f"{said(ranks['64'], '.2f')} and {said(ranks['full'], '.2f')}."
    )


def diagonal_too(cells: Sequence[Row]) -> str:
    """What the diagonal of F itself does to the direction."""
    mid = lambda name: ends_of([interquartile(c[name]) for c in cells])  # noqa: E731
    show = lambda name: "{} to {}".format(*(number(v, ".2f") for v in mid(name)))  # noqa: E731
    nearer = sum(ends(c["diagonal"] - c["plain"])[0] > 0 for c in cells)
    farther = sum(ends(c["diagonal"] - c["plain"])[1] < 0 for c in cells)
    return (
        f"Diag F itself takes the gradient nearer to CG's direction in {nearer} of {len(cells)} cells and further "
        f"away in {farther}: F-cosine {show('diagonal')}, the plain gradient {show('plain')}, over √v̂ "
        f"{show('root')}, Adam's own direction {show('adam')}."
    )


def learns(rows: Sequence[Row]) -> str:
    """Whether a diagonal is enough to learn with."""
    said = []
    for env in ran(rows):
        mean, parts = means(rows, env), []
        for a, b in (("diagonal", "identity"), ("cg", "diagonal")):
            p, (low, high) = improvement(mean[a], mean[b])
            word = "above" if low > 0.5 else "below" if high < 0.5 else "not told apart from"
            parts.append(f"{a} is {word} {b} (P = {p:.2f} [{low:.2f}, {high:.2f}])")
        said.append(f"on {env}, {' and '.join(parts)}")
    return f"In what TRPO learns {'; '.join(said)}."


def ran(rows: Sequence[Row]) -> dict[str, int]:
    """Steps of each environment."""
    return {row["case"]: row["steps"] for row in rows}


def means(rows: Sequence[Row], env: str, what: str = "mean") -> dict[str, np.ndarray]:
    """Returns of each solver, an array over seeds."""
    return {s: np.array([r[what] for r in rows if (r["case"], r["learner"]) == (env, s)]) for s in SOLVERS}


def lines(rows: Sequence[Row], env: str) -> list[list[str]]:
    """The learning table of one environment."""
    mean, end = means(rows, env), means(rows, env, "end")
    chance = {s: improvement(values, mean["identity"]) for s, values in mean.items()}
    return [
        [env, s, iqm(mean[s]), iqm(end[s]),
         "–" if s == "identity" else f"{chance[s][0]:.2f} [{chance[s][1][0]:.2f}, {chance[s][1][1]:.2f}]"]
        for s in mean
    ]  # fmt: skip


def ends(values: np.ndarray) -> tuple[float, float]:
    """The interval of an IQM over seeds."""
    low, high = iqm_interval([np.asarray(values)[:, None]], replicates=10_000)
    return float(low[0]), float(high[0])


def ends_of(values: Sequence) -> tuple[float, float]:
    return float(min(values)), float(max(values))


def power(values: np.ndarray) -> str:
    """An IQM of logarithms, as numbers."""
    low, high = ends(values)
    return f"{10 ** float(interquartile(values)):.2g} [{10**low:.2g}, {10**high:.2g}]"


def spread(cells: Sequence[Row]) -> str:
    low, high = ends_of([interquartile(c["scaled"]) for c in cells])
    return f"{10**low:.2g} to {10**high:.2g}"


def batch(c: Row) -> str:
    return "whole" if c["batch"] == "full" else c["batch"]


def draw(cells: Sequence[Row], small: Sequence[Row], figure) -> None:
    left, middle, right = figure.subplots(1, 3, sharey=True)
    labels = list(dict.fromkeys(c["label"] for c in cells))
    for shift, (kind, mark, colour) in enumerate(zip(RATES, "os", COLOURS, strict=False)):
        for c in (c for c in cells if c["batch"] == kind):
            name = "whole batch" if kind == "full" else "batch of 64"
            place = labels.index(c["label"]) + 0.2 * shift - 0.1
            for panel, values in ((left, c["spearman"]), (middle, c["scaled"])):
                at, (low, high) = float(interquartile(values)), ends(values)
                if panel is middle:
                    at, low, high = 10**at, 10**low, 10**high
                panel.errorbar(at, place, xerr=[[max(0, at - low)], [max(0, high - at)]], fmt=mark, color=colour,
                               capsize=3, label=name if c["label"] == labels[0] else None)  # fmt: skip
    for shift, (d, mark, colour) in enumerate(zip(DIRECTIONS, "D^vo", COLOURS[2:], strict=False)):
        for c in small:
            at, (low, high) = float(interquartile(c[d])), ends(c[d])
            right.errorbar(at, labels.index(c["label"]) + 0.16 * shift - 0.24, fmt=mark, color=colour, capsize=2,
                           xerr=[[max(0, at - low)], [max(0, high - at)]],
                           label=DIRECTIONS[d] if c["label"] == labels[0] else None)  # fmt: skip
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    left.set_xlabel("Spearman's rank correlation of v̂ and diag F")
    middle.set_xscale("log")
    middle.axvline(1, color="black", linewidth=0.8)
    middle.set_xlabel("v̂ × samples of its batch / diag F")
    right.set_xlabel("F-cosine to CG's direction")
    for panel in (left, middle, right):
        panel.grid(axis="y", linewidth=0.3)
    for panel in (left, right):
        panel.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
