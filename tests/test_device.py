"""Environments of tensors: the same algorithm, contract and errors as with arrays, and nothing but tensors."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import whole_runs
from gymnasium import spaces
from oracles import HEADS, Reads
from tensor_envs import LENGTHS, WRONG, Tape
from vector_envs import Script

import rl_natgrad
from rl_natgrad.config import compose
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.envs.checks import Checks
from rl_natgrad.envs.device import DeviceEnvs, _actions
from rl_natgrad.envs.make import make
from rl_natgrad.envs.spaces import action_map
from rl_natgrad.optim.solvers import conjugate_gradients_there
from rl_natgrad.policy import mlp
from rl_natgrad.rollout.collector import Collector
from rl_natgrad.rollout.normalize import ObservationNormalizer
from rl_natgrad.rollout.play import play
from rl_natgrad.rollout.returns import estimate_gae, gae, monte_carlo
from rl_natgrad.run.records import read_record, read_rows
from rl_natgrad.training import build
from rl_natgrad.training.iteration import Training

B = len(LENGTHS)
FIELDS = ("obs", "reward", "terminated", "done", "valid")
TAPE = ["env.id=tensor_envs:Tape-v0", "env.allow_import=true", "env.backend=device"]
TINY = ["num_envs=4", "horizon=8", "total_steps=60", "eval.episodes=2", "policy.hidden=[4]", "critic.hidden=[4]"]


class Coin:
    """An actor on tensors that acts at random."""

    def noise(self, rng, shape):
        return torch.rand(shape, generator=rng)

    def act(self, obs, noise):
        assert isinstance(obs, torch.Tensor)
        return (noise > 0.5).long()


class Nothing:
    """The same on arrays."""

    def noise(self, rng, shape):
        return np.zeros(shape)

    def act(self, obs, noise):
        return noise


def opened(id="tensor_envs:Tape-v0", num_envs=B, stagger=False, **kwargs):
    about = {"frame_stack": None, "action_mask": False, "stagger": stagger, "kwargs": kwargs}
    return make(SimpleNamespace(id=id, backend="device", allow_import=True, timeout=60, **about), num_envs, 0)


def collector(horizon, **kwargs):
    envs = opened(**kwargs)
    checks = Checks(envs.id, envs.observation_space, envs.same_step)
    return Collector(envs, horizon, torch.Generator().manual_seed(0), checks, envs.same_step)


@pytest.mark.parametrize("horizon", [1, 4, 13])
def test_a_rollout_of_tensors_is_that_of_arrays(horizon):
    tensors, arrays = collector(horizon), Collector(Script(*LENGTHS), horizon, np.random.default_rng(0))
    for _ in range(5):
        a, b = tensors.collect(Coin()), arrays.collect(Nothing())
        for name in FIELDS:
            found, expected = getattr(a, name), getattr(b, name)
            np.testing.assert_array_equal(found, expected)
            assert isinstance(found, torch.Tensor) and str(found.dtype) == f"torch.{expected.dtype}"
        assert (a.returns, a.lengths, a.steps, a.last) == (b.returns, b.lengths, b.steps, None)


def value(obs):
    """Some V of an observation."""
    return torch.sin(obs @ torch.tensor([3.0, 0.7, 0.3])).double() * 20


def advantages(collector):
    """(environment, episode, step) → advantage and return, of the steps of episodes that ended in the rollout."""
    rollout = collector.collect(Coin())
    V = value(rollout.obs)
    after = ()
    if rollout.last is not None:
        after = (V[1:].clone(),)
        after[0][rollout.done] = value(rollout.last)
    adv, ret, known = estimate_gae(rollout, V, *after, gamma=0.9, lam=0.8)
    ended = {(i, int(rollout.obs[t, i, 1])) for t, i in rollout.done.nonzero().tolist()}
    each = map(tuple, known.nonzero())
    rows = {tuple(map(int, rollout.obs[at])): (float(adv[at]), float(ret[at])) for at in each}
    return {place: row for place, row in rows.items() if place[:2] in ended}, rollout


def test_environments_that_reset_within_the_step_give_the_same_advantages():
    next_step, _ = advantages(collector(40, mode="NextStep"))
    same_step, rollout = advantages(collector(40, mode="SameStep"))
    assert rollout.valid.all() and rollout.steps == 40 * B
    assert len(next_step) > 80 and next_step.keys() <= same_step.keys()
    for place, row in next_step.items():
        assert same_step[place] == pytest.approx(row, rel=1e-12)
    # an end's own last observation, and then the next episode's first
    at = rollout.done.nonzero()[:, 0], rollout.done.nonzero()[:, 1]
    np.testing.assert_array_equal(rollout.last[:, 2], rollout.obs[at][:, 2] + 1)
    np.testing.assert_array_equal(rollout.obs[1:][at][:, 2], 0 * rollout.last[:, 2])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("horizon", [1, 5])
def test_episodes_are_counted_once_and_whole(mode, horizon):
    one, rollouts = collector(horizon, mode=mode), 200 // horizon
    got = [r for k in range(rollouts) for r in [one.collect(Coin())]]
    found = sorted((x, n) for r in got for x, n in zip(r.returns, r.lengths, strict=True))
    extra = int(mode == "NextStep")  # the row of the reset
    expected = []
    for i, lengths in enumerate(LENGTHS):
        e, left = 0, horizon * rollouts
        while (n := lengths[e % len(lengths)]) <= left:
            expected.append((sum(100.0 * i + 10 * e + s + 1 for s in range(n)), n))
            e, left = e + 1, left - n - extra
    assert found == sorted(expected)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_played_episodes_are_the_first(mode):
    envs, ended = opened(mode=mode), []
    returns, lengths = play(envs, lambda obs: torch.zeros(B, dtype=torch.int64), ended=ended.append)
    assert lengths.tolist() == [n[0] for n in LENGTHS]
    assert returns.tolist() == [sum(100 * i + s + 1 for s in range(n[0])) for i, n in enumerate(LENGTHS)]
    firsts = [n[0] for n in LENGTHS]
    assert ended == [0, *(sum(n <= most for n in firsts) for most in sorted({*firsts}))]


def test_advantages_and_returns_of_tensors_are_those_of_arrays():
    rng = np.random.default_rng(0)
    reward, V, after = rng.normal(size=(20, 6)), rng.normal(size=(21, 6)), rng.normal(size=(20, 6))
    terminated, done = rng.random((20, 6)) < 0.1, rng.random((20, 6)) < 0.2
    arrays = reward, V, terminated, done | terminated, after
    tensors = [torch.from_numpy(x) for x in arrays]
    for end in (4, 5):
        expected = gae(*arrays[:end], gamma=0.9, lam=0.8)
        np.testing.assert_array_equal(gae(*tensors[:end], gamma=0.9, lam=0.8), expected)
    expected, known = monte_carlo(reward, done, gamma=0.9)
    found = monte_carlo(tensors[0], torch.from_numpy(done), gamma=0.9)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], known)


@pytest.mark.parametrize("masked", [0, 2])
def test_a_normaliser_sees_tensors_as_arrays(masked):
    x = np.random.default_rng(0).normal(5, 3, (500, 4)).astype(np.float32)
    a, b = (ObservationNormalizer((4 - masked,), masked=masked) for _ in range(2))
    for part in np.split(x, 5):
        a.update(part)
        b.update(torch.from_numpy(part))
    for name, expected in a.state().items():
        assert isinstance(b.state()[name], np.ndarray)
        np.testing.assert_allclose(b.state()[name], expected, rtol=1e-12)
    np.testing.assert_allclose(b(torch.from_numpy(x * 3)), a(x * 3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_heads_act_on_tensors_as_on_arrays(head):
    z = np.random.default_rng(1).normal(size=(50, head.size)).astype(np.float32)
    noise = head.noise(np.random.default_rng(2), (50,))
    for found, expected in (
        (head.sample(torch.from_numpy(z), torch.from_numpy(noise)), head.sample(z, noise)),
        (head.mode(torch.from_numpy(z)), head.mode(z)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        assert isinstance(found, torch.Tensor) and str(found.dtype) == f"torch.{expected.dtype}"


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_noise_of_a_torch_generator_has_the_distribution_of_numpys(head):
    n = 40_000
    rng = torch.Generator().manual_seed(0)
    found = head.noise(rng, (n,)).numpy().ravel()[:n]
    expected = head.noise(np.random.default_rng(0), (n,)).ravel()[:n]
    quantiles = np.linspace(0.01, 0.99, 25)
    gap = np.searchsorted(np.sort(found), np.quantile(expected, quantiles)) / n - quantiles
    assert abs(gap).max() < 4 * (0.5 / n) ** 0.5  # 4 deviations of the difference of two samples' quantiles


@pytest.mark.parametrize("space", [
    spaces.Discrete(3, start=2), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4), spaces.Box(-2, 2, (3,)),
    spaces.Box(np.array([-1.7, 0], np.float32), np.array([0.3, 5], np.float32)), spaces.Box(-np.inf, 1.5, (2,)),
    spaces.Box(0, 9, (2,), np.int64),
], ids=str)  # fmt: skip
def test_actions_reach_the_environment_as_those_of_arrays(space):
    acts, to_env = action_map(space)
    rng = np.random.default_rng(0)
    action = np.array([acts.sample() for _ in range(20)])
    if isinstance(acts, spaces.Box):
        action = rng.normal(0, 1.5, action.shape).astype(np.float32)
    found, expected = _actions(space, torch.device("cpu"))(torch.from_numpy(action)), to_env(action)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.shape == expected.shape and str(found.dtype) == f"torch.{expected.dtype}"
    assert all(space.contains(one) for one in found.numpy())


def config(*words):
    return compose.load([*words, "policy.hidden=[16]", "critic.hidden=[16]"])


def test_a_batch_of_tensors_is_that_of_arrays():
    with Training(config("env=CartPole", "num_envs=4", "horizon=50")) as run:
        run.iterate()
        rollout = run.collector.collect(run.policy)
        names = ("obs", "action", "reward", "terminated", "done", "valid")
        there = replace(rollout, **{name: torch.from_numpy(getattr(rollout, name)) for name in names})
        batches = [vars(run.batch(each)).values() for each in (there, rollout)]
        for found, expected in zip(*batches, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("env", ["CartPole", "Pendulum"])
def test_a_training_on_tensors_acts_and_learns_as_on_arrays_at_every_update(env):
    with Training(config(f"env={env}", "env.backend=device", "num_envs=8", "horizon=64")) as run:
        draw, drawn, ends = run.policy.noise, [], 0
        run.policy.noise = lambda rng, shape: drawn.append(draw(rng, shape)) or drawn[-1]
        for _ in range(5):
            collected = run.collect()
            there, names = collected.rollout, ("obs", "action", "reward", "terminated", "done", "valid")
            rollout = replace(there, **{name: getattr(there, name).numpy() for name in names})
            for obs, noise, action in zip(rollout.obs, drawn[-1].numpy(), rollout.action, strict=False):
                np.testing.assert_allclose(run.policy.act(obs, noise), action, rtol=1e-5, atol=1e-5)
            batches = [vars(run.batch(each)).values() for each in (there, rollout)]
            for found, expected in zip(*batches, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
            run.learn_from(run.gather(collected))
            ends += len(there.returns)
        assert ends >= 8


@pytest.mark.parametrize("algo", ["trpo", "ppo"])
def test_training_keeps_every_number_in_tensors(monkeypatch, algo):
    words = [f"algo={algo}", "env=Pendulum", "env.backend=device", "num_envs=16", "horizon=20", "seed=3"]
    with Training(config(*words)) as run:
        seen = []
        run.collector.check = lambda *rows: seen.append(rows)
        real = run._batch
        monkeypatch.setattr(run, "_batch", lambda rollout: seen.append(vars(rollout).values()) or real(rollout))
        before, row = run.policy.theta.clone(), run.iterate()
        assert "policy/not_finite" not in row and not torch.equal(run.policy.theta, before)
    arrays = [x for rows in seen for x in rows if not isinstance(x, list) and x is not None]
    assert len(arrays) == 10 and all(isinstance(x, torch.Tensor) for x in arrays)


@pytest.fixture
def elsewhere(monkeypatch):
    """The CPU is taken for a GPU: no tensor becomes an array, parts are others, and CG waits for nothing."""
    monkeypatch.setattr(mlp, "raw", torch.Tensor.detach)
    monkeypatch.setattr(mlp, "_chunks", lambda x, sizes: x.split(1000))
    monkeypatch.setitem(
        build.SOLVERS, "cg",
        lambda F, b, *, damping, max_iter, tol, float64: conjugate_gradients_there(F, b, damping, max_iter, tol),
    )  # fmt: skip


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
@pytest.mark.parametrize("words", [["env=CartPole"], ["env=Pendulum"], ["env=Pendulum", "algo=ppo"]], ids=" ".join)
def test_an_update_as_a_gpu_does_it_is_that_of_the_cpu(request, words, activation):
    words = [*words, "env.backend=device", "num_envs=300", "horizon=16", "critic.minibatches=3", "critic.epochs=2"]
    words += [f"policy.activation={activation}", f"critic.activation={activation}"]

    def thetas():
        with Training(config(*words)) as run:
            run.iterate()
            return run.policy.theta, run.critic.theta

    before = thetas()
    request.getfixturevalue("elsewhere")
    for found, expected in zip(thetas(), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)


def test_a_gpu_is_waited_for_as_often_for_few_products_as_for_many(elsewhere):
    counts = []
    for max_iter in (2, 9):
        words = ["env=Pendulum", "env.backend=device", "num_envs=16", "horizon=20", f"solver.max_iter={max_iter}"]
        with Training(config(*words)) as run:
            batch = run.gather().batch
            with Reads() as reads:
                row = run.learn(batch)
        assert row["solver/iterations"] == max_iter
        counts.append(reads.count - row["line_search/tries"])  # one of whether θ is finite in each
    assert counts[0] == counts[1] < 15


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_ones_own_environment_trains_and_is_evaluated(monkeypatch, tmp_path, capfd, mode):
    words = [*TAPE, *TINY, f"env.kwargs.mode={mode}", f"runs_dir={tmp_path}", "eval.every=1"]
    assert whole_runs.run(monkeypatch, *words) == 0
    path = whole_runs.only_run(tmp_path)
    assert read_record(path)["backend"] == "device" and not read_record(path)["restorable"]
    assert "resuming starts new episodes" in capfd.readouterr().out
    assert [row["eval/length"] for row in read_rows(path)] == [2.0] * len(read_rows(path))  # of 3 and of 1 step
    agent = rl_natgrad.load(path, allow_import=True)
    assert agent.act(np.zeros(3, np.float32)) in (0, 1)
    assert whole_runs.run(monkeypatch, f"resume={path}", "total_steps=100", "env.allow_import=true") == 0


@pytest.mark.parametrize("how", WRONG)
def test_misbehaviour_ends_in_one_line(monkeypatch, tmp_path, capfd, how):
    words = [*TAPE, *TINY, f"env.kwargs.how={how}", "env.kwargs.lengths=[[20]]", f"runs_dir={tmp_path}"]
    assert whole_runs.run(monkeypatch, *words) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    step = 0 if how.startswith("reset") else 3
    where = "" if WRONG[how].startswith("environment") else f"environments 0 to 3, step {step} since their reset: "
    assert len(lines) == 1 and lines[0].startswith(f"error: tensor_envs:Tape-v0, {where}{WRONG[how]}")


@pytest.mark.parametrize(("how", "said"), [
    ("final", r"step 1 since their reset: info\['final_obs'\] is NoneType None"),
    ("final-shape", r"step 1 since their reset: info\['final_obs'\] has shape \(5, 2\), expected \(5, 3\)"),
    ("final-device", r"step 1 since their reset: info\['final_obs'\] is on meta, expected cpu"),
    ("final-nan", r"environment 1, step 1: observation\[0\] is nan"),
])  # fmt: skip
def test_a_reset_within_the_step_must_show_the_last_observation(how, said):
    one = collector(8, mode="SameStep", how=how)
    with pytest.raises(RuntimeError, match=said):
        one.collect(Coin())


def test_an_environment_that_can_be_differentiated_is_as_any_other():
    tape = compose.load([*TAPE, *TINY]), compose.load([*TAPE, *TINY, "env.kwargs.how=grad"])
    with Training(tape[0]) as plain, Training(tape[1]) as run:
        for _ in range(2):
            assert run.iterate().keys() == plain.iterate().keys()
        assert torch.equal(run.policy.theta, plain.policy.theta)


@pytest.mark.parametrize(("words", "said"), [
    (["env=FrozenLake-v1", "env.backend=device"], "FrozenLake-v1 is not one of tensors: env.backend=device has C"),
    ([*TAPE, "env.kwargs.mode=Disabled"], "must be NEXT_STEP or SAME_STEP, got AutoresetMode.DISABLED"),
    (["env=Pendulum", "env.backend=device", "env.kwargs.mass=2"], "Pendulum-v1: TypeError: "),
], ids=str)  # fmt: skip
def test_what_cannot_be_used_is_refused(monkeypatch, tmp_path, capfd, words, said):
    assert whole_runs.run(monkeypatch, *TINY, *words, f"runs_dir={tmp_path}") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line and not list(tmp_path.iterdir())


def test_staggered_episodes_end_at_all_times_and_evaluations_are_of_whole_ones():
    words = ["env=Pendulum", "env.backend=device", "num_envs=1000", "horizon=20", "eval.episodes=3"]
    with Training(config(*words, "env.stagger=true")) as run:
        ended = [len(run.collect().rollout.returns) for _ in range(20)]
        assert run.evaluate()["eval/length"] == 200
    assert sum(ended[:10]) == 1000 and min(ended) > 60 and max(ended) < 140  # 100 ± 9.5
    with Training(config(*words)) as run:
        assert [len(run.collect().rollout.returns) for _ in range(10)] == [0] * 9 + [1000]
    assert opened(stagger=True).note.startswith("tensor_envs:Tape-v0 has no `stagger`: its episodes all begin at ")
    with pytest.raises(ConfigError, match=r"env.stagger=true needs env.backend=device, got auto"):
        config("env.stagger=true")


def test_an_environment_is_told_its_device_only_where_it_asks():
    assert opened(id="CartPole-v1").env.generator.device.type == "cpu"
    assert isinstance(opened().env, Tape) and opened().env.device == "cpu"
    assert isinstance(opened(), DeviceEnvs)
