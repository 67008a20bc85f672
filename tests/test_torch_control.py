"""Classic control as tensors, held against Gymnasium's own environments one transition after the other."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl_natgrad.envs.torch_control import TASKS

LENGTHS = [pytest.param((60, 45), id="short"), pytest.param((1000, None), id="long", marks=pytest.mark.slow)]
SINGLE = {"Pendulum-v1": 0.001 * 4 * 2**-22}  # its 0.001 u² is in float32, whose power is not everywhere the same
ARGUMENTS = [
    ("CartPole-v1", {"sutton_barto_reward": True}),
    ("Pendulum-v1", {"g": 3.0}),
    ("MountainCar-v0", {"goal_velocity": 0.02}),
    *((id, {}) for id in TASKS),
]


def made(id, num_envs, limit=None, seed=0, **kwargs):
    spec = gym.spec(id)
    envs = TASKS[id](num_envs, limit or spec.max_episode_steps, **kwargs)
    envs.reset(seed=seed)
    return envs


def drawn(envs, rng):
    """Actions for all, from their space."""
    space, B = envs.single_action_space, envs.num_envs
    if isinstance(space, gym.spaces.Discrete):
        return torch.from_numpy(rng.integers(space.n, size=B))
    return torch.from_numpy(rng.uniform(space.low, space.high, (B, 1)).astype(np.float32))


def stood(envs, id, k):
    """Environment k's state, as Gymnasium keeps it."""
    state = envs.state[:, k].numpy().copy()
    return tuple(state) if id == "MountainCar-v0" else state


def theirs(one, state, action):
    """What Gymnasium's environment makes of it: observation, state, reward, whether it terminated."""
    one.state, one.steps_beyond_terminated = state, None
    obs, reward, terminated, _, _ = one.step(action if action.shape else int(action))
    return obs, one.state, float(reward), terminated


@pytest.mark.parametrize(("id", "kwargs"), ARGUMENTS)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_transition_and_every_end_is_gymnasiums(id, kwargs, length):
    rows, limit = length
    envs, rng = made(id, 100, limit, **kwargs), np.random.default_rng(0)
    limit = envs.limit
    one = gym.make(id, **kwargs).unwrapped
    one.reset(seed=0)
    at, begins, ends = np.zeros(100, int), np.zeros(100, bool), 0
    for _ in range(rows):
        before, action = [stood(envs, id, k) for k in range(100)], drawn(envs, rng)
        obs, reward, terminated, truncated, _ = envs.step(action)
        at = np.where(begins, 0, at + 1)
        live = np.flatnonzero(~begins)
        if len(live):
            rows_of_one = [theirs(one, before[k], action[k].numpy()) for k in live]
            their_obs, their_state, their_reward, their_end = map(np.array, zip(*rows_of_one, strict=True))
            np.testing.assert_allclose(obs[live], their_obs, rtol=2e-7, atol=1e-8)
            np.testing.assert_allclose(envs.state.T[live], their_state, rtol=1e-13, atol=1e-14)
            np.testing.assert_allclose(reward[live], their_reward, rtol=1e-13, atol=SINGLE.get(id, 1e-14))
            np.testing.assert_array_equal(terminated[live], their_end)
            np.testing.assert_array_equal(truncated[live], at[live] >= limit)
        assert not reward[begins].any() and not (terminated | truncated)[begins].any()
        ends += int((terminated | truncated).sum())
        begins = (terminated | truncated).numpy()
    assert ends >= 100


@pytest.mark.parametrize("id", TASKS)
def test_spaces_and_the_first_states_are_gymnasiums(id):
    envs, one = made(id, 4000), gym.make(id)
    assert envs.single_observation_space == one.observation_space
    assert envs.single_action_space == one.action_space
    first = np.array([np.array(one.unwrapped.state, float) for seed in range(400) if one.reset(seed=seed)])
    ours = envs.state.T.numpy()
    low, high = first.min(0), first.max(0)  # of 400: bounds of uniform numbers to 1 %
    room = 0.02 * (high - low)
    assert (ours >= low - room).all() and (ours <= high + room).all()
    assert (abs(ours.min(0) - low) <= room).all() and (abs(ours.max(0) - high) <= room).all()


@pytest.mark.parametrize("id", TASKS)
def test_a_row_after_an_end_begins_anew_from_the_generator(id):
    a, b = made(id, 8, limit=3, seed=5), made(id, 8, limit=3, seed=5)
    assert torch.equal(a.state, b.state) and len(a.state.unique(dim=1).T) == 8
    rng, ends = np.random.default_rng(1), 0
    for _ in range(7):
        action = drawn(a, rng)
        rows = a.step(action)
        assert all(torch.equal(x, y) for x, y in zip(rows[:4], b.step(action)[:4], strict=True))
        ends += int(a.done.sum())
    assert ends >= 16


@pytest.mark.parametrize("id", TASKS)
def test_what_was_saved_goes_on_with_the_same_bits(id):
    envs, rng = made(id, 8, limit=5), np.random.default_rng(2)
    for _ in range(4):
        envs.step(drawn(envs, rng))
    saved, seen = {name: part.clone() for name, part in envs.save().items()}, envs.see(envs.state)
    actions = [drawn(envs, rng) for _ in range(12)]
    went_on = [envs.step(action) for action in actions]
    again = made(id, 8, limit=5, seed=9)
    assert torch.equal(again.load(saved), seen)
    for action, rows in zip(actions, went_on, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(rows[:4], again.step(action)[:4], strict=True))
