"""Policies under action masks, against the distribution over allowed actions alone, by enumeration in float64."""

import itertools

import numpy as np
import pytest
import torch
from oracles import all_actions, close, randn, reference_forward, rng

from rl_natgrad.algos.problem import Batch, Problem, empirical, gauss_newton, kl_hessian
from rl_natgrad.policy.heads import Categorical, MultiDiscrete
from rl_natgrad.policy.masked import FORBIDDEN, Masked, Unmasked
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.networks import cnn
from rl_natgrad.policy.policy import Policy

D, N = 3, 12
HEADS = {"categorical": Categorical(4), "coin": Categorical(2), "multidiscrete": MultiDiscrete((2, 4, 3))}
each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def lengths(head) -> tuple[int, ...]:
    return head.nvec if isinstance(head, MultiDiscrete) else (head.n,)


def masks(head, seed: int = 5, rows: int = N) -> torch.Tensor:
    """Masks (N, K), one choice or more allowed in each dimension; just one in the first row, all in the second."""
    parts = []
    for d, n in enumerate(lengths(head)):
        part = torch.rand(rows, n, generator=rng(seed + d)) < 0.5
        part[torch.arange(rows), torch.randint(n, (rows,), generator=rng(seed + 9 + d))] = True
        part[0], part[1] = torch.arange(n) == n - 1, True
        parts.append(part)
    return torch.cat(parts, 1)


def policy(head, dtype=torch.float64) -> Policy:
    net = Masked(MLP((D, 5, head.size)), D, head.size)
    return Policy(net, head, 0.7 * randn(0, net.size).to(dtype), lambda obs: obs)


def inputs(head) -> torch.Tensor:
    return torch.cat([randn(1, N, D), masks(head)], 1)


def log_pi(net, head, theta, x) -> list[torch.Tensor]:
    """Per sample log π of the allowed actions alone (A_n,), from softmaxes over what is allowed."""
    z, allowed, rows = reference_forward(net.net, theta, x[:, :D]), x[:, D:] > 0, []
    for n in range(len(x)):
        parts = zip(z[n].split(lengths(head)), allowed[n].split(lengths(head)), strict=True)
        logp = [zd[ad] - zd[ad].logsumexp(0) for zd, ad in parts]
        rows.append(torch.stack([sum(each) for each in itertools.product(*logp)]))
    return rows


def allowed_actions(head, mask) -> torch.Tensor:
    """Those of one sample, in the order of `log_pi`."""
    starts = np.cumsum([0, *lengths(head)[:-1]]).tolist()

    def fits(action) -> bool:
        return all(mask[s + int(a)] for s, a in zip(starts, action.reshape(-1), strict=True))

    return torch.stack([action for action in all_actions(head) if fits(action)])


def problem(head, curvature=gauss_newton) -> Problem:
    p, x = policy(head), inputs(head)
    picked = [allowed_actions(head, row[D:] > 0)[-1] for row in x]
    batch = Batch(x, torch.stack(picked), randn(3, N), randn(4, N), torch.zeros(N))
    return Problem(p, batch, curvature=curvature)


@pytest.fixture(autouse=True)
def _double(float64):
    pass


@each_head
def test_quantities_are_those_of_the_allowed_actions(head):
    p, x = policy(head), inputs(head)
    theta_new = p.theta + 0.3 * randn(7, p.net.size)
    z, z_new = p.forward(p.theta, x), p.forward(theta_new, x)
    old, new = log_pi(p.net, head, p.theta, x), log_pi(p.net, head, theta_new, x)
    close(head.entropy(z), torch.stack([-(a.exp() * a).sum() for a in old]))
    close(head.kl(z, z_new), torch.stack([(a.exp() * (a - b)).sum() for a, b in zip(old, new, strict=True)]))
    for n in range(N):
        actions = allowed_actions(head, x[n, D:] > 0)
        close(head.log_prob(z[n].expand(len(actions), -1), actions), old[n])
        others = [a for a in all_actions(head) if not (actions == a).reshape(len(actions), -1).all(1).any()]
        assert all(head.log_prob(z[n : n + 1], a.unsqueeze(0)).exp() == 0 for a in others)


@pytest.mark.parametrize("curvature", [gauss_newton, kl_hessian])
@each_head
def test_fisher_is_the_covariance_of_scores_over_allowed_actions(head, curvature):
    at = problem(head, curvature)
    net, x, theta = at.model.net, at.batch.obs, at.theta
    expected = torch.zeros(len(theta), len(theta))
    for n in range(N):
        score = torch.func.jacrev(lambda t, n=n: log_pi(net, head, t, x[n : n + 1])[0])(theta)
        pi = log_pi(net, head, theta, x[n : n + 1])[0].exp()
        expected += score.T @ (pi.unsqueeze(1) * score) / N
    fixed = [a.detach() for a in log_pi(net, head, theta, x)]

    def kl(t):
        new = log_pi(net, head, t, x)
        return sum((a.exp() * (a - b)).sum() for a, b in zip(fixed, new, strict=True)) / N

    close(torch.func.hessian(kl)(theta), expected)
    close(at.fisher().dense(), expected)
    v = randn(8, len(theta))
    close(at.fisher().mv(v), expected @ v)
    if curvature is gauss_newton:
        R = at.fisher().rows()
        close(R.T @ R, expected)


