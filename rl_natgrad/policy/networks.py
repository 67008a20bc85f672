"""Networks as functions of one flat parameter vector: z = f(θ, x), θ (P,).

A network gives its outputs and its linearisation; gradients and Fisher products need nothing else. Here is what
any differentiable network needs for that; the MLP (mlp.py) has its own chain rule, 2.5 times faster.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rl_natgrad.optim.linearization import Along, Linearization

Forward = Callable[[NDArray], NDArray]
Place = tuple[slice, tuple[int, ...]]


class Tape(Protocol):
    """Passes through a network at a θ that is moved in place. What they return is overwritten by the next."""

    def forward(self, x: Tensor) -> Tensor:
        """z (N, K)."""

    def backward(self, u: Tensor) -> Tensor:
        """Jᵀu (P,) for u (N, K), summed over the samples of the last forward pass."""


class Network(Protocol):
    """f(θ, x): (P,), (N, *X) → (N, K)."""

    @property
    def size(self) -> int:
        """P."""

    @property
    def tensors(self) -> Sequence[Place]:
        """Where θ holds each tensor, and its shape, in order."""

    def init(self, generator: torch.Generator) -> Tensor:
        """θ at the start of training, (P,), in torch's default dtype."""

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """z (N, K), differentiable in θ."""

    def linearize(self, theta: Tensor, x: Tensor) -> Linearization:
        """z + J dθ around θ."""

    def tape(self, theta: Tensor) -> Tape:
        """Forward and backward passes at a θ that is moved in place: many small steps of it."""

    def compile(self, theta: Tensor) -> Forward:
        """x ↦ f(θ, x) on arrays, for a θ that stays: what acting in an environment needs."""


