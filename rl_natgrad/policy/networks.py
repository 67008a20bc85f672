"""Networks as functions of one flat parameter vector: z = f(θ, x), θ (P,).

A network gives its outputs and its linearisation; gradients and Fisher products need nothing else. The
MLP's linearisation is the chain rule written out, 2.5 times faster than differentiating twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

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


def _tanh(x: Tensor) -> Tensor:
    """tanh(x), in x's own memory where nobody differentiates through it.

    numpy's float32 tanh took 0.03 ms on (2048, 64) where torch's took 0.32, a third of a whole forward.
    """
    if x.requires_grad or x.device.type != "cpu":
        return torch.tanh(x)
    np.tanh(x.numpy(), out=x.numpy())
    return x


# name: (φ, φ′ in terms of φ, φ in place on arrays)
ACTIVATIONS = {
    "tanh": (_tanh, lambda h: 1 - h * h, lambda a: np.tanh(a, out=a)),
    "relu": (torch.relu, lambda h: (h > 0).to(h.dtype), lambda a: np.maximum(a, 0, out=a)),
}


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

    @cached_property
    def _parts(self) -> list[int]:
        """Numbers in W₁, b₁, W₂, b₂, …"""
        return [n for i, o in pairwise(self.sizes) for n in (i * o, o)]

    def layers(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """[(W (out, in), b (out,)), …], views of θ."""
        parts = theta.split(self._parts)
        return [(W.view(b.shape[0], -1), b) for W, b in zip(parts[::2], parts[1::2], strict=True)]

    def init(self, generator: torch.Generator) -> Tensor:
        theta = torch.zeros(self.size)
        layers = self.layers(theta)
        for k, (W, _) in enumerate(layers):
            nn.init.orthogonal_(W, 2**0.5 if k < len(layers) - 1 else self.last_gain, generator=generator)
        return theta

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        return self._activations(theta, x)[-1]

    def linearize(self, theta: Tensor, x: Tensor) -> "LinearizedMLP":
        theta = theta.detach()
        with torch.no_grad():
            *hidden, z = self._activations(theta, x)
            slopes = [ACTIVATIONS[self.activation][1](h) for h in hidden[1:]]
        return LinearizedMLP(self, self.layers(theta), z, hidden, slopes)

    def compile(self, theta: Tensor) -> Forward:
        phi = ACTIVATIONS[self.activation][2]
        theta = theta.detach().cpu()
        layers = [(np.ascontiguousarray(W.T.numpy()), b.numpy().copy()) for W, b in self.layers(theta)]
        (W_last, b_last), hidden = layers[-1], layers[:-1]

        def forward(x: NDArray) -> NDArray:
            for W, b in hidden:
                x = x @ W
                x += b
                phi(x)
            return x @ W_last + b_last

        return forward

    def _activations(self, theta: Tensor, x: Tensor) -> list[Tensor]:
        """[x, h₁, …, z]."""
        phi = ACTIVATIONS[self.activation][0]
        *hidden, (W_last, b_last) = self.layers(theta)
        hs = [x]
        for W, b in hidden:
            hs.append(phi(torch.addmm(b, hs[-1], W.T)))
        return [*hs, torch.addmm(b_last, hs[-1], W_last.T)]


@dataclass(frozen=True)
class LinearizedMLP:
    """An MLP's z + J dθ by the chain rule. layers: of θ, hidden: [x, h₁, …], slopes: [φ′₁, …], each (N, ·)."""

    net: MLP
    layers: list[tuple[Tensor, Tensor]]
    z: Tensor
    hidden: list[Tensor]
    slopes: list[Tensor]

    @property
    def size(self) -> int:
        return self.net.size

    def jvp(self, v: Tensor) -> Tensor:
        # ṡₗ = hₗ₋₁ Ẇₗᵀ + ḃₗ + ḣₗ₋₁ Wₗᵀ,   ḣₗ = φ′ₗ ṡₗ
        dh = None
        layers = zip(self.layers, self.net.layers(v), self.hidden, strict=True)
        for k, ((W, _), (dW, db), h) in enumerate(layers):
            ds = torch.addmm(db, h, dW.T)
            if dh is not None:
                ds.addmm_(dh, W.T)
            dh = ds.mul_(self.slopes[k]) if k < len(self.slopes) else ds
        return dh

    def vjp(self, u: Tensor) -> Tensor:
        # sₗ = ∂/∂(pre-activation l):  W̄ₗ = sₗᵀ hₗ₋₁,  b̄ₗ = Σ sₗ,  sₗ₋₁ = (sₗ Wₗ) φ′ₗ₋₁
        out = self.z.new_empty(self.net.size)
        for (W_out, b_out), s, h in zip(self.net.layers(out), self._cotangents(u), self.hidden, strict=True):
            if h.shape[1] < s.shape[1]:  # the BLAS is up to 7 times slower with the narrow matrix last
                W_out.copy_((h.T @ s).T)
            else:
                torch.mm(s.T, h, out=W_out)
            torch.sum(s, 0, out=b_out)
        return out

    def jacobian(self) -> Tensor:
        N, K = self.z.shape
        J = self.z.new_empty(N, K, self.size)
        for k in range(K):
            u = torch.zeros_like(self.z)
            u[:, k] = 1
            parts = []
            for s, h in zip(self._cotangents(u), self.hidden, strict=True):
                parts += [(s.unsqueeze(2) * h.unsqueeze(1)).flatten(1), s]
            torch.cat(parts, 1, out=J[:, k])
        return J

    def _cotangents(self, u: Tensor) -> list[Tensor]:
        """[s₁, …, s_L], (N, out) each, for the output cotangent u (N, K)."""
        ss = [u]
        for (W, _), slope in zip(self.layers[:0:-1], self.slopes[::-1], strict=True):
            ss.append((ss[-1] @ W).mul_(slope))
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
