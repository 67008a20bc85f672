"""Where samples stand among those of all ranks: how means over all are made of what each rank has.

Every rank asks for the same means in the same order.  They are sums over counts, never means of means: ranks have
different numbers of samples, and one may have none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_natgrad.policy.activations import raw
from rl_natgrad.rollout.arrays import Array, lib

Sum = Callable[[Tensor], Tensor]
"""The sum over ranks of a tensor that has the same shape in each."""


class Moments(Protocol):
    """What learns mean and variance."""

    def update(self, x: Array) -> None:
        """From x (n, *S)."""

    def merge(self, n: int, mean: NDArray, m2: NDArray) -> None:
        """From what is known of n of them."""


class Among(Protocol):
    """n samples here, of N in all."""

    def count(self, n: int) -> int:
        """N, of n samples here."""

    def mean(self, x: Tensor) -> Tensor:
        """E[·] over all samples, of x, which is that over those here."""

    def part(self, x: Tensor, n: int, N: int) -> Tensor:
        """The same over N of the samples, of which n are here."""

    def variance(self, x: Tensor) -> Tensor:
        """Population variance of x (n,) over all samples."""

    def learn(self, moments: Moments, x: Tensor) -> None:
        """The moments are told of x (n, *S), of all samples."""

    def standard(self, x: Array) -> Array:
        """(x − E x) / (σ + 1e-8), of x (n,)."""

    def take(self, rows: Tensor) -> tuple[Tensor, "Among"]:
        """Of some samples, by their numbers among all: which are here, and where those stand among the some."""

    def split(self, order: Tensor, size: int) -> tuple[Tensor, list[int], list[int]]:
        """Minibatches of `size` in an order (N,) of all samples: the order of those here, how many of them are in
        each minibatch, and how many of all."""


class Alone:
    """All samples are here."""

    def count(self, n: int) -> int:
        """n."""
        return n

    def mean(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def part(self, x: Tensor, n: int, N: int) -> Tensor:
        """x."""
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Var[x]."""
        return x.var(correction=0)

    def learn(self, moments: Moments, x: Tensor) -> None:
        """They are told of x."""
        moments.update(raw(x))

    def standard(self, x: Array) -> Array:
        """(x − E x) / (σ + 1e-8)."""
        return (x - x.mean()) / (lib(x).std(x, correction=0) + 1e-8)

    def take(self, rows: Tensor) -> tuple[Tensor, Among]:
        """All of them."""
        return rows, self

    def split(self, order: Tensor, size: int) -> tuple[Tensor, list[int], list[int]]:
        """The order itself."""
        sizes = [len(part) for part in order.split(size)]
        return order, sizes, sizes


ALONE = Alone()


@dataclass(frozen=True, eq=False)
class OneOfSeveral:
    """n of N samples are here. Args: own (n,): their numbers among all, rising.  N: of all.  sum: over ranks."""

    own: Tensor
    N: int
    sum: Sum

    def count(self, n: int) -> int:
        """N."""
        return self.N

    def mean(self, x: Tensor) -> Tensor:
        """Σ n x / N over ranks."""
        return self.part(x, len(self.own), self.N)

    def part(self, x: Tensor, n: int, N: int) -> Tensor:
        """Σ n x / N over ranks; a mean over nothing is not a number, and counts as 0."""
        return self.sum(x * (n / N) if n else torch.zeros_like(x))

    def variance(self, x: Tensor) -> Tensor:
        """E[(x − E x)²]."""
        return self.mean(((x - self.mean(x.mean())) ** 2).mean())

    def learn(self, moments: Moments, x: Tensor) -> None:
        """They are told of N samples with E[x] and Σ (x − E x)²."""
        x = x.double()
        mean = self.sum(x.sum(0)) / self.N
        moments.merge(self.N, mean.cpu().numpy(), self.sum(((x - mean) ** 2).sum(0)).cpu().numpy())

    def standard(self, x: NDArray) -> NDArray:
        """(x − E x) / (σ + 1e-8)."""
        own = torch.from_numpy(x)
        mean, std = float(self.mean(own.mean())), float(self.variance(own).sqrt())
        return (x - mean) / (std + 1e-8)

    def take(self, rows: Tensor) -> tuple[Tensor, Among]:
        """Those of `rows` (rising) that are here."""
        here, there = torch.isin(self.own, rows).nonzero(), torch.isin(rows, self.own).nonzero()
        return here.squeeze(1), OneOfSeveral(there.squeeze(1), len(rows), self.sum)

    def split(self, order: Tensor, size: int) -> tuple[Tensor, list[int], list[int]]:
        """The order with the others' samples left out."""
        place = torch.full_like(order, -1)
        place[self.own] = torch.arange(len(self.own), device=order.device)
        here = place[order]
        parts = here.split(size)
        return here[here >= 0], [int((part >= 0).sum()) for part in parts], [len(part) for part in parts]
