"""Vector environments: one contract whatever steps them, seeded and restorable."""

import re
import typing
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from environments import Counting
from gymnasium import spaces
from vector_envs import actions, play, run, same

from rl_natgrad.config.schema import Env
from rl_natgrad.envs import make as envs
from rl_natgrad.envs.contract import Envs
from rl_natgrad.envs.episode import episode_seed
from rl_natgrad.envs.errors import EnvSetupError

TESTS = Path(__file__).parent
BACKENDS = ["sync", "async", "split"]


def extra(module):
    return pytest.mark.skipif(not _has(module), reason=f"needs the extra that brings {module}")


def _has(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True


# Episode ends


def scripted(seed, index, steps):
    """What Counting gives to environment `index`, by its script: obs, reward, terminated, truncated."""
    number, at, over, rows = 0, 0, False, []
    for _ in range(steps + 1):
        tag = episode_seed(seed, index, number)
        if over:
            number, at, over = number + 1, 0, False
            tag = episode_seed(seed, index, number)
        end = (2, 5, 3, 4)[tag % 4]
        over = at == end
        rows.append(([tag % 1000, at], float(at), over and end % 2 == 1, over and end % 2 == 0))
        at += 1
    return rows


@pytest.mark.parametrize("backend", BACKENDS)
def test_ends_are_rows_of_their_own_and_resets_too(opened, backend):
    e = opened("environments:Counting-v0", backend, seed=7)
    first = e.reset().copy()
    rows = play(e, actions(e, 60))
    ends = 0
    for i in range(3):
        script = scripted(7, i, 60)
        assert first[i].tolist() == script[0][0]
        for (obs, reward, terminated, truncated), expected in zip(rows, script[1:], strict=True):
            assert (obs[i].tolist(), reward[i], terminated[i], truncated[i]) == expected
            ends += expected[2] or expected[3]
    assert ends > 30


@pytest.mark.parametrize(
    "backend", ["sync", "native", "async", "split", pytest.param("envpool", marks=extra("envpool"))]
)
def test_a_reset_row_follows_each_end(opened, backend):
    e = opened("CartPole-v1", backend, num_envs=4)
    e.reset()
    done, ends = np.zeros(4, bool), 0
    for obs, reward, terminated, truncated in play(e, actions(e, 300)):
        assert (reward.dtype, obs.dtype, terminated.dtype, truncated.dtype) == (float, np.float32, bool, bool)
        assert (reward == ~done).all() and not (terminated | truncated)[done].any()
        assert (abs(obs[done]) <= 0.05).all()  # begun again
        fell = (abs(obs[:, 0]) > 2.4) | (abs(obs[:, 2]) > 12 * np.pi / 180)
        assert (terminated == fell).all()  # the last observation is the true one
        ends, done = ends + done.sum(), terminated | truncated
    assert ends > 20


@pytest.mark.parametrize("backend", ["sync", "native"])
def test_cartpole_is_truncated_at_500(opened, backend):
    e = opened("CartPole-v1", backend, num_envs=2)
    obs = e.reset()
    for _ in range(500):
        obs, _, terminated, truncated = e.step((obs @ np.array([0.1, 0.5, 1.0, 1.0]) > 0).astype(np.int64))
    assert truncated.all() and not terminated.any()


def test_native_cartpole_steps_as_the_scalar_one(opened, closed):
    e = opened("CartPole-v1", "native", num_envs=16)
    obs = e.reset()
    scalar = [closed(gym.make("CartPole-v1")) for _ in range(16)]
    state = e.env.state.T.copy()
    for k, one in enumerate(scalar):
        one.reset(seed=0)
        one.unwrapped.state = state[k]
    live = np.ones(16, bool)
    for a in actions(e, 100):
        obs, reward, terminated, truncated = e.step(a)
        for k in np.flatnonzero(live):
            o, r, te, tr, _ = scalar[k].step(a[k])
            assert (o == obs[k]).all() and (r, te, tr) == (reward[k], terminated[k], truncated[k])
        live &= ~terminated
    assert not live.any()


# Seeding, backends that agree, coming back


def test_neighbouring_seeds_share_no_first_episode(opened):
    first = [opened("CartPole-v1", b, 8, s).reset().copy() for b in ("sync", "native") for s in (0, 1)]
    assert len(np.unique(np.concatenate(first), axis=0)) == 32


@pytest.mark.skipif(not _has("envpool"), reason="needs the extra that brings envpool")
@pytest.mark.parametrize("id", ["CartPole-v1", "HalfCheetah-v5", "Hopper-v5"])
def test_envpool_gives_the_transitions_of_its_own_step(opened, closed, id):
    import envpool

    mine, sent = opened(id, "envpool", num_envs=3, seed=3), []
    seeds = [episode_seed(3, i, 0) for i in range(3)]
    theirs = closed(envpool.make(id, env_type="gymnasium", num_envs=3, num_threads=1, env_seed=seeds))
    assert (mine.reset() == theirs.reset()[0].astype(np.float32)).all()
    for action in actions(mine, 300):
        obs, *rest = mine.step(action)
        expected, *others, _ = theirs.step(mine.to_env(action))
        sent.append(np.logical_or(*others[1:]))
        assert (obs == expected.astype(np.float32)).all()
        assert all((a == b).all() for a, b in zip(rest, others, strict=True))
    assert np.any(sent) == (id != "HalfCheetah-v5")  # episode ends among them


IDS = [
    "CartPole-v1",
    "Pendulum-v1",
    pytest.param("LunarLander-v3", marks=extra("Box2D")),
    pytest.param("BipedalWalker-v3", marks=extra("Box2D")),
    pytest.param("HalfCheetah-v5", marks=extra("mujoco")),
]


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("backend", ["async", "split"])
@pytest.mark.parametrize("num_envs", [5, 1])
def test_workers_give_the_transitions_of_sync(opened, id, backend, num_envs):
    a, b = (opened(id, backend, num_envs=num_envs, seed=3) for backend in ("sync", backend))
    assert same([(a.reset(),)], [(b.reset(),)])
    sent = actions(a, 200)  # × num_envs environments
    assert same(play(a, sent), play(b, sent))


@pytest.mark.parametrize(
    "backend, id",
    [
        *(
            pytest.param("sync", *p.values, marks=p.marks) if hasattr(p, "values") else ("sync", p)
            for p in IDS
        ),
        ("native", "CartPole-v1"),
        ("async", "CartPole-v1"),
        ("split", "CartPole-v1"),
    ],
)
def test_a_restored_run_goes_on_bit_for_bit(opened, id, backend):
    e = opened(id, backend, seed=5)
    e.reset()
    sent = actions(e, 230)
    play(e, sent[:173])
    stored = e.state()
    other = opened(id, backend, seed=5)
    assert other.load(stored)[1] == []
    assert same(play(e, sent[173:]), play(other, sent[173:]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_moment_can_be_restored(opened, backend):
    e, other = (opened("environments:Counting-v0", backend) for _ in range(2))
    e.reset()
    for a in actions(e, 12):
        obs, differed = other.load(e.state())
        assert differed == [] and (obs == e.load(e.state())[0]).all()
        assert same(play(e, [a]), play(other, [a]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_private_randomness_is_noticed(opened, backend):
    e = opened("environments:Private-v0", backend)
    e.reset()
    play(e, actions(e, 4))
    assert e.load(e.state())[1] == [0, 1, 2]


@pytest.mark.parametrize("backend", ["sync", "native"])
def test_a_state_of_other_environments_is_refused(opened, backend):
    three, two = opened("CartPole-v1", backend, 3), opened("CartPole-v1", backend, 2)
    two.reset(), three.reset()
    for wrong in (three.state(), {"kind": "other"}):
        with pytest.raises(ValueError, match="environments' state"):
            two.load(wrong)


@pytest.mark.parametrize(
    "backend", ["sync", "native", "async", "split", pytest.param("envpool", marks=extra("envpool"))]
)
def test_every_backend_has_all_of_the_contract(opened, backend):
    e = opened("CartPole-v1", backend)
    assert {*Envs.__annotations__, *(name for name in vars(Envs) if name[0] != "_")} <= set(dir(e))
    assert (e.backend, e.num_envs, e.restorable, e.note) == (backend, 3, backend != "envpool", None)
    assert e.raw_observation_space.shape == (4,) and e.raw_action_space == spaces.Discrete(2)


@pytest.mark.skipif(not _has("Box2D"), reason="needs the extra that brings Box2D")
@pytest.mark.parametrize("has_world", [True, False])
def test_an_environment_with_a_box2d_world_is_built_for_each_episode(opened, has_world):
    from Box2D import b2World

    class Falling(Counting):
        def __init__(self):
            super().__init__()
            self.sim = b2World() if has_world else None

    gym.register("Falling-v0", Falling)
    with warnings.catch_warnings(action="ignore"):  # that it is registered anew
        e = opened("Falling-v0", num_envs=1)
    e.reset()
    first = e.episodes.all[0].env.unwrapped
    play(e, actions(e, 8))  # past an end
    assert (e.episodes.all[0].env.unwrapped is first) != has_world


# Choosing


def test_the_configuration_knows_the_same_backends():
    assert set(typing.get_args(Env.model_fields["backend"].annotation)) == set(envs.BACKENDS)


def test_auto_never_depends_on_extras_and_can_be_restored(opened):
    assert opened("CartPole-v1", "auto").backend == "native"
    assert opened("Pendulum-v1", "auto").backend == "sync"
    assert opened("environments:Counting-v0", "auto").restorable


@pytest.mark.parametrize(
    "id, backend, allow, kwargs, told",
    [
        ("CartPol-v1", "auto", False, {}, "CartPole"),
        ("some.module:Mine-v0", "auto", False, {}, "env.allow_import=true"),
        ("no_such_module:Mine-v0", "auto", True, {}, "no_such_module"),
        ("Pendulum-v1", "native", False, {}, "use env.backend=sync"),
        ("Pendulum-v1", "sync", False, {"gravty": 1}, "gravty"),
        ("Pendulum-v1", "async", False, {"gravty": 1}, "gravty"),
    ],
)
def test_what_cannot_be_made_is_one_line(id, backend, allow, kwargs, told):
    cfg = SimpleNamespace(
        id=id, backend=backend, allow_import=allow, timeout=60.0, kwargs=kwargs, frame_stack=None,
        action_mask=False,
    )
    with pytest.raises(EnvSetupError, match=re.escape(told)) as error:
        envs.make(cfg, 2, 0)
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_answered_with_its_install_line():
    wanted = [
        ("Hopper-v5", "sync", "mujoco"),
        ("LunarLander-v3", "sync", "box2d"),
        ("ALE/Pong-v5", "async", "atari"),
        ("CartPole-v1", "envpool", "envpool"),
    ]
    code = f"""
import sys; sys.path[:0] = [{str(TESTS)!r}]
sys.modules.update(dict.fromkeys(["mujoco", "Box2D", "ale_py", "envpool"]))
from vector_envs import make
for id, backend, _ in {wanted!r}:
    try:
        make(id, backend)
    except Exception as error:
        print(type(error).__name__, error)
"""
    lines = run(code).stdout.splitlines()
    for line, (_, _, extra) in zip(lines, wanted, strict=True):
        assert line.startswith("EnvSetupError ") and f'pip install "rl-natgrad[{extra}]"' in line
