"""One seeded, replayable, checked environment, and the loop that steps several of them into arrays."""

import contextlib
import copy
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, OrderEnforcing, TimeLimit
from numpy.typing import NDArray

from rl_natgrad.envs.errors import EnvError, RaisedEnvError, note, one_line, theirs
from rl_natgrad.envs.positions import Positions
from rl_natgrad.envs.spaces import brief
from rl_natgrad.envs.view import FIELD, MASK, METHODS, View

REAL = frozenset((float, int, np.float64, np.float32, np.int64, np.int32))
BOOL = frozenset((bool, np.bool_))
CONSTRUCTOR, CLOSE = "constructor", "close"  # what is being done with environments that are not stepped


def episode_seed(seed: int, index: int, number: int) -> int:
    """The seed of episode `number` of environment `index`: history-free, unlike the neighbouring run's.

    31 bits, because that is what Atari, envpool and `np.random.seed` accept.
    """
    return int(np.random.SeedSequence([seed, index, number]).generate_state(1)[0] >> 1)


@dataclass(frozen=True)
class Recipe:
    """What makes any environment of a run, in this process or in a worker's.

    first: which of the run's environments is number 0 here, where other processes step those before it.
    """

    id: str
    spec: EnvSpec
    kwargs: dict[str, Any]
    seed: int
    timeout: float
    frame_stack: int | None = None
    action_mask: bool = False
    first: int = 0

    @property
    def atari(self) -> bool:
        """Whether it is one of ALE's games."""
        return self.id.startswith("ALE/")

    @property
    def stack(self) -> int:
        """Observations that `View` stacks; those of Atari games come stacked."""
        return 1 if self.atari else self.frame_stack or 1

    def episode_seed(self, index: int, number: int) -> int:
        """The seed of episode `number` of environment `index`."""
        return episode_seed(self.seed, self.first + index, number)

    def where(self, index: int) -> str:
        """How errors name an environment."""
        return f"{self.id}, environment {self.first + index}"

    def build(self) -> gym.Env:
        """One environment; Atari games as Mnih et al. 2015 saw them (84 × 84, grey, 4 frames)."""
        if not self.atari:
            with _no_model_warnings(self.spec):
                return gym.make(self.spec, disable_env_checker=True, **self.kwargs)
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else a banner per environment
        env = gym.make(self.spec, disable_env_checker=True, **{"frameskip": 1, **self.kwargs})
        return FrameStackObservation(AtariPreprocessing(env), self.frame_stack or 4)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a worker, which so needs no registration; ValueError where that cannot be."""
        spec = self.spec
        entry: Any = spec.entry_point
        if not isinstance(entry, str):
            module, name = entry.__module__, entry.__qualname__
            if module == "__main__" or "<" in name:
                raise ValueError(f"a worker cannot import its entry point {module}:{name}; use sync")
            spec = copy.copy(spec)
            spec.entry_point = f"{module}:{name}"
        return {**vars(self), "spec": spec.to_json()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Recipe":
        """What `to_dict` was called on."""
        return cls(**{**plain, "spec": EnvSpec.from_json(plain["spec"])})


class Episode:
    """One environment: every reset seeded, its actions kept for replay, what it returns checked.

    number: which episode this is, from 0.  actions: what it was sent since the reset.  done: it has ended.
    """

    def __init__(self, recipe: Recipe, index: int) -> None:
        self.recipe, self.index = recipe, index
        self.number, self.done, self.terminated, self.truncated = -1, False, False, False
        self.actions: list[Any] = []
        self._build()
        view = View(self.env.observation_space, self.env.action_space, recipe.stack, recipe.action_mask)
        self.first, self.next, self.allow, self.masked = view.first, view.next, view.allow, view.masked
        if not self.masked and self.env.has_wrapper_attr(METHODS[0]):
            self._unused(f"{METHODS[0]}()")

    def _build(self) -> None:
        self.env = self.recipe.build()
        # Steps are counted and resets come first here, so Gymnasium's two outer wrappers only cost time.
        self.limit = float("inf")
        if type(self.env) is TimeLimit:
            self.limit, self.env = self.env._max_episode_steps, self.env.env
        if type(self.env) is OrderEnforcing:
            self.env = self.env.env
        # the order of contacts in a used Box2D world depends on past episodes
        self.remembers = "b2World" in [type(part).__name__ for part in vars(self.env.unwrapped).values()]

    def reset(self, out: NDArray) -> None:
        """Begins the next episode; its first observation goes into `out`."""
        if self.remembers and self.number >= 0:
            self._build()
        self.number += 1
        self.actions, self.done, self.terminated, self.truncated = [], False, False, False
        seed = self.recipe.episode_seed(self.index, self.number)
        try:
            result = self.env.reset(seed=seed)
        except BaseException as error:
            if not theirs(error):
                raise
            raise self.raised("reset", error) from error
        if type(result) is not tuple or len(result) != 2 or not isinstance(result[1], dict):
            raise self.error(f"reset returned {_arity(result)}, expected (observation, info)")
        try:
            self.first(result[0], out)
        except EnvError as error:
            raise self.error(f"reset: {error}") from error
        if self.masked:
            self._allow(result[1], out)
        elif MASK in result[1]:
            self._unused(FIELD)

    def step(self, action: Any, out: NDArray) -> float:
        """One step: its reward; the observation goes into `out`, the end into terminated, truncated, done."""
        self.actions.append(action)
        result: Any
        try:
            result = self.env.step(action)
        except BaseException as error:
            if not theirs(error):
                raise
            raise self.raised("step", error) from error
        if type(result) is not tuple or len(result) != 5:
            raise self.error(
                f"step returned {_arity(result)}, expected (observation, reward, terminated, truncated, info)"
            )
        observation, reward, terminated, truncated, info = result
        try:
            self.next(observation, out)
        except EnvError as error:
            raise self.error(str(error)) from error
        if type(reward) is not float and type(reward) not in REAL:
            reward = self._real(reward)
        if terminated is not False or truncated is not False or len(self.actions) >= self.limit:
            self._end(terminated, truncated)
        if self.masked:
            self._allow(info, out)
        return reward

    def _allow(self, info: Any, out: NDArray) -> None:
        """Writes what is allowed next behind the observation; after an end that is anything."""
        if self.done:
            self.allow(None, out)
            return
        mask, field = info.get(MASK) if isinstance(info, dict) else None, FIELD
        method = next((name for name in METHODS if mask is None and self.env.has_wrapper_attr(name)), None)
        try:
            if method:
                mask, field = self.env.get_wrapper_attr(method)(), f"{method}()"
        except BaseException as error:
            if not theirs(error):
                raise
            raise self.raised(f"{method}()", error) from error
        if mask is None:
            raise self.error(f"{FIELD} is missing, and no method {METHODS[0]}() gives one (env.action_mask)")
        try:
            self.allow(mask, out, field)
        except EnvError as error:
            raise self.error(str(error)) from error

    def _unused(self, field: str) -> None:
        note(f"{self.recipe.id} gives {field}; env.action_mask=true keeps the policy to it")

    def _end(self, terminated: Any, truncated: Any) -> None:
        if type(terminated) not in BOOL:
            raise self.error(f"terminated is {brief(terminated)}, expected a bool")
        if type(truncated) not in BOOL:
            raise self.error(f"truncated is {brief(truncated)}, expected a bool")
        self.terminated, self.truncated = bool(terminated), bool(truncated) or len(self.actions) >= self.limit
        self.done = self.terminated or self.truncated

    def sent(self) -> NDArray:
        """The actions since the reset, (length, *A) in the environment's own space."""
        space = self.env.action_space
        return np.array(self.actions, space.dtype).reshape(-1, *(space.shape or ()))

    def replay(self, number: int, actions: Iterable[Any], out: NDArray) -> None:
        """Brings a fresh environment to where episode `number` was after `actions`."""
        self.close()
        self._build()
        self.number = number - 1
        self.reset(out)
        for action in actions:
            self.step(action, out)

    def error(self, message: str) -> EnvError:
        """An error that says where: environment, episode, step."""
        return EnvError(f"{self._where()}: {message}")

    def raised(self, method: str, error: BaseException) -> RaisedEnvError:
        """The same of what one of the environment's methods raised."""
        return RaisedEnvError(f"{self._where()}: {method} raised {one_line(error)}")

    def _where(self) -> str:
        return f"{self.recipe.where(self.index)}, episode {self.number}, step {len(self.actions)}"

    def close(self) -> None:
        """Ends the environment, or says why it did not end well, which is no reason for a run to fail."""
        try:
            self.env.close()
        except BaseException as error:
            if not theirs(error):
                raise
            note(f"{self.recipe.id}: close raised {one_line(error)}")

    def _real(self, reward: Any) -> float:
        try:
            value = np.asarray(reward)
        except Exception:  # a ragged list
            value = np.array(None)
        if value.shape != () or value.dtype.kind not in "biuf":
            raise self.error(f"reward is {brief(reward)}, expected a real number")
        return float(value)


