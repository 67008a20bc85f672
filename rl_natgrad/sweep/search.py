"""Random and Bayesian search with Optuna: a trial is one job per seed, its value their mean return."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from rl_natgrad.config import compose
from rl_natgrad.config.command import Multirun
from rl_natgrad.config.overrides import expand, line, read
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import Config
from rl_natgrad.run import lock
from rl_natgrad.run.progress import number
from rl_natgrad.run.records import read_rows
from rl_natgrad.sweep.earlier import Earlier
from rl_natgrad.sweep.job import Job
from rl_natgrad.sweep.plan import adopt, new_job

if TYPE_CHECKING:  # an extra, imported only where something is searched
    import optuna
    from optuna.distributions import BaseDistribution

MARKS = 10  # times in a run that the pruner compares it with others, at equal shares of total_steps
WARM_UP, FIRST = 2, 5  # the first mark at which a trial may be pruned; trials that have to end before
NOT_SEARCHED = ("search", "sweep", "runs_dir")


class Trial:
    """One of Optuna's trials and its jobs.  mark: the last that was reported.  pruned: why, if it was."""

    def __init__(self, asked: "optuna.Trial"):
        self.asked, self.jobs, self.mark, self.pruned = asked, list[Job](), 0, ""

    def report(self) -> None:
        """Tells Optuna the running return at every mark that all jobs have reached since."""
        reached = [_marks(job) for job in self.jobs]
        for mark in range(self.mark + 1, min(map(len, reached)) + 1):
            values = [returns[mark - 1] for returns in reached]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                self.asked.report(fmean(known), mark)
            self.mark = mark


