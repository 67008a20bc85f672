"""The training loop: iterate, evaluate, log, checkpoint, until the steps are done or somebody says stop."""

import signal
import sys
import time
from pathlib import Path

from rl_natgrad import __version__, config
from rl_natgrad.config import Config, ConfigError
from rl_natgrad.rollout.errors import EnvError, EnvSetupError
from rl_natgrad.run import checkpoint, folder
from rl_natgrad.run.checkpoint import Checkpoints
from rl_natgrad.run.logger import Logger, cut
from rl_natgrad.run.progress import Progress
from rl_natgrad.run.records import read_record
from rl_natgrad.training import NotFinite, Training

RESUMABLE = {"total_steps", "device", "eval.every", "eval.episodes", "checkpoint.every", "checkpoint.keep"}
"""What may be different when a run goes on: none of it changes the updates that are yet to come."""


def start(cfg: Config, overrides: list[str]) -> int:
    """Trains a new run. Returns the exit code: 0 finished, 1 failed, 2 refused, 130 or 143 stopped."""
    try:
        training = Training(cfg)
    except (EnvSetupError, ConfigError) as error:
        return _say(error, 2)
    try:
        path = folder.create(cfg.runs_dir, cfg.env.id, cfg.algo.name, cfg.seed)
        record = folder.RunRecord.start(
            path, command=folder.command_line("rl_natgrad.train"), config=cfg.model_dump(mode="json"),
            threads=cfg.torch_threads, device=cfg.device,
            backend=training.envs.backend, restorable=training.envs.restorable,
        )  # fmt: skip
        logger = Logger(path)
        logger.hparams(cfg.model_dump(mode="json"), overrides)
    except OSError as error:
        training.close()
        return _say(error, 1)
    return Run(cfg, training, path, record, logger).go()


def resume(path: Path, overrides: list[str]) -> int:
    """Goes on with a run from its newest checkpoint, as if it had never stopped. Returns the exit code."""
    try:
        record = read_record(path)
        cfg = config.override(config.validate(record["config"]), overrides, RESUMABLE)
        state, damaged = _newest(path)
        if record["outcome"] == "finished" and state["step"] >= cfg.total_steps:
            print(f"done    {path} has its {state['step']:,} steps; nothing is left to do")
            return 0
        training = Training(cfg)
        differed = training.load(state)
    except (EnvSetupError, ConfigError, ValueError) as error:
        return _say(error, 2)
    except OSError as error:
        return _say(error, 1)
    try:
        cut(path, training.update)
        logger = Logger(path, purge_step=training.step + 1)
        record = folder.RunRecord.resume(
            path, command=folder.command_line("rl_natgrad.train"), config=cfg.model_dump(mode="json")
        )
    except OSError as error:
        training.close()
        return _say(error, 1)
    run = Run(cfg, training, path, record, logger, elapsed=state["elapsed"], best=state["best"])
    for line in damaged:
        print(f"note    {line}; went on from the one before it")
    if differed:
        print(f"note    environments {differed} have random sources of their own: they did not come back the same")
    return run.go()


