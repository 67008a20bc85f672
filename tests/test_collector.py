"""The collector on environments that count, whose every number is known beforehand."""

import numpy as np
import pytest
from vector_envs import Script

from rl_natgrad.rollout.collector import Collector

FIELDS = ("obs", "action", "reward", "terminated", "done", "valid")


class Echo:
    """An actor whose action tells what it saw and which noise it was given."""

    def noise(self, rng, shape):
        return rng.standard_normal((*shape, 1))

    def act(self, obs, noise):
        return np.concatenate([obs, noise], 1)


def expected_rows(lengths, i, rows):
    """Row by row, written another way: (obs, next obs, reward, terminated, truncated, valid)."""
    out, e = [], 0
    while len(out) < rows:
        n = lengths[e % len(lengths)]
        for s in range(n):
            end, reward = s + 1 == n, 100 * i + 10 * e + s + 1
            out.append(((i, e, s), (i, e, s + 1), reward, end and e % 2 == 0, end and e % 2 == 1, True))
        out.append(((i, e, n), (i, e + 1, 0), 0.0, False, False, False))
        e += 1
    return out[:rows]


def make(*lengths, horizon, seed=0, **options):
    return Collector(Script(*lengths), horizon, np.random.default_rng(seed), **options)


LENGTHS = ((3,), (1, 7, 2), (20,), (1,), (4, 4, 5))


@pytest.mark.parametrize("horizon", [1, 2, 4, 5, 13])
def test_every_row_is_the_step_that_the_script_made(horizon):
    collector, rollouts = make(*LENGTHS, horizon=horizon), 7
    got = [collector.collect(Echo()) for _ in range(rollouts)]
    for name in FIELDS:
        shape = (horizon + (name == "obs"), len(LENGTHS))
        assert all(getattr(r, name).shape[:2] == shape for r in got)
    for i, lengths in enumerate(LENGTHS):
        for k, row in enumerate(expected_rows(lengths, i, rollouts * horizon)):
            rollout, t = got[k // horizon], k % horizon
            obs, after, reward, terminated, truncated, valid = row
            assert tuple(rollout.obs[t, i]) == obs
            assert tuple(rollout.obs[t + 1, i]) == after
            assert tuple(rollout.action[t, i][:3]) == obs  # the action was chosen on that observation
            assert rollout.reward[t, i] == reward
            assert rollout.terminated[t, i] == terminated
            assert rollout.done[t, i] == (terminated or truncated)
            assert rollout.valid[t, i] == valid


def test_rollouts_join_without_a_gap():
    collector = make(*LENGTHS, horizon=4)
    first, second = collector.collect(Echo()), collector.collect(Echo())
    np.testing.assert_array_equal(first.obs[-1], second.obs[0])
    assert collector.envs.calls == 8


def test_steps_are_the_environments_own():
    collector = make(*LENGTHS, horizon=6)
    total = sum(collector.collect(Echo()).steps for _ in range(5))
    assert total == sum(row[-1] for i, n in enumerate(LENGTHS) for row in expected_rows(n, i, 30))


@pytest.mark.parametrize("horizon", [1, 3, 5, 40])
def test_an_episode_is_counted_once_and_whole(horizon):
    rows = 120
    collector = make(*LENGTHS, horizon=horizon)
    rollouts = [collector.collect(Echo()) for _ in range(rows // horizon)]
    got = sorted((r, n) for rollout in rollouts for r, n in zip(rollout.returns, rollout.lengths, strict=True))
    expected = []
    for i, lengths in enumerate(LENGTHS):
        total = count = 0
        for _, _, reward, terminated, truncated, valid in expected_rows(lengths, i, rows // horizon * horizon):
            total, count = total + reward, count + valid
            if terminated or truncated:
                expected.append((total, count))
                total = count = 0
    assert got == sorted(expected)
    assert all(isinstance(r, float) and isinstance(n, int) for r, n in got)


def test_episodes_come_in_the_order_they_ended():
    rollout = make((2,), (3,), horizon=6).collect(Echo())
    # env 0 ends at rows 1 and 4 (returns 1+2 and 11+12), env 1 at row 2 (101+102+103)
    assert rollout.returns == [3.0, 306.0, 23.0]
    assert rollout.lengths == [2, 3, 2]


def test_arrays_belong_to_the_caller():
    collector = make((3,), (5,), horizon=4)
    first = collector.collect(Echo())
    kept = {name: getattr(first, name).copy() for name in FIELDS}
    second = collector.collect(Echo())
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first, name), kept[name])
        for array in (*collector.envs.out, collector.envs.obs, getattr(second, name)):
            assert not np.shares_memory(getattr(first, name), array)
    last = second.obs[-1].copy()
    second.obs[:], second.done[:] = -1, True  # and the collector keeps its place elsewhere
    third = collector.collect(Echo())
    np.testing.assert_array_equal(third.obs[0], last)
    assert third.valid[0].tolist() == [True, True]


def test_noise_is_of_the_generator_and_of_its_own_row():
    rollout = make((3,), (5,), horizon=4, seed=9).collect(Echo())
    np.testing.assert_array_equal(rollout.action[..., 3:], np.random.default_rng(9).standard_normal((4, 2, 1)))


@pytest.mark.parametrize("horizon", [1, 4])
@pytest.mark.parametrize("cut", [1, 2, 3, 6])
def test_a_loaded_collector_goes_on_as_if_never_stopped(cut, horizon):
    whole = make(*LENGTHS, horizon=horizon)
    for _ in range(cut):
        whole.collect(Echo())
    state, rng = whole.state(), whole.rng.bit_generator.state
    script, later = Script(*LENGTHS), make(*LENGTHS, horizon=horizon)
    for _ in range(cut * horizon):
        script.step(None)
    frozen = {name: value.copy() for name, value in state.items()}
    expected = [whole.collect(Echo()) for _ in range(6)]
    for name, value in frozen.items():  # going on does not reach into what was saved
        np.testing.assert_array_equal(state[name], value)
    later.envs, later.rng.bit_generator.state = script, rng
    later.load(state)
    for a in expected:
        b = later.collect(Echo())
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert (a.returns, a.lengths) == (b.returns, b.lengths)


def test_check_sees_the_rollout_before_anything_is_made_of_it():
    seen = []

    def check(obs, reward, done, length):
        seen.append((obs.copy(), reward.copy(), done.copy(), length.copy()))

    collector = make((4,), (5,), horizon=4, check=check)
    rollout = collector.collect(Echo())
    for a, b in zip(seen[0], (rollout.obs, rollout.reward, rollout.done, [0, 0]), strict=True):
        np.testing.assert_array_equal(a, b)
    for _ in range(2):
        collector.collect(Echo())
    assert [length.tolist() for *_, length in seen[1:]] == [[-1, 4], [3, 2]]  # the steps that came before; a reset


def test_a_refused_rollout_counts_for_nothing():
    def check(obs, reward, done, length):
        raise ArithmeticError

    collector = make((3,), (5,), horizon=4, check=check)
    with pytest.raises(ArithmeticError):
        collector.collect(Echo())
    assert not collector.episode_return.any() and not collector.episode_length.any()
    assert not collector.prev_done.any()
