"""Vector environments: made with defaults and played; and a scripted one, whose every number is known."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rl_natgrad.envs import make as envs

TESTS = Path(__file__).parent


def make(id, backend="sync", num_envs=3, seed=0, timeout=60.0, frame_stack=None, action_mask=False, **kwargs):
    cfg = SimpleNamespace(
        id=id, backend=backend, allow_import=True, timeout=timeout, kwargs=kwargs, frame_stack=frame_stack,
        action_mask=action_mask, stagger=False,
    )  # fmt: skip
    return envs.make(cfg, num_envs, seed)


def actions(e, steps, seed=0):
    e.action_space.seed(seed)
    return [np.stack([e.action_space.sample() for _ in range(e.num_envs)]) for _ in range(steps)]


def play(e, sent):
    """The rows of those actions: (obs, reward, terminated, truncated), copied."""
    return [tuple(x.copy() for x in e.step(a)) for a in sent]


def same(left, right):
    return all(
        (x.tobytes(), x.dtype) == (y.tobytes(), y.dtype)
        for p, q in zip(left, right, strict=True)
        for x, y in zip(p, q, strict=True)
    )


def run(code):
    """A program of its own, from the checkout."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TESTS.parent)


class Script:
    """B environments whose episodes have the given lengths, over and over; NEXT_STEP.

    obs = (environment, episode, step).  Step s of episode e of environment i earns 100 i + 10 e + s.
    Episodes of odd number are truncated, the others terminate.  One set of arrays serves all steps.
    """

    def __init__(self, *lengths):
        self.lengths, self.num_envs, self.calls = lengths, len(lengths), 0
        B = self.num_envs
        self.obs = np.zeros((B, 3), np.float32)
        self.out = np.zeros(B), np.zeros(B, bool), np.zeros(B, bool)
        self.episode, self.at, self.over = np.zeros(B, int), np.zeros(B, int), np.zeros(B, bool)

    def reset(self):
        return self._see()

    def step(self, action):
        self.calls += 1
        reward, terminated, truncated = self.out
        terminated[:], truncated[:] = False, False
        for i in range(self.num_envs):
            if self.over[i]:
                self.episode[i], self.at[i], self.over[i], reward[i] = self.episode[i] + 1, 0, False, 0.0
                continue
            self.at[i] += 1
            reward[i] = 100 * i + 10 * self.episode[i] + self.at[i]
            self.over[i] = self.at[i] == self.lengths[i][self.episode[i] % len(self.lengths[i])]
            (truncated if self.episode[i] % 2 else terminated)[i] = self.over[i]
        return self._see(), *self.out

    def _see(self):
        self.obs[:] = np.stack([np.arange(self.num_envs), self.episode, self.at], 1)
        return self.obs
