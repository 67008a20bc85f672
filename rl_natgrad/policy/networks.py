"""Networks as functions of one flat parameter vector: z = f(θ, x), θ (P,).

A network gives its outputs and its linearisation; gradients and Fisher products need nothing else. The
MLP's linearisation is the chain rule written out, 2.5 times faster than differentiating twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rl_natgrad.optim.fisher import Linearization

Forward = Callable[[NDArray], NDArray]


class Network(Protocol):
    """f(θ, x): (P,), (N, *X) → (N, K)."""

    size: int
    """P"""

    def init(self, generator: torch.Generator) -> Tensor:
        """θ at the start of training, (P,) float32."""

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """z (N, K), differentiable in θ."""

    def linearize(self, theta: Tensor, x: Tensor) -> Linearization:
        """z + J dθ around θ."""

    def compile(self, theta: Tensor) -> Forward:
        """x ↦ f(θ, x) on arrays, for a θ that stays: what acting in an environment needs."""


# --- MLP ------------------------------------------------------------------------------------------

Array = Any
"""A tensor, or the numpy view of one that is on the CPU: what the chain rule below is written for.

On one thread numpy's matrix products took 0.85 of torch's time at (2048, 64)·(64, 64), its tanh a tenth, and
its calls on minibatches half.
"""


def _raw(tensor: Tensor) -> Array:
    tensor = tensor.detach()
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _lib(array: Array):
    """numpy or torch: of what is called below, both have the same names and arguments."""
    return np if isinstance(array, np.ndarray) else torch


quiet = np.errstate(over="ignore", invalid="ignore")
"""Numbers that are not finite are not announced by numpy as they arise: the learners notice them, and say so."""


class Tanh:
    function = staticmethod(torch.tanh)

    @staticmethod
    def inplace(a: Array) -> Array:
        return _lib(a).tanh(a, out=a)

    @staticmethod
    def slope(h: Array) -> Array:
        """φ′ in terms of h = φ."""
        slope = h * h
        return _lib(h).subtract(1, slope, out=slope) if _lib(h) is np else slope.neg_().add_(1)


class Relu:
    function = staticmethod(torch.relu)

    @staticmethod
    def inplace(a: Array) -> Array:
        return a.clip(0, None, out=a) if _lib(a) is np else a.clamp_(min=0)

    @staticmethod
    def slope(h: Array) -> Array:
        return (h > 0).astype(h.dtype) if _lib(h) is np else (h > 0).to(h.dtype)


ACTIVATIONS = {"tanh": Tanh, "relu": Relu}


@dataclass(frozen=True)
class MLP:
    """h₀ = x,  hₗ = φ(hₗ₋₁ Wₗᵀ + bₗ),  z = h_L without φ.  θ holds W₁ (out, in), b₁, W₂, b₂, … in a row.

    Starts orthogonal (Saxe et al. 2014) with gain √2, the last layer with `last_gain`: a small one makes
    the first policy nearly uniform (Andrychowicz et al. 2021, "What matters in on-policy RL", 3.2).
    """

    sizes: tuple[int, ...]
    activation: str = "tanh"
    last_gain: float = 0.01

    @cached_property
    def size(self) -> int:
        return sum((i + 1) * o for i, o in pairwise(self.sizes))

    def layers(self, theta: Array) -> list[tuple[Array, Array]]:
        """[(W (out, in), b (out,)), …], views of θ."""
        layers, end = [], 0
        for i, o in pairwise(self.sizes):
            start, end = end, end + (i + 1) * o
            layers.append((theta[start : end - o].reshape(o, i), theta[end - o : end]))
        return layers

    def init(self, generator: torch.Generator) -> Tensor:
        theta = torch.zeros(self.size)
        layers = self.layers(theta)
        for k, (W, _) in enumerate(layers):
            nn.init.orthogonal_(W, 2**0.5 if k < len(layers) - 1 else self.last_gain, generator=generator)
        return theta

    @quiet
    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and theta.requires_grad):
            return _tensor(self._activations(self.layers(_raw(theta)), _raw(x))[-1])
        *hidden, (W_last, b_last) = self.layers(theta)
        for W, b in hidden:
            x = ACTIVATIONS[self.activation].function(torch.addmm(b, x, W.T))
        return torch.addmm(b_last, x, W_last.T)

    @quiet
    def linearize(self, theta: Tensor, x: Tensor) -> "LinearizedMLP":
        layers = self.layers(_raw(theta))
        *hidden, z = self._activations(layers, _raw(x))
        return LinearizedMLP(self, layers, _tensor(z), hidden)

    def compile(self, theta: Tensor) -> Forward:
        layers = [(W.copy(), b.copy()) for W, b in self.layers(theta.detach().cpu().numpy())]
        return lambda x: self._activations(layers, x)[-1]

    def _activations(self, layers: list[tuple[Array, Array]], x: Array) -> list[Array]:
        """[x, h₁, …, z]."""
        phi, last = ACTIVATIONS[self.activation].inplace, len(layers) - 1
        hs = [x]
        for k, (W, b) in enumerate(layers):
            h = hs[-1] @ W.T
            h += b
            hs.append(phi(h) if k < last else h)
        return hs


class LinearizedMLP:
    """An MLP's z + J dθ by the chain rule.

    Args: layers: of θ.  z (N, K).  hidden: [x, h₁, …, h_{L−1}], each (N, ·).
    """

    def __init__(self, net: MLP, layers: list[tuple[Array, Array]], z: Tensor, hidden: list[Array]):
        self.net, self.layers, self.z, self.hidden, self.size = net, layers, z, hidden, net.size
        self._slopes = [ACTIVATIONS[net.activation].slope(h) for h in hidden[1:]]
        self._ones = _lib(hidden[0]).ones_like(hidden[0][:, 0])

    @quiet
    def jvp(self, v: Tensor) -> Tensor:
        # ṡₗ = hₗ₋₁ Ẇₗᵀ + ḃₗ + ḣₗ₋₁ Wₗᵀ,   ḣₗ = φ′ₗ ṡₗ
        dh = None
        layers = zip(self.layers, self.net.layers(_raw(v)), self.hidden, strict=True)
        for k, ((W, _), (dW, db), h) in enumerate(layers):
            ds = h @ dW.T
            ds += db
            if dh is not None:
                ds += dh @ W.T
            if k < len(self._slopes):
                ds *= self._slopes[k]
            dh = ds
        return _tensor(dh)

    @quiet
    def vjp(self, u: Tensor) -> Tensor:
        # sₗ = ∂/∂(pre-activation l):  W̄ₗ = sₗᵀ hₗ₋₁,  b̄ₗ = Σ sₗ,  sₗ₋₁ = (sₗ Wₗ) φ′ₗ₋₁
        out = u.new_empty(self.size)
        matmul = _lib(self._ones).matmul
        layers = zip(self.net.layers(_raw(out)), self._cotangents(_raw(u)), self.hidden, strict=True)
        for (W_out, b_out), s, h in layers:
            matmul(s.T, h, out=W_out)
            b_out[:] = self._ones @ s  # a sum over N takes four times as long
        return out

    def jacobian(self) -> Tensor:
        N, K = self.z.shape
        J = self.z.new_empty(N, K, self.size)
        for k in range(K):
            u = torch.zeros_like(self.z)
            u[:, k] = 1
            parts = []
            for s, h in zip(self._cotangents(_raw(u)), self.hidden, strict=True):
                s, h = _tensor(s), _tensor(h)
                parts += [(s.unsqueeze(2) * h.unsqueeze(1)).flatten(1), s]
            torch.cat(parts, 1, out=J[:, k])
        return J

    def _cotangents(self, u: Array) -> list[Array]:
        """[s₁, …, s_L], (N, out) each, for the output cotangent u (N, K)."""
        ss = [u]
        for (W, _), slope in zip(self.layers[:0:-1], self._slopes[::-1], strict=True):
            s = ss[-1] @ W
            s *= slope
            ss.append(s)
        return ss[::-1]


# --- any differentiable network -------------------------------------------------------------------


class AutogradLinearization:
    """z + J dθ for any forward(θ), on one graph that is kept.

    Jv is the derivative of the backward pass Jᵀu with respect to its cotangent u, which is linear in it
    (the double-backward trick): 2.5 times faster than building a graph of the KL's gradient for each v.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], theta: Tensor, jacobian: Callable[[], Tensor]):
        self._theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            self._z = forward(self._theta)
            self._u = torch.zeros_like(self._z, requires_grad=True)
            self._vjp_u = torch.autograd.grad(self._z, self._theta, self._u, create_graph=True)[0]
        self.z, self.size, self.jacobian = self._z.detach(), theta.numel(), jacobian

    def jvp(self, v: Tensor) -> Tensor:
        return torch.autograd.grad(self._vjp_u, self._u, v, retain_graph=True)[0]

    def vjp(self, u: Tensor) -> Tensor:
        return torch.autograd.grad(self._z, self._theta, u, retain_graph=True)[0]


