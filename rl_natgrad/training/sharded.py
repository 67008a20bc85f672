"""Every rank keeps the samples of its environments, and all learn the same from all of them.

What is summed over ranks is in `algos.among`; who begins, in what order, and what is agreed on before, is here.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_natgrad.algos.among import Among, OneOfSeveral
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import Config
from rl_natgrad.distributed.messages import Message
from rl_natgrad.distributed.ranks import Lost, Ranks
from rl_natgrad.envs.contract import Envs
from rl_natgrad.envs.errors import EnvError
from rl_natgrad.policy.policy import Observer, Policy
from rl_natgrad.rollout.collector import Advance, Collector, Rollout, Stepped, advance
from rl_natgrad.run.checkpoint import State, encode
from rl_natgrad.training import shares
from rl_natgrad.version import __version__


class Learns(Protocol):
    """What is seen here of a training."""

    policy: Policy

    def collecting(self, envs: Envs, first: int = 0, advance: Advance | None = None) -> Collector:
        """What collects from these environments."""

    def learned(self) -> State:
        """All its state but that of the environments."""


class Diverged(Lost):
    """A rank has another θ than the others."""


class Abandoned(Exception):
    """Another rank has met an error, and nothing is learned from this rollout."""


@dataclass(frozen=True)
class Part:
    """The environments of one rank in a rollout (T, B) of all. Args: mine: its columns.  B: of all ranks."""

    ranks: Ranks
    mine: slice
    B: int

    def fill(self, own: NDArray) -> NDArray:
        """own (T, b) among those of all ranks, (T, B) float64."""
        whole = np.zeros((len(own), self.B))
        whole[:, self.mine] = own
        return self.ranks.sum(torch.from_numpy(whole)).numpy()

    def among(self, rows: NDArray, device: str) -> Among:
        """Where the samples `rows` (T, b) bool, on a device, stand among those of all ranks, row by row."""
        known = self.fill(rows)
        number = known.cumsum().reshape(known.shape)[:, self.mine][rows] - 1
        own = torch.from_numpy(number.astype(np.int64)).to(device)
        return OneOfSeveral(own, int(known.sum()), self.ranks.sum)

    def ended(self, rollout: Rollout) -> tuple[list[float], list[int], int]:
        """Returns and lengths of the episodes that ended in any rank, in order, and the steps of all."""
        returns, lengths = np.zeros(rollout.done.shape), np.zeros(rollout.done.shape)
        returns[rollout.done], lengths[rollout.done] = rollout.returns, rollout.lengths
        done, steps = self.fill(rollout.done) > 0, int(self.fill(rollout.valid).sum())
        return self.fill(returns)[done].tolist(), self.fill(lengths)[done].astype(int).tolist(), steps

    def advance(self, policy: Policy, envs: Envs, first: NDArray, rng: np.random.Generator, T: int) -> Stepped:
        """T steps of one's environments, with their part of the noise of all."""
        return advance(envs, policy.act, first, policy.noise(rng, (T, self.B))[:, self.mine])

    def collector(self, training: Learns, envs: Envs) -> Collector:
        """Of one's own environments."""
        return training.collecting(envs, self.mine.start, partial(self.advance, training.policy, envs))

    def learn(self, observe: Observer, x: NDArray) -> None:
        """The normaliser, if it is one, learns from the observations x (n, *O) of all ranks."""
        if observe.state():
            n = len(x)
            N = int(self.ranks.sum(torch.tensor(n)))
            OneOfSeveral(torch.arange(n), N, self.ranks.sum).learn(observe, torch.from_numpy(x))

    def same(self, theta: Tensor) -> None:
        """Raises: Diverged where θ is not, bit for bit, that of all ranks."""
        own = int.from_bytes(hashlib.sha256(theta.cpu().numpy().tobytes()).digest()[:4], "little")
        every = torch.zeros(self.ranks.world, dtype=torch.int64)
        every[self.ranks.rank] = own
        if len(set(self.ranks.sum(every).tolist())) > 1:
            raise Diverged("the ranks have different parameters: other processors or libraries add up differently")