@each_head
def test_gradients_are_those_of_the_allowed_actions(head):
    at, empiric = problem(head), problem(head, empirical)
    net, x, theta = at.model.net, at.batch.obs, at.theta
    rows = [allowed_actions(head, row[D:] > 0) for row in x]  # its last was taken

    def taken(t):
        return torch.stack([each[len(rows[n]) - 1] for n, each in enumerate(log_pi(net, head, t, x))])

    G = torch.func.jacrev(taken)(theta)
    close(at.grad(), -(at.batch.adv @ G) / N)
    close(empiric.fisher().dense(), G.T @ G / N)


@each_head
def test_linearization_is_that_of_the_masked_outputs(head):
    p, x = policy(head), inputs(head)
    allowed, lin = x[:, D:] > 0, p.linearize(p.theta, x)

    def f(t):
        return torch.where(allowed, reference_forward(p.net.net, t, x[:, :D]), FORBIDDEN)

    J, v, u = torch.func.jacrev(f)(p.theta), randn(2, p.net.size), randn(3, N, head.size)
    close(lin.z, f(p.theta))
    close(p.forward(p.theta, x), f(p.theta))
    close(lin.jvp(v), torch.einsum("nkp,p->nk", J, v))
    close(lin.vjp(u), torch.einsum("nkp,nk->p", J, u))
    close(lin.jacobian(), J)
    along = lin.along(u)
    close(along.jvp(v), torch.einsum("nkp,p,nk->n", J, v, u).unsqueeze(1))
    close(along.vjp(u[:, :1]), torch.einsum("nkp,nk->p", J, u * u[:, :1]))


@each_head
def test_what_is_forbidden_is_never_done(head):
    """In float32, as trained, with logits so far apart that an unmasked head would nearly always do it."""
    x = torch.cat([randn(1, 400, D), masks(head, rows=400)], 1).float()
    p = policy(head, torch.float32)
    p.become(p.theta * 30)
    noise = p.noise(np.random.default_rng(0), (50, 400))
    starts = np.cumsum([0, *lengths(head)[:-1]])
    drawn = [p.act(x.numpy(), each) for each in noise]
    for action in (*drawn, p.act_greedily(x.numpy())):
        places = action.reshape(400, -1) + starts
        assert np.take_along_axis(x[:, D:].numpy(), places, 1).all()
    unmasked = Policy(p.net.net, head, p.theta, lambda obs: obs)
    places = unmasked.act_greedily(x[:, :D].numpy()).reshape(400, -1) + starts
    assert not np.take_along_axis(x[:, D:].numpy(), places, 1).all()  # it would have


@each_head
def test_float32_is_finite_and_zero_where_there_is_no_choice(head):
    x, p = inputs(head).float(), policy(head, torch.float32)
    z, z_new = p.forward(p.theta, x), p.forward(-50 * p.theta, x)
    assert p.net.compile(p.theta)(x.numpy()).dtype == np.float32
    np.testing.assert_allclose(p.net.compile(p.theta)(x.numpy()), z.numpy(), rtol=1e-6)
    M = head.root(z) @ head.root(z).transpose(1, 2)
    for each in (head.entropy(z), head.kl(z, z_new), head.kl(z_new, z), M):
        assert each.isfinite().all() and not each[0].any()  # the first mask allows one action
    assert not M[~(x[:, D:] > 0)].any()


def test_an_image_has_its_mask_in_a_channel_more():
    body = cnn((2, 8, 8), 70, last_gain=0.5, channels=(3,), kernels=(3,), strides=(2,), hidden=4)
    body.module.double()
    net, theta = Masked(body, 2, 70), randn(0, body.size)
    image = torch.randint(0, 256, (5, 2, 8, 8), dtype=torch.uint8, generator=rng(1))
    mask = torch.rand(5, 70, generator=rng(2)) < 0.5
    behind = torch.zeros(5, 2 * 64, dtype=torch.uint8)  # 70 bytes take two channels of 64
    behind[:, :70] = mask
    x = torch.cat([image, behind.reshape(5, 2, 8, 8)], 1)
    expected = torch.where(mask, body.forward(theta, image), FORBIDDEN)
    close(net.forward(theta, x), expected)
    close(net.linearize(theta, x).z, expected)
    close(torch.from_numpy(net.compile(theta)(x.numpy())), expected)


def test_a_critic_does_not_see_the_mask():
    body = MLP((D, 5, 1))
    net, theta, x = Unmasked(body, D), randn(0, body.size), inputs(HEADS["categorical"])
    other = torch.cat([x[:, :D], 1 - x[:, D:]], 1)
    for seen in (x, other):
        close(net.forward(theta, seen), body.forward(theta, x[:, :D]))
        close(net.linearize(theta, seen).jacobian(), body.linearize(theta, x[:, :D]).jacobian())
        close(torch.from_numpy(net.compile(theta)(seen.numpy())), body.forward(theta, x[:, :D]))
        t = randn(3, N, 1)
        close(net.squared_error(theta)(seen, t).clone(), body.squared_error(theta)(x[:, :D].clone(), t))


@each_head
def test_steps_of_ppo_see_the_allowed_actions_alone(head):
    p, x = policy(head), inputs(head)
    theta = p.theta.clone().requires_grad_()
    rows = log_pi(p.net, head, theta, x)
    actions = torch.stack([allowed_actions(head, x[n, D:])[0] for n in range(N)])
    entropy = -sum((logp.exp() * logp).sum() for logp in rows)
    tape = p.net.tape(p.theta.clone())
    z = tape.forward(x)
    score = sum(logp[0] for logp in rows)
    for slope, total in ((head.score(z, actions), score), (head.entropy_slope(z), entropy)):
        (wanted,) = torch.autograd.grad(total, theta, retain_graph=True)
        close(tape.backward(slope), wanted)
        tape.forward(x)  # autograd's tape serves one backward pass
