"""What a policy sees: observations stacked as by Gymnasium, and action masks from wherever they are given."""

import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import iterate
from gymnasium.wrappers import FrameStackObservation
from vector_envs import actions, play, same

from rl_natgrad.envs.episode import episode_seed
from rl_natgrad.envs.errors import EnvError, EnvSetupError

KINDS = {
    "info": {}, "method": {"how": "method"}, "image": {"images": (6, 5, 3)}, "grey": {"images": (6, 5)},
    "several": {"nvec": [2, 3]}, "several by method": {"nvec": [2, 3], "how": "method"},
    "tuple": {"nvec": [2, 3], "how": "tuple"},
}  # fmt: skip


def doors(opened, kind, backend="sync", **about):
    return opened("environments:Doors-v0", backend, action_mask=True, seed=3, **KINDS[kind], **about)


def masks(e, obs):
    """Those behind the observations, (B, n) for each action dimension."""
    lengths = e.action_space.nvec if isinstance(e.action_space, spaces.MultiDiscrete) else [e.action_space.n]
    behind = obs[:, e.view.seen.shape[0] :].reshape(len(obs), -1)
    *parts, rest = np.split(behind, np.cumsum(lengths), axis=1)
    assert not rest.any()
    return parts


def rows_of_allowed_actions(e, obs, steps, rng, look=lambda obs: None):
    """The rows of actions drawn from the masks, copied; `look` sees each row's observations."""
    rows = []
    for _ in range(steps):
        drawn = [(part * rng.random(part.shape)).argmax(1) for part in masks(e, obs)]
        rows.append(tuple(x.copy() for x in e.step(np.stack(drawn, 1) if len(drawn) > 1 else drawn[0])))
        obs = rows[-1][0]
        look(obs)
    return rows


# Masks


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_the_environments_own_but_after_an_end(opened, kind):
    e, ends = doors(opened, kind), []

    def look(obs):
        for i, episode in enumerate(e.episodes.all):
            own, ended = episode.env.unwrapped.parts, episode.done
            ends.append(ended)
            for part, mine in zip(masks(e, obs), own, strict=True):
                assert part[i].tolist() == [1] * len(mine) if ended else (part[i] == mine).all()

    look(e.reset())
    assert e.observation_space.contains(e.obs[0])
    rows_of_allowed_actions(e, e.obs, 40, np.random.default_rng(0), look)
    assert 10 < sum(ends) < len(ends) / 2


@pytest.mark.parametrize("backend", ["async", "split"])
@pytest.mark.parametrize("kind", ["info", "image", "several by method"])
def test_workers_give_the_masks_of_sync(opened, kind, backend):
    a, b = (doors(opened, kind, each, frame_stack=2) for each in ("sync", backend))
    rows = [rows_of_allowed_actions(e, e.reset(), 30, np.random.default_rng(0)) for e in (a, b)]
    assert same(*rows)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_stacked_and_masked_environments_are_restored(opened, backend):
    e, other = (doors(opened, "several", backend, frame_stack=3) for _ in range(2))
    rng = np.random.default_rng(0)
    obs = rows_of_allowed_actions(e, e.reset(), 13, rng)[-1][0]
    stored = e.state()
    again, differed = other.load(stored)
    assert differed == [] and (again == obs).all()
    state = rng.bit_generator.state
    ahead = rows_of_allowed_actions(e, obs, 9, rng)
    rng.bit_generator.state = state
    assert same(ahead, rows_of_allowed_actions(other, again, 9, rng))


FIELD = r'info\["action_mask"\]'
BAD = {  # bad mask → kind, what is said of it
    "none": ("info", rf"{FIELD} is missing, and no method action_masks\(\) gives one \(env.action_mask\)"),
    "closed": ("info", f"{FIELD} allows no action"),
    "one dimension": ("several", f"{FIELD} allows no action in action dimension 1"),
    "shape": ("info", rf"{FIELD} has shape \(3,\), expected \(4,\)"),
    "two": ("info", rf"{FIELD} is ndarray array\(\[0, 2, 0, 1\]\), expected zeros and ones"),
    "half": ("info", f"{FIELD} is ndarray .*, expected zeros and ones"),
    "nan": ("info", f"{FIELD} is ndarray .*, expected zeros and ones"),
    "text": ("info", f"{FIELD} is str '1111', expected 4 zeros and ones"),
    "ragged": ("info", f"{FIELD} is list .*, expected 4 zeros and ones"),
    "raises": ("method", r"action_masks\(\) raised ValueError: the pole fell over"),
}


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_mask_ends_the_run_in_one_line(opened, bad, at):
    kind, told = BAD[bad]
    e = doors(opened, kind, num_envs=1, bad=bad, at=at)
    with pytest.raises(EnvError, match=rf"^environments:Doors-v0, environment 0, episode \d, step {at}: {told}$"):
        rows_of_allowed_actions(e, e.reset(), 30, np.random.default_rng(0))


def test_an_environment_without_masks_is_told_so(opened):
    e = opened("CartPole-v1", action_mask=True)
    with pytest.raises(EnvError, match=rf"environment 0, episode 0, step 0: {FIELD} is missing"):
        e.reset()