@contextlib.contextmanager
def _no_model_warnings(spec: EnvSpec) -> Iterator[None]:
    """Gymnasium's own models make MuJoCo 4 warn, once per environment, and start a MUJOCO_LOG.TXT here."""
    mujoco: Any = None
    if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        with contextlib.suppress(ImportError):
            mujoco = importlib.import_module("mujoco")
    if mujoco is None:
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _arity(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"


class Episodes:
    """Several environments stepped in turn. The row after an end is a reset row: reward 0, flags False.

    doing: what else is being done with them.
    """

    def __init__(self, recipe: Recipe, indices: range) -> None:
        self.recipe, self.indices = recipe, indices
        self.all: list[Episode] = []
        self.at, self.doing = np.full(1, indices.start), ""

    def build(self, built: Callable[[], None] = lambda: None) -> None:
        """Makes them, with a call of `built` after each."""
        self.doing = CONSTRUCTOR
        for i in self.indices:
            self.at[0] = i
            self.all.append(Episode(self.recipe, i))
            built()
        self.doing = ""

    def attach(self, obs: NDArray, *into: NDArray) -> None:
        """Where results go: obs (B, *O), reward, terminated, truncated (B,); at[0]: who is stepped."""
        self.reward, self.terminated, self.truncated, self.at = into
        self.rows = list(obs)
        self.at[0] = self.indices.start

    def position(self) -> tuple[int, int, int]:
        """Who is being stepped, and how far it is."""
        at = int(self.at[0])
        if self.doing:
            return at, -1, -1
        episode = self.all[at - self.indices.start]
        return at, episode.number, len(episode.actions)

    def hung(self, how: str) -> EnvError:
        """The error of the one being stepped, which hangs."""
        at = int(self.at[0])
        if self.doing == CLOSE:  # one is like the other, and it is said once
            return EnvError(f"{self.recipe.id}: {CLOSE} {how}")
        if self.doing:
            return EnvError(f"{self.recipe.where(at)}: {self.doing} {how}")
        episode = self.all[at - self.indices.start]
        return episode.error(f"{'step' if episode.actions else 'reset'} {how}")

    def reset(self) -> None:
        """Begins the next episode of each."""
        for episode, row in zip(self.all, self.rows, strict=True):
            self.at[0] = episode.index
            episode.reset(row)

    def step(self, actions: NDArray) -> None:
        """actions (B, …) in the environments' own space."""
        reward, terminated, truncated, at = self.reward, self.terminated, self.truncated, self.at
        terminated.fill(False)
        truncated.fill(False)
        for i, (episode, action, row) in enumerate(zip(self.all, actions, self.rows, strict=True)):
            at[0] = episode.index
            if episode.done:
                episode.reset(row)
                reward[i] = 0.0
            else:
                try:
                    reward[i] = episode.step(action, row)
                except OverflowError as error:
                    raise episode.error("reward is an int beyond a float") from error
                if episode.done:
                    terminated[i], truncated[i] = episode.terminated, episode.truncated

    def state(self) -> Positions:
        """Where each of them stands."""
        return Positions([episode.number for episode in self.all], [episode.sent() for episode in self.all])

    def load(self, positions: Positions) -> None:
        """Brings fresh environments to there."""
        for i, (episode, number, sent) in enumerate(zip(self.all, *positions, strict=True)):
            self.at[0] = episode.index
            episode.replay(number, sent, self.rows[i])
            self.reward[i], self.terminated[i], self.truncated[i] = 0.0, episode.terminated, episode.truncated

    def close(self) -> None:
        """Ends them all, once; but none after one that took too long, as the others may too."""
        self.doing = CLOSE
        closing, self.all = self.all, []
        try:
            for episode in closing:
                self.at[0] = episode.index
                episode.close()
        except EnvError as error:
            note(str(error))
