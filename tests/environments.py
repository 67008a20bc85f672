"""Environments for tests, registered by import: a scripted one, and one that misbehaves in every way."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Counting(gym.Env):
    """Counts: the observation is (episode's seed mod 1000, step); ends as its script says.

    Episode lengths cycle through `lengths` by the seed; odd lengths terminate, even ones are truncated.
    The reward is the step number, so that returns can be written down by hand.
    """

    lengths = (2, 5, 3, 4)

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1000.0, (2,), np.float32)
        self.action_space = spaces.Discrete(3, start=2)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.tag, self.at = seed % 1000, 0
        self.end = self.lengths[seed % len(self.lengths)]
        return self._see(), {}

    def step(self, action: int):
        assert self.action_space.contains(action), action
        self.at += 1
        over = self.at == self.end
        return self._see(), float(self.at), over and self.end % 2 == 1, over and self.end % 2 == 0, {}

    def _see(self) -> np.ndarray:
        return np.array([self.tag, self.at], np.float32)


class Doors(gym.Env):
    """Some doors are locked: an action that its mask does not allow is refused, and after an end there is none.

    how: where the mask is given.  bad: what is given instead at step `at`.  images: their shape, if any.
    """

    def __init__(
        self, nvec: list[int] | int = 4, how: str = "info", bad: str = "", at: int = 0, images: tuple = ()
    ) -> None:
        self.lengths, self.how, self.bad, self.when = np.ravel(nvec), how, bad, at
        self.action_space = spaces.Discrete(nvec, start=2) if isinstance(nvec, int) else spaces.MultiDiscrete(nvec)
        self.start = self.action_space.start if isinstance(nvec, int) else 0
        self.observation_space = spaces.Box(0, 255, images, np.uint8) if images else spaces.Box(0, 1, (3,))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.at, self.end = 0, 2 + seed % 5
        return self.observation_space.sample(), self._info()

    def step(self, action):
        for one, mask in zip(np.ravel(action - self.start), self.parts, strict=True):
            assert mask[one], f"{action} is not allowed"
        self.at += 1
        return self.observation_space.sample(), 1.0, self.at == self.end, False, self._info()

    def _info(self) -> dict[str, Any]:
        self.parts = [self.np_random.integers(2, size=n) for n in self.lengths]
        for part in self.parts:
            part[self.np_random.integers(len(part))] = 1
        self.mask = MASKS[self.bad] if self.bad and self.at == self.when else np.concatenate(self.parts)
        if self.at == self.end:
            return {"action_mask": np.zeros(2)}
        if self.how == "tuple":
            self.mask = tuple(self.parts)
        return {} if self.how == "method" or self.mask is None else {"action_mask": self.mask}

    def action_masks(self):
        if self.how != "method":
            return None
        if self.bad == "raises" and self.at == self.when:
            _raise()
        return self.mask.astype(bool)


class Private(Counting):
    """Draws from a source that no seed reaches, so that it cannot be replayed."""

    def _see(self) -> np.ndarray:
        return np.array([np.random.default_rng().uniform(0, 999), self.at], np.float32)


class Nested(gym.Env):
    """A Dict of all that can be flattened."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            position=spaces.Box(-1.0, 1.0, (2, 2), np.float64),
            kind=spaces.Discrete(3, start=1),
            flags=spaces.MultiBinary(2),
            pair=spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(0, 9, (), np.int64))),
        )
        self.action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray):
        return self.observation_space.sample(), 0.0, False, False, {}


class Misbehaving(gym.Env):
    """Well-behaved but for one thing, once, and only in the episode whose seed is `victim` (None: in all)."""

    def __init__(self, how: str, at: int = 3, victim: int | None = None) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.where, _, self.how = how.partition(" ")
        self.when, self.victim = (0 if self.where == "reset" else at), victim
        if self.where == "constructor":
            DEEDS.get(self.how, bool)()

    def close(self) -> None:
        if self.where == "close":
            DEEDS.get(self.how, bool)()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.at, self.bad = 0, self.victim in (None, seed)
        return self._result(np.zeros(3, np.float32), {})

    def step(self, action: np.ndarray):
        self.at += 1
        return self._result(np.zeros(3, np.float32), 1.0, False, False, {})

    def _result(self, *result: Any) -> Any:
        if not self.bad or self.at != self.when or self.where not in ("step", "reset"):
            return result
        if self.how in DEEDS:
            DEEDS[self.how]()
        at, value = CHANGES.get(self.how, (None, None))
        if at is not None:
            return (*result[:at], value, *result[at + 1 :])
        return {"arity": result[:-1], "nothing": None, "bare": result[0]}.get(self.how, result)


def _raise() -> None:
    raise ValueError("the pole\nfell over")


def _spin() -> None:
    while True:
        pass


def _keep() -> None:
    while True:
        ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter's lock


def _stubborn() -> None:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(1000)


class Empty(Misbehaving):
    """Has one space with nothing in it."""

    def __init__(self, which: str) -> None:
        super().__init__("well behaved")
        setattr(self, f"{which}_space", spaces.Box(-1, 1, (0,)))


class Shy(list):
    """Does not want to be seen."""

    def __repr__(self) -> str:
        raise ValueError("no")


