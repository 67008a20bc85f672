"""The training loop: iterate, evaluate, log, checkpoint, until the steps are done or somebody says stop."""

import contextlib
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import Config
from rl_natgrad.distributed.launch import Launch
from rl_natgrad.envs import watchdog
from rl_natgrad.envs.errors import EnvError, EnvSetupError, RaisedEnvError, note
from rl_natgrad.run import folder, lock
from rl_natgrad.run.checkpoint import Checkpoints, State
from rl_natgrad.run.errors import say
from rl_natgrad.run.logger import Logger
from rl_natgrad.run.progress import Progress
from rl_natgrad.run.records import TRACEBACK
from rl_natgrad.run.signals import Stop, Stopped
from rl_natgrad.training import cost, overlap, state
from rl_natgrad.training.iteration import Collected, NotFinite, Training
from rl_natgrad.version import __version__

if TYPE_CHECKING:
    from rl_natgrad.distributed.ranks import Ranks

GPU_PAYS = 20_000
"""Parameters: policy and critic of 5,500 each took an H200 68 ms an update and one CPU thread 44, of 72,000 they
took 78 and 255 (scripts/benchmark_device.py)."""


def start(cfg: Config, overrides: list[str], stop: Stop, launch: Launch | None = None) -> int:
    """Trains a new run. Returns the exit code: 0 finished, 1 failed, 2 refused, 130 or 143 stopped.

    launch: how this process was started as the first of several, if so.
    Raises: Stopped before anything is on disk.
    """
    with ExitStack() as stack:
        try:
            training = stack.enter_context(closing(Training(cfg, ranks(launch, stop, stack))))
        except (EnvSetupError, ConfigError) as error:
            return say(error, 2)
        except ConnectionError as error:  # another rank is lost
            return say(error, 1)
        stack.enter_context(stop.patient())
        try:
            path = folder.create(cfg.runs_dir, cfg.env.id, cfg.algo.name, cfg.seed)
            stack.enter_context(lock.hold(path))
            config = cfg.model_dump(mode="json")
            record = folder.RunRecord.start(
                path, command=folder.command_line("rl_natgrad.train"), config=config, threads=cfg.torch_threads,
                device=cfg.device, backend=training.envs.backend, restorable=training.envs.restorable,
                **told(launch),
            )  # fmt: skip
            loop = Loop(training, record, stop)
            loop.logger.hparams(config, overrides)
        except OSError as error:
            return say(error, 1)
        return loop.go()


def ranks(launch: Launch | None, stop: Stop, stack: ExitStack) -> "Ranks | None":
    """The other processes of this run, until the stack is closed; None where there are none. Raises: Lost."""
    if launch is None or launch.world == 1:
        return None
    from rl_natgrad.distributed.ranks import joined

    return stack.enter_context(joined(stop.note))


def told(launch: Launch | None) -> dict[str, Any]:
    """What a record says of it."""
    return {"launch": launch.id if launch else None, "ranks": launch.world if launch else 1}


