"""Going on with a run as if it had never stopped, and distrusting all that its folder says."""

import os
import stat
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from rl_natgrad.config import compose
from rl_natgrad.config.overrides import read
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import Config
from rl_natgrad.distributed.launch import Launch
from rl_natgrad.envs.errors import EnvError, EnvSetupError
from rl_natgrad.run import checkpoint, folder, lock, provenance
from rl_natgrad.run.checkpoint import FOLDER, Checkpoints, Damaged, State, fit, number, whole
from rl_natgrad.run.errors import say
from rl_natgrad.run.logger import cut
from rl_natgrad.run.records import METRICS, RECORD, read_record
from rl_natgrad.run.signals import Stop
from rl_natgrad.training import state
from rl_natgrad.training.iteration import Training
from rl_natgrad.training.loop import Loop, ranks, told
from rl_natgrad.version import __version__

RESUMABLE = {
    "total_steps", "device", "eval.every", "eval.episodes", "checkpoint.every", "checkpoint.keep",
    "env.allow_import", "critic.overlap",
}  # fmt: skip
"""What may be given anew when a run goes on: none of it changes the updates that are yet to come, but total_steps
where PPO's rate or clip falls towards it."""


def begun(cfg: Config, launch: Launch) -> Path | None:
    """The run that these processes, or those whose place they take, have begun; None where there is none."""
    where = folder.parent(cfg.runs_dir, cfg.env.id, cfg.algo.name)
    path, outcome = folder.launched(where, launch.id, cfg.model_dump(mode="json")) or (None, "")
    return path if launch.attempt or outcome != "finished" else None


def resume(where: Path, overrides: list[str], stop: Stop, launch: Launch | None = None) -> int:
    """Goes on from the newest checkpoint of the run `where`, or from the checkpoint `where`.

    A run that has none yet begins anew.  Returns the exit code; raises Stopped before anything has changed.
    """
    with ExitStack() as stack:
        try:
            loop = _prepare(where, overrides, stop, stack, launch)
        except (EnvSetupError, ValueError) as error:
            return say(error, 2)
        except (EnvError, OSError) as error:
            return say(error, 1)
        return loop.go() if loop else 0


def _prepare(
    where: Path, overrides: list[str], stop: Stop, stack: ExitStack, launch: Launch | None
) -> Loop | None:
    """The run, ready to go on; None where there is nothing left to do. `stack` gets what is to be closed."""
    path, file = _locate(where)
    _check_files(path)
    stack.enter_context(lock.hold(path))
    record = read_record(path)
    cfg = _config(path, record, overrides)
    file = file or next(reversed(Checkpoints(path, 1, __version__).all()), None)
    saved = _read(file) if file else {}
    if record.get("outcome") == "finished" and not file:
        raise ValueError(f"{path} is finished and has no checkpoint to go on from")
    if record.get("outcome") == "finished" and saved["step"] >= cfg.total_steps:
        if others := ranks(launch, stop, stack):  # who wait for what rank 0 tells
            others.tell({"do": "end"})
            others.answers()
        print(f"done    {path} has its {saved['step']:,} steps; nothing is left to do")
        return None
    training = stack.enter_context(closing(Training(cfg, ranks(launch, stop, stack))))
    before, notes = saved.pop("run", None), _changes(record)
    if file:
        try:
            fit(before, {"elapsed": number, "best": lambda node: node is None or number(node), "row": _is_row})
            differed = state.load(training, saved)
        except ValueError as error:
            raise ValueError(f"{file} does not fit {path / RECORD}: {error}") from error
        if differed:
            notes += (f"environments {differed} have random sources of their own and did not come back the same",)
    else:
        notes += ("it has no checkpoint yet: beginning anew",)
    stack.enter_context(stop.patient())
    kept = _undo(path, training, before)
    again = folder.RunRecord.resume(
        path, command=folder.command_line("rl_natgrad.train"), config=cfg.model_dump(mode="json"), **told(launch)
    )
    loop = Loop(training, again, stop, before=before, kept=kept, notes=notes)
    if not file:
        loop.logger.hparams(cfg.model_dump(mode="json"))
    return loop