def test_masks_that_are_not_asked_for_are_noted(opened, capfd, monkeypatch):
    monkeypatch.setattr("rl_natgrad.envs.errors._noted", set())
    e = opened("environments:Doors-v0")
    e.reset()
    assert e.observation_space.shape == (3,)
    lines = capfd.readouterr().err.splitlines()
    for line, field in zip(lines, ("action_masks()", 'info["action_mask"]'), strict=True):
        assert line.endswith(f"Doors-v0 gives {field}; env.action_mask=true keeps the policy to it")


@pytest.mark.parametrize(
    "id, backend, about, told",
    [
        ("Pendulum-v1", "sync", {"action_mask": True}, "env.action_mask=true needs Discrete or MultiDiscrete"),
        ("Pendulum-v1", "async", {"action_mask": True}, "env.action_mask=true needs Discrete or MultiDiscrete"),
        ("CartPole-v1", "native", {"frame_stack": 2}, "use env.backend=sync"),
        ("CartPole-v1", "native", {"action_mask": True}, "use env.backend=sync"),
        ("CartPole-v1", "envpool", {"frame_stack": 2}, "env.frame_stack is not for env.backend=envpool; use sync"),
        ("CartPole-v1", "envpool", {"action_mask": True}, "env.action_mask is not for env.backend=envpool"),
        ("CartPole-v1", "device", {"frame_stack": 2}, "env.frame_stack is not for env.backend=device; use sync"),
        ("CartPole-v1", "device", {"action_mask": True}, "env.action_mask is not for env.backend=device"),
    ],
)
def test_where_there_are_none_is_refused(opened, id, backend, about, told):
    with pytest.raises(EnvSetupError, match=re.escape(told)):
        opened(id, backend, **about)


# Stacked observations


@pytest.mark.parametrize("id", ["CartPole-v1", "FrozenLake-v1", "environments:Nested-v0"])
@pytest.mark.parametrize("stack", [2, 3])
def test_observations_are_stacked_as_gymnasium_stacks_them(opened, closed, id, stack):
    e = opened(id, num_envs=1, seed=5, frame_stack=stack)
    own = closed(FrameStackObservation(gym.make(id), stack))
    single, number, over, ends = own.env.observation_space, 0, False, 0

    def flat(stacked):
        frames = iterate(own.observation_space, stacked)
        return np.concatenate([spaces.flatten(single, frame) for frame in frames]).astype(np.float32)

    assert (e.reset()[0] == flat(own.reset(seed=episode_seed(5, 0, 0))[0])).all()
    for action in actions(e, 60):
        obs, _, terminated, truncated = e.step(action)
        if over:
            number += 1
            expected = own.reset(seed=episode_seed(5, 0, number))[0]
        else:
            expected = own.step(e.to_env(action)[0])[0]
        over = bool(terminated[0] or truncated[0])
        ends += over
        assert (obs[0] == flat(expected)).all() and obs[0] in e.observation_space
    assert ends > 1 or "Nested" in id  # which never ends


@pytest.mark.parametrize("kind, channels", [("image", 3), ("grey", 1)])
def test_images_are_stacked_by_channels(opened, kind, channels):
    e, one = (doors(opened, kind, num_envs=1, frame_stack=stack) for stack in (2, None))
    both = 2 * channels
    assert (e.view.seen.shape, e.observation_space.shape) == ((both, 6, 5), (both + 1, 6, 5))

    def image(obs):
        return obs[0, : 30 * channels].copy() if kind == "grey" else obs[0, :channels].copy()

    seen, done = [image(one.reset())] * 2, False
    assert (e.reset()[0, :both].ravel() == np.ravel(seen)).all()
    rows = (rows_of_allowed_actions(x, x.obs, 20, np.random.default_rng(0)) for x in (e, one))
    for (obs, _, terminated, _), (plain, *_) in zip(*rows, strict=True):
        seen = [image(plain)] * 2 if done else [seen[1], image(plain)]  # a new episode after an end
        assert (obs[0, :both].ravel() == np.ravel(seen)).all()
        done = bool(terminated[0])


def test_one_observation_is_not_stacked_and_auto_steps_natively(opened):
    assert opened("CartPole-v1", "auto", frame_stack=1).backend == "native"
    assert opened("CartPole-v1", "auto", frame_stack=2).backend == "sync"
    one, none = (opened("CartPole-v1", frame_stack=stack) for stack in (1, None))
    assert same([(one.reset(),)], [(none.reset(),)])
    assert same(play(one, actions(one, 40)), play(none, actions(none, 40)))


def test_atari_games_are_stacked_as_often_as_asked(opened):
    pytest.importorskip("ale_py")
    four, two = (opened("ALE/Pong-v5", num_envs=1, frame_stack=stack) for stack in (None, 2))
    assert four.reset().shape == (1, 4, 84, 84) and two.reset().shape == (1, 2, 84, 84)
    sent = actions(two, 5)
    for (a, *_), (b, *_) in zip(play(four, sent), play(two, sent), strict=True):
        assert (a[:, 2:] == b).all()
