"""The multi-layer perceptron and its linearisation: the chain rule written out, for tensors and for arrays."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rl_natgrad.optim.linearization import Along, Linearization
from rl_natgrad.policy.activations import Activation, Array, Tanh, lib, raw, tensor

CHUNK = 4096
"""Samples that a CPU works on at a time: what a layer makes of them then stays in its cache."""


MEMORY = 2**30
"""Bytes that all layers may take of the samples that a GPU works on at a time: what a product makes in between.
The activations, which every product needs, are kept of all samples."""


def _chunks(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """A batch in parts: small ones on a CPU, by memory elsewhere. Args: sizes: units of each layer."""
    here = x.device.type == "cpu"
    return x.split(CHUNK if here else max(1, MEMORY // (x.element_size() * sum(sizes))))


quiet = np.errstate(over="ignore", invalid="ignore")
"""Numbers that are not finite are not announced by numpy as they arise: the learners notice them, and say so."""


class MLP:
    """h₀ = x,  hₗ = φ(hₗ₋₁ Wₗᵀ + bₗ),  z = h_L without φ.  θ holds W₁ (out, in), b₁, W₂, b₂, … in a row.

    Starts orthogonal (Saxe et al. 2014) with gain √2, the last layer with `last_gain`: a small one makes
    the first policy nearly uniform (Andrychowicz et al. 2021, "What matters in on-policy RL", 3.2).  Or, not
    `orthogonal`, as torch.nn.Linear does: all of a layer's W and b uniform in ±1/√in.
    """

    def __init__(
        self, sizes: tuple[int, ...], activation: Activation = Tanh, last_gain: float = 0.01,
        orthogonal: bool = True,
    ):  # fmt: skip
        self.sizes, self.activation, self.last_gain, self.size = sizes, activation, last_gain, 0
        self.orthogonal = orthogonal
        self._places = []  # where θ holds each W, its shape, and where b
        for i, o in pairwise(sizes):
            start, self.size = self.size, self.size + (i + 1) * o
            self._places.append((slice(start, self.size - o), (o, i), slice(self.size - o, self.size)))
        self.tensors = [place for W, shape, b in self._places for place in ((W, shape), (b, shape[:1]))]

    def layers(self, theta: Array) -> list[tuple[Array, Array]]:
        """[(W (out, in), b (out,)), …], views of θ."""
        return [(theta[W].reshape(shape), theta[b]) for W, shape, b in self._places]

    def init(self, generator: torch.Generator) -> Tensor:
        """θ at the start of training, (P,)."""
        theta = torch.zeros(self.size)
        layers = self.layers(theta)
        for k, (W, b) in enumerate(layers):
            if not self.orthogonal:
                for tensor in (W, b):
                    tensor.uniform_(-(W.shape[1] ** -0.5), W.shape[1] ** -0.5, generator=generator)
                continue
            nn.init.orthogonal_(W, 2**0.5 if k < len(layers) - 1 else self.last_gain, generator=generator)
        return theta

    @quiet
    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """z (N, K), differentiable in θ."""
        if not (torch.is_grad_enabled() and theta.requires_grad):
            layers = self.layers(raw(theta))
            zs = [tensor(self._activations(layers, raw(part))[-1]) for part in _chunks(x, self.sizes)]
            return zs[0] if len(zs) == 1 else torch.cat(zs)
        *hidden, (W_last, b_last) = self.layers(theta)
        for W, b in hidden:
            x = self.activation.function(torch.addmm(b, x, W.T))
        return torch.addmm(b_last, x, W_last.T)

    @quiet
    def linearize(self, theta: Tensor, x: Tensor) -> "LinearizedMLP | Chunks":
        """z + J dθ around θ."""
        layers, parts = self.layers(raw(theta)), []
        for part in _chunks(x, self.sizes):
            *hidden, z = self._activations(layers, raw(part))
            parts.append(LinearizedMLP(self, layers, tensor(z), hidden))
        return parts[0] if len(parts) == 1 else Chunks(parts)

    def tape(self, theta: Tensor) -> "MLPTape":
        """Forward and backward passes at a θ that is moved in place."""
        return MLPTape(self, theta)

    def squared_error(self, theta: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) ↦ ∇_θ E[‖f(θ, x) − t‖²] (P,), for a θ that is moved in place."""
        tape = MLPTape(self, theta)

        @quiet
        def gradient(x: Tensor, t: Tensor) -> Tensor:
            s = raw(tape.forward(x))
            s -= raw(t)
            s *= 2 / len(s)
            return tape.backward(tensor(s))

        return gradient

    def last_layer(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Its W and b, views of θ."""
        return self.layers(theta)[-1]

    def compile(self, theta: Tensor) -> Callable[[NDArray], NDArray]:
        """x ↦ f(θ, x) on arrays, for a θ that stays."""
        layers = [(W.copy(), b.copy()) for W, b in self.layers(theta.detach().cpu().numpy())]
        return lambda x: self._activations(layers, x)[-1]

    def _activations(self, layers: list[tuple[Array, Array]], x: Array) -> list[Array]:
        """[x, h₁, …, z]."""
        return _propagate(self.activation, layers, x, [None] * len(layers))


def _propagate(activation: Activation, layers: list[tuple[Array, Array]], x: Array, outs: list) -> list[Array]:
    """[x, h₁, …, z], into the arrays `outs` where there are such."""
    phi, last, matmul = activation.inplace, len(layers) - 1, lib(x).matmul
    hs = [x]
    for k, ((W, b), out) in enumerate(zip(layers, outs, strict=True)):
        h = matmul(hs[-1], W.T, out=out)
        h += b
        hs.append(phi(h) if k < last else h)
    return hs


def _sum(ones: Array, s: Array, out: Array) -> None:
    """Σ over samples of s (N, o), by a product: numpy's sum over N takes four times as long."""
    if lib(s) is np:
        np.matmul(ones, s, out=out)
    else:
        torch.mv(s.T, ones, out=out)


class MLPTape:
    """z = f(θ, x), then Jᵀu for some u (N, K): one minibatch after the other, at a θ that is moved in place.

    The chain rule of `LinearizedMLP` without its objects, and into arrays that are kept: a fifth less time on
    minibatches of 256. What is returned is overwritten by the next pass.
    """

    def __init__(self, net: MLP, theta: Tensor):
        self.net, self.layers, self.grad = net, net.layers(raw(theta)), torch.empty_like(theta)
        self.grads = net.layers(raw(self.grad))
        self.kept: dict[int, tuple[Any, ...]] = {}
        self.hidden: list[Array] = []

    @quiet
    def forward(self, x: Tensor) -> Tensor:
        """z (N, K)."""
        if (n := len(x)) not in self.kept:
            outs, ss, slopes = ([raw(x.new_empty(n, o)) for o in self.net.sizes[1:]] for _ in range(3))
            self.kept[n] = raw(x.new_ones(n)), outs, ss, slopes
        *self.hidden, z = _propagate(self.net.activation, self.layers, raw(x), self.kept[n][1])
        return tensor(z)

    @quiet
    def backward(self, u: Tensor) -> Tensor:
        """Jᵀu (P,), summed over the samples of the last forward pass."""
        ones, _, ss, slopes = self.kept[len(u)]
        matmul, slope, s = lib(ones).matmul, self.net.activation.slope, raw(u)
        for k in range(len(self.hidden) - 1, -1, -1):
            dW, db = self.grads[k]
            matmul(s.T, self.hidden[k], out=dW)
            _sum(ones, s, out=db)
            if k:
                s = matmul(s, self.layers[k][0], out=ss[k - 1])
                s *= slope(self.hidden[k], out=slopes[k - 1])
        return self.grad


class LinearizedMLP:
    """An MLP's z + J dθ by the chain rule.

    Args: layers: of θ.  z (N, K).  hidden: [x, h₁, …, h_{L−1}], each (N, ·).
    """

    def __init__(self, net: MLP, layers: list[tuple[Array, Array]], z: Tensor, hidden: list[Array]):
        self.net, self.layers, self.z, self.hidden, self.size = net, layers, z, hidden, net.size
        self._slopes = [net.activation.slope(h) for h in hidden[1:]]
        self._ones = lib(hidden[0]).ones_like(hidden[0][:, 0])

    @quiet
    def jvp(self, v: Tensor) -> Tensor:
        """J v: (P,) → (N, K)."""
        # ṡₗ = hₗ₋₁ Ẇₗᵀ + ḃₗ + ḣₗ₋₁ Wₗᵀ,   ḣₗ = φ′ₗ ṡₗ
        dh = None
        layers = zip(self.layers, self.net.layers(raw(v)), self.hidden, strict=True)
        for k, ((W, _), (dW, db), h) in enumerate(layers):
            ds = h @ dW.T
            ds += db
            if dh is not None:
                ds += dh @ W.T
            if k < len(self._slopes):
                ds *= self._slopes[k]
            dh = ds
        return tensor(dh)

    @quiet
    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ u, summed over samples: (N, K) → (P,)."""
        return self.gathered(self.signals(raw(u)))

    def along(self, b: Tensor) -> "LinearizedMLPAlong":
        """The one output bᵀz."""
        return LinearizedMLPAlong(self, b)

    def jacobian(self) -> Tensor:
        """J (N, K, P)."""
        N, K = self.z.shape
        J = self.z.new_empty(N, K, self.size)
        for k in range(K):
            u = torch.zeros_like(self.z)
            u[:, k] = 1
            parts = []
            for s, h in zip(self.signals(raw(u)), self.hidden, strict=True):
                s, h = tensor(s), tensor(h)
                parts += [(s.unsqueeze(2) * h.unsqueeze(1)).flatten(1), s]
            torch.cat(parts, 1, out=J[:, k])
        return J

    def signals(self, u: Array) -> list[Array]:
        """[s₁, …, s_L], (N, out) each: ∂(uᵀz)/∂(pre-activation l) for u (N, K)."""
        # sₗ₋₁ = (sₗ Wₗ) φ′ₗ₋₁
        ss = [u]
        for (W, _), slope in zip(self.layers[:0:-1], self._slopes[::-1], strict=True):
            s = ss[-1] @ W
            s *= slope
            ss.append(s)
        return ss[::-1]

    def gathered(self, signals: list[Array]) -> Tensor:
        """Their gradient in θ (P,), summed over samples."""
        # W̄ₗ = sₗᵀ hₗ₋₁,  b̄ₗ = Σ sₗ
        out = self.z.new_empty(self.size)
        matmul = lib(self._ones).matmul
        for (W_out, b_out), s, h in zip(self.net.layers(raw(out)), signals, self.hidden, strict=True):
            matmul(s.T, h, out=W_out)
            _sum(self._ones, s, out=b_out)
        return out


class LinearizedMLPAlong(Along):
    """The signals of b are those of every product, which so takes half the operations."""

    lin: LinearizedMLP

    @quiet
    def __init__(self, lin: LinearizedMLP, b: Tensor):
        super().__init__(lin, b)
        self._signals = lin.signals(raw(b))

    @quiet
    def jvp(self, v: Tensor) -> Tensor:
        """bᵀJ v: (P,) → (N, 1)."""
        # bᵀJv = Σₗ sₗᵀ (Ẇₗ hₗ₋₁ + ḃₗ)
        Jv = 0
        for (dW, db), s, h in zip(self.lin.net.layers(raw(v)), self._signals, self.lin.hidden, strict=True):
            ds = h @ dW.T
            ds += db
            Jv = Jv + lib(ds).einsum("no,no->n", ds, s)
        return tensor(Jv).unsqueeze(-1)

    @quiet
    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ b u: (N, 1) → (P,)."""
        return self.lin.gathered([s * raw(u) for s in self._signals])


class Chunks:
    """The linearisation of a large batch, part by part."""

    def __init__(self, parts: Sequence[Linearization]):
        self.parts, self.size, self.z = parts, parts[0].size, torch.cat([part.z for part in parts])

    def jvp(self, v: Tensor) -> Tensor:
        """J v: (P,) → (N, K)."""
        return torch.cat([part.jvp(v) for part in self.parts])

    def vjp(self, u: Tensor) -> Tensor:
        """Jᵀ u, summed over samples: (N, K) → (P,)."""
        return torch.stack([part.vjp(u) for part, u in zip(self.parts, self._split(u), strict=True)]).sum(0)

    def along(self, b: Tensor) -> "Chunks":
        """The one output bᵀz, for b (N, K)."""
        return Chunks([part.along(b) for part, b in zip(self.parts, self._split(b), strict=True)])

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([len(part.z) for part in self.parts])

    def jacobian(self) -> Tensor:
        """J (N, K, P)."""
        return torch.cat([part.jacobian() for part in self.parts])
