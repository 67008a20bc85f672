"""CartPole that ends some jobs of a sweep, in every way there is: sweep_environments:Sweep-v0."""

from __future__ import annotations

import os
import signal
import sys
import time

import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class Fails(CartPoleEnv):
    """Fails in its 150th step where `job` is a key of DEEDS, unless the variable SWEEP_FIXED is set.

    Its step takes the seconds in SWEEP_SLOW: variables do not change a run's configuration.
    """

    def __init__(self, job: int = 0) -> None:
        super().__init__()
        self.job, self.steps = job, 0

    def step(self, action):
        self.steps += 1
        if self.steps == 150 and "SWEEP_FIXED" not in os.environ:
            DEEDS.get(self.job, lambda: None)()
        time.sleep(float(os.environ.get("SWEEP_SLOW", 0)))
        return super().step(action)


def _raise() -> None:
    raise ValueError("the pole fell over")


DEEDS = {
    2: _raise,
    5: lambda: sys.exit(3),
    8: lambda: os.kill(os.getpid(), signal.SIGKILL),
    11: lambda: time.sleep(1000),
}
gym.register("Sweep-v0", entry_point="sweep_environments:Fails", max_episode_steps=500)
