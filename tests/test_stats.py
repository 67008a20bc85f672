"""Intervals and curves against hand-worked numbers, scipy, and a bootstrap written in plain Python loops."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rl_natgrad.compare import stats


def slow_iqm(values: list[float]) -> float:
    ordered = sorted(values)
    cut = math.floor(len(ordered) / 4)
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def slow_interval(strata: list[list[float]], replicates: int, seed: int) -> tuple[float, float]:
    """Stratified percentile bootstrap, drawn value by value."""
    draw = random.Random(seed)
    found = sorted(
        slow_iqm([draw.choice(stratum) for stratum in strata for _ in stratum]) for _ in range(replicates)
    )
    return found[int(0.025 * replicates)], found[int(0.975 * replicates) - 1]


def slow_improvement(x: list[float], y: list[float]) -> float:
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y)
    return wins / (len(x) * len(y))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 3.0], 2.0),
        ([1.0, 2.0, 9.0], 4.0),  # ⌊3/4⌋ = 0: nothing is cut
        ([100.0, 2.0, 4.0, -50.0], 3.0),  # 2 and 4 stay
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 800.0], 4.5),  # 3 to 6 stay
        ([0.0, 0.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 99.0, 99.0], 7.5),  # ⌊10/4⌋ = 2: 5 to 10 stay
    ],
)
def test_iqm_by_hand(values, expected):
    assert stats.iqm(np.array(values)) == expected


@pytest.mark.parametrize("n", [1, 2, 5, 10, 23])
def test_iqm_is_scipys_trimmed_mean_of_each_column(n):
    scores = np.random.default_rng(n).normal(size=(n, 6))
    np.testing.assert_allclose(stats.iqm(scores), scipy_stats.trim_mean(scores, 0.25, axis=0))


SAMPLES = {
    "ten": [[488.0, 500.0, 471.0, 500.0, 495.0, 320.0, 499.0, 480.0, 466.0, 500.0]],
    "five": [[-91.0, -84.5, -120.0, -88.0, -79.0]],
    "two strata": [[1.0, 2.0, 3.5, 7.0, 11.0, 4.0], [40.0, 42.0, 55.0, 61.0]],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_interval_agrees_with_a_bootstrap_in_plain_loops(name):
    strata = SAMPLES[name]
    spread = np.std(np.concatenate(strata)) / math.sqrt(len(np.concatenate(strata)))
    low, high = stats.iqm_interval([np.array(stratum)[:, None] for stratum in strata], replicates=20_000)
    expected = slow_interval(strata, replicates=8_000, seed=1)
    # Two bootstraps differ by chance; 0.15 standard errors is four times what was seen between seeds.
    assert (low[0], high[0]) == pytest.approx(expected, abs=0.15 * spread)


def test_columns_are_intervals_of_their_own():
    scores = np.random.default_rng(0).normal(size=(9, 4))
    together = stats.iqm_interval([scores])
    for column in range(4):
        alone = stats.iqm_interval([scores[:, column : column + 1]])
        assert (together[0][column], together[1][column]) == (alone[0][0], alone[1][0])


def test_strata_keep_their_sizes():
    """Drawn from one pool, replicates would mix in other shares of 0 and 10, and the interval would be wide."""
    low, high = stats.iqm_interval([np.zeros((4, 1)), np.full((4, 1), 10.0)])
    assert low[0] == high[0] == 5.0


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    ends = [stats.iqm_interval([rng.normal(size=(20, 1))], replicates=500, seed=trial) for trial in range(300)]
    covered = np.mean([low[0] <= 0 <= high[0] for low, high in ends])
    assert 0.87 <= covered <= 0.98  # percentile intervals of 20 normals fall a little short of 0.95


def test_improvement_by_hand():
    chance, _ = stats.improvement(np.array([3.0, 5.0]), np.array([1.0, 3.0, 9.0]))
    assert chance == (1 + 0.5 + 0 + 1 + 1 + 0) / 6


def test_improvement_is_mann_whitney_and_its_interval_agrees_with_loops():
    x, y = SAMPLES["ten"][0], [470.0, 480.0, 490.0, 455.0, 500.0, 420.0]
    chance, interval = stats.improvement(np.array(x), np.array(y), replicates=20_000)
    assert chance == pytest.approx(slow_improvement(x, y))
    assert chance == pytest.approx(scipy_stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)))
    draw = random.Random(2)
    found = sorted(
        slow_improvement([draw.choice(x) for _ in x], [draw.choice(y) for _ in y]) for _ in range(4_000)
    )
    assert interval == pytest.approx((found[100], found[3899]), abs=0.03)


def test_improvement_and_its_reverse_add_up_to_one():
    x, y = np.array([1.0, 2.0, 2.0]), np.array([2.0, 0.0])
    assert stats.improvement(x, y)[0] + stats.improvement(y, x)[0] == 1.0


@pytest.mark.parametrize("successes, n", [(0, 10), (3, 10), (10, 10), (47, 50), (1, 1)])
def test_wilson_is_scipys(successes, n):
    expected = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert stats.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_paired_agrees_with_loops_and_sees_what_seeds_share():
    x, y = np.array(SAMPLES["ten"][0]), np.array(SAMPLES["ten"][0]) - np.array([5.0, 7, 6, 4, 8, 6, 5, 7, 6, 6])
    mean, interval = stats.paired(x, y, replicates=20_000)
    draw, pairs = random.Random(3), list(zip(x, y, strict=True))
    found = sorted(
        sum(a - b for a, b in [draw.choice(pairs) for _ in pairs]) / len(pairs) for _ in range(4_000)
    )
    assert mean == pytest.approx(6.0)
    assert interval == pytest.approx((found[100], found[3899]), abs=0.1)
    assert stats.paired(x, x) == (0.0, (0.0, 0.0))


def test_difference_is_of_means_and_its_interval_scipys():
    x, y = np.array(SAMPLES["ten"][0]), np.array([470.0, 480.0, 490.0, 455.0, 500.0, 420.0])
    found, interval = stats.difference(x, y, replicates=20_000)
    assert found == pytest.approx(x.mean() - y.mean())
    told = scipy_stats.bootstrap(
        (x, y), lambda a, b, axis: a.mean(axis) - b.mean(axis), method="percentile", n_resamples=20_000, rng=1
    )
    assert interval == pytest.approx(told.confidence_interval, abs=0.02 * (interval[1] - interval[0]))


def test_corrected_interval_by_hand():
    # d = 1, 2, 3, 4: mean 5/2, s² = 5/3; 1/n + n_test/n_train = 1/4 + 1/3 with a quarter held out; t₃ = 3.18245.
    half = 3.18244631 * math.sqrt((1 / 4 + 1 / 3) * 5 / 3)
    interval = stats.corrected_interval(np.array([1.0, 2.0, 3.0, 4.0]), 1 / 4)
    assert interval == pytest.approx((2.5 - half, 2.5 + half), rel=1e-5)


def test_grid_values_by_hand():
    """Uneven steps: (0, 0) (10, 20) (40, 50) and (5, 1) (25, 5)."""
    curves = [
        (np.array([0.0, 10.0, 40.0]), np.array([0.0, 20.0, 50.0])),
        (np.array([5.0, 25.0]), np.array([1.0, 5.0])),
    ]
    assert stats.common_range([x for x, _ in curves]) == (5.0, 25.0)
    np.testing.assert_allclose(
        stats.on_grid(curves, np.array([5.0, 15.0, 25.0])), [[10.0, 25.0, 35.0], [1.0, 3.0, 5.0]]
    )


def test_curves_without_a_common_range_have_none():
    assert stats.common_range([np.array([0.0, 1.0]), np.array([2.0, 3.0])]) is None


def test_area_by_hand():
    x, y = np.array([0.0, 10.0, 40.0]), np.array([0.0, 20.0, 50.0])
    assert stats.area(x, y, 0, 40) == pytest.approx((10 * 10 + 30 * 35) / 40)
    assert stats.area(x, y, 5, 25) == pytest.approx((5 * 15 + 15 * 27.5) / 20)
    assert stats.area(x, y, 10, 10) == 20.0


def test_first_reach():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 475.0, 400.0, 500.0])
    assert stats.first_reach(x, y, 475) == 2.0
    assert stats.first_reach(x, y, 501) == math.inf
