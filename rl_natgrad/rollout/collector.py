"""A fixed T × B stream of experience from B environments that never wait for each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rl_natgrad.envs.contract import Envs


class Actor(Protocol):
    """What the collector sees of a policy."""

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
        """The randomness of as many actions, (*shape, …)."""

    def act(self, obs: NDArray, noise: NDArray) -> NDArray:
        """Actions (B, *A) on observations (B, *O), with that randomness (B, …)."""


Check = Callable[[NDArray, NDArray, NDArray, NDArray], None]
"""Looks at obs (T+1, B, *O), reward (T, B) and done (T, B) before anything is learned from them, and raises where
an environment misbehaved.  length (B,): steps of the episodes that go on in row 0, −1 where that is the reset."""


@dataclass(frozen=True)
class Rollout:
    """T × B rows. Row t is the step from obs[t] by action[t] to obs[t + 1].

    After a row that is `done`, obs[t + 1] is the episode's last observation, and row t + 1 is the reset:
    not a step of any episode, so not `valid`.
    """

    obs: NDArray  # (T+1, B, *O)
    action: NDArray  # (T, B, *A)
    reward: NDArray  # (T, B) float64, raw
    terminated: NDArray  # (T, B) bool
    done: NDArray  # (T, B) bool, terminated or truncated
    valid: NDArray  # (T, B) bool
    returns: list[float]  # of the episodes that ended here, undiscounted, in order
    lengths: list[int]

    @property
    def steps(self) -> int:
        """Environment steps: valid rows."""
        return int(self.valid.sum())


@dataclass
class Collector:
    """Steps `envs` with a policy, and keeps the place between one `collect()` and the next.

    Args: horizon: T.  rng: of the actions' noise.
    """

    envs: Envs
    horizon: int
    rng: np.random.Generator
    check: Check = lambda *rows: None
    obs: NDArray | None = field(default=None, init=False)  # (B, *O), where the next rollout starts
    prev_done: NDArray = field(init=False)  # (B,) bool: the next row is a reset
    episode_return: NDArray = field(init=False)  # (B,) so far
    episode_length: NDArray = field(init=False)

    def __post_init__(self) -> None:
        B = self.envs.num_envs
        self.prev_done = np.zeros(B, bool)
        self.episode_return, self.episode_length = np.zeros(B), np.zeros(B, np.int64)

    def collect(self, policy: Actor) -> Rollout:
        """T rows from each environment. The arrays belong to the caller."""
        T, B = self.horizon, self.envs.num_envs
        first, step, act = self._first(), self.envs.step, policy.act
        noise = policy.noise(self.rng, (T, B))
        obs = np.empty((T + 1, *first.shape), first.dtype)
        reward, terminated, truncated = np.empty((T, B)), np.empty((T, B), bool), np.empty((T, B), bool)
        obs[0] = first
        for t in range(T):
            a = act(obs[t], noise[t])
            if t == 0:
                action = np.empty((T, *a.shape), a.dtype)
            action[t] = a
            obs[t + 1], reward[t], terminated[t], truncated[t] = step(a)
        done = terminated | truncated
        self.check(obs, reward, done, np.where(self.prev_done, -1, self.episode_length))
        valid = ~np.concatenate([self.prev_done[None], done[:-1]])
        returns, lengths = self._episodes(reward, done, valid)
        self.obs, self.prev_done = obs[T].copy(), done[-1].copy()
        return Rollout(obs, action, reward, terminated, done, valid, returns, lengths)

    def _episodes(self, reward: NDArray, done: NDArray, valid: NDArray) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes that ended, and those of the open ones carried on."""
        sums = self.episode_return + np.cumsum(np.where(valid, reward, 0.0), 0)
        counts = self.episode_length + np.cumsum(valid, 0)
        ends = np.argwhere(done)
        # environment → sum and count at its last end, which were not reset in the running sums
        before: dict[int, tuple[float, int]] = {}
        returns, lengths = [], []
        for t, i in ends:
            s, n = before.get(i, (0.0, 0))
            returns.append(float(sums[t, i] - s))
            lengths.append(int(counts[t, i] - n))
            before[i] = (sums[t, i], counts[t, i])
        self.episode_return, self.episode_length = sums[-1].copy(), counts[-1].copy()
        for i, (s, n) in before.items():
            self.episode_return[i] -= s
            self.episode_length[i] -= n
        return returns, lengths

    def _first(self) -> NDArray:
        """Where the next rollout starts; the first one resets the environments."""
        if self.obs is None:
            self.obs = self.envs.reset().copy()
        return self.obs

    def state(self) -> dict[str, NDArray]:
        """What a later `load` needs besides the environments' own state (ask for that one after this) and
        the generator's state."""
        return {
            "obs": self._first(),
            "prev_done": self.prev_done,
            "episode_return": self.episode_return,
            "episode_length": self.episode_length,
        }

    def load(self, state: dict[str, NDArray]) -> None:
        """Goes on from what `state` gave."""
        for name in ("obs", "prev_done", "episode_return", "episode_length"):
            setattr(self, name, state[name].copy())
