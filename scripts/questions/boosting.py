"""Does boosting gain by the natural gradient?

Depth-3 trees are fitted to the gradient of a score in the distribution's parameters, sample by sample: to the
ordinary one, or to the natural one, which is that divided by the metric of the project's own heads. All else is
equal: the trees, the line search of a stage, rates, stopping, splits.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from page import Answer, Claim, Table, number
from runner import Row, main
from torch import Tensor

from rl_natgrad.compare.plot import COLOURS
from rl_natgrad.compare.stats import corrected_interval
from rl_natgrad.config.refusals import listing
from rl_natgrad.policy.heads import Categorical, DiagGaussian, Head

DATA = {  # its name: scores; raw: in the units that it comes in
    "diabetes": ("NLL", "CRPS"),
    "raw diabetes": ("NLL", "CRPS"),
    "sine": ("NLL", "CRPS"),
    "Friedman": ("NLL", "CRPS"),
    "cancer": ("softmax",),
    "digits": ("softmax",),
}
REPEATS, FOLDS = 10, 5
RATES = (0.3, 0.1, 0.03)
STAGES, PATIENCE = 400, 30  # a rate's boosting ends after so many stages, or so many without a better validation
METHODS = ("natural", "ordinary")

Learner = Callable[[NDArray, NDArray], Callable[[NDArray], NDArray]]
"""(X (N, D), target (N,)) ↦ prediction: X ↦ (N,)."""


@dataclass(frozen=True)
class LogScore:
    """−log p(y|z) and its metric, the Fisher information of z. The last `fixed` of z are 0: M is regular."""

    head: Head
    fixed: int = 0

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """(N,), nats."""
        return -self.head.log_prob(self.whole(z), y)

    def metric(self, z: Tensor) -> Tensor:
        """M (N, K, K), from the head's own product."""
        product, K = self.head.metric(self.whole(z)), z.shape[-1]
        columns = [product(self.whole(e.expand_as(z)))[:, :K] for e in torch.eye(K, dtype=z.dtype)]
        return torch.stack(columns, -1)

    def whole(self, z: Tensor) -> Tensor:
        return torch.cat([z, z.new_zeros(len(z), self.fixed)], -1)


@dataclass(frozen=True)
class CRPS:
    """The continuous ranked probability score of N(μ, σ²), z = [μ, log σ], and the metric of its divergence.

        S(z, y) = ∫ (F(x) − 1{x ≥ y})² dx = σ (u (2Φ(u) − 1) + 2φ(u) − 1/√π),   u = (y − μ)/σ
        M = ∇² ∫ (F' − F)² dx at F' = F,  = 2 ∫ ∇F ∇Fᵀ dx = diag(1/σ, σ/2) / √π

    Gneiting & Raftery 2007 (the score); Duan et al. 2020 (a metric for any proper score, as its divergence's).
    ∂F/∂μ = −φ(u)/σ and ∂F/∂log σ = −uφ(u);  ∫ φ² = 1/(2√π),  ∫ u²φ² = 1/(4√π).  Differs: the ngboost package
    has σ times this M, which is not that Hessian and has other units.
    """

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """(N,), in units of y."""
        mu, log_sigma = z.unbind(-1)
        u = (y.squeeze(-1) - mu) * torch.exp(-log_sigma)
        phi = torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
        return log_sigma.exp() * (u * torch.erf(u / math.sqrt(2)) + 2 * phi - 1 / math.sqrt(math.pi))

    def metric(self, z: Tensor) -> Tensor:
        """M (N, 2, 2)."""
        sigma = z[:, 1].exp()
        return torch.diag_embed(torch.stack([1 / sigma, sigma / 2], -1)) / math.sqrt(math.pi)


Score = LogScore | CRPS


