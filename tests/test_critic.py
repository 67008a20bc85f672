import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import randn, reference_forward, rng

from rl_natgrad.algos.critic import (
    AdamFit,
    Critic,
    LBFGSFit,
    NoCritic,
    TrustRegionFit,
    fit_info,
)
from rl_natgrad.algos.learner import Stateless
from rl_natgrad.algos.problem import Batch
from rl_natgrad.optim.first_order import Adam
from rl_natgrad.policy.mlp import MLP

NET = MLP((2, 16, 1), last_gain=1.0)
FITS = {
    "adam": lambda theta: AdamFit(theta, np.random.default_rng(0), lr=5e-3, epochs=5, minibatch=64),
    "lbfgs": lambda theta: LBFGSFit(max_iter=10, history=10),
    "trust region": lambda theta: TrustRegionFit(delta=0.1, damping=0.01, max_iter=10, steps=2),
    "gauss newton": lambda theta: TrustRegionFit(delta=None, damping=0.01, max_iter=10, steps=2),
}
each_fit = pytest.mark.parametrize("name", FITS)


def make(name: str, normalize=True) -> Critic:
    theta = NET.init(rng(0))
    return Critic(NET, theta, FITS[name](theta), normalize)


def batch(seed: int, N: int = 256) -> Batch:
    """Returns of a smooth function far from 0 and from unit scale."""
    obs = randn(seed, N, 2)
    value = 50 + 20 * torch.sin(obs[:, 0]) - 10 * obs[:, 1]
    return Batch(obs, torch.zeros(N), torch.zeros(N), value.double(), torch.zeros(N))


def moments_of(critic) -> np.ndarray:
    """Count, mean and sum of squared deviations of the returns so far."""
    return critic.state()["moments"]


def fit(critic, data: Batch) -> dict[str, float]:
    """As in training, where V(obs) is known before the fit."""
    return critic.fit(replace(data, value=critic.values(data.obs).double()))


@each_fit
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_critic_learns_a_function(name, dtype, float64):
    torch.set_default_dtype(dtype)
    critic = make(name)
    critic.theta = critic.theta.to(dtype)
    for k in range(25):
        info = fit(critic, batch(k))
    assert info["critic/explained_variance"] > 0.97
    fresh = batch(99)
    assert float(((critic.values(fresh.obs) - fresh.ret) ** 2).mean()) < 0.03 * float(fresh.ret.var())


@each_fit
def test_info_is_of_before_the_fit(name):
    critic, data = make(name), batch(0)
    error = (data.ret - critic.values(data.obs)).numpy()
    info = fit(critic, data)
    assert info["critic/loss"] == pytest.approx((error**2).mean())
    assert info["critic/explained_variance"] == pytest.approx(1 - error.var() / data.ret.numpy().var())
    assert fit(critic, data)["critic/loss"] < info["critic/loss"]


