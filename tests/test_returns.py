"""Advantages and returns against their definitions, across every way an episode can end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_natgrad.rollout.collector import Rollout
from rl_natgrad.rollout.returns import estimate_gae, estimate_monte_carlo, gae, monte_carlo


def column(*numbers):
    return np.array(numbers, np.float64)[:, None]


def flags(*numbers):
    return np.array(numbers, bool)[:, None]


def stream(rng, T, B, p_end):
    """Random rows under the NEXT_STEP contract: reward, value, terminated, done, valid."""
    reward, value = rng.normal(size=(T, B)) * 3, rng.normal(size=(T + 1, B)) * 10
    end, time_limit = rng.random((T, B)) < p_end, rng.random((T, B)) < 0.5
    valid = np.ones((T, B), bool)
    valid[0] = rng.random(B) < 0.7  # a rollout may begin with the reset of the one before it
    for t in range(T):
        end[t] &= valid[t]
        if t + 1 < T:
            valid[t + 1] = ~end[t]
    reward[~valid] = 0
    terminated = end & ~time_limit
    terminated |= end & (rng.random((T, B)) < 0.1)  # sometimes both flags are set: it terminated
    return reward, value, terminated, end, valid


def mixture_of_n_step_advantages(reward, value, terminated, done, gamma, lam):
    """(1 − λ) Σₙ λⁿ⁻¹ A⁽ⁿ⁾ with A⁽ⁿ⁾ = Σ_{k<n} γᵏ r_{t+k} + γⁿ V(s_{t+n}) − V(s_t): GAE, equations 11–16.

    The last A⁽ⁿ⁾, at the episode's end or the rollout's, has the weight that is left, λⁿ⁻¹.
    """
    T, B = reward.shape
    adv = np.zeros((T, B))
    for i in range(B):
        for t in range(T):
            total, weight = 0.0, 1.0
            for n in range(1, T - t + 1):
                last = t + n - 1
                total += gamma ** (n - 1) * reward[last, i]
                bootstrap = 0.0 if terminated[last, i] else gamma**n * value[last + 1, i]
                over = done[last, i] or last == T - 1
                adv[t, i] += weight * (1.0 if over else 1 - lam) * (total + bootstrap - value[t, i])
                weight *= lam
                if over:
                    break
    return adv


@pytest.mark.parametrize("p_end", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1, 1), (0.9, 0), (0, 0.7), (1, 0.5), (0.5, 1)])
def test_gae_is_the_mixture_of_n_step_advantages(gamma, lam, p_end):
    reward, value, terminated, done, valid = stream(np.random.default_rng(1), 40, 5, p_end)
    expected = mixture_of_n_step_advantages(reward, value, terminated, done, gamma, lam)
    got = gae(reward, value, terminated, done, gamma=gamma, lam=lam)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got[valid], expected[valid], rtol=1e-10, atol=1e-10)


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 3), *[st.floats(0, 1)] * 3)
@settings(max_examples=150, deadline=None)
def test_gae_is_its_definition_on_any_stream(seed, T, B, p_end, gamma, lam):
    reward, value, terminated, done, valid = stream(np.random.default_rng(seed), T, B, p_end)
    expected = mixture_of_n_step_advantages(reward, value, terminated, done, gamma, lam)
    got = gae(reward, value, terminated, done, gamma=gamma, lam=lam)
    np.testing.assert_allclose(got[valid], expected[valid], rtol=1e-9, atol=1e-9)


# γ = 1/2, λ = 1/2, so γλ = 1/4; rewards 1, 2, 4 and V = 8, 6, 10, then V of the observation after.
#   δ₂ = 4 + end − 10,   δ₁ = 2 + 10/2 − 6 = 1,   δ₀ = 1 + 6/2 − 8 = −4
@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        (False, False, [-3.75, 1.0, 0.0]),  # the rollout cuts: V(s₃) = 12, δ₂ = 0
        (False, True, [-3.75, 1.0, 0.0]),  # a time limit: the same
        (True, False, [-4.125, -0.5, -6.0]),  # the end: δ₂ = −6
        (True, True, [-4.125, -0.5, -6.0]),  # the end, at the time limit
    ],
)
def test_gae_by_hand(terminated, truncated, expected):
    got = gae(
        column(1, 2, 4), column(8, 6, 10, 12), flags(0, 0, terminated), flags(0, 0, terminated or truncated),
        gamma=0.5, lam=0.5,
    )  # fmt: skip
    np.testing.assert_array_equal(got[:, 0], expected)


def test_truncation_bootstraps_with_the_true_last_observation():
    # rows: a step that the time limit ends, the reset, the next episode's first step
    # V: of the state before (100), of the true last observation (7), of the reset observation (1000)
    got = gae(
        column(1, 0, 3), column(100, 7, 1000, 50), flags(0, 0, 0), flags(1, 0, 0), gamma=0.5, lam=1.0
    )  # fmt: skip
    assert got[0, 0] == 1 + 7 / 2 - 100  # V(s_{T−1}) would give −49, the reset's V 401, a termination −99
    assert got[2, 0] == 3 + 50 / 2 - 1000


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_nothing_leaks_into_an_episode_from_what_follows_it(lam):
    rng = np.random.default_rng(3)
    reward, value, terminated, done, _ = stream(rng, 30, 1, 0.0)
    for truncated in (False, True):
        terminated[10], done[10] = not truncated, True
        before = gae(reward, value, terminated, done, gamma=0.99, lam=lam)
        other = reward.copy(), value.copy()
        other[0][11:], other[1][12:] = 1e9, -1e9  # value[11] is V of the true last observation
        after = gae(*other, terminated, done, gamma=0.99, lam=lam)
        np.testing.assert_array_equal(before[:11], after[:11])
        assert (before[12:] != after[12:]).all()


def test_a_reset_row_reaches_no_step():
    reward, value, terminated, done, valid = stream(np.random.default_rng(4), 60, 4, 0.2)
    assert (~valid).sum() > 20
    before = gae(reward, value, terminated, done, gamma=0.99, lam=0.95)
    after = gae(np.where(valid, reward, 1e9), value, terminated, done, gamma=0.99, lam=0.95)
    np.testing.assert_array_equal(before[valid], after[valid])


def test_terminal_value_is_never_looked_at():
    got = gae(column(1), column(5, np.nan), flags(1), flags(1), gamma=0.99, lam=0.95)
    assert got[0, 0] == -4


def test_monte_carlo_by_hand():
    # an episode's last two steps, its reset, a whole episode that a time limit ends, its reset, one cut short
    reward = column(1, 2, 0, 4, 8, 16, 0, 32, 64)
    done = flags(0, 1, 0, 0, 0, 1, 0, 0, 0)
    G, known = monte_carlo(reward, done, gamma=0.5)
    assert G.dtype == np.float64
    steps = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(G[steps, 0], [2, 2, 4 + 4 + 4, 8 + 8, 16])
    np.testing.assert_array_equal(known[:, 0], [1, 1, 1, 1, 1, 1, 0, 0, 0])


def test_monte_carlo_knows_nothing_where_no_episode_ended():
    _, known = monte_carlo(np.ones((5, 2)), np.zeros((5, 2), bool), gamma=1.0)
    assert not known.any()


def test_environments_do_not_mix():
    rng = np.random.default_rng(5)
    reward, value, terminated, done, _ = stream(rng, 20, 3, 0.2)
    together = gae(reward, value, terminated, done, gamma=0.9, lam=0.8)
    G, known = monte_carlo(reward, done, gamma=0.9)
    for i in range(3):
        one = slice(i, i + 1)
        alone = gae(reward[:, one], value[:, one], terminated[:, one], done[:, one], gamma=0.9, lam=0.8)
        np.testing.assert_array_equal(together[:, one], alone)
        G1, known1 = monte_carlo(reward[:, one], done[:, one], gamma=0.9)
        np.testing.assert_array_equal(G[:, one], G1)
        np.testing.assert_array_equal(known[:, one], known1)


def two_episodes():
    """A step from V = 3 to a time limit at V = 5, a reset, a step that terminates, a reset, a step cut off."""
    terminated, done = flags(0, 0, 1, 0, 0), flags(1, 0, 1, 0, 0)
    obs, none = column(3, 5, 9, 7, 2, 4), np.zeros((5, 1))
    rollout = Rollout(obs, none, column(1, 0, 2, 0, 6), terminated, done, flags(1, 0, 1, 0, 1), [1.0, 2.0], [1, 1])
    return rollout, obs


def test_estimates_by_hand():
    rollout, value = two_episodes()
    adv, ret, known = estimate_gae(rollout, value, gamma=0.5, lam=0.9)
    assert known.ravel().tolist() == [True, False, True, False, True]
    assert adv[known].tolist() == [1 + 5 / 2 - 3, 2 - 9, 6 + 4 / 2 - 2]
    assert ret[known].tolist() == [1 + 5 / 2, 2, 6 + 4 / 2]
    adv, ret, known = estimate_monte_carlo(rollout, value, gamma=0.5)
    assert known.ravel().tolist() == [True, False, True, False, False]  # the last episode's return is not known
    assert adv[known].tolist() == ret[known].tolist() == [1, 2]
