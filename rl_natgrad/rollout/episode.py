"""One seeded, replayable, checked environment, and the loop that steps several of them into arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from rl_natgrad.rollout.errors import EnvError, one_line
from rl_natgrad.rollout.spaces import ObservationMap, brief

REAL = frozenset((float, int, np.float64, np.float32, np.int64, np.int32))
BOOL = frozenset((bool, np.bool_))


def episode_seed(seed: int, index: int, number: int) -> int:
    """The seed of episode `number` of environment `index`: history-free, unlike the neighbouring run's.

    31 bits, because that is what Atari, envpool and `np.random.seed` accept.
    """
    return int(np.random.SeedSequence([seed, index, number]).generate_state(1)[0] >> 1)


@dataclass(frozen=True)
class Recipe:
    """What makes any environment of a run, in this process or in a worker's: plain JSON values."""

    id: str
    spec: str  # gymnasium's EnvSpec as JSON, so that a worker needs no registration
    kwargs: dict[str, Any]
    seed: int
    timeout: float

    def build(self) -> gym.Env:
        return gym.make(EnvSpec.from_json(self.spec), disable_env_checker=True, **self.kwargs)

    def to_json(self) -> str:
        return json.dumps(vars(self))


class Episode:
    """One environment: every reset seeded, its actions kept for replay, what it returns checked.

    number: which episode this is, from 0.  actions: what it was sent since the reset.  done: it has ended.
    """

    def __init__(self, recipe: Recipe, index: int) -> None:
        self.recipe, self.index = recipe, index
        self.number, self.done = -1, False
        self.actions: list[Any] = []
        self._build()
        self.observation = ObservationMap(self.env.observation_space)

    def _build(self) -> None:
        self.env = self.recipe.build()
        # Steps are counted and resets come first here, so Gymnasium's two outer wrappers only cost time.
        self.limit = float("inf")
        if type(self.env) is TimeLimit:
            self.limit, self.env = self.env._max_episode_steps, self.env.env
        if type(self.env) is OrderEnforcing:
            self.env = self.env.env

    def reset(self, out: np.ndarray) -> None:
        """Begins the next episode; its first observation goes into `out`."""
        self.number += 1
        self.actions, self.done = [], False
        seed = episode_seed(self.recipe.seed, self.index, self.number)
        try:
            result = self.env.reset(seed=seed)
        except EnvError:
            raise
        except (Exception, SystemExit) as error:
            raise self.error(f"reset raised {one_line(error)}") from error
        if type(result) is not tuple or len(result) != 2 or not isinstance(result[1], dict):
            raise self.error(f"reset returned {_arity(result)}, expected (observation, info)")
        try:
            self.observation.write(result[0], out)
        except EnvError as error:
            raise self.error(f"reset: {error}") from error

    def step(self, action: Any, out: np.ndarray) -> float:
        """One step: its reward; the observation goes into `out`, the end into terminated, truncated, done."""
        self.actions.append(action)
        try:
            result = self.env.step(action)
        except EnvError:
            raise
        except (Exception, SystemExit) as error:
            raise self.error(f"step raised {one_line(error)}") from error
        if type(result) is not tuple or len(result) != 5:
            raise self.error(
                f"step returned {_arity(result)}, expected (observation, reward, terminated, truncated, info)"
            )
        observation, reward, terminated, truncated, _ = result
        try:
            self.observation.write(observation, out)
        except EnvError as error:
            raise self.error(str(error)) from error
        if type(reward) not in REAL:
            reward = self._real(reward)
        if type(terminated) not in BOOL:
            raise self.error(f"terminated is {brief(terminated)}, expected a bool")
        if type(truncated) not in BOOL:
            raise self.error(f"truncated is {brief(truncated)}, expected a bool")
        if terminated or truncated or len(self.actions) >= self.limit:
            self.terminated, self.truncated = terminated, truncated or len(self.actions) >= self.limit
            self.done = True
        return reward

    def replay(self, number: int, actions: Iterable[Any], out: np.ndarray) -> None:
        """Brings a fresh environment to where episode `number` was after `actions`."""
        self.close()
        self._build()  # BipedalWalker's world remembers; a fresh one does not
        self.number = number - 1
        self.reset(out)
        for action in actions:
            self.step(action, out)

    def error(self, message: str) -> EnvError:
        """An error that says where: environment, episode, step."""
        where = f"{self.recipe.id}, environment {self.index}, episode {self.number}, step {len(self.actions)}"
        return EnvError(f"{where}: {message}")

    def close(self) -> None:
        self.env.close()

    def _real(self, reward: Any) -> float:
        value = np.asarray(reward)
        if value.shape != () or value.dtype.kind not in "biuf":
            raise self.error(f"reward is {brief(reward)}, expected a real number")
        return float(value)


def _arity(result: Any) -> str:
    if isinstance(result, tuple):
        return f"{len(result)} values"
    return f"a {type(result).__name__}"


class Episodes:
    """Several environments stepped in turn. The row after an end is a reset row: reward 0, flags False."""

    def __init__(self, recipe: Recipe, indices: Iterable[int]) -> None:
        self.all = [Episode(recipe, i) for i in indices]
        self.at = 0  # which one is being stepped, for the watchdog

    def attach(self, obs: np.ndarray, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray):
        """Where the results go: (B, *O), (B,), (B,), (B,)."""
        self.reward, self.terminated, self.truncated = reward, terminated, truncated
        self.rows = list(obs)

    def reset(self) -> None:
        for i, episode in enumerate(self.all):
            self.at = i
            episode.reset(self.rows[i])

    def step(self, actions: np.ndarray) -> None:
        """actions (B, …) in the environments' own space."""
        reward, terminated, truncated = self.reward, self.terminated, self.truncated
        terminated.fill(False)
        truncated.fill(False)
        for i, (episode, action, row) in enumerate(zip(self.all, actions, self.rows, strict=True)):
            self.at = i
            if episode.done:
                episode.reset(row)
                reward[i] = 0.0
            else:
                reward[i] = episode.step(action, row)
                if episode.done:
                    terminated[i], truncated[i] = episode.terminated, episode.truncated

    def replay(self, numbers: list[int], actions: list[np.ndarray]) -> None:
        for i, (episode, number, sent) in enumerate(zip(self.all, numbers, actions, strict=True)):
            self.at = i
            episode.replay(number, sent, self.rows[i])

    def snapshot(self) -> tuple[list[int], list[np.ndarray]]:
        return [e.number for e in self.all], [np.array(e.actions) for e in self.all]

    def close(self) -> None:
        for episode in self.all:
            episode.close()
