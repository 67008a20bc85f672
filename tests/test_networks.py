import numpy as np
import pytest
import torch
from gymnasium import spaces
from oracles import randn, reference_forward, rng
from torch import nn
from whole_runs import run

from rl_natgrad.config import compose
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.optim.fisher import GaussNewton
from rl_natgrad.policy import mlp
from rl_natgrad.policy.activations import Relu, Sigmoid
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.networks import Biased, ModuleNetwork, WithFree, cnn
from rl_natgrad.training.build import build_policy

pytestmark = pytest.mark.usefixtures("float64")


def small_cnn() -> ModuleNetwork:
    net = cnn((2, 8, 8), 3, last_gain=0.01, channels=(3, 4), kernels=(3, 3), strides=(2, 1), hidden=5)
    net.module.double()
    return net


def module_mlp() -> ModuleNetwork:
    return ModuleNetwork(nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2)), lambda module, g: None)


MLPS = {
    "tanh": MLP((3, 5, 4, 2)),
    "relu": MLP((3, 5, 4, 2), Relu),
    "sigmoid": MLP((3, 5, 4, 2), Sigmoid),
    "linear": MLP((3, 2)),
    "one hidden": MLP((3, 6, 1)),
    "wide input": MLP((9, 4, 2)),
    "free": WithFree(MLP((3, 5, 2)), 2, -0.5),
    "free, relu": WithFree(MLP((3, 5, 2), Relu), 3, 0.0),
}
MODULES = {"module": module_mlp, "cnn": small_cnn, "free cnn": lambda: WithFree(small_cnn(), 2, 0.0)}
NETWORKS = {name: lambda net=net: net for name, net in MLPS.items()} | MODULES
each_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def inputs(net, N: int = 7) -> torch.Tensor:
    body = net.net if isinstance(net, WithFree | Biased) else net
    if isinstance(body, MLP):
        return randn(1, N, body.sizes[0])
    if isinstance(body.module[0], nn.Linear):
        return randn(1, N, 3)
    return torch.randint(0, 256, (N, 2, 8, 8), dtype=torch.uint8, generator=rng(1))


def oracle(net, theta, x):
    """The outputs by torch's own layers, in a form that torch.func can differentiate."""
    body = net.net if isinstance(net, WithFree) else net
    if isinstance(body, MLP):
        return reference_forward(net, theta, x)
    if isinstance(net, WithFree):
        return torch.cat([oracle(body, theta[: -net.n], x), theta[-net.n :].expand(len(x), net.n)], 1)
    named, start = {}, 0
    for name, p in body.module.named_parameters():
        named[name] = theta[start : start + p.numel()].reshape(p.shape)
        start += p.numel()
    assert start == net.size
    return torch.func.functional_call(body.module, named, (x,))


def check_linearization(lin, f, theta, N):
    """`lin` against what torch.func makes of f(θ) → (N, K)."""
    v = randn(2, len(theta))
    z, Jv = torch.func.jvp(f, (theta,), (v,))
    u = randn(3, *z.shape)
    J = torch.func.jacrev(f)(theta)
    assert lin.size == len(theta) and len(z) == N
    for mine, theirs in (
        (lin.z, z), (lin.jvp(v), Jv), (lin.vjp(u), torch.func.vjp(f, theta)[1](u)[0]), (lin.jacobian(), J),
    ):  # fmt: skip
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    # And it can be asked again, in any order: the graph is kept.
    torch.testing.assert_close(lin.jvp(-2 * v), -2 * Jv, rtol=1e-10, atol=1e-10)


