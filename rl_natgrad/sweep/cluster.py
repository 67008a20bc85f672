"""Jobs on a Slurm cluster: hydra/launcher=submitit_slurm, with the keys of Hydra's plugin and our own jobs.

Hydra's launcher would run its own job loop; submitit alone does all we need: a cluster job is the same
process as a local one, with the same log and run folder, on a file system that both machines see.
"""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_natgrad.config.overrides import read
from rl_natgrad.config.refusals import ConfigError, did_you_mean, listing
from rl_natgrad.sweep.job import announced
from rl_natgrad.sweep.plan import resuming
from rl_natgrad.sweep.process import Process

if TYPE_CHECKING:  # an extra, imported only for a cluster
    import submitit
    from submitit.helpers import DelayedSubmission

CLUSTERS = {"submitit_slurm": "slurm", "submitit_local": "local"}
FIXED = ("submitit_folder", "_target_")  # ours, and Hydra's
ASK = 0.2  # seconds between two looks of a cluster job at its process


class Cluster:
    """Starts jobs through submitit. The folder of its own files is made with the first job."""

    def __init__(self, cluster: str, parameters: dict[str, Any]):
        self._cluster, self._parameters = cluster, parameters
        self._executor: submitit.AutoExecutor | None = None
        self.at_once = parameters.get("slurm_array_parallelism", 256)  # the queue does the rest

    @classmethod
    def of(cls, words: tuple[str, ...]) -> "Cluster":
        """From the words hydra/launcher=… and hydra.launcher.…=…; raises ConfigError."""
        given: dict[str, Any] = {key: each.value() for key, each in read(words, launcher=True).items()}
        name = given.pop("hydra/launcher", None)
        if name not in CLUSTERS:
            raise ConfigError(f"hydra/launcher must be {listing(CLUSTERS, 'or')}, got {name}")
        try:
            import submitit  # noqa: F401
            from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, LocalQueueConf, SlurmQueueConf
            from omegaconf import OmegaConf
            from omegaconf.errors import OmegaConfBaseException
        except ImportError as error:
            raise ConfigError(f"hydra/launcher={name} needs pip install 'rl-natgrad[slurm]' ({error})") from None
        if CLUSTERS[name] == "slurm" and shutil.which("srun") is None:  # submitit says so once the sweep has begun
            raise ConfigError(f"hydra/launcher={name} needs Slurm's srun on the PATH; start it on a login node "
                              "or leave it out to use this machine")
        tree = OmegaConf.structured(SlurmQueueConf if name == "submitit_slurm" else LocalQueueConf)
        known = [key for key in tree if key not in FIXED]
        for key, value in given.items():
            field = key.removeprefix("hydra.launcher.")
            if field not in known:
                raise ConfigError(f"hydra/launcher={name} has no key {key!r}" + did_you_mean(field, known))
            try:
                OmegaConf.update(tree, field, value)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{key}: {error}") from None
        tree.name = given.get("hydra.launcher.name", "rl_natgrad")  # the plugin's default asks Hydra
        shared = {field for field in OmegaConf.structured(BaseQueueConf) if field not in FIXED}
        values: Any = OmegaConf.to_container(tree)
        theirs = {field: field if field in shared else f"{CLUSTERS[name]}_{field}" for field in known}
        return cls(CLUSTERS[name], {theirs[field]: values[field] for field in known})

    def start(self, words: list[str], log: Path) -> "Submitted":
        """Submits a training of these words, whose output goes to `log`."""
        import submitit

        if self._executor is None:
            if self._cluster == "slurm":
                from rl_natgrad.sweep.queue import ask_who_knows

                ask_who_knows()
            parameters = dict(self._parameters)
            first = {key: parameters.pop(key) for key in list(parameters) if key.endswith("_max_num_timeout")}
            self._executor = submitit.AutoExecutor(log.parent / "submitit" / "%j", cluster=self._cluster, **first)
            self._executor.update_parameters(**parameters)
        return Submitted(self._executor.submit(Task(words, log)), log)


class Submitted:
    """A job in the queue or on a machine of the cluster, to be used like a Process."""

    def __init__(self, job: "submitit.Job[int]", log: Path):
        self._job, self._log, self._stop = job, log, _stop_file(log)

    def poll(self) -> int | None:
        """The exit code (-n for signal n), or None while it waits or runs. Its log says what the cluster did."""
        if not self._job.done():
            return None
        self._stop.unlink(missing_ok=True)
        try:
            return self._job.result()
        except Exception as error:  # its own, or submitit's: cancelled, out of memory, out of time
            if "not requeued" not in str(error):  # else it has said so itself
                _write(self._log, f"the cluster ended it ({self._job.state})")
            return 1

    def stop(self) -> None:
        """Ask it to save and end; where it waits, it never begins."""
        self._stop.touch()  # schedulers signal now one process, now all of them; a file arrives once
        if self._job.state == "PENDING":
            self._job.cancel(check=False)

    def kill(self) -> None:
        """End it, wherever it is."""
        self._job.cancel(check=False)


class Task:
    """What a machine of the cluster runs, pickled by submitit."""

    def __init__(self, words: list[str], log: Path):
        self.words, self.log = words, log.resolve()
        self._process: Process | None = None
        self._taken = False

    def __call__(self) -> int:
        """The exit code of the training, which is asked to stop once the stop file is there; 1 out of time."""
        self._process, stop = Process(self.words, self.log), _stop_file(self.log)
        asked = False
        try:
            while (code := self._process.poll()) is None:
                if stop.exists() and not asked:
                    asked = True
                    self._process.stop()
                time.sleep(ASK)
            return 1 if self._taken else code  # submitit would raise, but loses that where signals cross
        finally:
            self._process.kill()

    def checkpoint(self) -> "DelayedSubmission":
        """Called by submitit on a machine that is about to be taken away: save, and be queued again if it may."""
        from submitit.helpers import DelayedSubmission

        self._taken = True
        if self._process:
            self._process.stop()
            while self._process.poll() is None:
                time.sleep(ASK)
        _write(self.log, "its time was up (hydra.launcher.timeout_min), or its machine was needed")
        run = announced(self.log)
        words = resuming(run, "env.allow_import=true" in self.words) if run else self.words
        return DelayedSubmission(Task(words, self.log))


def _write(log: Path, error: str) -> None:
    with open(log, "a") as file:
        file.write(f"error: {error}\n")


def _stop_file(log: Path) -> Path:
    return log.with_suffix(".stop")