class Search:
    """The plan of a search: asks Optuna what to run next, and tells it what came of it."""

    def __init__(self, command: Multirun, cfg: Config, trials: int):
        try:
            import optuna
        except ImportError:
            raise ConfigError("search.trials needs pip install 'rl-natgrad[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.jobs = list[Job]()
        self._cfg, self._trials_asked = cfg, trials
        given = read(command.overrides, sweeps=True)
        self._seeds = expand([line(given.pop("seed"))], {}) if "seed" in given else [[]]
        self._fixed = [line(override) for override in given.values() if not override.is_sweep_override()]
        self._space = {key: _distribution(each) for key, each in given.items() if each.is_sweep_override()}
        self._trials: dict[int, Trial] = {}  # by the number of a job
        self._queue: list[Job] = []

    @classmethod
    def of(cls, command: Multirun) -> "Search | None":
        """The search that a command asks for, None where it asks for none. Raises: ConfigError."""
        cfg = command.config
        return cls(command, cfg, cfg.search.trials) if cfg and cfg.search.trials is not None else None

    def open(self, folder: Path) -> "Search":
        """Starts the study, or goes on with it; logs go to `folder`.

        Raises: ConfigError where it was another search, Busy where it is in use; the folder is gone then.
        """
        import optuna

        keys = self._cfg.search
        self._folder, self.name = folder, keys.study or _name(self._identity)
        home = folder.parent / "studies" / self.name
        self.database = home / "study.db"
        known = self.database.exists()
        home.mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()
        try:
            self._held.enter_context(lock.hold(home))
            self._study = optuna.create_study(
                storage=f"sqlite:///{self.database}", study_name=self.name, direction="maximize",
                load_if_exists=True,
            )  # fmt: skip
            self._check_same()
        except (ConfigError, lock.Busy):
            folder.rmdir()
            raise
        trials = self._study.get_trials(deepcopy=False)
        seed = (self._cfg.seed + len(trials)) % 2**32  # another, else it would draw the same ones again
        if keys.sampler == "random":
            self._study.sampler = optuna.samplers.RandomSampler(seed)
        else:  # the constant liar: trials side by side avoid each other
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        pruners = optuna.pruners
        self._study.pruner = pruners.NopPruner() if keys.pruner == "none" else pruners.MedianPruner(FIRST, WARM_UP)
        self._earlier = Earlier([self._cfg.runs_dir]) if known else None
        for trial in trials:
            if not trial.state.is_finished():  # a search that was stopped left it
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                self._study.enqueue_trial(trial.params)
        self._left = max(self._trials_asked - len(self._done()), 0)
        return self

    def opening(self) -> str:
        """What there is to do, as part of a line."""
        jobs = f", {len(self._seeds)} jobs each" if len(self._seeds) > 1 else ""
        return f"study {self.name}: {self._left} of {self._trials_asked} trials to do{jobs}"

    def next(self) -> Job | None:
        """A job to start, of a new trial where the others have none left; None when there is none."""
        while self._queue or self._left:
            if not self._queue:
                self._ask()
            elif (job := self._queue.pop(0)).outcome == "waiting" and not self._trials[job.number].pruned:
                return job
        return None

    def look(self, job: Job) -> str | None:
        """Why a running job may be stopped early: its trial is pruned."""
        trial = self._trials[job.number]
        if self._cfg.search.pruner != "none" and not trial.pruned:
            before = trial.mark
            trial.report()
            if trial.mark > before and trial.asked.should_prune():
                trial.pruned = f"pruned at {trial.mark / MARKS:.0%}: others did better there"
        return trial.pruned or None

    def ended(self, job: Job) -> None:
        """Tells Optuna once the last job of a trial has ended; one that was only stopped is left to go on."""
        from optuna.trial import TrialState

        trial = self._trials[job.number]
        outcomes = {one.outcome for one in trial.jobs}
        values = [one.eval_return for one in trial.jobs if one.eval_return is not None]
        if "running" in outcomes:
            return
        if trial.pruned:
            self._study.tell(trial.asked, state=TrialState.PRUNED)
        elif outcomes == {"finished"} and len(values) == len(trial.jobs):
            self._study.tell(trial.asked, fmean(values))
        elif outcomes == {"finished"} or "failed" in outcomes:
            self._study.tell(trial.asked, state=TrialState.FAIL)
            self._queue = [one for one in self._queue if one not in trial.jobs]

    def closing(self, command: str) -> list[str]:
        """The last lines: the best trial, how many are done, and how to go on where some are left."""
        done, lines = self._done(), []
        if any(trial.state.name == "COMPLETE" for trial in done):
            best = self._study.best_trial
            words = " ".join(f"{key}={value}" for key, value in best.params.items())
            lines.append(f"best    eval return {number(best.value)} · {words} (trial {best.number})")
        lines.append(f"study   {self.name}: {len(done)} of {self._trials_asked} trials done")
        if len(done) < self._trials_asked:
            lines.append(f"go on   {command}")
        return lines

    def _ask(self) -> None:
        """A new trial's jobs to the queue; those that earlier runs have finished are not run again."""
        self._left -= 1
        trial = Trial(self._study.ask(self._space))
        chosen = [f"{key}={value}" for key, value in trial.asked.params.items()]
        for seed in self._seeds:
            words = [*self._fixed, *chosen, *seed]
            label = " ".join([*chosen, *(seed if len(self._seeds) > 1 else [])])
            job = new_job(len(self.jobs) + 1, words, compose.load(words), self._folder, label)
            if self._earlier:
                adopt(job, self._earlier)
            self.jobs.append(job)
            trial.jobs.append(job)
            self._trials[job.number] = trial
            self._queue.append(job)
        self.ended(trial.jobs[-1])  # where all of it was done before

    def _done(self) -> "list[optuna.trial.FrozenTrial]":
        from optuna.trial import TrialState

        return self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def _check_same(self) -> None:
        """A study compares trials of one search: the same fixed words, the same space, the same seeds."""
        if self._study.user_attrs.get("search", self._identity) != self._identity:
            raise ConfigError(f"search.study={self.name} is another search; choose another name")
        self._study.set_user_attr("search", self._identity)

    @property
    def _identity(self) -> dict[str, Any]:
        """What makes it this search and no other."""
        fixed = [word for word in self._fixed if not word.startswith(NOT_SEARCHED)]
        space = {key: str(distribution) for key, distribution in self._space.items()}
        return {"fixed": sorted(fixed), "space": space, "seeds": self._seeds}


def _name(identity: dict[str, Any]) -> str:
    """A study's name where none is given: that of the search, so that the same command goes on with it."""
    return f"search-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}"


def _distribution(override: Override) -> "BaseDistribution":
    """interval → a float (int(interval): a whole number), tag(log,…) on a log scale; all else is a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        assert low is not None and high is not None  # the command line has looked
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(low, high, log=log)
    words = [word for [word] in expand([line(override)], compose.choices())]
    if isinstance(value, RangeSweep) and all(isinstance(x, int) for x in (value.start, value.stop, value.step)):
        values = sorted(int(word.partition("=")[2]) for word in words)
        return IntDistribution(values[0], values[-1], step=abs(int(value.step)))
    return CategoricalDistribution([word.partition("=")[2] for word in words])


def _marks(job: Job) -> list[float | None]:
    """The running return where the job passed each mark that it has passed."""
    passed: list[float | None] = []
    last = None
    for row in read_rows(job.run) if job.run else ():
        last = row.get("rollout/return", last)
        while len(passed) < MARKS - 1 and row["step"] >= (len(passed) + 1) * job.config.total_steps / MARKS:
            passed.append(last)
    return passed