def test_explained_variance_by_hand():
    # Errors 1, 0, 0, −1 (variance 1/2) of returns 1, 2, 3, 4 (variance 5/4).
    info = fit_info(torch.tensor([0.0, 2.0, 3.0, 5.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert info == pytest.approx({"critic/loss": 0.5, "critic/explained_variance": 0.6})
    # A constant error explains everything, and is still an error.
    info = fit_info(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
    assert info == pytest.approx({"critic/loss": 4.0, "critic/explained_variance": 1.0})
    # Of returns that do not vary there is nothing to explain.
    assert fit_info(torch.zeros(3), torch.ones(3)) == {"critic/loss": 1.0}


@each_fit
def test_normalised_values_do_not_depend_on_the_returns_scale(name):
    values = []
    for scale, shift in ((1.0, 0.0), (1000.0, -300.0)):
        critic, data = make(name), batch(0)
        data = replace(data, ret=scale * data.ret + shift)
        for _ in range(2):
            fit(critic, data)
        values.append((critic.values(data.obs).double() - shift) / scale)
    torch.testing.assert_close(*values, rtol=1e-2, atol=0.5)


def test_without_normalisation_values_are_the_networks_outputs():
    critic = make("adam", normalize=False)
    fit(critic, batch(0))
    obs = randn(1, 5, 2)
    assert torch.equal(critic.values(obs), NET.forward(critic.theta, obs).squeeze(-1))


class Unmoved(Stateless):
    """A fit that learns nothing, and keeps its target."""

    def __call__(self, net, theta, x, target, among):
        self.target = target
        return theta


@pytest.mark.parametrize("shift, scale", [(0, 1), (300, 1), (-1e4, 100), (0, 1e-3)])
def test_as_the_units_change_what_was_learned_stays(shift, scale):
    critic, obs = make("adam"), randn(7, 9, 2)
    for k in range(5):
        fit(critic, batch(k))
    values, moments = critic.values(obs), moments_of(critic)
    critic.regress = unmoved = Unmoved()
    data = replace(batch(9), ret=scale * batch(9).ret + shift)
    fit(critic, data)
    assert (shift, scale) == (0, 1) or not np.allclose(moments_of(critic)[1:], moments[1:], rtol=0.05)
    torch.testing.assert_close(critic.values(obs), values, rtol=1e-4, atol=1e-3)
    # The target is in the new units too: the error that the fit sees is the error of V.
    error = NET.forward(critic.theta, data.obs) - unmoved.target
    count, _, m2 = moments_of(critic)
    std = (m2 / count) ** 0.5
    of_values = (critic.values(data.obs) - data.ret).float()
    torch.testing.assert_close(error.squeeze(-1) * std, of_values, rtol=1e-3, atol=1e-2)


def test_the_first_units_are_the_first_batchs():
    # A random start is not worth keeping: in units of 8,000 it would be nothing but its own offset.
    critic = make("adam")
    critic.regress, theta = Unmoved(), critic.theta
    fit(critic, replace(batch(0), ret=8000 * batch(0).ret))
    assert torch.equal(critic.theta, theta)


@each_fit
def test_returns_that_do_not_vary_are_learned(name):
    critic, data = make(name), batch(0)
    data = replace(data, ret=torch.full((256,), -3.0, dtype=torch.float64))
    for _ in range(30):
        fit(critic, data)
    assert (critic.values(data.obs) + 3).abs().max() < 0.2


@each_fit
def test_saved_and_loaded_a_critic_goes_on_bit_for_bit(name):
    results = []
    for stop in (None, 0, 2):
        critic = make(name)
        for k in range(4):
            if k == stop:
                saved, critic = copy.deepcopy(critic.state()), make(name)
                critic.load(saved)
            fit(critic, batch(k))
        results.append((critic.theta, moments_of(critic)))
    for theta, moments in results[1:]:
        assert torch.equal(theta, results[0][0])
        assert (moments == results[0][1]).all()


@each_fit
def test_saved_state_does_not_change_while_training_goes_on(name):
    critic = make(name)
    fit(critic, batch(0))
    saved = critic.state()
    theta, moments, kept = saved["theta"].clone(), saved["moments"].copy(), copy.deepcopy(saved["fit"])
    fit(critic, batch(1))
    assert torch.equal(saved["theta"], theta) and (saved["moments"] == moments).all()
    assert str(saved["fit"]) == str(kept)


@each_fit
@pytest.mark.parametrize("where", ["return", "observation"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_teaches_nothing(name, where, bad):
    critic, data = make(name), batch(1)
    fit(critic, batch(0))
    theta, moments = critic.theta.clone(), moments_of(critic)
    other, saved = make(name), copy.deepcopy(critic.state())
    (data.ret if where == "return" else data.obs)[3] = bad
    info = fit(critic, data)
    assert info["critic/not_finite"] == 1
    assert torch.equal(critic.theta, theta) and (moments_of(critic) == moments).all()
    other.load(saved)
    for c in (critic, other):  # nor does anything remember it
        fit(c, batch(2))
    assert torch.equal(critic.theta, other.theta)


def test_no_critic_says_nothing():
    critic = NoCritic()
    assert not critic.values(randn(0, 4, 2)).any()
    assert fit(critic, batch(0)) == {} and critic.state() == {}


def test_adam_is_torchs_adam(float64):
    theta, grads = torch.randn(50), torch.randn(30, 50)
    ours, param = Adam(theta.clone()), torch.nn.Parameter(theta.clone())
    theirs = torch.optim.Adam([param], lr=3e-3)
    for grad in grads:
        ours.step(grad, 3e-3)
        param.grad = grad
        theirs.step()
    torch.testing.assert_close(ours.theta, param.detach(), rtol=1e-12, atol=1e-14)


def test_an_adam_fit_is_torchs_adam_with_a_falling_rate(float64):
    theta, x, target = 0.5 * randn(0, NET.size), randn(1, 10, 2), randn(2, 10, 1)
    fit = AdamFit(theta, np.random.default_rng(3), lr=3e-3, epochs=4, minibatch=4)
    param, draws = torch.nn.Parameter(theta.clone()), np.random.default_rng(3)
    adam = torch.optim.Adam([param], lr=3e-3)
    for start in (theta, 0.9 * theta):  # two fits: the moments stay, the rate starts anew
        param.data.copy_(start)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda k: 1 - k / 12)
        xs, ts = x, target
        for _ in range(4):
            order = torch.from_numpy(draws.permutation(10))
            xs, ts = xs[order], ts[order]
            for part in (slice(0, 4), slice(4, 8), slice(8, 10)):
                adam.zero_grad()
                ((reference_forward(NET, param, xs[part]) - ts[part]) ** 2).mean().backward()
                adam.step()
                schedule.step()
        torch.testing.assert_close(fit(NET, start, x, target), param.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("N", "count", "size"), [(256, 4, 64), (250, 4, 63), (3, 8, 1)])
def test_a_count_of_minibatches_is_a_size_of_them(N, count, size):
    thetas = []
    for asked in ({"minibatch": size}, {"minibatch": 10**9, "minibatches": count}):
        theta = NET.init(rng(0))
        regress = AdamFit(theta, np.random.default_rng(0), lr=5e-3, epochs=3, **asked)
        thetas.append(regress(NET, theta, randn(1, N, 2), randn(2, N, 1)))
    assert torch.equal(*thetas) and not torch.equal(thetas[0], NET.init(rng(0)))