def boost(
    score: Score, natural: bool, rate: float, learn: Learner, X: NDArray, y: Tensor, start: Tensor,
    *others: NDArray,
) -> Iterator[list[Tensor]]:
    """z at X and at the `others`, after each stage; ends where no length of a stage lowers the score.

        z ← z + η ρ f(x),   f fitted to −M⁻¹∇S or −∇S, a learner per parameter      Duan et al. 2020, algorithm 1
    """
    z = [start.expand(len(x), -1) for x in (X, *others)]
    while True:
        target = downhill(score, natural, z[0], y)
        if not bool(target.isfinite().all()):
            return
        learned = [learn(X, t) for t in target.T.numpy()]
        f = [torch.from_numpy(np.stack([predict(x) for predict in learned], -1)) for x in (X, *others)]
        rho = length(lambda rho, at=z[0], f=f[0]: float(score(at + rho * f, y).mean()))
        if rho == 0:
            return
        z = [at + rate * rho * step for at, step in zip(z, f, strict=True)]
        yield z


def downhill(score: Score, natural: bool, z: Tensor, y: Tensor) -> Tensor:
    """−M⁻¹∇S(z, y), or −∇S(z, y), a row a sample (N, K)."""
    leaf = z.detach().requires_grad_()
    g = torch.autograd.grad(score(leaf, y).sum(), leaf)[0]
    return -torch.linalg.solve_ex(score.metric(z), g)[0] if natural else -g


def length(loss: Callable[[float], float]) -> float:
    """ρ: 1, doubled while that lowers the loss, else halved until it is below loss(0); 0 where it never is."""
    rho, now = 1.0, loss(1.0)
    while rho < 2**20 and (longer := loss(2 * rho)) < now:
        rho, now = 2 * rho, longer
    before = loss(0.0)
    while not now < before:
        rho /= 2
        if rho < 2**-20:
            return 0.0
        now = loss(rho)
    return rho


def tree(X: NDArray, target: NDArray) -> Callable[[NDArray], NDArray]:
    """A regression tree of depth 3."""
    from sklearn.tree import DecisionTreeRegressor

    fitted = DecisionTreeRegressor(max_depth=3, random_state=0).fit(X, target[:, None].copy(), check_input=False)
    return lambda x: fitted.predict(x, check_input=False)


@dataclass(frozen=True)
class Problem:
    """Features, targets, and the z that made them, (N, 2), where that is known; raw: y is left in its units."""

    X: NDArray
    y: NDArray
    made: NDArray | None = None
    raw: bool = False

    @cached_property
    def classes(self) -> int:
        """0 for a number to be predicted."""
        return int(self.y.max()) + 1 if self.y.dtype.kind == "i" else 0


def problem(name: str, seed: int) -> Problem:
    """The data; what is generated is drawn anew for each seed."""
    from sklearn import datasets

    rng = np.random.default_rng(seed)
    match name:
        case "diabetes" | "raw diabetes":
            X, y = datasets.load_diabetes(return_X_y=True)
            return Problem(single(X), y, raw="raw" in name)
        case "cancer":
            X, y = datasets.load_breast_cancer(return_X_y=True)
            return Problem(single(X), y.astype(np.int64))
        case "digits":
            X, y = datasets.load_digits(return_X_y=True)
            kept = np.isin(y, (3, 8, 9))  # those that are alike
            return Problem(single(X[kept]), np.searchsorted((3, 8, 9), y[kept]).astype(np.int64))
        case "sine":
            X = rng.uniform(size=(500, 2))
            made = np.stack([np.sin(2 * np.pi * X[:, 0]), np.log(0.05 + 0.6 * X[:, 0] ** 2)], -1)
        case "Friedman":
            X = rng.uniform(size=(500, 10))
            mean = 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2 + 10 * X[:, 3] + 5 * X[:, 4]
            made = np.stack([mean, 2 * X[:, 0] + X[:, 5] - 1], -1)  # σ from 0.4 to 7.4
    return Problem(single(X), made[:, 0] + np.exp(made[:, 1]) * rng.standard_normal(len(X)), made)


