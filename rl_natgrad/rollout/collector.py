"""A fixed T × B stream of experience from B environments that never wait for each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from rl_natgrad.envs.contract import Envs
from rl_natgrad.rollout.arrays import Array, copied, highest_so_far, lib


class Actor(Protocol):
    """What the collector sees of a policy."""

    def noise(self, rng: np.random.Generator | torch.Generator, shape: tuple[int, ...]) -> Array:
        """The randomness of as many actions, (*shape, …)."""

    def act(self, obs: Array, noise: Array) -> Array:
        """Actions (B, *A) on observations (B, *O), with that randomness (B, …)."""


Check = Callable[[Array, Array, Array, Array], None]
"""Looks at obs (T+1, B, *O), reward (T, B) and done (T, B) before anything is learned from them, and raises where
an environment misbehaved.  length (B,): steps of the episodes that go on in row 0, −1 where that is the reset."""


@dataclass(frozen=True)
class Rollout:
    """T × B rows. Row t is the step from obs[t] by action[t] to obs[t + 1]; tensors where the observations are.

    After a row that is `done`, obs[t + 1] is the episode's last observation, and row t + 1 is the reset:
    not a step of any episode, so not `valid`.  Of environments that reset within the step, obs[t + 1] begins the
    next episode, every row is valid, and `last` has the last observations.
    """

    obs: Array  # (T+1, B, *O)
    action: Array  # (T, B, *A)
    reward: Array  # (T, B) float64, raw
    terminated: Array  # (T, B) bool
    done: Array  # (T, B) bool, terminated or truncated
    valid: Array  # (T, B) bool
    returns: list[float]  # of the episodes that ended here, undiscounted, in order
    lengths: list[int]
    last: Array | None = None  # (k, *O) of the k rows that are done, in order

    @property
    def ended(self) -> tuple[list[float], list[int], int]:
        """Returns and lengths of the episodes that ended, and the steps taken."""
        return self.returns, self.lengths, self.steps

    @property
    def steps(self) -> int:
        """Environment steps: valid rows."""
        return int(self.valid.sum())


class Stepped(NamedTuple):
    """What T steps of B environments were."""

    obs: Array  # (T+1, B, *O)
    action: Array  # (T, B, *A)
    reward: Array  # (T, B) float64
    terminated: Array  # (T, B) bool
    truncated: Array


Advance = Callable[[Array, Any, int], Stepped]
"""T steps from first observations (B, *O), with noise from a generator: (first, rng, T) ↦ Stepped."""


def advance(
    envs: Envs, act: Callable[[Array, Array], Array], first: Array, noise: Array, last: Array | None = None
) -> Stepped:
    """T steps of each environment, by act(obs, noise[t]).

    last (T, B, *O): gets the last observations, of environments that reset within the step.
    """
    T, B, step = len(noise), envs.num_envs, envs.step
    xp, at = lib(first), {"device": first.device}
    obs = xp.empty((T + 1, *first.shape), dtype=first.dtype, **at)
    reward = xp.empty((T, B), dtype=xp.float64, **at)
    terminated, truncated = (xp.empty((T, B), dtype=xp.bool, **at) for _ in range(2))
    obs[0] = first
    for t in range(T):
        a = act(obs[t], noise[t])
        if t == 0:
            action = xp.empty((T, *a.shape), dtype=a.dtype, **at)
        action[t] = a
        obs[t + 1], reward[t], terminated[t], truncated[t] = step(a)
        if last is not None:
            last[t] = envs.last
    return Stepped(obs, action, reward, terminated, truncated)


@dataclass
class Collector:
    """Steps `envs` with a policy, and keeps the place between one `collect()` and the next.

    Args: horizon: T.  rng: of the actions' noise; torch's, on their device, of environments of tensors.
          same_step: of the environments, see `Envs`.
          advance: how they are stepped, with that policy, where other processes help.
    """

    envs: Envs
    horizon: int
    rng: np.random.Generator | torch.Generator
    check: Check = lambda *rows: None
    same_step: bool = False
    advance: Advance | None = None
    obs: Array | None = field(default=None, init=False)  # (B, *O), where the next rollout starts
    prev_done: Array = field(init=False)  # (B,) bool: the next row is a reset
    episode_return: Array = field(init=False)  # (B,) so far
    episode_length: Array = field(init=False)

    def __post_init__(self) -> None:
        B, xp = self.envs.num_envs, torch if isinstance(self.rng, torch.Generator) else np
        device = self.rng.device if isinstance(self.rng, torch.Generator) else "cpu"
        self.prev_done = xp.zeros(B, dtype=xp.bool, device=device)
        self.episode_return = xp.zeros(B, dtype=xp.float64, device=device)
        self.episode_length = xp.zeros(B, dtype=xp.int64, device=device)

    def collect(self, policy: Actor) -> Rollout:
        """T rows from each environment. The arrays belong to the caller."""
        T, B = self.horizon, self.envs.num_envs
        first = self._first()
        xp = lib(first)
        last = xp.empty((T, *first.shape), dtype=first.dtype, device=first.device) if self.same_step else None
        if self.advance:
            stepped = self.advance(first, self.rng, T)
        else:
            stepped = advance(self.envs, policy.act, first, policy.noise(self.rng, (T, B)), last)
        obs, action, reward, terminated, truncated = stepped
        done = terminated | truncated
        length = xp.where(self.prev_done, -1, self.episode_length)
        self.check(obs, reward, done, length)
        resets = xp.concatenate([self.prev_done[None], done[:-1]])
        if last is not None:
            resets, ended = xp.zeros_like(done), done.reshape(T, B, *[1] * (last.ndim - 2))
            self.check(xp.concatenate([obs[:1], xp.where(ended, last, obs[1:])]), reward, done, length)
            last = last[done]
        valid = ~resets
        returns, lengths = self._episodes(reward, done, valid)
        self.obs, self.prev_done = copied(obs[T]), self.prev_done if self.same_step else copied(done[-1])
        return Rollout(obs, action, reward, terminated, done, valid, returns, lengths, last)

    def _episodes(self, reward: Array, done: Array, valid: Array) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes that ended, and those of the open ones carried on."""
        (T, B), xp, at = reward.shape, lib(reward), {"device": reward.device}

        def summed(start: Array, x: Array) -> Array:  # (T+1, B), with a row of zeros before
            return xp.concatenate([xp.zeros_like(start)[None], start + xp.cumsum(x, 0)])

        sums = summed(self.episode_return, xp.where(valid, reward, 0.0))
        counts = summed(self.episode_length, valid)
        # They do not start anew at an end: what they were at the last end before each row is taken off.
        rows, columns = xp.arange(1, T + 1, **at)[:, None], xp.arange(B, **at)
        ended = highest_so_far(xp.where(done, rows, 0))
        before = xp.concatenate([xp.zeros_like(ended[:1]), ended])
        returns, lengths = ((x[1:] - x[before[:-1], columns])[done].tolist() for x in (sums, counts))
        self.episode_return, self.episode_length = (x[T] - x[before[T], columns] for x in (sums, counts))
        return returns, lengths

    def _first(self) -> Array:
        """Where the next rollout starts; the first one resets the environments."""
        if self.obs is None:
            self.obs = copied(self.envs.reset())
        return self.obs

    def state(self) -> dict[str, Array]:
        """What a later `load` needs besides the environments' own state (ask for that one after this) and
        the generator's state."""
        return {
            "obs": self._first(),
            "prev_done": self.prev_done,
            "episode_return": self.episode_return,
            "episode_length": self.episode_length,
        }

    def load(self, state: dict[str, Array]) -> None:
        """Goes on from what `state` gave."""
        for name in ("obs", "prev_done", "episode_return", "episode_length"):
            setattr(self, name, copied(state[name], like=self.prev_done))