def _locate(where: Path) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint where one was named."""
    where = Path.cwd() / where
    if where.parent.name == FOLDER and where.suffix == ".safetensors":
        path = where.parent.parent.resolve()
        file = path / FOLDER / where.name
    else:
        path, file = where.resolve(), None
    for needed in (path / RECORD, file or path / RECORD):
        if not needed.is_symlink() and not needed.is_file():
            raise ConfigError(f"resume must be a run folder or one of its checkpoints, got {where}: no {needed}")
    return path, file


def _check_files(path: Path) -> None:
    """Plain files in a plain folder: a symbolic link could lead out of it, and reading a pipe never ends."""
    inside = (path / FOLDER).iterdir() if (path / FOLDER).is_dir() else ()
    for entry in (path / RECORD, path / METRICS, path / lock.LOCK, path / FOLDER, *inside):
        if not os.path.lexists(entry):
            continue
        mode = entry.lstat().st_mode
        if not (stat.S_ISDIR(mode) if entry.name == FOLDER else stat.S_ISREG(mode)):
            kind = "symbolic link" if stat.S_ISLNK(mode) else "file of an unexpected kind"
            raise ValueError(f"{entry} is a {kind}; a run folder has plain files only")


def _config(path: Path, record: dict[str, Any], overrides: list[str]) -> Config:
    """The run's own configuration with what may be given anew.

    Only the command line can allow to import a module: the run folder may come from anybody.
    """
    tree = record["config"]
    allowed = read(overrides).get("env.allow_import")
    if isinstance(tree.get("env"), dict) and ":" in str(tree["env"].get("id")):
        tree["env"]["allow_import"] = bool(allowed and allowed.value() is True)
    try:
        cfg = compose.validate(tree)
    except ConfigError as error:
        raise ConfigError(f"{path / RECORD}: {error}") from None
    return compose.override(cfg, overrides, RESUMABLE)


def _read(file: Path) -> State:
    """A checkpoint that is whole. Raises: Damaged, with the way to go on from the one before it."""
    try:
        saved = checkpoint.read(file)
        if not whole()(saved.get("step")) or not whole()(saved.get("update")):
            raise Damaged(f"{file} is not a checkpoint of a run")
        if checkpoint.NAME.fullmatch(file.name) and int(file.stem) != saved["update"]:
            raise Damaged(f"{file} has another name than update {saved['update']} is saved under")
        return saved
    except Damaged as error:
        older = [f for f in Checkpoints(file.parents[1], 1, __version__).all() if f.name < file.name]
        offer = f"resume={older[-1]} goes on from the one before" if older else "there is none before it"
        raise Damaged(f"{error}; {offer}") from error


def _is_row(node: Any) -> bool:
    """Tags and numbers, of an update that was stopped in its evaluation; mostly none."""
    return isinstance(node, dict) and all(
        isinstance(value, np.ndarray) and value.shape == () and value.dtype == np.float64
        for value in node.values()
    )


def _changes(record: dict[str, Any]) -> tuple[str, ...]:
    """What makes "the same bits" impossible to promise."""
    now, then = provenance.versions(), record.get("versions")
    if not isinstance(then, dict):
        return ()
    other = [f"{name} {then[name]}, now {now.get(name)}" for name in then if then[name] != now.get(name)]
    return (f"versions have changed, so numbers may: {'; '.join(other)}"[:300],) if other else ()


def _undo(path: Path, training: Training, before: State | None) -> list[dict]:
    """What came after the checkpoint goes: later checkpoints first, so that a kill in here changes nothing.

    Returns: the rows of metrics.jsonl that are left.
    """
    for later in reversed(Checkpoints(path, 1, __version__).all()):
        if int(later.stem) > training.update:
            later.unlink()
    for left in [*path.glob(".*.tmp"), *(path / FOLDER).glob(".*.tmp")]:  # by a kill inside a save
        left.unlink()
    logged = training.update - 1 if before and before["row"] else training.update
    return cut(path, logged)