def single(X: NDArray) -> NDArray:
    """What trees work on."""
    return np.ascontiguousarray(X, np.float32)


def jobs(smoke: bool) -> list[Row]:
    """One repeat of the folds on one kind of data with one score each."""
    return [
        {"data": data, "score": score, "repeat": repeat}
        for data in DATA for score in DATA[data] for repeat in range(1 if smoke else REPEATS)
    ]  # fmt: skip


def rows(job: Row) -> list[Row]:
    """A row a fold."""
    given = problem(job["data"], job["repeat"])
    order = np.random.default_rng(job["repeat"]).permutation(len(given.y))
    folds = np.array_split(order, FOLDS)
    return [
        {"fold": k} | fold(given, job["score"], test, np.concatenate(folds[:k] + folds[k + 1 :]))
        for k, test in enumerate(folds)
    ]  # fmt: skip


def fold(given: Problem, kind: str, test: NDArray, rest: NDArray) -> Row:
    """Both methods on one split: a fifth of the rest chooses rate and stage, and no test sample does."""
    valid, train = rest[: len(rest) // 5], rest[len(rest) // 5 :]
    score, targets, start, unit = setting(given, kind, train)
    tests: dict[str, float] = {"constant": mean(score, start.expand(len(test), -1), targets[test]) - unit}
    if given.made is not None:
        tests["truth"] = mean(score, standard(given, train), targets, test) - unit
    for method in METHODS:
        runs = [
            chosen(score, partial(boost, score, method == "natural", rate, tree), given.X, targets, start,
                   (train, valid, test)) | {"rate": rate}
            for rate in RATES
        ]  # fmt: skip
        best = min(runs, key=lambda run: run["valid"])
        tests |= {method: best["test"] - unit, f"{method}_rate": best["rate"], f"{method}_stages": best["stages"]}
    return tests if kind != "CRPS" or not given.raw else tests | in_units(tests, given.y[train].std())


def setting(given: Problem, kind: str, train: NDArray) -> tuple[Score, Tensor, Tensor, float]:
    """The score, all targets, the constant z that fits the training targets best, what to take off an NLL.

    Numbers are made of mean 0 and deviation 1 over the training set, but those in raw units: their NLL is larger
    by the log of the deviation, which is taken off, and their CRPS by the deviation (`in_units`).
    """
    if given.classes:
        share = np.bincount(given.y[train], minlength=given.classes) / len(train)
        start = torch.from_numpy(np.log(share[:-1] / share[-1]))
        return LogScore(Categorical(given.classes), fixed=1), torch.from_numpy(given.y), start, 0.0
    mu, sigma = given.y[train].mean(), given.y[train].std()
    score = LogScore(DiagGaussian(1)) if kind == "NLL" else CRPS()
    if given.raw:
        start = torch.tensor([mu, np.log(sigma)])
        return score, torch.from_numpy(given.y)[:, None], start, float(np.log(sigma)) if kind == "NLL" else 0.0
    return score, torch.from_numpy((given.y - mu) / sigma)[:, None], torch.zeros(2, dtype=torch.float64), 0.0


def in_units(tests: Row, sigma: float) -> Row:
    """Scores over the deviation of the targets."""
    return {name: float(tests[name] / sigma) for name in ("constant", *METHODS)}


def standard(given: Problem, train: NDArray) -> Tensor:
    """The z that made the data, in the units of standardised targets."""
    mu, sigma = given.y[train].mean(), given.y[train].std()
    return torch.from_numpy(np.stack([(given.made[:, 0] - mu) / sigma, given.made[:, 1] - np.log(sigma)], -1))


def mean(score: Score, z: Tensor, y: Tensor, kept: NDArray | None = None) -> float:
    """The mean score."""
    return float((score(z, y) if kept is None else score(z[kept], y[kept])).mean())


def chosen(score: Score, boosting: Callable, X: NDArray, y: Tensor, start: Tensor, parts: Sequence) -> Row:
    """Validation and test score at the stage with the best validation; stage 0 is the constant."""
    train, valid, test = parts
    best = {"valid": mean(score, start.expand(len(valid), -1), y[valid]),
            "test": mean(score, start.expand(len(test), -1), y[test]), "stages": 0}  # fmt: skip
    stages = boosting(X[train], y[train], start, X[valid], X[test])
    for stage, (_, at_valid, at_test) in zip(range(1, STAGES + 1), stages, strict=False):
        found = mean(score, at_valid, y[valid])
        if found < best["valid"]:
            best = {"valid": found, "test": mean(score, at_test, y[test]), "stages": stage}
        if stage - best["stages"] >= PATIENCE:
            break
    return best


def answer(rows: Sequence[Row]) -> Answer:
    """The page."""
    cells = [cell(rows, data, score) for data, score in dict.fromkeys((r["data"], r["score"]) for r in rows)]
    plain = [c for c in cells if "raw" not in c["data"]]
    raw = [c for c in cells if "raw" in c["data"]]
    better = [c for c in plain if c["low"] > 0]
    worse = [c for c in plain if c["high"] < 0]
    several = [c for c in cells if c["data"] != "cancer"]
    stuck = [c for c in several if not c["gain"][0] > 0]
    return Answer(
        title="Does boosting gain by the natural gradient?",
        question="Trees can be fitted to the gradient of a score in the parameters of a distribution, or to its "
        "natural gradient, the step of this project with a tree in place of a network. Does that predict better?",
        claims=[
            Claim("The natural gradient is useful where parameters are few or the distribution standard, and for "
                  "boosting", useful(plain, better, worse),
                  f"Of {len(plain)} comparisons in standardised units it has the better test score in "
                  f"{len(better)}, the worse in {len(worse)}; in the others the interval holds 0."),
            Claim("The natural gradient is required to correct the training of several parameters at once (Duan "
                  "et al. 2020)", "true" if len(stuck) == len(several) else "half true" if stuck else "false",
                  f"The ordinary gradient is not clearly better than a constant distribution in {len(stuck)} of "
                  f"{len(several)} cases with two parameters ({names(stuck)}); {kept(plain, raw)}"),
        ],
        sentence=sentence(plain, raw, better, worse),
        run=f"{len(rows)} splits: {', '.join(dict.fromkeys(c['data'] for c in cells))}; "
        f"{max(r['repeat'] for r in rows) + 1} times {FOLDS} folds each. *Sine* has two features (one of them "
        "idle), 500 samples and σ from 0.05 to 0.65; *Friedman* ten, 500, and σ from 0.4 to 7.4, both drawn anew "
        "for each repeat; *cancer* has two classes, *digits* are 3, 8 and 9. Scores: NLL and CRPS of N(μ, σ²) "
        "with parameters μ and log σ, each with its own metric; NLL of the softmax with the last logit at 0. "
        "Trees of depth 3, one for each parameter and stage; a stage's length by doubling and halving on the "
        f"training set, times a rate of {listing([f'{r:g}' for r in RATES])}; up to {STAGES} stages, or {PATIENCE} "
        "without a better validation. Rate and stage are those with the best validation score on a fifth of the "
        "training folds, which no tree sees; both methods have the same trials. Targets are standardised over the "
        "training set, but those in raw units; all scores are given for standardised targets.",
        tables=[Table("Test scores", ["data and score", "constant", "natural", "ordinary", "truth",
                                      "ordinary − natural", "natural better", "stages"], [line(c) for c in cells],
                      "Means over splits, lower is better, with 95 % intervals corrected for the samples that "
                      "splits share. *Constant* is one distribution for all samples, *truth* the one that made "
                      "them. *Stages* are medians, natural and ordinary.")],
        plot=partial(draw, cells, plain),
        caption="Left, what the natural gradient gains over the ordinary one, as a share of its gain over a "
        "constant distribution, with 95 % intervals. Right, how far each comes from that constant.",
        oracle=oracle(rows, cells),
        cannot=[
            f"{len(cells)} comparisons, none corrected for their number: by chance, one in twenty seems clear.",
            f"The smallest rate, {min(RATES):g}, was chosen in {edge(rows, 'rate', min(RATES)):.0%} of the "
            f"trainings, the largest in {edge(rows, 'rate', max(RATES)):.0%}, and the best stage was the last one "
            f"allowed in {edge(rows, 'stages', STAGES):.0%}: where these are many, a finer "
            "rate might score better, for either.",
            "Small tables, trees of one depth, one distribution for numbers; no subsampling of rows or features. "
            "The three digits (3, 8, 9) were chosen for being alike, on no result.",
            "The corrected interval is an approximation: no exact one exists for folds that share samples. The "
            "samples that choose rate and stage count as training samples in it.",
        ],
        literature=[
            "Duan et al. 2020 (NGBoost: natural gradient boosting for probabilistic prediction): the method, its "
            "line search, and a metric for the CRPS.",
            "Friedman 2001 (Greedy function approximation: a gradient boosting machine): the ordinary gradient.",
            "Gneiting & Raftery 2007 (Strictly proper scoring rules, prediction, and estimation): the CRPS.",
            "Nadeau & Bengio 2003 (Inference for the generalization error): the interval.",
        ],
        size=(13, 1.6 + 0.42 * len(cells)),
    )  # fmt: skip


def cell(rows: Sequence[Row], data: str, score: str) -> Row:
    """One kind of data and score: all splits."""
    inside = [row for row in rows if (row["data"], row["score"]) == (data, score)]
    column = {name: np.array([row[name] for row in inside], float) for name in ("constant", *METHODS)}
    truth = [row["truth"] for row in inside if row.get("truth") is not None]
    difference = column["ordinary"] - column["natural"]
    low, high = corrected_interval(difference, 1 / FOLDS)
    return {
        "data": data, "score": score, "n": len(inside), "low": float(low), "high": float(high),
        "difference": float(difference.mean()), "wins": int((difference > 0).sum()),
        "gain": corrected_interval(column["constant"] - column["ordinary"], 1 / FOLDS),
        "truth": float(np.mean(truth)) if truth else None,
        "stages": [int(np.median([row[f"{method}_stages"] for row in inside])) for method in METHODS],
    } | {name: float(values.mean()) for name, values in column.items()}  # fmt: skip


def useful(cells: Sequence[Row], better: Sequence[Row], worse: Sequence[Row]) -> str:
    """The verdict of the first claim."""
    if better:
        return "true" if len(better) == len(cells) else "half true"
    return "false" if worse else "not settled"


def sentence(plain: Sequence[Row], raw: Sequence[Row], better: Sequence[Row], worse: Sequence[Row]) -> str:
    """Which of them, and by how much."""
    middle = [c for c in plain if c not in better and c not in worse]
    said = [
        f"{who}: {listing([f'{name(c)} ({difference(c)})' for c in cells])}."
        for who, cells in (("The natural gradient scores better on", better),
                           ("The ordinary one scores better on", worse),
                           ("They cannot be told apart on", middle)) if cells
    ]  # fmt: skip
    units = [c for c in raw if c["low"] > 0]
    apart = listing([f"{c['score']} {difference(c)}" for c in raw])
    if raw:
        said.append(
            f"In raw units the natural gradient is clearly better by {len(units)} of {len(raw)} scores: "
            f"{apart}. It does not depend on the units, the ordinary one does."
        )
    return " ".join(said) + " Numbers are ordinary minus natural, in nats or deviations of the target."


def kept(plain: Sequence[Row], raw: Sequence[Row]) -> str:
    """How much of the natural gradient's gain over a constant the ordinary one has, where there is a gain."""
    share = [gained(c) for c in plain if c["natural"] < c["constant"]]
    units = [f"{c['score']} {number(gained(c), '.0%')}" for c in raw if c["natural"] < c["constant"]]
    said = []
    if share:
        low, high = number(min(share), ".0%"), number(max(share), ".0%")
        said.append(f"of the natural one's gain over that constant it has {low} to {high}")
    if units:
        said.append(f"in raw units {listing(units)}")
    return ", ".join(said) + "."


def gained(c: Row) -> float:
    return (c["constant"] - c["ordinary"]) / (c["constant"] - c["natural"])


def oracle(rows: Sequence[Row], cells: Sequence[Row]) -> str:
    """What must be so: units do not matter to the natural gradient, and nothing beats the truth."""
    found = {(r["data"], r["score"], r["repeat"], r["fold"]): r["natural"] for r in rows}
    apart = [
        abs(value - found["diabetes", *key]) for (data, *key), value in found.items()
        if "raw" in data and ("diabetes", *key) in found
    ]  # fmt: skip
    known = [c for c in cells if c["truth"] is not None]
    beaten = [name(c) for c in known for m in METHODS if c[m] < c["truth"]]
    said = []
    if apart:
        said.append(
            "The natural gradient's score on diabetes differs between raw and standardised units by "
            f"{np.median(apart):.1g} in the median split and by {max(apart):.2g} at most: rounding decides "
            "between equal splits of a tree, and so which stage is chosen (without ties, in a test, they agree)."
        )
    if known:
        said.append(f"A mean score is below that of the distribution that made the data in {len(beaten)} of "
                    f"{2 * len(known)} cells (expected 0).")  # fmt: skip
    return " ".join(said) + (
        " The tests hold the metrics against second derivatives of the divergences, the CRPS against its "
        "integral, and a boosting without features against the Normal of maximum likelihood."
    )


def edge(rows: Sequence[Row], what: str, value: float) -> float:
    """In what share of the trainings this was chosen."""
    return float(np.mean([row[f"{method}_{what}"] == value for row in rows for method in METHODS]))


def name(c: Row) -> str:
    return f"{c['data']} {c['score']}"


def names(cells: Sequence[Row]) -> str:
    return listing([name(c) for c in cells])


def difference(c: Row) -> str:
    return f"{number(c['difference'], '+.3f')} [{number(c['low'], '+.3f')}, {number(c['high'], '+.3f')}]"


def line(c: Row) -> list[str]:
    show = lambda value: "–" if value is None else number(value, ".3f")  # noqa: E731
    return [name(c), *(show(c[key]) for key in ("constant", *METHODS, "truth")), difference(c),
            f"{c['wins']} of {c['n']}", f"{c['stages'][0]}, {c['stages'][1]}"]  # fmt: skip


def draw(cells: Sequence[Row], plain: Sequence[Row], figure) -> None:
    left, right = figure.subplots(1, 2)
    for place, c in enumerate(plain):
        gain = abs(c["constant"] - c["natural"])
        at, low, high = (100 * c[key] / gain for key in ("difference", "low", "high"))
        left.errorbar(at, place, xerr=[[at - low], [high - at]], fmt="o", color=COLOURS[0], capsize=3)
    left.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(plain)), [name(c) for c in plain])
    left.set_xlabel("← ordinary better      natural better →\n% of the natural gradient's gain over a constant")
    for method, mark, colour, filled in zip(METHODS, "os", COLOURS, ("full", "none"), strict=False):
        right.plot([c["constant"] - c[method] for c in cells], range(len(cells)), mark, color=colour, label=method,
                   fillstyle=filled, markersize=7)  # fmt: skip
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(range(len(cells)), [name(c) for c in cells])
    right.set_xlabel("gain over a constant distribution, nats or deviations")
    for panel in (left, right):
        panel.invert_yaxis()
        panel.grid(axis="y", linewidth=0.3)
    figure.legend(*right.get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__], sys.argv[1:]))
