"""Statistics of a few seeds: interquartile means, bootstrap intervals, curves on a common grid.

Agarwal et al. 2021 (Deep RL at the Edge of the Statistical Precipice): with 3 to 20 seeds, report the
interquartile mean with a stratified bootstrap interval, and the probability of improvement. The unit is the seed.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95


def iqm(scores: Array) -> Array:
    """Interquartile mean over axis 0: the mean of what stays when ⌊n/4⌋ are cut from either end."""
    cut = len(scores) // 4
    return np.sort(scores, axis=0)[cut : len(scores) - cut].mean(axis=0)


def iqm_interval(strata: Sequence[Array], *, replicates: int = 2000, seed: int = 0) -> tuple[Array, Array]:
    """Low and high end of the percentile bootstrap interval of the IQM, each column on its own.

    Every replicate draws as many seeds from each stratum as it has, with replacement, and takes the IQM of all
    that were drawn. A replicate is kept as how often it drew each seed (a row of `counts`), so that a column is
    sorted once and not once per replicate: of the sorted scores, those ranked in the middle half are averaged.

    Args:  strata: one (n, G) array per environment; G grid points or scores.
    """
    scores = np.concatenate([np.asarray(stratum, float) for stratum in strata])
    rng = np.random.default_rng(seed)
    counts = np.concatenate([_draws(len(stratum), replicates, rng) for stratum in strata], axis=1)
    n = len(scores)
    cut = n // 4
    ends = np.empty((2, scores.shape[1]))
    for column, order in enumerate(np.argsort(scores, axis=0).T):
        ranks = np.clip(np.cumsum(counts[:, order], axis=1), cut, n - cut)
        inside = np.diff(ranks, axis=1, prepend=cut)
        ends[:, column] = _interval(inside @ scores[order, column] / (n - 2 * cut))
    return ends[0], ends[1]


def improvement(
    x: Array, y: Array, *, replicates: int = 10_000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """P(a run of x scores above a run of y), a tie counting ½, and its bootstrap interval.

    The Mann–Whitney statistic over all pairs; both sides are resampled by seed.
    """
    difference = x[:, None] - y[None, :]
    wins = (difference > 0) + 0.5 * (difference == 0)
    rng = np.random.default_rng(seed)
    left, right = _draws(len(x), replicates, rng), _draws(len(y), replicates, rng)
    low, high = _interval(np.einsum("rn,rn->r", left @ wins, right) / wins.size)
    return float(wins.mean()), (float(low), float(high))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Interval of a proportion, of which `successes` of n > 0 trials came true (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    p, scale = successes / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / scale, z / scale * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(x: Array, y: Array, *, replicates: int = 10_000, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Mean of x − y, where x[i] and y[i] are of one seed, and its bootstrap interval, by pairs."""
    difference = x - y
    means = _draws(len(difference), replicates, np.random.default_rng(seed)) @ difference / len(difference)
    low, high = _interval(means)
    return float(difference.mean()), (float(low), float(high))


def difference(
    x: Array, y: Array, *, replicates: int = 10_000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """mean(x) − mean(y), and its bootstrap interval, both resampled by seed."""
    rng = np.random.default_rng(seed)
    means = [_draws(len(v), replicates, rng) @ v / len(v) for v in (x, y)]
    low, high = _interval(means[0] - means[1])
    return float(x.mean() - y.mean()), (float(low), float(high))


def corrected_interval(differences: Array, test_share: float) -> tuple[float, float]:
    """Interval of the mean of n ≥ 2 differences of two learners over the folds of repeated k-fold.

        d̄ ± t_{n−1} √((1/n + n_test/n_train) s²)        Nadeau & Bengio 2003, section 5

    Folds share most of their training data, so that 1/n alone makes the interval too narrow.

    Args: test_share: n_test / (n_test + n_train), in (0, 1): 1/k.
    """
    from scipy.special import stdtrit

    n = len(differences)
    t = float(stdtrit(n - 1, (1 + LEVEL) / 2))
    half = t * float(differences.std(ddof=1)) * (1 / n + test_share / (1 - test_share)) ** 0.5
    return float(differences.mean()) - half, float(differences.mean()) + half


def profile(
    strata: Sequence[Array], levels: Array, *, replicates: int = 2000, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Share of all runs above each level (G,), and the ends of its interval, seeds resampled by stratum.

    Args:  strata: one (n,) array per environment.
    """
    above = np.concatenate([stratum[:, None] > levels for stratum in strata]).astype(float)
    rng = np.random.default_rng(seed)
    counts = np.concatenate([_draws(len(stratum), replicates, rng) for stratum in strata], axis=1)
    low, high = np.quantile(counts @ above / len(above), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return above.mean(axis=0), low, high


def common_range(xs: Sequence[Array]) -> tuple[float, float] | None:
    """The part of the axis that every curve covers, or None: nothing is extrapolated."""
    low, high = max(x[0] for x in xs), min(x[-1] for x in xs)
    return (float(low), float(high)) if low <= high else None


def on_grid(curves: Sequence[tuple[Array, Array]], grid: Array) -> Array:
    """(n, G): each curve (x, y) at the grid points, linear between its own points."""
    return np.stack([np.interp(grid, x, y) for x, y in curves])


def area(x: Array, y: Array, low: float, high: float) -> float:
    """Area under the piecewise linear curve over [low, high], divided by its width: a mean, in units of y."""
    inside = x[(x > low) & (x < high)]
    knots = np.concatenate([[low], inside, [high]])
    heights = np.interp(knots, x, y)
    return float(np.trapezoid(heights, knots) / (high - low)) if high > low else float(heights[0])


def first_reach(x: Array, y: Array, threshold: float) -> float:
    """The first x whose y is at least `threshold`; inf where none is."""
    reached = y >= threshold
    return float(x[np.argmax(reached)]) if reached.any() else np.inf


def _draws(n: int, replicates: int, rng: np.random.Generator) -> Array:
    """(replicates, n): how often each of n seeds is drawn in n draws with replacement."""
    return rng.multinomial(n, np.full(n, 1 / n), size=replicates).astype(float)


def _interval(values: Array) -> Array:
    return np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