@each_network
def test_linearization_equals_torch_func(make):
    net = make()
    theta, x = 0.8 * randn(0, net.size), inputs(net)
    check_linearization(net.linearize(theta, x), lambda t: oracle(net, t, x), theta, 7)
    torch.testing.assert_close(net.forward(theta, x), oracle(net, theta, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [10**9, 7, 3, 1])
@each_network
def test_outputs_along_given_weights(make, chunk, monkeypatch):
    monkeypatch.setattr(mlp, "CHUNK", chunk)
    net = make()
    theta, x = 0.8 * randn(0, net.size), inputs(net)
    lin = net.linearize(theta, x)
    b, c = randn(4, *lin.z.shape), randn(5, 7, 1)
    check_linearization(lin, lambda t: oracle(net, t, x), theta, 7)
    for along, weights in ((lin.along(b), b), (lin.along(b).along(c), b * c)):
        def f(t, weights=weights):
            return (weights * oracle(net, t, x)).sum(-1, keepdim=True)

        check_linearization(along, f, theta, 7)


@pytest.mark.parametrize("device, rows, parts", [("cpu", 5000, 2), ("meta", 500_000, 1), ("meta", 1_100_000, 3)])
def test_a_gpu_works_on_as_many_samples_as_a_gibibyte_holds(device, rows, parts):
    sizes = (17, 256, 256, 6)
    found = [len(x) for x in mlp._chunks(torch.empty(rows, 17, device=device, dtype=torch.float32), sizes)]
    assert len(found) == parts and sum(found) == rows
    assert device == "cpu" or max(found) * sum(sizes) * 4 <= 2**30


@pytest.mark.parametrize("make", [make for name, make in NETWORKS.items() if "free" not in name])
def test_the_last_layer_makes_the_outputs(make):
    net = make()
    theta, x = 0.8 * randn(0, net.size), inputs(net)
    z = net.forward(theta, x)
    W, b = net.last_layer(theta)
    W.mul_(3)
    b.mul_(3).add_(0.5)
    torch.testing.assert_close(net.forward(theta, x), 3 * z + 0.5, rtol=1e-10, atol=1e-10)


@each_network
def test_forward_is_differentiable_in_theta(make):
    net = make()
    theta, x, u = (0.8 * randn(0, net.size)).requires_grad_(), inputs(net), None
    grads = []
    for f in (net.forward, lambda t, x: oracle(net, t, x)):
        z = f(theta, x)
        u = randn(3, *z.shape) if u is None else u
        grads.append(torch.autograd.grad((z * u).sum(), theta)[0])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@each_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward_without_gradient_equals_the_linearizations_outputs_bit_for_bit(make, dtype, monkeypatch):
    # So the ratio at θ_old is exactly 1, and the KL exactly 0.
    monkeypatch.setattr(mlp, "CHUNK", 30)
    torch.set_default_dtype(dtype)
    net = make()
    if hasattr(getattr(net, "net", net), "module"):
        getattr(net, "net", net).module.to(dtype)
    theta, x = 0.8 * randn(0, net.size), inputs(net, 65)
    before = x.clone()
    z = net.linearize(theta, x).z
    with torch.no_grad():
        assert torch.equal(net.forward(theta, x), z)
    assert not z.requires_grad
    assert torch.equal(x, before)


@each_network
def test_compiled_forward_equals_forward_and_leaves_its_input_alone(make):
    net = make()
    theta, x = 0.8 * randn(0, net.size), inputs(net)
    z, array = net.forward(theta, x).detach().numpy(), x.numpy()
    before, f = array.copy(), net.compile(theta)
    for _ in range(2):
        np.testing.assert_allclose(f(array), z, rtol=1e-10, atol=1e-10)
    assert (array == before).all()
    assert f(array[:1]).shape == (1, z.shape[1])


@each_network
def test_a_tape_follows_a_theta_that_moves(make):
    net = make()
    theta = 0.8 * randn(0, net.size)
    tape = net.tape(theta)
    for N in (7, 4, 7):
        x = inputs(net, N)
        z, vjp = torch.func.vjp(lambda theta, x=x: oracle(net, theta, x), theta)
        u = randn(6, *z.shape)
        torch.testing.assert_close(tape.forward(x), z, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(tape.backward(u.clone()), vjp(u)[0], rtol=1e-10, atol=1e-10)
        theta += 0.1 * randn(7, net.size)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "free" not in name])
def test_squared_error_follows_a_theta_that_moves(name):
    net = NETWORKS[name]()
    theta = 0.8 * randn(0, net.size)
    gradient = net.squared_error(theta)
    for N in (7, 4, 7):
        x = inputs(net, N)
        z = oracle(net, theta, x)
        t = randn(6, *z.shape)
        loss = torch.func.grad(lambda theta, x=x, t=t: ((oracle(net, theta, x) - t) ** 2).sum(-1).mean())
        torch.testing.assert_close(gradient(x, t), loss(theta), rtol=1e-10, atol=1e-10)
        theta += 0.1 * randn(7, net.size)


def test_many_samples_and_few_agree():
    # The vector–Jacobian product takes another route where a layer narrows.
    net, v = MLP((12, 3, 8, 2)), randn(5, 2)
    theta, x = randn(0, net.size), randn(1, 500, 12)
    whole = net.linearize(theta, x).vjp(v.expand(500, 2).contiguous())
    parts = sum(net.linearize(theta, part).vjp(v.expand(len(part), 2).contiguous()) for part in x.split(50))
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("size", [MLP((3, 5, 2)), WithFree(MLP((3, 5, 2)), 2, 0.0)], ids=["mlp", "free"])
def test_size_counts_every_parameter(size):
    assert size.size == 4 * 5 + 6 * 2 + (2 if isinstance(size, WithFree) else 0)


def test_mlp_starts_orthogonal_with_its_gains_and_no_bias():
    net = MLP((6, 8, 8, 3), last_gain=0.01)
    layers = net.layers(net.init(rng(0)))
    for (W, b), gain in zip(layers, (2**0.5, 2**0.5, 0.01), strict=True):
        gram = W.T @ W if len(W) >= W.shape[1] else W @ W.T
        torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=1e-5, atol=1e-8)
        assert not b.any()


