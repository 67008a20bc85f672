"""Activations φ, written over their argument, and their slopes; for tensors and for arrays."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A tensor, or the numpy view of one that is on the CPU: what the chain rule below is written for.

On one thread numpy's matrix products took 0.85 of torch's time at (2048, 64)·(64, 64), its tanh a tenth, and
its calls on minibatches half.
"""


def raw(tensor: Tensor) -> Array:
    """The numpy view of one that is on the CPU, and others themselves; without their history."""
    tensor = tensor.detach()
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def tensor(array: Array) -> Tensor:
    """The tensor of an array, in the same memory."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def lib(array: Array):
    """numpy or torch: of what is called below, both have the same names and arguments."""
    return np if isinstance(array, np.ndarray) else torch


class Tanh:
    """φ = tanh."""

    function = staticmethod(torch.tanh)

    @staticmethod
    def inplace(a: Array) -> Array:
        """φ(a), written over a."""
        return lib(a).tanh(a, out=a)

    @staticmethod
    def slope(h: Array, out: Array | None = None) -> Array:
        """φ′ in terms of h = φ."""
        out = lib(h).multiply(h, h, out=out)
        return np.subtract(1, out, out=out) if lib(h) is np else out.neg_().add_(1)


class Relu:
    """φ = max(·, 0)."""

    function = staticmethod(torch.relu)

    @staticmethod
    def inplace(a: Array) -> Array:
        """φ(a), written over a."""
        return a.clip(0, None, out=a) if lib(a) is np else a.clamp_(min=0)

    @staticmethod
    def slope(h: Array, out: Array | None = None) -> Array:
        """φ′ in terms of h = φ."""
        out = lib(h).empty_like(h) if out is None else out
        out[...] = h > 0
        return out


class Sigmoid:
    """φ = 1 / (1 + e^{−a})."""

    function = staticmethod(torch.sigmoid)

    @staticmethod
    def inplace(a: Array) -> Array:
        """φ(a), written over a."""
        tensor(a).sigmoid_()  # also where a is numpy's, which has none: 0.7 of the time of ½ + ½ tanh(a / 2)
        return a

    @staticmethod
    def slope(h: Array, out: Array | None = None) -> Array:
        """φ′ in terms of h = φ."""
        out = lib(h).multiply(h, h, out=out)
        return lib(h).subtract(h, out, out=out)


Activation = type[Tanh] | type[Relu] | type[Sigmoid]