class ValueNetwork(Network, Protocol):
    """A network that ends in a linear layer, and can be regressed in many small steps."""

    def squared_error(self, theta: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) ↦ ∇_θ E[‖f(θ, x) − t‖²] (P,), for a θ that is moved in place."""

    def last_layer(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Its W and b, views of θ."""


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
        """J v: (P,) → (N, K)."""
        return torch.autograd.grad(self._vjp_u, self._u, v, retain_graph=True)[0]

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ u, summed over samples: (N, K) → (P,)."""
        return torch.autograd.grad(self._z, self._theta, u, retain_graph=True)[0]

    def along(self, b: Tensor) -> Along:
        """The one output bᵀz."""
        return Along(self, b)


class AutogradTape:
    """Passes of any forward(θ, x)."""

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor], theta: Tensor):
        self._forward, self._theta = forward, theta.detach().requires_grad_()  # it shares θ's memory

    def forward(self, x: Tensor) -> Tensor:
        """z (N, K)."""
        with torch.enable_grad():
            self._z = self._forward(self._theta, x)
        return self._z.detach()

    def backward(self, u: Tensor) -> Tensor:
        """Jᵀu (P,), summed over the samples of the last forward pass."""
        return torch.autograd.grad(self._z, self._theta, u)[0]


class ModuleNetwork:
    """Any torch module that treats samples independently (no batch norm) and whose last layer is linear, with a
    bias, as a function of flat parameters."""

    def __init__(self, module: nn.Module, initialize: Callable[[nn.Module, torch.Generator], None]):
        self.module, self._initialize = module, initialize
        self._shapes = {name: p.shape for name, p in module.named_parameters()}
        self.size, self.tensors = 0, []
        for shape in self._shapes.values():
            start, self.size = self.size, self.size + shape.numel()
            self.tensors.append((slice(start, self.size), tuple(shape)))

    def init(self, generator: torch.Generator) -> Tensor:
        """θ at the start of training, (P,)."""
        self._initialize(self.module, generator)
        return nn.utils.parameters_to_vector(self.module.parameters()).detach()

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """z (N, K), differentiable in θ."""
        return torch.func.functional_call(self.module, self._named(theta), (x.to(theta.dtype),))

    def linearize(self, theta: Tensor, x: Tensor) -> AutogradLinearization:
        """z + J dθ around θ."""
        def one(theta: Tensor, x1: Tensor) -> Tensor:
            return self.forward(theta, x1.unsqueeze(0)).squeeze(0)

        def jacobian() -> Tensor:
            return torch.func.vmap(torch.func.jacrev(one), (None, 0))(theta.detach(), x)

        return AutogradLinearization(lambda theta: self.forward(theta, x), theta, jacobian)

    def tape(self, theta: Tensor) -> AutogradTape:
        """Forward and backward passes at a θ that is moved in place."""
        return AutogradTape(self.forward, theta)

    def squared_error(self, theta: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) ↦ ∇_θ E[‖f(θ, x) − t‖²] (P,), for a θ that is moved in place."""
        leaf = theta.detach().requires_grad_()  # it shares θ's memory

        def gradient(x: Tensor, t: Tensor) -> Tensor:
            loss = ((self.forward(leaf, x) - t) ** 2).sum() / len(x)
            return torch.autograd.grad(loss, leaf)[0]

        return gradient

    def last_layer(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Its W and b, views of θ."""
        *_, W, b = self._named(theta).values()
        return W, b

    def compile(self, theta: Tensor) -> Forward:
        """x ↦ f(θ, x) on arrays, for a θ that stays."""
        theta = theta.detach()

        @torch.no_grad()
        def forward(x: NDArray) -> NDArray:
            return self.forward(theta, torch.from_numpy(x).to(theta.device)).cpu().numpy()

        return forward

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        """The module's parameters, views of θ."""
        parts = theta.split([shape.numel() for shape in self._shapes.values()])
        return {name: p.view(shape) for (name, shape), p in zip(self._shapes.items(), parts, strict=True)}


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
        """x / 255."""
        return x / 255


class WithFree:
    """[f(θ_f, x), φ] with θ = [θ_f, φ]: n outputs that are parameters themselves, such as a Gaussian's log σ."""

    def __init__(self, net: Network, n: int, start: float):
        self.net, self.n, self.start, self.size = net, n, start, net.size + n
        self.tensors = [*net.tensors, (slice(net.size, self.size), (n,))]

    def init(self, generator: torch.Generator) -> Tensor:
        """θ at the start of training, (P,)."""
        return torch.cat([self.net.init(generator), torch.full((self.n,), self.start)])

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """z (N, K), differentiable in θ."""
        return _append(self.net.forward(theta[: -self.n], x), theta[-self.n :])

    def linearize(self, theta: Tensor, x: Tensor) -> "LinearizedWithFree":
        """z + J dθ around θ."""
        lin = self.net.linearize(theta[: -self.n], x)
        return LinearizedWithFree(lin, self.n, _append(lin.z, theta[-self.n :].detach()))

    def tape(self, theta: Tensor) -> "TapeWithFree":
        """Forward and backward passes at a θ that is moved in place."""
        return TapeWithFree(self.net.tape(theta[: -self.n]), theta[-self.n :].detach())

    def compile(self, theta: Tensor) -> Forward:
        """x ↦ f(θ, x) on arrays, for a θ that stays."""
        net, n = self.net.compile(theta[: -self.n]), self.n
        free = theta[-n:].detach().cpu().numpy().copy()
        out = np.empty((0, n), free.dtype)

        def forward(x: NDArray) -> NDArray:  # into one array, which the next call overwrites
            nonlocal out
            z = net(x)
            if len(out) != len(z):
                out = np.concatenate([z, np.broadcast_to(free, (len(z), n))], axis=1)
            out[:, :-n] = z
            return out

        return forward


class Biased:
    """The network `net` whose last n outputs start at `start`, by their bias: a Gaussian's log σ."""

    def __init__(self, net: ValueNetwork, n: int, start: float):
        self.net, self.n, self.start, self.size, self.tensors = net, n, start, net.size, net.tensors
        self.forward, self.linearize, self.compile, self.tape = net.forward, net.linearize, net.compile, net.tape

    def init(self, generator: torch.Generator) -> Tensor:
        """θ at the start of training, (P,)."""
        theta = self.net.init(generator)
        self.net.last_layer(theta)[1][-self.n :] = self.start
        return theta


class LinearizedWithFree:
    """z + J dθ of a `WithFree`."""

    def __init__(self, lin: Linearization, n: int, z: Tensor):
        self.lin, self.n, self.z, self.size = lin, n, z, lin.size + n

    def jvp(self, v: Tensor) -> Tensor:
        """J v: (P,) → (N, K)."""
        return _append(self.lin.jvp(v[: -self.n]), v[-self.n :])

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ u, summed over samples: (N, K) → (P,)."""
        return torch.cat([self.lin.vjp(u[:, : -self.n].contiguous()), u[:, -self.n :].sum(0)])

    def along(self, b: Tensor) -> Along:
        """The one output bᵀz."""
        return Along(self, b)

    def jacobian(self) -> Tensor:
        """J (N, K, P)."""
        J = self.z.new_zeros(*self.z.shape, self.size)
        J[:, : -self.n, : -self.n] = self.lin.jacobian()
        J[:, -self.n :, -self.n :] = torch.eye(self.n, dtype=self.z.dtype, device=self.z.device)
        return J


class TapeWithFree:
    """Passes of a `WithFree`. Args: free (n,): a view of θ."""

    def __init__(self, tape: Tape, free: Tensor):
        self._tape, self._free, self._n = tape, free, len(free)

    def forward(self, x: Tensor) -> Tensor:
        """z (N, K)."""
        return _append(self._tape.forward(x), self._free)

    def backward(self, u: Tensor) -> Tensor:
        """Jᵀu (P,), summed over the samples of the last forward pass."""
        return torch.cat([self._tape.backward(u[:, : -self._n].contiguous()), u[:, -self._n :].sum(0)])


def _append(z: Tensor, free: Tensor) -> Tensor:
    """[z, free] with free (n,) repeated for each of the N samples."""
    return torch.cat([z, free.expand(len(z), -1)], 1)