class Loop:
    """A training with its folder, from here to its end.

    Args: before: what `State["run"]` held where the run goes on.  kept: the rows that metrics.jsonl has so far;
          None for a new run.  notes: for the person who started it.
    """

    def __init__(
        self, training: Training, record: folder.RunRecord, stop: Stop, *,
        before: State | None = None, kept: list[dict[str, Any]] | None = None, notes: tuple[str, ...] = (),
    ):  # fmt: skip
        self.cfg, self.training, self.record, self.stop, self.notes = training.cfg, training, record, stop, notes
        self.path = record.path
        before = before or {"elapsed": 0.0, "best": None, "row": {}}
        self._before, self.best = before["elapsed"], before["best"]
        self.pending = {tag: float(value) for tag, value in before["row"].items()} or None
        self.checkpoints = Checkpoints(self.path, self.cfg.checkpoint.keep, __version__)
        # The final evaluation of a finished run is a point at this very step, so that step is written again.
        self.logger = Logger(self.path, purge_step=None if kept is None else max(training.step, 1))
        self.logger.again([row for row in kept or () if row["step"] >= training.step])
        self._not_finite = sum("policy/not_finite" in row for row in kept or ())
        self.progress = Progress(self.cfg.total_steps, first_step=training.step)
        self._start = time.perf_counter()
        self._world = record.data.get("ranks", 1)
        learns_alone = self._world == 1 or self.cfg.distributed.mode == "gather"  # else no core is left idle
        self._overlaps = learns_alone and overlap.pays(self.cfg)
        self._collected: Collected | None = None  # the next update's rollout, where it came before this one's end
        self._fitting: Callable[[], dict[str, float]] | None = None  # what waits for the row of that one
        self.code: int | None = None  # once it is settled

    def go(self) -> int:
        """Trains to the end, and leaves the folder saying how it ended. Returns the exit code."""
        watchdog.last_words = self._last_words
        try:
            with self.progress:
                self._header()
                with self._beside():
                    self.code = self._to_the_end()
        except (EnvError, NotFinite, OSError) as error:
            self._failed(error)
            its_own = isinstance(error, RaisedEnvError)
            self.code = say(f"{error} (see {self.path / TRACEBACK})" if its_own else error, 1)
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self.training.close()  # whatever comes of it, and of signals meanwhile, changes nothing any more
            watchdog.last_words = watchdog.fail
        return self.code

    def _last_words(self, error: EnvError) -> int:
        """Of a process that hangs in an environment for good. Returns its exit code."""
        if self.code is None:
            with contextlib.suppress(OSError):
                self._log_fitted()
            self._failed(error)
            return watchdog.fail(error)
        note(str(error))
        return self.code

    def _to_the_end(self) -> int:
        try:
            self._train()
            self._save()
            with self.stop.at_once():
                final = self.training.evaluate(final=True, ended=self.progress.evaluating)
        except Stopped:
            if self.training.update:
                self._save()
            self._end("stopped")
            print(f"resume  python -m rl_natgrad.train resume={self._run('env.')}", flush=True)
            return self.stop.code
        self.logger.write(final, self.training.step, self.training.update)
        self._end("finished", final)
        return 0

    def _train(self) -> None:
        """Updates until the steps are done. Raises: Stopped after the update in which a signal came."""
        cfg, training = self.cfg, self.training
        while self.pending or training.step < cfg.total_steps:
            if self.pending is None:
                gathered, self._collected = training.gather(self._collected), None
                self._fitting = training.begin(gathered)
                if self._goes_straight_on():
                    try:
                        self._collected = training.collect()
                    finally:  # this update is done, whatever the environments do in the next
                        self._log_fitted()
                    continue
                self.pending, self._fitting = self._fitting(), None
            row = self.pending  # until it is logged: a stop during the evaluation saves it
            if cfg.eval.every and training.update % cfg.eval.every == 0:
                row |= self._evaluate()
            self._log(row)
            self.pending = None
            if cfg.checkpoint.every and training.update % cfg.checkpoint.every == 0:
                self._save()
            self.stop.check()

    def _goes_straight_on(self) -> bool:
        """Whether the next rollout may come before the critic's fit has ended: nothing stands between."""
        cfg, training = self.cfg, self.training
        due = any(n and training.update % n == 0 for n in (cfg.eval.every, cfg.checkpoint.every))
        ahead = self._overlaps and self._world == 1 and training.envs.backend in overlap.IDLE
        return ahead and training.step < cfg.total_steps and not due and not self.stop.number

    def _log_fitted(self) -> None:
        """The row of an update whose critic was fitted beside the next rollout, once."""
        finish, self._fitting = self._fitting, None
        if finish:
            self._log(finish())

    def _beside(self) -> contextlib.AbstractContextManager[None]:
        """While entered, the critic is fitted in another process, where that pays."""
        critic = self.training.critic
        return overlap.beside(critic, self.progress.note) if self._overlaps else contextlib.nullcontext()

    def _evaluate(self) -> dict[str, float]:
        """Evaluates, and keeps the state where that was the best so far. Raises: Stopped at once."""
        with self.stop.at_once():
            info = self.training.evaluate()
        if self.best is None or info["eval/return"] > self.best:
            self.best = info["eval/return"]
            self.checkpoints.save_best(self._state())
        return info

    def _log(self, row: dict[str, float]) -> None:
        training, elapsed = self.training, self._elapsed()
        row = row | {"time/elapsed": elapsed, "time/steps_per_second": training.step / elapsed}
        self.logger.write(row, training.step, training.update)
        self.progress.update(training.step, row)
        if "policy/not_finite" in row:
            self._not_finite += 1
            if self._not_finite == 1:
                self.progress.note(
                    f"update {training.update} took no step: its loss, KL, gradient or Fisher product was not "
                    "finite (policy/not_finite; null in metrics.jsonl)"
                )

    def _save(self) -> None:
        self.checkpoints.save(self._state(), self.training.update)

    def _state(self) -> State:
        row = {tag: np.array(float(value)) for tag, value in (self.pending or {}).items()}
        return state.of(self.training) | {"run": {"elapsed": self._elapsed(), "best": self.best, "row": row}}

    def _elapsed(self) -> float:
        """Seconds of training, earlier stretches of a resumed run included."""
        return self._before + time.perf_counter() - self._start

    def _run(self, prefix: str = "") -> str:
        """The run as a word to paste, with leave to import its environment where it needs that."""
        allowed = f" {prefix}allow_import=true" if ":" in self.cfg.env.id else ""
        return f"{shlex.quote(str(self.path))}{allowed}"

    @property
    def _runs_dir(self) -> Path:
        return self.path.parents[min(2, len(self.path.parents) - 1)]  # where the run is now, not where it was

    def _header(self) -> None:
        training, notes = self.training, [*self.notes]
        if training.envs.note:
            notes.append(training.envs.note)
        if self._world > 1:
            notes.append(f"{self._world} ranks step a share of the environments each")
            if self.cfg.overlap is True and not self._overlaps:
                notes.append("critic.overlap is off where all ranks learn, which leave no core idle")
        if not training.envs.restorable:
            notes.append(f"backend {training.envs.backend} cannot save environments: resuming starts new episodes")
        size = training.policy.theta.numel()
        if self.cfg.device != "cpu" and size < GPU_PAYS and self.cfg.env.backend != "device":
            notes.append(f"a policy of {size:,} parameters trains faster with device=cpu")
        notes += cost.notes(self.cfg, training.algorithm.learner, training.policy)
        self.progress.header(
            self.path, self._runs_dir, self.cfg.model_dump(mode="json"), device=self.cfg.device,
            threads=self.cfg.torch_threads, note="; ".join(notes) or None,
        )  # fmt: skip

    def _end(self, outcome: str, final: dict[str, float] | None = None) -> None:
        returns = (final["eval/return"], final["eval/return_std"], self.cfg.eval.episodes) if final else None
        self.logger.close(outcome)
        self.record.finish(outcome)
        self.progress.done(
            self._run(), self._runs_dir, self.training.step, outcome=outcome,
            train_return=self.training.train_return, eval_returns=returns, not_finite=self._not_finite,
        )  # fmt: skip

    def _failed(self, error: BaseException) -> None:
        self.progress.close()
        with contextlib.suppress(OSError):  # the disk may be what failed the run; `error` says so
            self.logger.close("failed")
        with contextlib.suppress(OSError):
            self.record.finish("failed", error)
