"""device=cuda: the same maths, the whole update on the GPU."""

import numpy as np
import pytest
import torch

from rl_natgrad.config import compose
from rl_natgrad.training.iteration import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SMALL = ["num_envs=4", "horizon=64", "torch_threads=1"]


@pytest.mark.parametrize("algo", ["reinforce", "pg", "npg", "trpo"])
@pytest.mark.parametrize("env", ["CartPole", "Pendulum"])
def test_first_update_is_the_cpus_to_rounding(algo, env):
    thetas = {}
    for device in ("cpu", "cuda"):
        training = Training(compose.load([f"algo={algo}", f"env={env}", f"device={device}", *SMALL]))
        training.iterate()
        thetas[device] = training.policy.theta
        training.close()
    assert thetas["cuda"].is_cuda
    torch.testing.assert_close(thetas["cuda"].cpu(), thetas["cpu"], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("critic", ["adam", "lbfgs", "trust_region"])
def test_every_part_of_the_update_lives_on_the_gpu(critic):
    training = Training(compose.load(["env=CartPole", "device=cuda", f"critic={critic}", *SMALL]))
    batch = training.batch(training.collector.collect(training.policy))
    assert batch.obs.is_cuda and batch.action.is_cuda and batch.adv.is_cuda and batch.ret.is_cuda
    training.learn(batch)
    training.critic.fit(batch)
    assert training.policy.theta.is_cuda and training.critic.theta.is_cuda
    training.close()


def test_fisher_product_equals_the_cpus():
    products = {}
    for device in ("cpu", "cuda"):
        training = Training(compose.load(["env=Pendulum", f"device={device}", *SMALL]))
        obs = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)).to(device)
        lin = training.policy.linearize(training.policy.theta, obs)
        v = torch.ones(lin.size, device=device) / lin.size
        products[device] = lin.vjp(training.policy.head.metric(lin.z)(lin.jvp(v))).cpu()
        training.close()
    torch.testing.assert_close(products["cuda"], products["cpu"], rtol=1e-4, atol=1e-5)


def test_cuda_run_learns_and_resumes(tmp_path):
    from rl_natgrad.training import state

    training = Training(compose.load(["env=CartPole", "device=cuda", "seed=1"]))
    while training.step < 40_000:
        training.iterate()
    assert training.train_return > 150
    other = Training(compose.load(["env=CartPole", "device=cuda", "seed=1"]))
    state.load(other, state.of(training))
    for t in (training, other):
        t.iterate()
    assert torch.equal(training.policy.theta, other.policy.theta)
    training.close(), other.close()