class ModuleNetwork:
    """Any torch module that treats samples independently (no batch norm), as a function of flat parameters."""

    def __init__(self, module: nn.Module, initialize: Callable[[nn.Module, torch.Generator], None]):
        self.module, self._initialize = module, initialize
        self._shapes = {name: p.shape for name, p in module.named_parameters()}
        self.size = sum(shape.numel() for shape in self._shapes.values())

    def init(self, generator: torch.Generator) -> Tensor:
        self._initialize(self.module, generator)
        return nn.utils.parameters_to_vector(self.module.parameters()).detach()

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in self._shapes.values()])
        named = {name: p.view(shape) for (name, shape), p in zip(self._shapes.items(), parts, strict=True)}
        return torch.func.functional_call(self.module, named, (x,))

    def linearize(self, theta: Tensor, x: Tensor) -> AutogradLinearization:
        def one(theta: Tensor, x1: Tensor) -> Tensor:
            return self.forward(theta, x1.unsqueeze(0)).squeeze(0)

        def jacobian() -> Tensor:
            return torch.func.vmap(torch.func.jacrev(one), (None, 0))(theta.detach(), x)

        return AutogradLinearization(lambda theta: self.forward(theta, x), theta, jacobian)

    def compile(self, theta: Tensor) -> Forward:
        theta = theta.detach()

        @torch.no_grad()
        def forward(x: NDArray) -> NDArray:
            return self.forward(theta, torch.from_numpy(x).to(theta.device)).cpu().numpy()

        return forward