class Mute(Exception):
    """Does not say what happened."""

    def __str__(self) -> str:
        raise ValueError("no")


def _throw(error: BaseException) -> None:
    raise error


def _torch():
    return importlib.import_module("torch")  # not with this module, which workers import too


DEEDS = {
    "closes-stdout": lambda: sys.stdout.close(),
    "replaces-stdout": lambda: setattr(sys, "stdout", None),
    "closes-1": lambda: os.closerange(1, 2),  # says nothing where it is closed
    "leaves-a-thread": lambda: threading.Thread(target=time.sleep, args=(1000,), name="left").start(),
    "leaves-a-process": lambda: subprocess.Popen(["sleep", "1000"]),
    "mute": lambda: _throw(Mute()),
    "surrogate": lambda: _throw(ValueError("\udc80")),
    "interrupts": lambda: _throw(KeyboardInterrupt()),
    "generator": lambda: _throw(GeneratorExit()),
    "cancelled": lambda: _throw(asyncio.CancelledError()),
    "no-grad": lambda: _torch().set_grad_enabled(False),
    "float64": lambda: _torch().set_default_dtype(_torch().float64),
    "threads": lambda: _torch().set_num_threads(2),
    "numpy-raises": lambda: np.seterr(all="raise"),
    "raises": _raise,
    "exits": lambda: sys.exit(3),
    "sleeps": lambda: time.sleep(1000),
    "spins": _spin,
    "stubborn": _stubborn,
    "keeps": _keep,
    "dies": lambda: os._exit(3),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
# what is returned in place of which value
CHANGES = {
    "shape": (0, np.zeros(4, np.float32)),
    "broadcast": (0, np.zeros(1, np.float32)),
    "dtype": (0, np.zeros(3, np.float64)),
    "object": (0, np.array([None] * 3)),
    "list": (0, [0.0, 0.0, 0.0]),
    "none": (0, None),
    "nan": (0, np.array([0, np.nan, 0], np.float32)),
    "inf": (0, np.array([0, -np.inf, 0], np.float32)),
    "outside": (0, np.array([0, 1.01, 0], np.float32)),
    "reward-nan": (1, float("nan")),
    "reward-inf": (1, np.float32(np.inf)),
    "reward-array": (1, np.zeros(1)),
    "reward-complex": (1, 1j),
    "reward-text": (1, "1.0"),
    "reward-none": (1, None),
    "reward-huge": (1, 1e308),
    "reward-minus": (1, -1e308),
    "reward-int": (1, 10**400),
    "reward-ragged": (1, [[1], [1, 2]]),
    "reward-shy": (1, Shy()),
    "terminated-none": (2, None),
    "terminated-float": (2, 0.0),
    "truncated-text": (3, "no"),
    "truncated-array": (3, np.zeros(1, bool)),
}

MASKS = {
    "none": None,
    "raises": None,
    "closed": np.zeros(4),
    "shape": np.ones(3, np.int8),
    "two": np.array([0, 2, 0, 1]),
    "half": np.full(4, 0.5),
    "nan": np.full(4, np.nan),
    "text": "1111",
    "ragged": [[1], [1, 0], 1, 1],
    "one dimension": np.array([1, 1, 0, 0, 0]),
}

# what happens where, and what the error must say of it
WRONG = {
    "reset raises": "reset raised ValueError: the pole fell over",
    "reset exits": "reset raised SystemExit: 3",
    "reset shape": "observation has shape (4,), expected (3,)",
    "reset dtype": "observation has dtype float64, expected float32",
    "reset bare": "reset returned a ndarray, expected (observation, info)",
    "reset nothing": "reset returned a NoneType",
    "reset nan": "observation[1] is nan",
    "step raises": "step raised ValueError: the pole fell over",
    "step exits": "step raised SystemExit: 3",
    "step arity": "step returned 4 values, expected",
    "step nothing": "step returned a NoneType",
    "step shape": "observation has shape (4,), expected (3,)",
    "step broadcast": "observation has shape (1,), expected (3,)",
    "step dtype": "observation has dtype float64, expected float32",
    "step object": "observation has dtype object, expected float32",
    "step list": "observation is list [0.0, 0.0, 0.0], expected a numpy array",
    "step none": "observation is NoneType None",
    "step nan": "observation[1] is nan",
    "step inf": "observation[1] is -inf",
    "step outside": "observation[1] is 1.01, outside its space's [-1, 1]",
    "step reward-nan": "reward is nan",
    "step reward-inf": "reward is inf",
    "step reward-array": "reward is ndarray",
    "step reward-complex": "reward is complex 1j",
    "step reward-text": "reward is str '1.0'",
    "step reward-none": "reward is NoneType None",
    "step terminated-none": "terminated is NoneType None, expected a bool",
    "step terminated-float": "terminated is float 0.0, expected a bool",
    "step truncated-text": "truncated is str 'no', expected a bool",
    "step truncated-array": "truncated is ndarray",
}

for name in ("Counting", "Private", "Nested", "Misbehaving", "Empty", "Doors"):
    gym.register(f"{name}-v0", entry_point=f"environments:{name}")
