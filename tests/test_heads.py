import numpy as np
import pytest
import torch
from gymnasium import spaces
from oracles import all_actions, distributions, each_discrete, each_head, entropy, kl, log_prob, randn, sample

from rl_natgrad.policy.heads import Bernoulli, Categorical, DiagGaussian, MultiDiscrete
from rl_natgrad.policy.policy import head_for

pytestmark = pytest.mark.usefixtures("float64")

SCALES = (0.1, 1.0, 3.0)  # of z: from nearly uniform to nearly deterministic


def close(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@each_head
@pytest.mark.parametrize("scale", SCALES)
def test_log_prob_entropy_and_kl_equal_torchs_summed_over_dimensions(head, scale):
    z, z_new = scale * randn(0, 50, head.size), scale * randn(1, 50, head.size)
    action = sample(head, z, 2)
    for mine, theirs in (
        (head.log_prob(z, action), log_prob(head, z, action)),
        (head.entropy(z), entropy(head, z)),
        (head.kl(z, z_new), kl(head, z, z_new)),
    ):
        assert mine.shape == (50,)
        close(mine, theirs, 1e-10)


@each_head
@pytest.mark.parametrize("scale", SCALES)
def test_kl_is_positive_and_zero_only_at_equality(head, scale):
    z, z_new = scale * randn(0, 200, head.size), scale * randn(1, 200, head.size)
    assert (head.kl(z, z_new) > 0).all()
    assert (head.kl(z, z).abs() < 1e-14).all()


@each_head
def test_metric_is_the_hessian_of_kl_and_root_its_factor(head):
    z = 1.5 * randn(0, 6, head.size)
    eye = torch.eye(head.size).expand(6, -1, -1)
    metric = torch.stack([head.metric(z)(eye[:, k]) for k in range(head.size)], -1)
    for n in range(6):
        old = z[n : n + 1]
        hessian = torch.autograd.functional.hessian(lambda new, old=old: kl(head, old, new[None])[0], z[n])
        close(metric[n], hessian, 1e-10)
    root = head.root(z)
    assert root.shape == (*z.shape, head.rank)
    close(root @ root.mT, metric)


@each_discrete
def test_metric_is_the_covariance_of_scores_over_all_actions(head):
    z, actions = randn(0, 5, head.size), all_actions(head)
    metric = torch.stack([head.metric(z)(e.expand(5, -1)) for e in torch.eye(head.size)], -1)
    for n in range(5):
        rows = z[n].expand(len(actions), -1).clone().requires_grad_()
        logp = log_prob(head, rows, actions)
        score = torch.autograd.grad(logp.sum(), rows)[0]
        p = logp.exp().detach()
        close(p.sum(), torch.tensor(1.0))
        close(torch.einsum("a,ai,aj->ij", p, score, score), metric[n], 1e-10)


@each_head
def test_score_and_entropy_slope_equal_torchs_gradients(head):
    z = randn(0, 20, head.size).mul(2).requires_grad_()
    action = sample(head, z.detach(), 1)
    close(head.score(z.detach(), action), torch.autograd.grad(log_prob(head, z, action).sum(), z)[0], 1e-10)
    close(head.entropy_slope(z.detach()), torch.autograd.grad(entropy(head, z).sum(), z)[0], 1e-10)


@each_head
def test_entropy_gradient_equals_torchs(head):
    z = randn(0, 8, head.size).requires_grad_()
    close(*(torch.autograd.grad(f(z).sum(), z)[0] for f in (head.entropy, lambda z: entropy(head, z))), 1e-10)


@each_head
def test_far_from_uniform_nothing_overflows(head):
    z = 40.0 * randn(0, 50, head.size)
    if isinstance(head, DiagGaussian):
        z[:, head.n :] = z[:, head.n :].clamp(-20, 20)
    for z32 in (z.float(), -z.float()):
        assert head.entropy(z32).isfinite().all()
        assert head.kl(z32, z32).abs().max() < 1e-5
        assert head.metric(z32)(torch.ones_like(z32)).isfinite().all()
        assert head.root(z32).isfinite().all()
        assert head.log_prob(z32, sample(head, z32, 1)).isfinite().all()


@each_discrete
def test_sample_frequencies_equal_probabilities(head):
    n, z = 20_000, randn(5, 1, head.size)
    noise = head.noise(np.random.default_rng(0), (n,))
    drawn = torch.from_numpy(head.sample(np.repeat(z.numpy(), n, 0), noise))
    assert drawn.dtype == torch.int64
    for d, part in enumerate(distributions(head, z)):
        p = part.probs.flatten()
        p = torch.stack([1 - p[0], p[0]]) if len(p) == 1 else p
        column = drawn if drawn.dim() == 1 else drawn[:, d]
        count = torch.bincount(column, minlength=len(p)).double()
        chi2 = ((count - n * p) ** 2 / (n * p)).sum()
        assert chi2 < 20  # 3 degrees of freedom at most: p = 2e-4
    if isinstance(head, MultiDiscrete | Bernoulli):  # dimensions are drawn independently
        correlation = np.corrcoef(drawn.numpy().T) - np.eye(drawn.shape[1])
        assert abs(correlation).max() < 4 / n**0.5


def test_gaussian_samples_have_mean_and_deviation_of_z_and_are_not_clipped():
    head, n = DiagGaussian(2), 40_000
    z = np.array([[3.0, -1.0, np.log(0.5), np.log(2.0)]])
    drawn = head.sample(np.repeat(z, n, 0), head.noise(np.random.default_rng(0), (n,)))
    sigma = np.array([0.5, 2.0])
    assert (abs(drawn.mean(0) - z[0, :2]) < 4 * sigma / n**0.5).all()
    assert (abs(drawn.std(0) / sigma - 1) < 4 / (2 * n) ** 0.5).all()
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 4 / n**0.5
    assert drawn.max() > 3.5 and drawn.min() < -3


@each_discrete
def test_mode_is_the_most_likely_action(head):
    z, actions = randn(1, 30, head.size), all_actions(head)
    logp = torch.stack([log_prob(head, z, a.expand(30, *a.shape)) for a in actions])
    assert (torch.from_numpy(head.mode(z.numpy())) == actions[logp.argmax(0)]).all()


def test_gaussian_mode_is_the_mean():
    z = randn(1, 30, 4)
    assert (DiagGaussian(2).mode(z.numpy()) == z[:, :2].numpy()).all()


def test_numbers_worked_out_by_hand():
    ln = np.log
    z = torch.tensor([[0.0, ln(3.0)]])  # probabilities 1/4 and 3/4
    even = torch.zeros(1, 2)
    close(Categorical(2).log_prob(z, torch.tensor([1])).item(), ln(0.75))
    close(Categorical(2).kl(even, z).item(), 0.5 * ln(2) + 0.5 * ln(2 / 3))
    close(Categorical(2).kl(z, even).item(), 0.25 * ln(0.5) + 0.75 * ln(1.5))
    close(Bernoulli(2).entropy(even).item(), 2 * ln(2))
    close(MultiDiscrete((2, 4)).entropy(torch.zeros(1, 6)).item(), ln(8))
    # N(0, 1) to N(1, 2²): ln 2 + (1 + 1)/8 − 1/2
    unit, wide = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, ln(2.0)]])
    close(DiagGaussian(1).kl(unit, wide).item(), ln(2) + 2 / 8 - 0.5)
    close(DiagGaussian(1).kl(wide, unit).item(), -ln(2) + (4 + 1) / 2 - 0.5)


@pytest.mark.parametrize(
    ("space", "head"),
    [
        (spaces.Discrete(3), Categorical(3)),
        (spaces.MultiDiscrete([2, 5]), MultiDiscrete((2, 5))),
        (spaces.MultiBinary(4), Bernoulli(4)),
        (spaces.Box(-1, 1, (3,)), DiagGaussian(3)),
    ],
)
def test_each_action_space_has_its_head(space, head):
    assert head_for(space) == head


def test_sigma_may_be_of_the_state_where_there_is_one():
    assert head_for(spaces.Box(-1, 1, (3,)), "state") == DiagGaussian(3, "state") != DiagGaussian(3)
    with pytest.raises(ValueError, match=r"policy.std=state needs continuous actions \(Box\), got Discrete\(3\)"):
        head_for(spaces.Discrete(3), "state")


def test_another_action_space_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Text.*Discrete, MultiDiscrete, MultiBinary and Box"):
        head_for(spaces.Text(3))
