"""device=cuda: the same maths, the whole update on the GPU."""

import numpy as np
import pytest
import torch

from rl_natgrad.config import compose
from rl_natgrad.training import state
from rl_natgrad.training.iteration import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SMALL = ["num_envs=4", "horizon=64", "torch_threads=1"]


@pytest.fixture
def training(closed):
    return lambda *words: closed(Training(compose.load(words)))


@pytest.mark.parametrize("algo", ["reinforce", "pg", "npg", "trpo", "ppo"])
@pytest.mark.parametrize("env", ["CartPole", "Pendulum"])
def test_first_update_is_the_cpus_to_rounding(training, algo, env):
    thetas = {}
    for device in ("cpu", "cuda"):
        run = training(f"algo={algo}", f"env={env}", f"device={device}", *SMALL)
        run.iterate()
        thetas[device] = run.policy.theta
    assert thetas["cuda"].is_cuda
    torch.testing.assert_close(thetas["cuda"].cpu(), thetas["cpu"], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("critic", ["adam", "lbfgs", "trust_region"])
def test_every_part_of_the_update_lives_on_the_gpu(training, critic):
    run = training("env=CartPole", "device=cuda", f"critic={critic}", *SMALL)
    batch = run.batch(run.collector.collect(run.policy))
    assert batch.obs.is_cuda and batch.action.is_cuda and batch.adv.is_cuda and batch.ret.is_cuda
    run.learn(batch)
    run.critic.fit(batch)
    assert run.policy.theta.is_cuda and run.critic.theta.is_cuda


def test_fisher_product_equals_the_cpus(training):
    products = {}
    for device in ("cpu", "cuda"):
        run = training("env=Pendulum", f"device={device}", *SMALL)
        obs = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)).to(device)
        lin = run.policy.linearize(run.policy.theta, obs)
        v = torch.ones(lin.size, device=device) / lin.size
        products[device] = lin.vjp(run.policy.head.metric(lin.z)(lin.jvp(v))).cpu()
    torch.testing.assert_close(products["cuda"], products["cpu"], rtol=1e-4, atol=1e-5)


def test_cuda_run_learns_and_resumes(training):
    run, other = (training("env=CartPole", "device=cuda", "seed=1") for _ in range(2))
    while run.step < 40_000:
        run.iterate()
    assert run.train_return > 150
    state.load(other, state.of(run))
    for each in (run, other):
        each.iterate()
    assert torch.equal(run.policy.theta, other.policy.theta)


def test_environments_of_tensors_train_on_the_gpu_and_resume(training):
    words = ["env=CartPole", "env.backend=device", "env.stagger=true", "device=cuda", "num_envs=256", "horizon=32"]
    run, other = (training(*words, "critic.minibatches=8") for _ in range(2))
    rollout = run.collect().rollout
    assert rollout.obs.is_cuda and rollout.reward.is_cuda and rollout.done.is_cuda
    while run.step < 300_000:
        run.iterate()
    assert run.train_return > 150 and run.evaluate()["eval/length"] > 150
    state.load(other, state.of(run))
    for each in (run, other):
        each.iterate()
    assert torch.equal(run.policy.theta, other.policy.theta)


def test_mujoco_trains_on_the_gpu(training):
    pytest.importorskip("mujoco_warp")
    run = training("env=HalfCheetah", "env.backend=device", "device=cuda", "num_envs=64", "horizon=16")
    rows = [run.iterate() for _ in range(3)]
    assert run.policy.theta.is_cuda and all(row["line_search/accepted"] for row in rows)
    assert "state restored, bits not" in run.envs.note