def cnn(
    shape: tuple[int, int, int], outputs: int, *, last_gain: float,
    channels: Sequence[int], kernels: Sequence[int], strides: Sequence[int], hidden: int,
) -> ModuleNetwork:
    """A convolutional network for images (C, H, W) of 0 … 255: one convolution per entry of `channels`,
    `hidden` units, outputs; ReLU between them (Mnih et al. 2015)."""
    layers, c = [], shape[0]
    for out, kernel, stride in zip(channels, kernels, strides, strict=True):
        layers += [nn.Conv2d(c, out, kernel, stride), nn.ReLU()]
        c = out
    body = nn.Sequential(Scale(), *layers, nn.Flatten())
    with torch.no_grad():
        width = body(torch.zeros(1, *shape)).shape[1]
    module = nn.Sequential(body, nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def initialize(module: nn.Module, generator: torch.Generator) -> None:
        weights = [p for p in module.parameters() if p.dim() > 1]
        for p in module.parameters():
            if p.dim() == 1:
                nn.init.zeros_(p)
        for W in weights:
            nn.init.orthogonal_(W, last_gain if W is weights[-1] else 2**0.5, generator=generator)

    return ModuleNetwork(module, initialize)


class Scale(nn.Module):
    """0 … 255 → 0 … 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.get_default_dtype()) / 255


# --- parameters that are outputs ------------------------------------------------------------------


@dataclass(frozen=True)
class WithFree:
    """[f(θ_f, x), φ] with θ = [θ_f, φ]: n outputs that are parameters themselves, such as a Gaussian's log σ."""

    net: Network
    n: int
    start: float

    @property
    def size(self) -> int:
        return self.net.size + self.n

    def init(self, generator: torch.Generator) -> Tensor:
        return torch.cat([self.net.init(generator), torch.full((self.n,), self.start)])

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        return _append(self.net.forward(theta[: -self.n], x), theta[-self.n :])

    def linearize(self, theta: Tensor, x: Tensor) -> "LinearizedWithFree":
        lin = self.net.linearize(theta[: -self.n], x)
        return LinearizedWithFree(lin, self.n, _append(lin.z, theta[-self.n :].detach()))

    def compile(self, theta: Tensor) -> Forward:
        net, free = self.net.compile(theta[: -self.n]), theta[-self.n :].detach().cpu().numpy().copy()

        def forward(x: NDArray) -> NDArray:
            z = net(x)
            return np.concatenate([z, np.broadcast_to(free, (len(z), len(free)))], axis=1)

        return forward


@dataclass(frozen=True)
class LinearizedWithFree:
    lin: Linearization
    n: int
    z: Tensor

    @property
    def size(self) -> int:
        return self.lin.size + self.n

    def jvp(self, v: Tensor) -> Tensor:
        return _append(self.lin.jvp(v[: -self.n]), v[-self.n :])

    def vjp(self, u: Tensor) -> Tensor:
        return torch.cat([self.lin.vjp(u[:, : -self.n].contiguous()), u[:, -self.n :].sum(0)])

    def jacobian(self) -> Tensor:
        J = self.z.new_zeros(*self.z.shape, self.size)
        J[:, : -self.n, : -self.n] = self.lin.jacobian()
        J[:, -self.n :, -self.n :] = torch.eye(self.n, dtype=self.z.dtype, device=self.z.device)
        return J


def _append(z: Tensor, free: Tensor) -> Tensor:
    """[z, free] with free (n,) repeated for each of the N samples."""
    return torch.cat([z, free.expand(len(z), -1)], 1)
