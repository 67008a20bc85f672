"""What is written once for numpy's arrays and torch's tensors: of what is called, both have the same names."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = Any
"""An array, or a tensor on the environments' device."""


def lib(array: Array):
    """numpy or torch."""
    return torch if isinstance(array, torch.Tensor) else np


def copied(array: Array, like: Array = None) -> Array:
    """A copy; on the device of `like`, if given."""
    return lib(array).asarray(array, device=array.device if like is None else like.device, copy=True)


def host(array: Array) -> NDArray:
    """The array itself, or the tensor's numbers on the CPU, for which its device is waited for."""
    return array.cpu().numpy() if isinstance(array, torch.Tensor) else array


def highest_so_far(x: Array) -> Array:
    """The running maximum along the first axis."""
    return np.maximum.accumulate(x, 0) if lib(x) is np else torch.cummax(x, 0).values
