"""The ranks other than 0: each does what rank 0 tells, and says nothing."""

import signal
from contextlib import suppress
from typing import Protocol

import numpy as np
import torch

from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import Config
from rl_natgrad.distributed.launch import Launch
from rl_natgrad.distributed.messages import Message
from rl_natgrad.distributed.ranks import Lost, Ranks, joined
from rl_natgrad.envs import errors, watchdog
from rl_natgrad.envs.errors import EnvError
from rl_natgrad.rollout.collector import Stepped
from rl_natgrad.run.checkpoint import decode
from rl_natgrad.run.errors import say
from rl_natgrad.training import build
from rl_natgrad.training.iteration import NotFinite, Training
from rl_natgrad.training.sharded import Abandoned
from rl_natgrad.training.shares import Share, failure, shares
from rl_natgrad.training.threads import use_threads


class Follower(Protocol):
    """What a rank has of a run."""

    share: Share

    def do(self, do: str, asked: Message) -> Message | None:
        """Does what rank 0 tells, and returns what it waits for; None where it has had that."""


class Stepping:
    """Steps its share for rank 0, which learns alone (gather)."""

    def __init__(self, cfg: Config, mine: slice):
        use_threads(cfg.torch_threads)
        self.share = Share.make(cfg, mine)
        space = self.share.envs.observation_space
        self.policy = build.build_policy(cfg, space, self.share.envs.action_space)
        self.rng = build.generator(cfg.seed, "actions")

    def do(self, do: str, asked: Message) -> Message | None:
        """Does what `Shared` tells, and returns what it waits for."""
        envs = self.share.envs
        match do:
            case "reset":
                return {"obs": envs.reset()}
            case "advance":
                return self._advance(asked)._asdict()
            case "state":
                return envs.state()
            case "load":
                obs, differed = self.share.load(asked)
                return {"obs": obs, "differed": differed}
        raise ValueError(f"rank 0 asks for {do!r}")

    @np.errstate(over="ignore", invalid="ignore")  # as in Training.gather
    def _advance(self, asked: Message) -> Stepped:
        self.policy.load({"theta": torch.from_numpy(asked["theta"])})
        prefix = "observe/"
        self.policy.observe.load({k.removeprefix(prefix): v for k, v in asked.items() if k.startswith(prefix)})
        self.rng.bit_generator.state = asked["rng"]
        return self.share.advance(self.policy, asked["first"][self.share.mine], self.rng, asked["T"])


class Learning:
    """Keeps the samples of its share, and learns as all do (sharded)."""

    def __init__(self, cfg: Config, ranks: Ranks):
        self.training = Training(cfg, ranks)
        self.own = self.training.collector
        self.share = Share(self.training.envs, shares(cfg, ranks.world)[ranks.rank], cfg.num_envs)

    def do(self, do: str, asked: Message) -> Message | None:
        """Does what `Shared` and `Led` tell, and returns what they wait for."""
        mine = self.share.mine
        match do:
            case "iterate":
                if "learned" in asked:
                    self.training.relearn(decode(asked["learned"].tobytes(), "what rank 0 knows"))
                with suppress(Abandoned, NotFinite):  # rank 0 says why
                    self.training.iterate()
                return None
            case "reset":
                self.own.obs = obs = self.share.envs.reset().copy()
                return {"obs": obs}
            case "state":
                return self.share.envs.state()
            case "load":
                obs, differed = self.share.load(asked)
                self.own.obs = obs.copy()
                return {"obs": obs, "differed": differed}
            case "collector":
                return {**self.own.state()}
            case "collect":
                self.own.load({name: array[mine] for name, array in asked.items()})
                return {}
        raise ValueError(f"rank 0 asks for {do!r}")


def follow(launch: Launch) -> int:
    """A rank other than 0, from start to end. Returns the exit code."""
    try:
        with joined() as ranks:
            return _follow(ranks)
    except Lost as error:  # on rank 0's machine it has said why, or torchrun will
        return say(error, 1) if launch.speaks else 1


def _follow(ranks: Ranks) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 stops, after this update
        signal.signal(number, lambda number, frame: ranks.note(number))
    errors.tell = ranks.notes.append
    watchdog.last_words = lambda error: _last_words(ranks, error)
    follower: Follower | None = None
    try:
        while (do := (asked := ranks.hear()).pop("do")) != "end":
            answer: Message | None = {}
            try:
                if do == "make":
                    follower = _follower(Config.model_validate(asked["config"]), ranks)
                elif follower:
                    with build.undisturbed():
                        answer = follower.do(do, asked)
            except EnvError as error:
                answer = failure(error)
            except ConfigError:
                answer = {}  # rank 0 meets it too, and says so
            if answer is not None:
                ranks.answer(answer)
    finally:
        if follower:
            follower.share.close()
    ranks.answer({})
    return 0


def _follower(cfg: Config, ranks: Ranks) -> Follower | None:
    if cfg.distributed.mode == "sharded":
        return Learning(cfg, ranks)
    mine = shares(cfg, ranks.world)[ranks.rank]
    return Stepping(cfg, mine) if mine.stop > mine.start else None


def _last_words(ranks: Ranks, error: EnvError) -> int:
    """Of a rank that hangs in an environment for good. Returns its exit code."""
    with suppress(Lost):
        ranks.answer(failure(error))
    return 1
