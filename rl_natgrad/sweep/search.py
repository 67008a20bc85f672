"""Random and Bayesian search with Optuna: a trial is one job per seed, its value their mean return."""

from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from rl_natgrad.config import compose
from rl_natgrad.config.command import Multirun
from rl_natgrad.config.overrides import expand, read
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.run import lock
from rl_natgrad.run.progress import number
from rl_natgrad.run.records import read_rows
from rl_natgrad.sweep.earlier import Earlier
from rl_natgrad.sweep.job import Job
from rl_natgrad.sweep.plan import adopt, new_job

MARKS = 10  # times in a run that the pruner compares it with others, at equal shares of total_steps
WARM_UP, FIRST = 2, 5  # the first mark at which a trial may be pruned; trials that have to end before
NOT_SEARCHED = ("search", "sweep", "runs_dir")


class Trial:
    """One of Optuna's trials and its jobs."""

    def __init__(self, asked: Any):
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

    def __init__(self, command: Multirun):
        try:
            import optuna
        except ImportError:
            raise ConfigError("search.trials needs pip install 'rl-natgrad[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self.jobs = optuna, list[Job]()
        cfg = command.config
        assert cfg.search.trials is not None  # `of` has looked
        self._keys, self._runs_dir, self._seed = cfg.search, cfg.runs_dir, cfg.seed
        self._trials_asked = cfg.search.trials
        given = read(command.overrides, sweeps=True)
        self._seeds = expand([_line(given.pop("seed"))], {}) if "seed" in given else [[]]
        self._fixed = [_line(override) for override in given.values() if not override.is_sweep_override()]
        self._space = {
            key: _distribution(optuna.distributions, override)
            for key, override in given.items() if override.is_sweep_override()
        }  # fmt: skip
        self._trials: dict[int, Trial] = {}  # by the number of a job
        self._queue: list[Job] = []

    @classmethod
    def of(cls, command: Multirun) -> "Search | None":
        return cls(command) if command.config.search.trials is not None else None

    def open(self, folder: Path) -> "Search":
        """Starts the study, or goes on with it.

        Raises: ConfigError, and the folder is gone, where it was another search or is in use.
        """
        try:
            self._open(folder)
        except ConfigError:
            folder.rmdir()
            raise
        return self

    def _open(self, folder: Path) -> None:
        optuna, keys = self._optuna, self._keys
        self._folder, self.name = folder, keys.study or folder.name
        home = folder.parent / "studies" / self.name
        known = (home / "study.db").exists()
        home.mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()
        try:
            self._held.enter_context(lock.hold(home))
        except lock.Busy as error:
            raise ConfigError(str(error)) from None
        storage = f"sqlite:///{home / 'study.db'}"
        self._study = optuna.create_study(
            storage=storage, study_name=self.name, direction="maximize", load_if_exists=True
        )
        self._check_same()
        trials = self._study.get_trials(deepcopy=False)
        self._study.sampler = self._sampler(self._seed + len(trials))  # else it would draw the same ones again
        self._study.pruner = self._pruner()
        self._earlier = Earlier([self._runs_dir]) if known else None
        for trial in trials:
            if not trial.state.is_finished():  # a search that was stopped left it
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                self._study.enqueue_trial(trial.params)
        self._left = max(self._trials_asked - len(self._done()), 0)

    def opening(self) -> str:
        jobs = f", {len(self._seeds)} jobs each" if len(self._seeds) > 1 else ""
        return f"study {self.name}: {self._left} of {self._trials_asked} trials to do{jobs}"

    def next(self) -> Job | None:
        while True:
            while self._queue:
                job = self._queue.pop(0)
                if job.outcome == "waiting" and not self._trials[job.number].pruned:
                    return job
            if self._left == 0:
                return None
            self._left -= 1
            self._ask()

    def look(self, job: Job) -> str | None:
        trial = self._trials[job.number]
        if self._keys.pruner != "none" and not trial.pruned:
            before = trial.mark
            trial.report()
            if trial.mark > before and trial.asked.should_prune():
                trial.pruned = f"pruned at {trial.mark / MARKS:.0%}: others did better there"
        return trial.pruned or None

    def ended(self, job: Job) -> None:
        """Tells Optuna once the last job of a trial has ended; one that was only stopped is left to go on."""
        trial, states = self._trials[job.number], self._optuna.trial.TrialState
        outcomes = [one.outcome for one in trial.jobs]
        if "running" in outcomes:
            return
        if trial.pruned:
            self._study.tell(trial.asked, state=states.PRUNED)
        elif "failed" in outcomes:
            self._study.tell(trial.asked, state=states.FAIL)
            self._queue = [one for one in self._queue if one not in trial.jobs]
        elif set(outcomes) == {"finished"}:
            values = [one.value for one in trial.jobs if one.value is not None]
            if len(values) < len(trial.jobs):
                self._study.tell(trial.asked, state=states.FAIL)
            else:
                self._study.tell(trial.asked, fmean(values))

    def closing(self, command: str) -> list[str]:
        done, lines = self._done(), []
        if any(trial.state.name == "COMPLETE" for trial in done):
            best = self._study.best_trial
            words = " ".join(f"{key}={value}" for key, value in best.params.items())
            lines.append(f"best    return {number(best.value)} · {words} (trial {best.number})")
        lines.append(f"study   {self.name}: {len(done)} of {self._trials_asked} trials done")
        if len(done) < self._trials_asked:
            word = f"search.study={self.name}"
            lines.append(f"go on   {command if word in command else f'{command} {word}'}")
        return lines

    def _ask(self) -> None:
        """A new trial's jobs to the queue; those that earlier runs have finished are not run again."""
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

    def _done(self) -> list[Any]:
        states = self._optuna.trial.TrialState
        return self._study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def _check_same(self) -> None:
        """A study compares trials of one search: the same fixed words, the same space, the same seeds."""
        fixed = [word for word in self._fixed if not word.startswith(NOT_SEARCHED)]
        space = {key: str(distribution) for key, distribution in self._space.items()}
        search = {"fixed": sorted(fixed), "space": space, "seeds": self._seeds}
        if self._study.user_attrs.get("search", search) != search:
            raise ConfigError(f"search.study={self.name} is another search; choose another name")
        self._study.set_user_attr("search", search)

    def _sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        if self._keys.sampler == "random":
            return samplers.RandomSampler(seed % 2**32)
        return samplers.TPESampler(seed=seed % 2**32, constant_liar=True)  # trials side by side avoid each other

    def _pruner(self) -> Any:
        pruners = self._optuna.pruners
        return pruners.NopPruner() if self._keys.pruner == "none" else pruners.MedianPruner(FIRST, WARM_UP)


def _line(override: Override) -> str:
    return override.input_line or ""


def _distribution(kinds: Any, override: Override) -> Any:
    """interval → a float (int(interval): a whole number), tag(log,…) on a log scale; all else is a choice."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        kind = kinds.IntDistribution if whole else kinds.FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    words = [word for [word] in expand([_line(override)], compose.choices())]
    if isinstance(value, RangeSweep) and all(isinstance(x, int) for x in (value.start, value.stop, value.step)):
        values = sorted(int(word.partition("=")[2]) for word in words)
        return kinds.IntDistribution(values[0], values[-1], step=abs(value.step))
    return kinds.CategoricalDistribution([word.partition("=")[2] for word in words])


def _marks(job: Job) -> list[float | None]:
    """The running return where the job passed each mark that it has passed."""
    if job.run is None:
        return []
    passed: list[float | None] = []
    last = None
    for row in read_rows(job.run):
        last = row.get("rollout/return", last)
        while len(passed) < MARKS - 1 and row["step"] >= (len(passed) + 1) * job.config.total_steps / MARKS:
            passed.append(last)
    return passed
