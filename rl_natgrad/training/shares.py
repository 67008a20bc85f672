"""Environments shared out to ranks: each steps its own for a whole rollout, rank 0 puts the rows together.

Nothing depends on how many ranks there are, to the bit: environments are seeded by their number in the run, each
rank draws the noise of all, and the network sees as many rows as if it were alone.  (Matrix products change their
bits with the number of rows: OpenBLAS's of 32 rows differ from those of 8 in every batch.)
"""

import traceback
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl_natgrad.config.schema import Config
from rl_natgrad.distributed.messages import Message
from rl_natgrad.distributed.ranks import Lost, Ranks
from rl_natgrad.envs.contract import Envs, Rows
from rl_natgrad.envs.errors import EnvError, EnvSetupError, RaisedEnvError, note
from rl_natgrad.envs.make import make, one_generator
from rl_natgrad.envs.positions import Positions, part
from rl_natgrad.policy.policy import Policy
from rl_natgrad.rollout.collector import Actor, Stepped, advance

ERRORS = {kind.__name__: kind for kind in (EnvError, EnvSetupError, RaisedEnvError)}


class RankTraceback(Exception):
    """The traceback of an error in another rank, as the cause of the EnvError it led to."""


def shares(cfg: Config, world: int) -> list[slice]:
    """The environments of each rank, neighbours: as many as of any other, or one fewer.

    Environments that draw from one generator are all rank 0's.
    """
    cuts = np.linspace(0, cfg.num_envs, world + 1).astype(int).tolist()
    if one_generator(cfg.env):
        cuts = [0, *[cfg.num_envs] * world]
    return [slice(a, b) for a, b in pairwise(cuts)]


class Share:
    """One rank's environments, of which there is at least one."""

    def __init__(self, envs: Envs, mine: slice, num_envs: int):
        self.envs, self.mine, self.num_envs = envs, mine, num_envs

    @classmethod
    def make(cls, cfg: Config, mine: slice) -> "Share":
        """New environments."""
        return cls(make(cfg.env, mine.stop - mine.start, cfg.seed, first=mine.start), mine, cfg.num_envs)

    def advance(self, policy: Actor, first: NDArray, rng: np.random.Generator, T: int) -> Stepped:
        """T steps of them from their observations `first`, as if all environments were here."""
        full = np.zeros((self.num_envs, *first.shape[1:]), first.dtype)

        def act(obs: NDArray, noise: NDArray) -> NDArray:
            full[self.mine] = obs
            return policy.act(full, noise)[self.mine]

        return advance(self.envs, act, first, policy.noise(rng, (T, self.num_envs)))

    def load(self, state: dict[str, Any]) -> tuple[NDArray, list[int]]:
        """Of the state of all environments, their part; their observations, and who came back different."""
        whole = self.mine == slice(0, self.num_envs)
        obs, differed = self.envs.load(state if whole else part(state, self.mine))
        return obs, [self.mine.start + i for i in differed]

    def close(self) -> None:
        """Ends them."""
        self.envs.close()


class Shared:
    """See `envs.contract.Envs`: those of all ranks, as rank 0 has them. They take whole rollouts, not steps."""

    def __init__(self, cfg: Config, ranks: Ranks):
        self.ranks, self.num_envs, self._owed = ranks, cfg.num_envs, False
        self._tell("make", config=cfg.model_dump(mode="json"))
        self.share = Share.make(cfg, shares(cfg, ranks.world)[0])
        try:
            self._answers()
        except BaseException:
            self.close()
            raise
        own = self.share.envs
        self.backend, self.restorable, self.note = own.backend, own.restorable, own.note
        self.view, self.same_step, self.last = own.view, own.same_step, None
        self.observation_space, self.action_space = own.observation_space, own.action_space
        self.raw_observation_space, self.raw_action_space = own.raw_observation_space, own.raw_action_space

    def reset(self) -> NDArray:
        """The first observations (B, *O)."""
        self._tell("reset")
        own = self.share.envs.reset()
        return np.concatenate([own, *(answer["obs"] for answer in self._answers())])

    def step(self, action: NDArray) -> Rows:
        """Raises NotImplementedError: ranks do not wait for each other at every step."""
        raise NotImplementedError("environments of several ranks are stepped by advance")

    def advance(self, policy: Policy, first: NDArray, rng: np.random.Generator, T: int) -> Stepped:
        """T steps of all environments, each rank's at the same time. See `rollout.collector.Advance`."""
        observe = {f"observe/{name}": value for name, value in policy.observe.state().items()}
        theta, state = policy.theta.detach().cpu().numpy(), rng.bit_generator.state
        self._tell("advance", theta=theta, rng=state, first=first, T=T, **observe)
        own = self.share.advance(policy, first[self.share.mine], rng, T)
        parts = [own, *(Stepped(**answer) for answer in self._answers())]
        return Stepped(*(np.concatenate(fields, axis=1) for fields in zip(*parts, strict=True)))

    def state(self) -> dict[str, Any]:
        """Where every environment stands."""
        self._tell("state")
        parts = [self.share.envs.state(), *self._answers()]
        return {
            name: np.concatenate([part[name] for part in parts]) if isinstance(value, np.ndarray) else value
            for name, value in parts[0].items()
        }

    def load(self, state: dict[str, Any]) -> tuple[NDArray, list[int]]:
        """Puts the environments of every rank there; their observations, and who came back different."""
        if state["kind"] == "replay":  # before it is cut to shares
            like = np.empty((self.num_envs, *self.observation_space.shape), self.observation_space.dtype)
            Positions.of(state, like, self.raw_action_space)
        self._tell("load", **state)
        obs, differed = self.share.load(state)
        answers = self._answers()
        differed += [i for answer in answers for i in answer["differed"]]
        return np.concatenate([obs, *(answer["obs"] for answer in answers)]), differed

    def close(self) -> None:
        """Ends the environments of every rank. Where one is in the middle of something, this process's end will
        end it."""
        self.share.close()
        if not self._owed:
            with suppress(Lost):
                self._tell("end")
                self._answers()

    def _tell(self, do: str, **what: Any) -> None:
        self._owed = True
        self.ranks.tell({"do": do, **what})

    def _answers(self) -> list[Message]:
        """Of the ranks that have environments. Raises: Lost, or the error that one of them met."""
        answers = self.ranks.answers()
        self._owed = False
        if error := error_in(answers):
            raise error
        return [answer for answer in answers if answer]


def error_in(answers: list[Message]) -> EnvError | None:
    """The first error that ranks tell of. Their notes are said, and taken out."""
    for answer in answers:
        for text in answer.pop("notes"):
            note(text)
    for answer in answers:
        if "error" in answer:
            kind, line, told = answer["error"]
            error = ERRORS[kind](line)
            error.__cause__ = RankTraceback("\n" + told)
            return error
    return None


def failure(error: EnvError) -> Message:
    """The answer of a rank that has met an error."""
    told = "".join(traceback.format_exception(error))
    return {"error": [type(error).__name__, str(error), told]}
