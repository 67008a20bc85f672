"""Tiny environments that each need one thing to work, so that a failure says which (after rejax's idea).

Registered by import, as probes:Name-v0.  `best` is the return of the right behaviour.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ONE, TWO = np.float32([-1.0]), np.float32([1.0])  # the two observations there are


class Probe(gym.Env):
    """One step, which terminates; a coin, tossed at the reset, decides which observation it shows."""

    action_space: spaces.Space = spaces.Discrete(2)
    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    best = 1.0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.at, self.coin = 0, bool(self.np_random.integers(2))
        return self.start(), {}

    def step(self, action):
        self.at += 1
        return self.start(), float(self.reward(action)), True, False, {}

    def start(self) -> np.ndarray:
        return TWO if self.coin else ONE

    def reward(self, action) -> float:
        raise NotImplementedError


class Constant(Probe):
    """Reward 1, whatever is seen and done. V = 1: a critic learns at all."""

    def reward(self, action):
        return 1.0


class Observation(Probe):
    """The reward is 2 or −4, by the observation. V tells them apart: the critic sees what it should."""

    def reward(self, action):
        return 2.0 if self.coin else -4.0


class Discount(Probe):
    """ONE, then TWO, then reward 1. V(TWO) = 1, V(ONE) = γ: value comes back through a step, discounted."""

    def start(self):
        return TWO if self.at else ONE

    def step(self, action):
        self.at += 1
        return TWO, float(self.at == 2), self.at == 2, False, {}


class Truncation(Probe):
    """Either TWO, reward 1, terminated; or ONE, reward 0 and a time limit that ends it at TWO.

    V(TWO) = 1 and V(ONE) = γ.  A time limit taken for a termination gives V(ONE) = 0, and so does
    bootstrapping from the state before it; from the reset that follows, a mixture of the two; and a
    termination that is bootstrapped, V(TWO) = 1/(1 − γ).
    """

    def step(self, action):
        return TWO, float(self.coin), self.coin, not self.coin, {}


class Action(Probe):
    """The reward is the action: the gradient has the right sign."""

    def reward(self, action):
        return action


class Match(Probe):
    """Reward 1 where the action is what the observation says: actions and observations belong together."""

    def reward(self, action):
        return action == self.coin


class Delayed(Probe):
    """The first of two actions earns the second step's reward: credit goes back, through λ, not past an end."""

    def start(self):
        return TWO if self.at else ONE

    def step(self, action):
        self.at += 1
        if self.at == 1:
            self.first = int(action)
        return TWO, float(self.first) * (self.at == 2), self.at == 2, False, {}


class Aim(Probe):
    """−(a − target)², the targets 0 and 2 of an action in [−1, 3]: Gaussians, and the rescaling of actions."""

    action_space = spaces.Box(-1.0, 3.0, (1,), np.float32)
    best = 0.0

    def reward(self, action):
        return -((action[0] - 2.0 * self.coin) ** 2)


class Dials(Probe):
    """The share of a MultiDiscrete([2, 3])'s dimensions that are set as the observation says."""

    action_space = spaces.MultiDiscrete([2, 3])

    def reward(self, action):
        return np.mean(action == ([1, 0] if self.coin else [0, 2]))


class Locked(Match):
    """Match with two pairs of actions, one of which must not be taken: masks are kept, in training too."""

    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        seen, info = super().reset(seed=seed)
        self.first = self.np_random.random() < 0.5
        return seen, info

    def action_masks(self):
        return np.array([self.first, self.first, not self.first, not self.first])

    def reward(self, action):
        if not self.action_masks()[action]:
            raise ValueError("the door is locked")
        return action % 2 == self.coin


class Memory(Probe):
    """ONE or TWO, then neither: the second action earns 1 where it is what the first observation said."""

    def step(self, action):
        self.at += 1
        return np.zeros(1, np.float32), float(self.at == 2 and action == self.coin), self.at == 2, False, {}


class Switches(Probe):
    """The share of a MultiBinary(3)'s switches that are set as the observation says."""

    action_space = spaces.MultiBinary(3)

    def reward(self, action):
        return np.mean(action == ([1, 0, 1] if self.coin else [0, 1, 1]))


class Endless(Probe):
    """Never ends; ONE and TWO in turn, reward 1."""

    def step(self, action):
        self.at += 1
        return (TWO if self.at % 2 else ONE), 1.0, False, False, {}


for probe in (
    Constant, Observation, Discount, Truncation, Action, Match, Delayed, Aim, Dials, Switches, Endless, Locked,
    Memory,
):  # fmt: skip
    gym.register(f"{probe.__name__}-v0", entry_point=f"probes:{probe.__name__}")
