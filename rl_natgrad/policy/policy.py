"""Policy = network + head + one flat θ."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rl_natgrad.optim.linearization import Linearization
from rl_natgrad.policy.activations import Array
from rl_natgrad.policy.heads import Bernoulli, Categorical, DiagGaussian, Head, MultiDiscrete
from rl_natgrad.policy.networks import Biased, Network, ValueNetwork, WithFree
from rl_natgrad.policy.noise import Rng


class Observer(Protocol):
    """What stands between an environment's observation and the network's input: normalisation, or nothing."""

    def __call__(self, obs: Array) -> Array:
        """obs (B, *O) as the network sees it, (B, *O)."""

    def update(self, obs: Array) -> None:
        """Learns from observations (N, *O); between rollouts, never within one."""

    def merge(self, n: int, mean: Array, m2: Array) -> None:
        """The same from n observations' mean (*O) and sum of squared deviations (*O)."""

    def state(self) -> dict[str, Array]:
        """What it has learned."""

    def load(self, state: dict[str, Array]) -> None:
        """Goes on from a `state`."""


@dataclass
class Policy:
    """π_θ(a|s): what the learners differentiate, and what acts. Args: theta (P,)."""

    net: Network
    head: Head
    theta: Tensor
    observe: Observer
    _compiled: Callable[[Array], Array] | None = field(init=False, repr=False)  # for arrays, once they come

    def __post_init__(self) -> None:
        self.become(self.theta)

    def become(self, theta: Tensor) -> None:
        """Makes θ (P,) the policy's own."""
        self.theta, self._compiled = theta, None

    def state(self) -> dict[str, Tensor]:
        """θ (P,)."""
        return {"theta": self.theta}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from a `state`, on the device where θ is."""
        self.become(state["theta"].to(self.theta.device))

    def forward(self, theta: Tensor, obs: Tensor) -> Tensor:
        """Distribution parameters z (N, K) of π_θ on inputs (N, *O) that went through `observe`."""
        return self.net.forward(theta, obs)

    def linearize(self, theta: Tensor, obs: Tensor) -> Linearization:
        """z + J dθ around θ."""
        return self.net.linearize(theta, obs)

    def act(self, obs: Array, noise: Array) -> Array:
        """Sampled actions (B, *A) on raw observations (B, *O), with `noise` (B, …) from `noise()`; arrays, or
        tensors on the device where θ is."""
        return self.head.sample(self._z(obs), noise)

    def act_greedily(self, obs: Array) -> Array:
        """The most likely actions (B, *A)."""
        return self.head.mode(self._z(obs))

    def _z(self, obs: Array) -> Array:
        obs = self.observe(obs)
        if not isinstance(obs, np.ndarray):
            return self._there(obs)
        if self._compiled is None:
            self._compiled = self.net.compile(self.theta)
        return self._compiled(obs)

    @torch.no_grad()
    def _there(self, obs: Tensor) -> Tensor:
        return self.net.forward(self.theta, obs.to(self.theta.dtype))

    def noise(self, rng: Rng, shape: tuple[int, ...]) -> Array:
        """All the randomness that `act` needs for a whole rollout: (*shape, …)."""
        return self.head.noise(rng, shape)


def head_for(space: spaces.Space, std: str = "free") -> Head:
    """The distribution over an action space; std: of a DiagGaussian.

    Raises: ValueError for one of a kind that is not listed here, or std="state" without a σ.
    """
    if std == "state" and not isinstance(space, spaces.Box):
        raise ValueError(f"policy.std=state needs continuous actions (Box), got {space}; leave it at free")
    match space:
        case spaces.Discrete():
            return Categorical(int(space.n))
        case spaces.MultiDiscrete():
            return MultiDiscrete(tuple(int(n) for n in space.nvec.ravel()))
        case spaces.MultiBinary():
            return Bernoulli(int(np.prod(space.shape)))
        case spaces.Box():
            return DiagGaussian(int(np.prod(space.shape)), std)
    raise ValueError(f"action space {space} is not supported; Discrete, MultiDiscrete, MultiBinary and Box are")


def with_head(net: Callable[[int], ValueNetwork], head: Head, log_std: float) -> Network:
    """The network whose outputs are the head's z, `net(outputs)`; log σ, where there is one, starts at log_std:
    in θ, or among the outputs, as the head wants it."""
    body = net(head.size - head.free)
    if isinstance(head, DiagGaussian):
        return WithFree(body, head.free, log_std) if head.free else Biased(body, head.n, log_std)
    return body
