"""Which parts of a run have several threads, and what has them: torch or numpy's matrix products."""

from typing import Any

import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from rl_natgrad.config.schema import Cnn, Config
from rl_natgrad.policy.mlp import CHUNK

SHARED = 3e7
"""Multiplications of a pass over a network, or of a solve, that threads share: a millisecond of one, or more."""


def use_threads(n: int) -> None:
    """Threads of torch and of numpy's matrix products, from here on; their number is part of a run's bits."""
    torch.set_num_threads(n)
    threadpool_limits(n, "blas")


class Threaded:
    """A learner, or a critic's regression, on n threads; all else of a run has one.

    Either numpy's products have them or torch has.  Both keep threads awake for their next work, each in the way
    of the other's: with two each, on two cores, 160 minibatches took a hundred times as long as with one.
    """

    def __init__(self, part: Any, n: int, *, numpy: bool):
        self.part, self.n, self.numpy = part, n, numpy
        self._blas = ThreadpoolController().select(user_api="blas")

    def __call__(self, *given: Any) -> Any:
        """What the part makes of it."""
        if self.numpy:
            with self._blas.limit(limits=self.n):
                return self.part(*given)
        torch.set_num_threads(self.n)
        try:
            return self.part(*given)
        finally:
            torch.set_num_threads(1)

    def state(self) -> dict[str, Any]:
        """The part's."""
        return self.part.state()

    def load(self, state: dict[str, Any]) -> None:
        """The part goes on from its `state`."""
        self.part.load(state)


def threaded(cfg: Config, part: Any, rows: int, P: int, solve: float = 0) -> Any:
    """The part, on the run's threads where a pass of `rows` samples over P parameters, or a solve, is large."""
    mlp, large = not isinstance(cfg.policy, Cnn), min(rows, CHUNK) * P >= SHARED
    if cfg.torch_threads == 1 or cfg.device != "cpu" or not (large or solve >= SHARED):
        return part
    return Threaded(part, cfg.torch_threads, numpy=mlp and solve < SHARED)