class Run:
    """A training with its folder, from here to its end."""

    def __init__(
        self, cfg: Config, training: Training, path: Path, record: folder.RunRecord, logger: Logger, *,
        elapsed: float = 0.0, best: float | None = None,
    ):  # fmt: skip
        self.cfg, self.training, self.path, self.record, self.logger = cfg, training, path, record, logger
        self.before, self.best, self.stop = elapsed, best, Stop()
        self.checkpoints = Checkpoints(path, cfg.checkpoint.keep, __version__)
        self.progress = Progress(cfg.total_steps, first_step=training.step)
        self.final: dict[str, float] = {}

    def go(self) -> int:
        """Trains to the end, and leaves the folder saying how it ended. Returns the exit code."""
        try:
            with self.stop, self.progress:
                self._header()
                self._train()
                outcome = "stopped" if self.stop.signal else "finished"
                self._end(outcome)
                return 128 + self.stop.signal if self.stop.signal else 0
        except (EnvError, NotFinite, OSError) as error:
            self._failed(error)
            return _say(error, 1)
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self.training.close()

    def _train(self) -> None:
        cfg, training, self._start = self.cfg, self.training, time.perf_counter()
        while training.step < cfg.total_steps and not self.stop.signal:
            row = training.iterate()
            if cfg.eval.every and training.update % cfg.eval.every == 0:
                row |= self._evaluate()
            row["time/elapsed"] = self.elapsed
            row["time/steps_per_second"] = training.step / row["time/elapsed"]
            self.logger.write(row, training.step, training.update)
            self.progress.update(training.step, row)
            if cfg.checkpoint.every and training.update % cfg.checkpoint.every == 0:
                self._save()

    def _end(self, outcome: str) -> None:
        self._save()
        if outcome == "finished":
            self.final = self._evaluate()
            self.logger.write(self.final, self.training.step, self.training.update)
        self.logger.close(outcome)
        self.record.finish(outcome)
        evaluated = self.final and (self.final["eval/return"], self.final["eval/return_std"], self.cfg.eval.episodes)
        self.progress.done(
            self.path, Path(self.cfg.runs_dir), self.training.step, outcome=outcome,
            train_return=self.training.train_return, eval_returns=evaluated or None,
        )  # fmt: skip
        if outcome == "stopped":
            print(f"resume  python -m rl_natgrad.train resume={self.path}", flush=True)

    def _evaluate(self) -> dict[str, float]:
        """Evaluates, and keeps the state where that was the best so far."""
        info = self.training.evaluate()
        if self.best is None or info["eval/return"] > self.best:
            self.best = info["eval/return"]
            self.checkpoints.save_best(self._state())
        return info

    def _save(self) -> None:
        self.checkpoints.save(self._state(), self.training.update)

    def _state(self) -> checkpoint.State:
        return self.training.state() | {"elapsed": self.elapsed, "best": self.best}

    @property
    def elapsed(self) -> float:
        """Seconds of training, earlier stretches of a resumed run included."""
        return self.before + time.perf_counter() - self._start

    def _header(self) -> None:
        training, notes = self.training, []
        if training.envs.note:
            notes.append(training.envs.note)
        if not training.envs.restorable:
            notes.append(f"backend {training.envs.backend} cannot save environments: resuming starts new episodes")
        self.progress.header(
            self.path, Path(self.cfg.runs_dir), self.cfg.model_dump(mode="json"), device=self.cfg.device,
            threads=self.cfg.torch_threads, note="; ".join(notes) or None,
        )  # fmt: skip

    def _failed(self, error: BaseException) -> None:
        self.progress.close()
        try:
            self.logger.close("failed")
            self.record.finish("failed", error)
        except OSError:
            pass  # the disk that failed the run; what it says is in `error`


class Stop:
    """Notes the first SIGINT or SIGTERM, so that the update in hand ends and is saved; a second one exits."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "Stop":
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number
        print("\nstop    after this update (once more: at once)", file=sys.stderr, flush=True)


def _newest(path: Path) -> tuple[checkpoint.State, list[str]]:
    """The newest whole checkpoint of a run, and what was wrong with newer ones.

    Raises: ValueError where there is none.
    """
    damaged: list[str] = []
    for file in reversed(Checkpoints(path, 1, __version__).all()):
        try:
            return checkpoint.read(file), damaged
        except checkpoint.Damaged as error:
            damaged.append(str(error))
    raise ValueError(damaged[0] if damaged else f"{path} has no checkpoint to go on from")


def _say(error: BaseException, code: int) -> int:
    """One line on standard error, and the exit code."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror} [errno {error.errno}]"
    print(f"error: {text}", file=sys.stderr, flush=True)
    return code