class Led:
    """Rank 0's `Collector`: it begins an update in every rank, and knows where the environments of all stand.

    learned: all the state but that of the environments; the other ranks get it with their first update.
    """

    def __init__(self, own: Collector, part: Part, learned: Callable[[], State]):
        self.own, self.part, self.learned, self.rng, self._met = own, part, learned, own.rng, False

    def collect(self, policy: Policy) -> Rollout:
        """One's own rollout, once all ranks have theirs. Raises: EnvError that any of them met."""
        ranks, error = self.part.ranks, None
        sent = {} if self._met else {"learned": np.frombuffer(encode(self.learned(), __version__), np.uint8)}
        self._met = True
        ranks.tell({"do": "iterate", **sent})
        try:
            rollout = self.own.collect(policy)
        except EnvError as met:
            error = met
        error = shares.error_in(ranks.answers()) if error is None else (ranks.answers(), error)[1]
        ranks.tell({"go": error is None})
        if error:
            raise error
        return rollout

    @property
    def obs(self) -> NDArray | None:
        """Where one's own environments stand."""
        return self.own.obs

    @obs.setter
    def obs(self, obs: NDArray) -> None:
        self.own.obs = obs[self.part.mine].copy()

    def state(self) -> dict[str, NDArray]:
        """Of all environments."""
        parts = [self.own.state(), *self._asked("collector")]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def load(self, state: dict[str, NDArray]) -> None:
        """Goes on from what `state` gave, in every rank."""
        self.own.load({name: array[self.part.mine] for name, array in state.items()})
        self._asked("collect", **state)

    def _asked(self, do: str, **what: Any) -> list[Message]:
        self.part.ranks.tell({"do": do, **what})
        answers = self.part.ranks.answers()
        return [{name: value for name, value in answer.items() if name != "notes"} for answer in answers]


class Following:
    """Another rank's `Collector`."""

    def __init__(self, own: Collector, ranks: Ranks):
        self.own, self.ranks, self.rng = own, ranks, own.rng

    def collect(self, policy: Policy) -> Rollout:
        """One's own rollout, once all ranks have theirs. Raises: Abandoned where one of them has none."""
        try:
            rollout = self.own.collect(policy)
        except EnvError as error:
            self.ranks.answer(shares.failure(error))
        else:
            self.ranks.answer({})
        if not self.ranks.hear()["go"]:
            raise Abandoned
        return rollout

    @property
    def obs(self) -> NDArray | None:
        """Where one's own environments stand."""
        return self.own.obs

    @obs.setter
    def obs(self, obs: NDArray) -> None:
        self.own.obs = obs

    def state(self) -> dict[str, NDArray]:
        """Of one's own environments."""
        return self.own.state()

    def load(self, state: dict[str, NDArray]) -> None:
        """Goes on from what `state` gave."""
        self.own.load(state)


class Gathering:
    """Rank 0, which learns alone from what all have stepped."""

    part = None

    def __init__(self, cfg: Config, ranks: Ranks):
        self.envs = shares.Shared(cfg, ranks)

    def collector(self, training: Learns) -> Collector:
        """Of all environments."""
        return training.collecting(self.envs, 0, partial(self.envs.advance, training.policy))


class Leading:
    """Rank 0 of those that learn together."""

    def __init__(self, cfg: Config, ranks: Ranks):
        if shares.one_generator(cfg.env) or cfg.num_envs < ranks.world:
            raise ConfigError(
                f"distributed.mode=sharded: each of {ranks.world} ranks needs environments of its own, got "
                f"num_envs={cfg.num_envs}; native ones draw from one generator, take env.backend=sync"
            )
        self.envs = shares.Shared(cfg, ranks)
        self.part = Part(ranks, self.envs.share.mine, cfg.num_envs)

    def collector(self, training: Learns) -> Led:
        """Of one's own environments, and of where all stand."""
        return Led(self.part.collector(training, self.envs.share.envs), self.part, training.learned)


class Member:
    """Another rank of those that learn together."""

    def __init__(self, cfg: Config, ranks: Ranks):
        self.share = shares.Share.make(cfg, shares.shares(cfg, ranks.world)[ranks.rank])
        self.envs, self.part = self.share.envs, Part(ranks, self.share.mine, cfg.num_envs)

    def collector(self, training: Learns) -> Following:
        """Of one's own environments."""
        return Following(self.part.collector(training, self.envs), self.part.ranks)


def place(cfg: Config, ranks: Ranks) -> Gathering | Leading | Member:
    """What this rank is in the run."""
    if cfg.env.backend == "device":
        raise ConfigError("env.backend=device steps all environments on one device; start it without torchrun")
    if cfg.distributed.mode == "gather":
        return Gathering(cfg, ranks)
    return (Member if ranks.rank else Leading)(cfg, ranks)
