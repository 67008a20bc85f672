"""Running moments against numpy on everything at once, and what the normaliser promises a rollout."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_natgrad.rollout.normalize import ObservationNormalizer, RunningMoments, Unchanged


def after(batches, shape=(3,)):
    moments = RunningMoments(shape)
    for batch in batches:
        moments.update(batch)
    return moments


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("sizes", [[100], [1, 99], [50, 50], [1] * 100, [7, 0, 90, 3]])
def test_moments_are_those_of_all_samples(sizes, dtype):
    x = (np.random.default_rng(0).normal(size=(100, 3)) * [1, 30, 1e3] + [0, 5, -1e4]).astype(dtype)
    moments = after(np.split(x, np.cumsum(sizes)[:-1]))
    exact = x.astype(np.float64)
    assert moments.count == 100
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, exact.std(0), rtol=1e-12)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 20), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_order_does_not_matter(seed, sizes):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=(n, 3)) * rng.uniform(0.1, 100) + rng.normal() for n in sizes]
    a, b = after(batches), after(batches[::-1])
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-9, atol=1e-9)


def test_a_large_offset_costs_no_precision():
    noise = np.random.default_rng(1).normal(size=(10_000, 1))
    x = noise + 1e8  # E[x²] − E[x]² would leave noise of order 1 in a variance of 1
    moments = after(np.split(x, 100), (1,))
    np.testing.assert_allclose(moments.std, x.std(0), rtol=1e-7)
    np.testing.assert_allclose(moments.std, noise.std(0), rtol=1e-6)


def test_float32_observations_are_summed_in_float64():
    x = np.full((100_000, 1), 0.1, np.float32)
    np.testing.assert_allclose(after([x], (1,)).mean, np.float64(np.float32(0.1)), rtol=1e-13)


def test_what_does_not_vary_is_divided_by_one():
    x = np.random.default_rng(2).normal(size=(50, 3))
    x[:, 1] = 7.0
    moments = after([x[:20], x[20:]])
    assert moments.std[1] == 1 and (moments.std[[0, 2]] != 1).all()
    assert RunningMoments((3,)).std.tolist() == [1, 1, 1]
    assert after([x[:1]]).std.tolist() == [1, 1, 1]
    assert after([x[:0]]).std.tolist() == [1, 1, 1]


def test_images_and_scalars_have_moments_too():
    for shape in ((), (2, 3, 4)):
        x = np.random.default_rng(3).normal(size=(40, *shape))
        moments = after([x[:10], x[10:]], shape)
        np.testing.assert_allclose(moments.mean, x.mean(0))
        np.testing.assert_allclose(moments.std, x.std(0))


def test_scalar_moments_can_be_saved_and_go_on():
    x = np.random.default_rng(7).normal(5, 3, 60)
    a, b = after([x[:20], x[20:40]], ()), RunningMoments(())
    state = a.state()
    assert all(isinstance(value, np.ndarray) and value.shape == () for value in state.values())
    b.load(state)
    for moments in (a, b):
        moments.update(x[40:])
        np.testing.assert_allclose([moments.count, moments.mean, moments.std], [60, x.mean(), x.std()], rtol=1e-12)
    assert state["count"] == 40 and state["mean"] != a.mean


def test_unchanged_stands_in_for_a_normaliser():
    observe, x = Unchanged(), np.ones((2, 3))
    observe.update(x)
    observe.load(observe.state())
    assert observe(x) is x and observe.state() == {}
    with pytest.raises(ValueError, match="observe holds count, mean, m2; observations are not normalised"):
        observe.load(ObservationNormalizer((3,)).state())


def test_normaliser_centres_scales_and_clips():
    x = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]], np.float32)  # mean 2 and 5, std √(8/3) and none
    observe = ObservationNormalizer((2,))
    np.testing.assert_array_equal(observe(x), x)  # as it is, before the first update
    observe.update(x)
    z = 2 / np.sqrt(8 / 3)
    np.testing.assert_allclose(observe(x), [[-z, 0], [0, 0], [z, 0]], rtol=1e-6)
    np.testing.assert_array_equal(observe(np.array([[1e6, -1e6]], np.float32)), [[10, -10]])
    assert observe(x).dtype == np.float32


def test_normaliser_leaves_masks_as_they_are():
    plain, observe = ObservationNormalizer((2,)), ObservationNormalizer((2,), masked=3)
    rng = np.random.default_rng(4)
    for _ in range(2):
        x = np.concatenate([rng.normal(3, 2, (20, 2)), rng.integers(2, size=(20, 3))], 1).astype(np.float32)
        plain.update(x[:, :2])
        observe.update(x)
        np.testing.assert_array_equal(observe(x), np.concatenate([plain(x[:, :2]), x[:, 2:]], 1))


def test_normaliser_of_masked_observations_learns_from_sums_as_from_samples():
    samples, sums = ObservationNormalizer((2,), masked=3), ObservationNormalizer((2,), masked=3)
    rng = np.random.default_rng(4)
    for n in (20, 30):
        x = rng.normal(3, 2, (n, 5))
        samples.update(x)
        sums.merge(n, x.mean(0), x.var(0) * n)
    for name, moment in samples.state().items():
        np.testing.assert_allclose(sums.state()[name], moment, rtol=1e-12, err_msg=name)


def test_normaliser_leaves_its_input_alone_and_does_not_learn_from_it():
    observe = ObservationNormalizer((2,))
    observe.update(np.random.default_rng(4).normal(size=(20, 2)))
    x = np.ones((3, 2), np.float32)
    first = observe(x)
    for _ in range(5):
        np.testing.assert_array_equal(observe(x), first)
    np.testing.assert_array_equal(x, 1)


def test_one_by_one_is_the_same_bits_as_all_at_once():
    rng = np.random.default_rng(5)
    observe = ObservationNormalizer((4,))
    observe.update(rng.normal(size=(100, 4)) * [1, 1e3, 1e-3, 1])
    x = rng.normal(size=(64, 4)).astype(np.float32)
    rows = np.concatenate([observe(x[i : i + 1]) for i in range(64)])
    np.testing.assert_array_equal(observe(x), rows)


def test_loaded_statistics_continue():
    rng = np.random.default_rng(6)
    a, b = ObservationNormalizer((3,)), ObservationNormalizer((3,))
    a.update(rng.normal(size=(10, 3)))
    state = a.state()
    more, x = rng.normal(size=(10, 3)), rng.normal(size=(4, 3)).astype(np.float32)
    seen = a(x)
    a.update(more)
    b.load(state)  # taken before, and not touched by, the update
    np.testing.assert_array_equal(b(x), seen)
    b.update(more)
    np.testing.assert_array_equal(a(x), b(x))