def test_mlp_may_start_as_torchs_linear_layers_do():
    net = MLP((100, 400, 300), orthogonal=False)
    ours = net.layers(net.init(rng(0)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [torch.nn.Linear(100, 400), torch.nn.Linear(400, 300)]
    for (W, b), layer in zip(ours, theirs, strict=True):
        for a, c in ((W, layer.weight.detach()), (b, layer.bias.detach())):
            assert a.abs().max().item() == pytest.approx(c.abs().max().item(), rel=0.02)
            assert a.std().item() == pytest.approx(c.std().item(), rel=0.1) and abs(a.mean()) < 0.1 * a.abs().max()


def test_cnn_starts_orthogonal_with_its_gains_and_no_bias():
    net = small_cnn()
    net.init(rng(0))
    parameters = list(net.module.parameters())
    weights = [p.detach().flatten(1) for p in parameters if p.dim() > 1]
    assert len(weights) == 4
    for W, gain in zip(weights, (2**0.5, 2**0.5, 2**0.5, 0.01), strict=True):
        gram = W.T @ W if len(W) >= W.shape[1] else W @ W.T
        torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=1e-5, atol=1e-8)
    assert not any(p.any() for p in parameters if p.dim() == 1)


@each_network
def test_same_generator_same_start(make):
    net = make()
    a, b, c = (net.init(rng(seed)).clone() for seed in (0, 0, 1))
    assert a.shape == (net.size,)
    assert torch.equal(a, b)
    assert not torch.equal(a, c) or isinstance(net, ModuleNetwork)


def test_free_outputs_start_where_they_are_told_and_ignore_the_state():
    net = WithFree(MLP((3, 4, 2)), 2, -0.7)
    z = net.forward(net.init(rng(0)), randn(0, 5, 3))
    assert (z[:, 2:] == torch.tensor(-0.7)).all()


@pytest.mark.parametrize("make", [lambda: MLP((3, 8, 4), last_gain=0.01), small_cnn], ids=["mlp", "cnn"])
def test_biased_outputs_start_near_where_they_are_told_in_every_state(make):
    n, body = 2, make()
    net = Biased(body, n, -0.7)
    theta, x = net.init(rng(0)), inputs(net)
    z, bare = net.forward(theta, x), body.forward(body.init(rng(0)), x)
    torch.testing.assert_close(z[:, -n:] - bare[:, -n:], torch.full((7, n), -0.7).to(z))
    assert torch.equal(z[:, :-n], bare[:, :-n])
    assert 0 < (z[:, -n:] + 0.7).abs().max() < 0.1 and z[:, -1].std() > 0  # of the state, with the last gain


def test_images_are_scaled_to_one():
    net = small_cnn()
    theta = randn(0, net.size)
    x = torch.full((1, 2, 8, 8), 255, dtype=torch.uint8)
    body = nn.Sequential(*list(net.module[0])[1:], *list(net.module)[1:])
    named = dict(zip((n for n, _ in body.named_parameters()), _split(net, theta), strict=True))
    expected = torch.func.functional_call(body, named, (torch.ones(1, 2, 8, 8),))
    torch.testing.assert_close(net.forward(theta, x), expected)


def _split(net, theta):
    sizes = [p.numel() for p in net.module.parameters()]
    return [part.view(p.shape) for part, p in zip(theta.split(sizes), net.module.parameters(), strict=True)]


def test_gauss_newton_works_on_any_network():
    net = small_cnn()
    x, theta = inputs(net), 0.5 * randn(0, net.size)
    lin = net.linearize(theta, x)
    F = GaussNewton(lin, lambda v: 2 * v, lambda: 2**0.5 * torch.eye(3).expand(7, 3, 3))
    v = randn(4, net.size)
    torch.testing.assert_close(F.mv(v), F.dense() @ v)


@pytest.mark.parametrize(("words", "shape", "said"), [
    (["policy=cnn"], (4,), "has 4 numbers as observations, got policy=cnn; write policy=mlp"),
    ([], (3, 96, 96), "has images (3, 96, 96) as observations, got policy=mlp; write policy=cnn"),
    (["policy=cnn"], (3, 7, 9), "policy.kernels do not fit images of 7 × 9 pixels: "),
])  # fmt: skip
def test_a_network_that_is_not_for_such_observations_is_refused(words, shape, said):
    box = spaces.Box(0, 1, shape) if len(shape) == 1 else spaces.Box(0, 255, shape, np.uint8)
    with pytest.raises(ConfigError) as refused:
        build_policy(compose.load(words), box, spaces.Discrete(2))
    assert said in str(refused.value)


def test_a_run_with_such_a_network_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "env=CartPole", "policy=cnn", f"runs_dir={tmp_path}/runs") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: CartPole-v1 has 4 numbers") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
