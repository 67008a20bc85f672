"""A run in memory: deterministic, continuable, honest about its steps, and calm where the maths fails."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from rl_natgrad.algos.critic import NoCritic
from rl_natgrad.algos.problem import Problem
from rl_natgrad.config import compose
from rl_natgrad.envs.errors import EnvError
from rl_natgrad.optim import fisher as fishers
from rl_natgrad.rollout.collector import Rollout
from rl_natgrad.rollout.returns import Estimate
from rl_natgrad.training import cost, state, threads
from rl_natgrad.training.iteration import GIVE_UP, NotFinite, Training

LEARNERS = ["reinforce", "pg", "npg", "trpo", "ppo"]
KL_STEPS = ["npg", "trpo"]


@pytest.fixture
def make(closed):
    """A training; overrides may repeat, the last one counting."""

    def build(learner, *overrides, env="CartPole"):
        made = {}
        base = ["num_envs=2", "horizon=48", "eval.episodes=2", "policy.hidden=[16]", "env.allow_import=true"]
        base += [] if learner == "reinforce" else ["critic.hidden=[16]"]
        for override in (*base, *overrides):
            made[override.split("=")[0]] = override
        return closed(Training(compose.load([f"algo={learner}", f"env={env}", *made.values()])))

    return build


def said(rows):
    """What was logged, without clocks; NaN as text, so that it equals itself."""
    return json.dumps([{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows])


def fingerprint(run, rows=()):
    parts = [run.policy.theta] if isinstance(run.critic, NoCritic) else [run.policy.theta, run.critic.theta]
    sums = [hashlib.sha256(p.detach().numpy().tobytes()).hexdigest() for p in parts]
    return [*sums, said(rows), run.step, run.update, list(run.returns)]


def iterate(run, n):
    return [run.iterate() for _ in range(n)]


def test_a_batch_is_the_valid_rows_in_time_order(make):
    run = make("trpo", "horizon=96")
    iterate(run, 1)
    rollout = run.collector.collect(run.policy)
    batch, valid = run.batch(rollout), rollout.valid
    assert not valid.all()
    obs = torch.from_numpy(run.policy.observe(rollout.obs[:-1][valid]))
    assert torch.equal(batch.obs, obs) and (batch.action.numpy() == rollout.action[valid]).all()
    torch.testing.assert_close(batch.value, run.critic.values(obs).double(), rtol=1e-5, atol=1e-5)
    adv = batch.ret - batch.value
    torch.testing.assert_close(batch.adv, ((adv - adv.mean()) / adv.std(correction=0)).float())


# --- the same seed, another seed ------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("learner", LEARNERS)
def test_the_same_seed_gives_the_same_bits(make, learner, num_envs):
    runs = [make(learner, f"num_envs={num_envs}", f"seed={seed}") for seed in (3, 3, 4)]
    a, b, other = [fingerprint(run, iterate(run, 4)) for run in runs]
    assert a == b
    assert other[0] != a[0] and other[-1] != a[-1]


def test_global_generators_have_no_part(make):
    a, b = make("trpo"), make("trpo")
    rows = iterate(a, 3)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert fingerprint(b, iterate(b, 3)) == fingerprint(a, rows)


@pytest.mark.parametrize("learner", LEARNERS)
def test_evaluation_in_between_changes_nothing(make, learner):
    a, b = make(learner), make(learner)
    rows_a = iterate(a, 4)
    rows_b = iterate(b, 2)
    first = b.evaluate()
    assert b.evaluate() == first  # and says the same when asked again
    rows_b += iterate(b, 2)
    assert fingerprint(a, rows_a) == fingerprint(b, rows_b)


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_update_in_halves_measured_in_between_is_the_update(make, learner):
    options = ["fisher.fraction=0.5"] if learner in KL_STEPS else []
    a, b = make(learner, *options), make(learner, *options)
    rows, halves = iterate(a, 4), []
    for _ in range(4):
        gathered = b.gather()
        if len(gathered.batch.obs):
            problem = b.problem(gathered.batch)
            assert len(gathered.batch.obs) <= gathered.rollout.steps
            assert problem.rows is None and problem.fisher().mv(problem.grad()).isfinite().all()
        halves.append(b.learn_from(gathered))
        assert halves[-1].keys() == rows[len(halves) - 1].keys()
        assert halves[-1]["time/collect"] == gathered.seconds["time/collect"]
        assert halves[-1]["time/update"] >= gathered.seconds["time/update"]
    assert fingerprint(a, rows) == fingerprint(b, halves)
    if learner in KL_STEPS:  # the measured Fisher is that of all samples, and the update's of the rows it draws
        problem = b.problem(gathered.batch, rows=torch.tensor([1, 4]))
        assert problem.fisher().shape()[0] == 2


def test_evaluation_is_of_the_episodes_asked_for(make):
    run = make("trpo", "num_envs=2", "eval.episodes=5", env="Pendulum")
    info = run.evaluate()
    assert info["eval/length"] == 200
    assert info["eval/return_std"] > 0
    assert info["eval/return"] != info["eval/return_stochastic"]


@pytest.mark.parametrize("env", ["CartPole", "Pendulum"])
@pytest.mark.parametrize("options", [[], ["env.normalize_obs=false"], ["critic=lbfgs"], ["critic=trust_region"]])
@pytest.mark.parametrize("learner", KL_STEPS)
def test_a_run_in_float64_is_in_float64_and_leaves_torchs_default_alone(make, learner, options, env):
    run, single = (make(learner, *options, f"dtype={dtype}", env=env) for dtype in ("float64", "float32"))
    assert torch.equal(run.policy.theta, single.policy.theta.double())  # the same start
    gathered = run.gather()
    batch, problem = gathered.batch, run.problem(gathered.batch)
    floats = [run.policy.theta, run.critic.theta, batch.obs, batch.adv, problem.grad(), problem.fisher().dense()]
    assert {tensor.dtype for tensor in floats} == {torch.float64}
    assert batch.action.dtype == (torch.float64 if env == "Pendulum" else torch.int64)
    half = single.problem(single.gather().batch)  # the actions differ by rounding, where they are numbers
    torch.testing.assert_close(problem.grad(), half.grad().double(), rtol=1e-3, atol=1e-4)
    assert not torch.equal(problem.grad(), half.grad().double())
    run.learn_from(gathered)
    iterate(run, 2)
    assert run.policy.theta.dtype == run.critic.theta.dtype == torch.float64
    assert not torch.equal(run.policy.theta, run.policy.theta.float().double())
    assert torch.get_default_dtype() == torch.float32


# --- going on -------------------------------------------------------------------------------------

CONTINUED = [("CartPole", "auto"), ("CartPole", "sync"), ("Pendulum", "sync")]


@pytest.mark.parametrize(("env", "backend"), CONTINUED)
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_loaded_run_goes_on_as_the_whole_one(make, learner, env, backend):
    # 70 does not divide Pendulum's 200 steps: the state is taken in mid-episode
    options = [f"env.backend={backend}", "horizon=70"]
    options += ["fisher.fraction=0.5"] if learner in KL_STEPS else []
    whole, later = make(learner, *options, env=env), make(learner, *options, env=env)
    iterate(whole, 3)
    saved = state.of(whole)
    rows = iterate(whole, 3)  # what was saved must not change under it
    assert state.load(later, saved) == []
    assert later.step == saved["step"]
    assert fingerprint(later, iterate(later, 3)) == fingerprint(whole, rows)


@pytest.mark.parametrize("optimizer", ["momentum", "nag", "adagrad", "adadelta", "rmsprop", "radam", "adamp"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_every_optimizer_goes_on(make, optimizer, warmup):
    whole, later = (make("pg", f"optimizer={optimizer}", f"optimizer.warmup={warmup}") for _ in range(2))
    iterate(whole, 3)
    state.load(later, state.of(whole))
    assert fingerprint(later, iterate(later, 3)) == fingerprint(whole, iterate(whole, 3))


def test_loading_is_not_sharing(make):
    whole, later = make("pg"), make("pg")
    iterate(whole, 2)
    saved = state.of(whole)
    state.load(later, saved)
    rows = iterate(later, 2)
    again = make("pg")
    state.load(again, saved)
    assert fingerprint(again, iterate(again, 2)) == fingerprint(later, rows)


@pytest.mark.parametrize("backend", ["sync", "native"])
def test_a_state_before_the_first_update_is_one_too(make, backend):
    whole, later = (make("trpo", f"env.backend={backend}") for _ in range(2))
    state.load(later, state.of(whole))
    assert fingerprint(later, iterate(later, 2)) == fingerprint(whole, iterate(whole, 2))


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sync", "native"])
def test_steps_are_those_that_environments_made(make, backend, monkeypatch):
    run = make("trpo", f"env.backend={backend}", "num_envs=3")
    made, step, over = 0, run.envs.step, np.zeros(3, bool)

    def counted(action):
        nonlocal made, over
        made += int((~over).sum())  # after an end comes a reset, which is no step
        result = step(action)
        over = result[2] | result[3]
        return result

    run.envs.step = counted
    rows = iterate(run, 5)
    assert run.step == made < 5 * 3 * 48
    assert run.update == 5
    assert sum(row["rollout/episodes"] for row in rows) == len(run.returns)
    assert run.train_return == np.mean(run.returns)


def test_returns_are_raw_and_of_whole_episodes(make):
    run = make("trpo", "horizon=50", env="Pendulum")  # an episode is 200 steps and a reset row
    rows = iterate(run, 9)
    assert [n for n, row in enumerate(rows) if "rollout/return" in row] == [3, 8]
    assert rows[3]["rollout/length"] == 200 and rows[3]["rollout/episodes"] == 2
    assert -2000 < rows[3]["rollout/return"] < -500  # of the order of 200 × −6, not normalised or discounted


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(("num_envs", "horizon"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_the_smallest_rollouts_are_fine(make, closed, learner, num_envs, horizon):
    cfg = make(learner, env="probes:Match-v0").cfg  # every second row is a reset, so that batches may be empty
    run = closed(Training(cfg.model_copy(update={"num_envs": num_envs, "horizon": horizon})))
    rows = iterate(run, 6)
    assert run.step == num_envs * horizon * 3
    assert run.policy.theta.isfinite().all()
    assert all(math.isfinite(v) for row in rows for v in row.values())


def test_reinforce_waits_for_an_episode_to_end(make):
    run = make("reinforce", "horizon=16", env="Pendulum")
    theta = run.policy.theta.clone()
    rows = iterate(run, 3)
    assert torch.equal(run.policy.theta, theta)
    assert all(key.startswith("time/") for row in rows for key in row)
    assert run.step == 96 and run.train_return is None


# --- one batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["CartPole", "Pendulum", "probes:Dials-v0", "probes:Switches-v0"])
def test_the_ratio_is_exactly_one_at_the_old_policy(make, env):
    run = make("trpo", env=env)
    assert run.cfg.env.normalize_obs
    for _ in range(4):
        batch = run.batch(run.collector.collect(run.policy))
        problem = Problem(run.policy, batch)
        assert problem.loss_old == -float(batch.adv.mean())
        assert problem.evaluate(run.policy.theta) == (problem.loss_old, 0.0)
        run.iterate()


def test_the_normaliser_is_frozen_within_a_rollout(make, monkeypatch):
    run = make("trpo")
    iterate(run, 2)
    observe, seen = run.policy.observe, []
    x = np.ones((1, 4), np.float32)
    step, learn = run.envs.step, run.learn

    run.envs.step = lambda action: seen.append(observe(x).tobytes()) or step(action)
    run.learn = lambda *batch: seen.append(observe(x).tobytes()) or learn(*batch)
    run.iterate()
    assert len(seen) == 49 and len(set(seen)) == 1
    assert observe(x).tobytes() != seen[0]


def test_the_normaliser_sees_each_step_once(make):
    run = make("trpo")
    iterate(run, 3)
    assert run.policy.observe.moments.count == run.step


def stub_rollout():
    """One environment: a step that the time limit ends, its reset, a step that terminates; V is obs[0]."""
    obs = np.zeros((4, 1, 4), np.float32)
    obs[:, 0, 0] = 3, 5, 9, 7
    no, yes = [False], [True]
    return Rollout(
        obs, np.array([[0], [1], [0]]), np.array([[1.0], [0.0], [2.0]]),
        np.array([no, no, yes]), np.array([yes, no, yes]), np.array([yes, no, yes]), [1.0, 2.0], [1, 1],
    )  # fmt: skip


@pytest.mark.parametrize("learner", ["pg", "npg", "trpo", "ppo"])
def test_a_batch_bootstraps_at_time_limits_only(make, learner, monkeypatch):
    run = make(learner, "algo.gamma=0.5", "algo.normalize_adv=false")
    monkeypatch.setattr(run.critic, "values", lambda obs: obs[:, 0])
    batch = run.batch(stub_rollout())
    assert batch.adv.tolist() == [1 + 5 / 2 - 3, 2 - 9]
    assert batch.ret.tolist() == [1 + 5 / 2, 2]
    assert batch.obs[:, 0].tolist() == [3, 9] and batch.action.tolist() == [0, 0]


def test_normalised_advantages_have_mean_zero_and_deviation_one(make):
    run = make("trpo")
    adv = run.batch(run.collector.collect(run.policy)).adv.double()
    assert abs(float(adv.mean())) < 1e-6 and abs(float(adv.std(correction=0)) - 1) < 1e-6


@pytest.mark.parametrize("learner", LEARNERS)
def test_equal_advantages_are_no_reason_to_move(make, learner):
    run = make(learner, env="probes:Constant-v0")
    theta = run.policy.theta.clone()
    if learner == "reinforce":  # every return is 1
        rows = iterate(run, 3)
        assert torch.equal(run.policy.theta, theta)
        assert all(math.isfinite(v) for row in rows for v in row.values())
    batch = run.batch(run.collector.collect(run.policy))
    assert batch.adv.isfinite().all()


# --- where the maths fails ------------------------------------------------------------------------


def poison_advantage(monkeypatch, run):
    real = run.algorithm.estimate

    def poisoned(rollout, value):
        adv, ret, _ = real(rollout, value)
        adv[-3:] = np.nan
        return Estimate(adv, ret, rollout.valid)

    monkeypatch.setattr(run, "algorithm", replace(run.algorithm, estimate=poisoned))


def poison_gradient(monkeypatch, run):
    real = Problem.grad

    def poisoned(self):
        grad = real(self)
        grad[0] = np.inf
        return grad

    monkeypatch.setattr(Problem, "grad", poisoned)


def poison_fisher(monkeypatch, run):
    monkeypatch.setattr(fishers.GaussNewton, "mv", lambda self, v: torch.full_like(v, np.nan))
    monkeypatch.setattr(fishers.GaussNewton, "dense", lambda self: torch.full([self.lin.size] * 2, np.nan))


def poison_kl(monkeypatch, run):
    monkeypatch.setattr(type(run.policy.head), "kl", lambda self, z, z_new: z_new.sum(-1) * np.nan)


POISONS = [(p, learner, ()) for p in (poison_advantage, poison_gradient, poison_kl) for learner in LEARNERS]
POISONS += [
    (poison_fisher, learner, (f"solver={solver}",))
    for learner in KL_STEPS for solver in ("cg", "identity", "cholesky", "pinv")
]  # fmt: skip


@pytest.mark.parametrize(("poison", "learner", "options"), POISONS)
def test_maths_that_is_not_finite_keeps_theta(make, monkeypatch, poison, learner, options):
    run = make(learner, *options)
    iterate(run, 2)
    theta = run.policy.theta.clone()
    with monkeypatch.context() as patch:
        poison(patch, run)
        for _ in range(GIVE_UP - 1):
            row = run.iterate()
            assert row["policy/not_finite"] == 1
            assert torch.equal(run.policy.theta, theta)
        with pytest.raises(NotFinite, match=f"{GIVE_UP} updates in a row"):
            run.iterate()
        assert torch.equal(run.policy.theta, theta)


@pytest.mark.parametrize("how", ["step nan", "step inf", "step outside", "step reward-nan", "step reward-inf"])
def test_nothing_is_learned_from_an_environment_that_misbehaves(make, how):
    # in the second rollout of 48
    run = make("trpo", f"env.kwargs.how={how}", "env.kwargs.at=60", env="environments:Misbehaving-v0")
    run.iterate()
    before = fingerprint(run)
    with pytest.raises(EnvError, match=r"environment 0.* step 60: (observation|reward)"):
        run.iterate()
    assert fingerprint(run) == before


@pytest.mark.parametrize("poison", [poison_advantage, poison_gradient])
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_run_recovers_from_one_bad_update(make, monkeypatch, poison, learner):
    run = make(learner)
    iterate(run, 2)
    with monkeypatch.context() as patch:
        poison(patch, run)
        run.iterate()
    theta = run.policy.theta.clone()
    rows = iterate(run, 2)
    assert run.not_finite == 0
    assert not torch.equal(run.policy.theta, theta)
    assert all(math.isfinite(v) for row in rows for v in row.values())


@pytest.mark.parametrize("learner", KL_STEPS)
@pytest.mark.parametrize("probe", ["Action", "Match", "Dials"])
def test_a_policy_that_is_sure_of_itself_is_no_failure(make, probe, learner):
    """Its Fisher is 0 to rounding, so that there may be no step to take; nothing of that is not finite."""
    run = make(learner, "algo.delta=0.05", "num_envs=8", "horizon=64", "algo.gamma=0.5", env=f"probes:{probe}-v0")
    rows = iterate(run, 60)
    assert min(row["policy/entropy"] for row in rows) < 1e-3  # NPG may fall off such a policy again
    assert not any("policy/not_finite" in row for row in rows)
    assert all(math.isfinite(v) for row in rows for v in row.values())


@pytest.mark.parametrize("words, said", [  # P = 4·64 + 64 + 64·64 + 64 + 64·2 + 2 = 4,610, and M = 8·256 = 2,048
    (["algo=pg"], ""),
    (["solver=cg"], ""),
    (["solver=cholesky", "fisher.fraction=0.1"], ""),
    (["solver=cholesky"], "cholesky on 2,048 × 4,610: some 3e+10 operations an update, 3 s "),
    (["solver=cholesky", "total_steps=20480"], " 30 s in all"),
    (["solver=pinv"], "pinv on 2,048 × 4,610: some 1e+12 operations an update, 100 s "),
    (["solver=pinv", "policy.hidden=[8]"], ""),
    (["solver=cholesky", "fisher=kl_hessian"], "4,610 × 4,610: some 6e+11 operations an update, 60 s "),
])  # fmt: skip
def test_a_slow_solver_is_announced_with_what_it_will_take(closed, monkeypatch, words, said):
    monkeypatch.setattr(cost, "_rate", lambda device: 1e10)
    cfg = compose.load(["env=CartPole", *words])
    found = cost._slow(cfg, closed(Training(cfg)).policy)
    assert said in found and bool(said) == bool(found), found


def test_threads_that_have_nothing_to_share_change_nothing(make):
    runs = [make("trpo", f"torch_threads={n}") for n in (1, 2)]
    rows = [iterate(run, 2) for run in runs]
    assert fingerprint(runs[0], rows[0]) == fingerprint(runs[1], rows[1]) and torch.get_num_threads() == 1
    said = [cost.notes(run.cfg, run.algorithm.learner, run.policy) for run in runs]
    assert said == [[], ["the policy's products are too small for 2 threads, and run on one"]]


LARGE = ["horizon=1024", "policy.hidden=[512,512]", "critic.hidden=[512,512]"]  # P 266,000


@pytest.mark.parametrize("words, learner, critic", [  # numpy's threads, torch's, or one
    (["algo=trpo"], None, None),
    (["algo=trpo", *LARGE], "numpy", "numpy"),
    (["algo=trpo", *LARGE, "torch_threads=1"], None, None),
    (["algo=pg", *LARGE, "critic.minibatch=64"], "numpy", None),
    (["algo=npg", "solver=cholesky", "critic=trust_region"], "torch", None),
    (["algo=npg", "solver=cholesky", "fisher.fraction=0.01"], None, None),
])  # fmt: skip
def test_what_is_large_has_the_threads(closed, words, learner, critic):
    words = {word.split("=")[0]: word for word in ("env=CartPole", "torch_threads=2", *words)}
    run = closed(Training(compose.load(words.values())))
    for part, team in ((run.algorithm.learner, learner), (run.critic.regress, critic)):
        assert (("numpy" if part.numpy else "torch") if isinstance(part, threads.Threaded) else None) == team


@pytest.mark.parametrize("numpy", [True, False])
def test_only_numpy_or_torch_has_threads_and_only_within(numpy):
    def count(*given):
        blas = {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
        found.append((given, blas, torch.get_num_threads()))
        if given[0] == "bad":
            raise ValueError

    found = []
    threads.use_threads(1)
    part = threads.Threaded(count, 2, numpy=numpy)
    part("good", 1)
    with pytest.raises(ValueError):
        part("bad")
    count("after")
    assert [one[1:] for one in found] == [(({2}, 1) if numpy else ({1}, 2))] * 2 + [({1}, 1)]
    assert found[0][0] == ("good", 1)
