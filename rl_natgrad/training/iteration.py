"""One training run in memory: its parts, and one iteration of them."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from rl_natgrad.algos.among import ALONE, Among
from rl_natgrad.algos.problem import Batch, Problem
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import Config
from rl_natgrad.envs.checks import Checks
from rl_natgrad.envs.contract import Envs
from rl_natgrad.envs.make import make
from rl_natgrad.rollout.arrays import Array, copied, host
from rl_natgrad.rollout.collector import Advance, Collector, Rollout
from rl_natgrad.run.checkpoint import State
from rl_natgrad.training import build, evaluation
from rl_natgrad.training.threads import use_threads

if TYPE_CHECKING:  # one process needs nothing of it
    from rl_natgrad.distributed.ranks import Ranks
    from rl_natgrad.training.sharded import Gathering, Leading, Member

GIVE_UP = 10  # updates in a row whose maths was not finite, after which the run has failed
WINDOW = 100  # episodes that a training return is the mean of


class NotFinite(RuntimeError):
    """The maths of too many updates in a row was not finite."""


class Collected(NamedTuple):
    """A rollout, and the seconds that it took."""

    rollout: Rollout
    seconds: dict[str, float]


@dataclass(frozen=True)
class Gathered:
    """A rollout and the batch made of it, from which nothing has been learned yet."""

    rollout: Rollout
    batch: Batch
    seconds: dict[str, float]  # time/collect, and of time/update what the batch took
    among: Among = ALONE  # where the batch stands among those of all ranks


class Training:
    """A run that can be stepped; state.py saves and restores it, between one `iterate` and the next.

    Args:   cfg: validated.  ranks: of this run, where it is one of several processes; this is rank 0.
    Raises: envs.errors.EnvError where the environment cannot be made, ConfigError where the device is not there
            or the solver's matrix would be too large.
    """

    def __init__(self, cfg: Config, ranks: "Ranks | None" = None):
        _check_device(cfg.device)
        use_threads(1)  # the builders give torch_threads to what is large enough
        self.cfg, self.step, self.update, self.not_finite = cfg, 0, 0, 0
        self.returns: deque[float] = deque(maxlen=WINDOW)
        with build.undisturbed():
            place = _place(cfg, ranks) if ranks else None
            self.envs: Envs = place.envs if place else make(cfg.env, cfg.num_envs, cfg.seed, cfg.device)
        self._open = ExitStack()
        self._open.callback(self.envs.close)
        try:
            self.policy = build.build_policy(cfg, self.envs.observation_space, self.envs.action_space)
            self.critic = build.build_critic(cfg, self.envs.observation_space)
            self.algorithm = build.build_algorithm(cfg, self.policy)
        except BaseException:
            self.close()
            raise
        self.fisher_rng = build.generator(cfg.seed, "fisher")
        self.part = place.part if place else None
        self.collector = place.collector(self) if place else self.collecting(self.envs)

    def collecting(self, envs: Envs, first: int = 0, advance: Advance | None = None) -> Collector:
        """What collects from these environments, which are the run's from number `first` on."""
        cfg, same_step = self.cfg, envs.same_step
        checks = Checks(cfg.env.id, envs.observation_space, same_step, first)
        rng = build.acting_generator(cfg, build.generator(cfg.seed, "actions"))
        return Collector(envs, cfg.horizon, rng, checks, same_step, advance)

    def __iter__(self) -> Iterator[dict[str, float]]:
        """The rows of one update after the other, with `step` and `update`, until `total_steps` are done."""
        while self.step < self.cfg.total_steps:
            row = self.iterate()
            yield {"step": self.step, "update": self.update} | row

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def iterate(self) -> dict[str, float]:
        """One update from one rollout. Returns what there is to log of it."""
        return self.learn_from(self.gather())

    @np.errstate(over="ignore", invalid="ignore")  # `learn` and the checks tell what is not finite
    def collect(self) -> Collected:
        """A rollout, with which the environments have moved on."""
        clock = _Clock()
        with build.undisturbed():
            rollout = self.collector.collect(self.policy)
        clock.lap("time/collect")
        return Collected(rollout, clock.laps)

    @np.errstate(over="ignore", invalid="ignore")
    def gather(self, collected: Collected | None = None) -> Gathered:
        """The first half of an update: a rollout, `collected` or a new one, and what the critic says of it."""
        rollout, seconds = collected or self.collect()
        clock = _Clock(seconds)
        batch, among = self._batch(rollout)
        clock.lap("time/update")
        return Gathered(rollout, batch, clock.laps, among)

    def learn_from(self, gathered: Gathered) -> dict[str, float]:
        """The second half: policy, critic and normaliser learn. Returns what to log of both halves.

        Raises: NotFinite, as `learn`.
        """
        return self.begin(gathered)()

    @np.errstate(over="ignore", invalid="ignore")  # the learners notice what is not finite, and say so
    def begin(self, gathered: Gathered) -> Callable[[], dict[str, float]]:
        """`learn_from` until all but the critic has learned. The function it returns waits for that, and says what
        to log; before, nothing may be asked that needs V. The environments may be stepped."""
        rollout, batch, clock = gathered.rollout, gathered.batch, _Clock(gathered.seconds)
        among, some = gathered.among, gathered.among.count(len(batch.obs)) > 0
        fitted = self.critic.begin(batch, among) if some else dict  # may go on beside what follows
        clock.lap("time/critic")
        info = self.learn(batch, among) if some else {}
        seen, (returns, lengths, steps) = rollout.obs[:-1][rollout.valid], rollout.ended
        if self.part:
            self.part.same(self.policy.theta)
            self.part.learn(self.policy.observe, seen)
            returns, lengths, steps = self.part.ended(rollout)
        else:
            self.policy.observe.update(seen)  # last: this batch was seen as before
        clock.lap("time/update")
        self.step, self.update = self.step + steps, self.update + 1
        row = self._episodes(returns, lengths) | info

        def finish() -> dict[str, float]:
            wait = _Clock(clock.laps)
            said = fitted()
            wait.lap("time/critic")
            return row | said | wait.laps

        return finish

    def batch(self, rollout: Rollout) -> Batch:
        """The rollout's steps with their advantages and returns."""
        return self._batch(rollout)[0]

    def _batch(self, rollout: Rollout) -> tuple[Batch, Among]:
        cfg, device, dtype = self.cfg, self.cfg.device, build.DTYPES[self.cfg.dtype]
        T, B = rollout.reward.shape
        flat = rollout.obs.reshape((T + 1) * B, *rollout.obs.shape[2:])
        obs = as_tensor(self.policy.observe(flat), device, dtype)
        value = self._values(obs, rollout).reshape(T + 1, B)
        adv, ret, rows = self.algorithm.estimate(rollout, value, *self._after(rollout, value))
        among: Among = self.part.among(rows, device) if self.part else ALONE
        adv = adv[rows]
        if cfg.algo.normalize_adv and among.count(len(adv)):
            adv = among.standard(adv)
        kept = torch.as_tensor(rows, device=device).flatten().nonzero().squeeze(-1)
        action = as_tensor(rollout.action[rows], device, dtype)
        batch = Batch(
            obs[: T * B][kept], action, as_tensor(adv, device, dtype),
            ret=torch.as_tensor(ret[rows], device=device), value=torch.as_tensor(value[:-1][rows], device=device),
        )  # fmt: skip
        return batch, among

    def _values(self, obs: torch.Tensor, rollout: Rollout) -> Array:
        """V(obs) (N,) float64, an array or a tensor as the rollout has."""
        value = self.critic.values(obs).double()
        return host(value) if isinstance(rollout.obs, np.ndarray) else value

    def _after(self, rollout: Rollout, value: Array) -> tuple[Array, ...]:
        """V (T, B) of what each row led to, where that is not the row after it."""
        if rollout.last is None:
            return ()
        after, obs = copied(value[1:]), self.policy.observe(rollout.last)
        after[rollout.done] = self._values(as_tensor(obs, self.cfg.device, build.DTYPES[self.cfg.dtype]), rollout)
        return (after,)

    def problem(self, batch: Batch, rows: torch.Tensor | None = None, among: Among = ALONE) -> Problem:
        """Loss, KL, gradient and Fisher around the policy as it is; of a batch that is not empty.

        Made between `gather` and `learn_from` it changes nothing of the run.  Its Fisher is of all samples, or of
        `rows` (M,), indices: the share that `fisher.fraction` gives an update is drawn within the update.
        """
        return self.algorithm.problem(self.policy, batch, rows=rows, among=among)

    def learn(self, batch: Batch, among: Among = ALONE) -> dict[str, float]:
        """The policy's step on one batch, or on those of all ranks.

        Raises: NotFinite after GIVE_UP batches in a row whose maths was not finite.
        """
        rows = self._fisher_rows(among.count(len(batch.obs)))
        update = self.algorithm.learner(self.problem(batch, rows, among))
        self.policy.become(update.theta)
        self.not_finite = 0 if update.finite else self.not_finite + 1
        if self.not_finite >= GIVE_UP:
            raise NotFinite(
                f"{GIVE_UP} updates in a row had an advantage, gradient or Fisher product that was not finite; "
                f"the policy is as it was before them (update {self.update + 1 - GIVE_UP})"
            )
        return update.info if update.finite else update.info | {"policy/not_finite": 1.0}

    def evaluate(self, *, final: bool = False, ended: evaluation.Ended = evaluation.unheard) -> dict[str, float]:
        """Returns of `eval.episodes` episodes with seeds of their own, played twice: greedily and sampled.

        final: its environments end with this training's, so that one that cannot end costs no result.
        """
        later = self._open if final else None
        return evaluation.logged(evaluation.evaluate(self.cfg, self.policy, later=later, ended=ended))

    @property
    def train_return(self) -> float | None:
        """Mean undiscounted return of the last 100 episodes; None before the first has ended."""
        return float(np.mean(self.returns)) if self.returns else None

    def close(self) -> None:
        """Ends the environments, once."""
        with build.undisturbed():
            self._open.close()

    def learned(self) -> State:
        """All its state but that of the environments: the same in every rank."""
        rng = self.collector.rng
        actions = rng.get_state() if isinstance(rng, torch.Generator) else rng.bit_generator.state
        return {
            "step": self.step, "update": self.update, "not_finite": self.not_finite, "returns": list(self.returns),
            "policy": self.policy.state(), "observe": self.policy.observe.state(),
            "critic": self.critic.state(), "learner": self.algorithm.learner.state(),
            "rng": {"actions": actions, "fisher": self.fisher_rng.bit_generator.state},
        }  # fmt: skip

    def relearn(self, state: State) -> None:
        """Goes on from what `learned` gave, but for the environments."""
        self.step, self.update, self.not_finite = state["step"], state["update"], state["not_finite"]
        self.returns = deque(state["returns"], maxlen=WINDOW)
        self.policy.load(state["policy"])
        self.policy.observe.load(state["observe"])
        self.critic.load(state["critic"])
        self.algorithm.learner.load(state["learner"])
        rng, actions = self.collector.rng, state["rng"]["actions"]
        if isinstance(rng, torch.Generator):
            rng.set_state(actions)
        else:
            rng.bit_generator.state = actions
        self.fisher_rng.bit_generator.state = state["rng"]["fisher"]

    def _episodes(self, returns: list[float], lengths: list[int]) -> dict[str, float]:
        """What there is to say of the episodes that ended; nothing where none did."""
        self.returns.extend(returns)
        if not returns:
            return {}
        return {
            "rollout/return": float(np.mean(self.returns)),
            "rollout/length": float(np.mean(lengths)),
            "rollout/episodes": len(lengths),
        }

    def _fisher_rows(self, N: int) -> torch.Tensor | None:
        """The samples that serve the Fisher, drawn once per update; None for all."""
        fraction = self.cfg.fisher.fraction if self.cfg.fisher else 1.0
        if fraction == 1:
            return None
        rows = self.fisher_rng.choice(N, max(1, round(fraction * N)), replace=False)
        return torch.from_numpy(np.sort(rows)).to(self.cfg.device)


class _Clock:
    """Seconds between one lap and the next, on top of earlier ones."""

    def __init__(self, laps: Mapping[str, float] | None = None) -> None:
        self.laps = dict(laps or {})
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = self.laps.get(name, 0.0) + now - self._last, now


def as_tensor(array: Array, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An array as a tensor on a device: floats in `dtype`, others as they are."""
    tensor = torch.as_tensor(array)
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def _place(cfg: Config, ranks: "Ranks") -> "Gathering | Leading | Member":
    from rl_natgrad.training.sharded import place

    return place(cfg, ranks)


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:  # built without CUDA; no driver, or no such device
        raise ConfigError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from error
