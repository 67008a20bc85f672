"""The randomness of actions, float32: arrays from numpy's generator, tensors on their device from torch's."""

from typing import Any

import numpy as np
import torch

Rng = np.random.Generator | torch.Generator


def gumbel(rng: Rng, shape: tuple[int, ...]) -> Any:
    """Of the standard Gumbel distribution: −log of an exponential number."""
    if isinstance(rng, np.random.Generator):
        return rng.gumbel(size=shape).astype(np.float32)
    return _empty(rng, shape).exponential_(generator=rng).log_().neg_()


def logistic(rng: Rng, shape: tuple[int, ...]) -> Any:
    """Of the standard logistic distribution: log u / (1 − u) of a uniform number."""
    if isinstance(rng, np.random.Generator):
        return rng.logistic(size=shape).astype(np.float32)
    return _empty(rng, shape).uniform_(generator=rng).logit_()


def normal(rng: Rng, shape: tuple[int, ...]) -> Any:
    """Of the standard normal distribution."""
    if isinstance(rng, np.random.Generator):
        return rng.standard_normal(size=shape, dtype=np.float32)
    return _empty(rng, shape).normal_(generator=rng)


def _empty(rng: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=rng.device)
