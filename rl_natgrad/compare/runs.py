"""Finding runs, reading their curves, and putting together what differs in nothing but the seed."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl_natgrad.compare.options import CompareError, Options
from rl_natgrad.compare.stats import Array
from rl_natgrad.config.refusals import did_you_mean, listing, show
from rl_natgrad.run.records import RENAMED, SWEEP, find_runs, read_record, read_rows

FAR = 0.9  # of the steps that finished runs have: an unfinished run with fewer would shorten all curves
# What says nothing about the method: who, where, how long, how observed. A longer run starts with the shorter one.
IGNORED = ("seed", "total_steps", "runs_dir", "resume", "env.timeout", "env.allow_import", "critic.overlap")
IGNORED_GROUPS = ("distributed.", "sweep.", "eval.", "checkpoint.", "versions.")
# What a run's environment and code are made of. Other libraries change last bits, not the task.
VERSIONED = ("rl_natgrad", "gymnasium", "mujoco", "box2d", "box2d-py", "ale-py", "envpool", "mujoco-warp")


@dataclass(frozen=True)
class Run:
    """One run: its flat config (versions.* beside it) and its curve; x by axis, each (n,) like y."""

    path: Path
    config: Mapping[str, object]
    x: Mapping[str, Array]
    y: Array
    steps: int = 0  # that it has trained
    outcome: str = "finished"

    @property
    def env(self) -> str:
        """The id of its environment."""
        return str(self.config["env.id"])


def read_runs(options: Options) -> tuple[list[Run], list[str]]:
    """Every run below the folders that can be compared, and a line about each that is unfinished or left out.
    Raises: CompareError where nothing is left."""
    paths = find(options.folders)
    if not paths:
        raise CompareError(f"no runs (folders with a run.json) below {', '.join(map(str, options.folders))}")
    runs, notes, tags = [], [], set()
    for path in paths:
        try:
            record, rows = read_record(path), read_rows(path)
            config = _config(path, record)
        except (OSError, ValueError) as error:
            notes.append(f"unreadable, left out: {error}")
            continue
        note, keep = _judge(path, record, rows, options)
        notes += [note] if note else []
        tags |= {tag for row in rows for tag in row}
        if keep:
            x, y = _curve(rows, RENAMED.get(options.metric, options.metric))
            if len(y):
                runs.append(Run(path, config, x, y, rows[-1]["step"], str(record.get("outcome"))))
            else:
                notes.append(f"no {options.metric} yet, left out: {path}")
    runs, said = _long_enough(runs, options.unfinished)
    notes += said
    if not runs:
        near = difflib.get_close_matches(options.metric, tags, 1) if options.metric not in tags else []
        hint = f"; did you mean metric={near[0]}?" if near else ""
        raise CompareError(f"none of the {len(paths)} runs can be compared by {options.metric}{hint}")
    return runs, notes


def find(folders: Iterable[Path]) -> list[Path]:
    """Every run below `folders`, of which a sweep's stands for its runs."""
    return find_runs(folder for given in folders for folder in _of_sweep(given))


def without_curve(path: Path) -> Run:
    """The run in folder `path`, as its record has it. Raises: OSError, ValueError where it is none."""
    return Run(path, _config(path, read_record(path)), {}, np.empty(0))


def _config(path: Path, record: Mapping) -> dict[str, object]:
    """The flat config of a run's record, versions.* beside it. Raises: ValueError where it is no run's."""
    config = _flat(record["config"]) | _flat(record.get("versions") or {}, "versions.")
    if not {"algo.name", "env.id"} <= config.keys():
        raise ValueError(f"{path}: its config names no algo.name or env.id")
    return config


def _judge(path: Path, record: Mapping, rows: Sequence[Mapping], options: Options) -> tuple[str | None, bool]:
    """What to say of a run that did not finish, and whether to keep it."""
    outcome = record.get("outcome")
    if outcome == "finished":
        return None, True
    got = f"{rows[-1]['step']:,} of {record['config'].get('total_steps', 0):,} steps" if rows else "no steps"
    if outcome == "failed":
        keep, remedy = options.failed, "" if options.failed else ", left out (failed=true keeps it)"
        return f"failed after {got}{remedy}: {path}: {record.get('error')}", keep
    if options.unfinished is False:
        return f"unfinished ({outcome}, {got}), left out: {path}", False
    return None, True  # `_long_enough` says the rest, which depends on the others


def _of_sweep(folder: Path) -> list[Path]:
    """The runs that a sweep's folder names; any other folder itself."""
    try:
        jobs = json.loads((folder / SWEEP).read_text())["jobs"]
        named = [Path(job["run"]) for job in jobs if job["run"]]
    except (OSError, ValueError, KeyError, TypeError):
        return [folder]
    runs_dir = folder.resolve().parents[1]  # moved or seen from elsewhere, runs are still three levels below it
    return [run if run.is_dir() else runs_dir.joinpath(*run.parts[-3:]) for run in named]


def _long_enough(runs: Sequence[Run], keep: bool | None) -> tuple[list[Run], list[str]]:
    """Without the unfinished runs that would shorten the range of finished ones by far, unless they are to be
    kept; and a line about each unfinished run, and about each that shortens the range."""
    kept, notes = [], []
    for run in runs:
        others = [other.steps for other in runs if other.env == run.env and other.outcome == "finished"]
        usual = min(others) if run.outcome != "finished" and others else max(others, default=0)
        got = f"{run.steps:,} of {run.config.get('total_steps', 0):,} steps"
        short = run.steps < FAR * usual
        if run.outcome == "finished":
            kept.append(run)
            notes += [f"nothing after {run.steps:,} steps is compared, as {run.path} ends there"] * short
        elif short and not keep and run.outcome != "failed":
            notes.append(f"unfinished ({run.outcome}, {got}), left out (unfinished=true keeps it): {run.path}")
        else:
            kept.append(run)
            ends = f", and nothing after these {run.steps:,} steps is compared" if short else ""
            notes += [f"unfinished ({run.outcome}, {got}){ends}: {run.path}"] * (run.outcome != "failed")
    return kept, notes


def _curve(rows: Iterable[Mapping], metric: str) -> tuple[dict[str, Array], Array]:
    """The points where the metric was said; a row without a clock (an evaluation) has the last one's time."""
    points, clock = {}, np.nan
    for row in rows:
        clock = row.get("time/elapsed") or clock
        if row.get(metric) is not None:
            points[row["update"]] = (row["step"], row["update"], clock, row[metric])
    steps, updates, seconds, y = np.array(list(points.values()), float).reshape(-1, 4).T
    x = {"steps": steps, "updates": updates}
    if np.isfinite(seconds).all():
        x["seconds"] = np.maximum.accumulate(seconds)
    return x, y


def _flat(config: Mapping, prefix: str = "") -> dict[str, object]:
    """{"algo": {"delta": 0.01}} as {"algo.delta": 0.01}; lists as JSON."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def comparisons(runs: Sequence[Run], by: Sequence[str]) -> tuple[dict[str, dict[str, list[Run]]], list[str]]:
    """Environment → label of the group → its runs; and what should be said about the groups.
    Raises: CompareError where environments or versions are mixed without being asked for."""
    environments = Counter(run.env for run in runs)
    if len(environments) > 1 and not {"env", "env.id"} & set(by):
        counts = ", ".join(f"{env} ({n})" for env, n in sorted(environments.items()))
        raise CompareError(f"the runs mix environments: {counts}; name fewer folders, or write by=env")
    words = [word for word in by if word not in ("env", "env.id", "versions")]
    keys = [_resolve(word, runs) for word in words]
    if "versions" in by:
        keys += [key for name in VERSIONED if len(_values(runs, key := f"versions.{name}")) > 1]
    groups, notes = {}, []
    for env in sorted(environments):
        inside = [run for run in runs if run.env == env]
        _refuse_mixed_versions(inside, keys)
        groups[env], said = _group(inside, keys, automatic=not words)
        notes += said
    return groups, notes


def chosen(
    groups: dict[str, dict[str, list[Run]]], options: Options
) -> dict[str, dict[str, list[Run]]]:
    """The groups that are asked for, in that order and under those names; all of them where none is named.
    Raises: CompareError where a name is no group's."""
    if not options.groups:
        return groups
    known = list(dict.fromkeys(label for members in groups.values() for label in members))
    for label in options.groups:
        if label not in known:
            hint = did_you_mean(label, known) or f"; there are {listing(known)}"
            raise CompareError(f"unknown group {show(label)}{hint}")
    names = dict(zip(options.groups, options.labels or options.groups, strict=True))
    kept = {env: {names[g]: members[g] for g in names if g in members} for env, members in groups.items()}
    return {env: members for env, members in kept.items() if members}


def is_sweep(folders: Sequence[Path]) -> bool:
    """Whether the runs are those of one sweep."""
    return len(folders) == 1 and (folders[0] / SWEEP).is_file()


def _refuse_mixed_versions(runs: Sequence[Run], keys: Sequence[str]) -> None:
    for name in VERSIONED:
        found = _values(runs, f"versions.{name}")
        if len(found) > 1 and f"versions.{name}" not in keys:
            what = f"the runs mix versions of {name}: {', '.join(sorted(map(str, found)))}"
            raise CompareError(f"{what}; name fewer folders, or write by=versions")


def _resolve(word: str, runs: Sequence[Run]) -> str:
    """The config key that a word of by= means: algo.delta, algo (its name), or delta if one key ends so."""
    known = {key for run in runs for key in run.config}
    for key in (word, f"{word}.name"):
        if key in known:
            return key
    endings = sorted(key for key in known if key.endswith(f".{word}") and not key.startswith("versions."))
    if len(endings) == 1:
        return endings[0]
    if endings:
        raise CompareError(f"by={word} may mean {' or '.join(endings)}; write the whole key")
    choices = known | {key.removesuffix(".name") for key in known} | {"env", "versions"}
    near = difflib.get_close_matches(word, sorted(choices), 1)
    raise CompareError(f"unknown key 'by={word}'" + (f"; did you mean '{near[0]}'?" if near else ""))


def _group(runs: Sequence[Run], keys: list[str], automatic: bool) -> tuple[dict[str, list[Run]], list[str]]:
    """Label → runs, by `keys`, and where `automatic` by everything else that differs too."""
    differing = _differing(runs)
    if automatic:
        keys = ["algo.name", *(key for key in [*differing, *keys] if key != "algo.name")]
    members: dict[tuple, list[Run]] = {}
    for run in runs:
        members.setdefault(_signature(run, keys), []).append(run)
    groups, notes = {}, []
    for signature, group in members.items():
        label = _label(dict(signature), [dict(other) for other in members])
        pooled = _differing(group)
        if pooled:
            notes.append(f"{label} pools runs that differ in {', '.join(pooled)}")
        else:
            group, said = _one_per_seed(label, group)
            notes += said
        groups[label] = group
    return dict(sorted(groups.items())), notes


def names(runs: Iterable[Run]) -> dict[str, Run]:
    """The runs under names for people: what differs between them, then the seed, and last the folder's name where
    that is not enough: `trpo delta=0.02 s3`, or with several environments `Acrobot-v1 trpo delta=0.02 s3`."""
    by_env: dict[str, list[Run]] = {}
    for run in runs:
        by_env.setdefault(run.env, []).append(run)
    named: dict[str, list[Run]] = {}
    for env, inside in by_env.items():
        keys = ["algo.name", *(key for key in _differing(inside) if key != "algo.name")]
        signatures = [_signature(run, keys) for run in inside]
        everyone = [dict(signature) for signature in dict.fromkeys(signatures)]
        labels = {signature: _label(dict(signature), everyone) for signature in dict.fromkeys(signatures)}
        for run, signature in zip(inside, signatures, strict=True):
            words = [*[env] * (len(by_env) > 1), labels[signature], f"s{run.config.get('seed')}"]
            named.setdefault(" ".join(words), []).append(run)
    return {
        name if len(alike) == 1 else f"{name} {run.path.name}": run
        for name, alike in named.items() for run in alike
    }  # fmt: skip


def _signature(run: Run, keys: Iterable[str]) -> tuple[tuple[str, object], ...]:
    """What tells its group: a value for each key, and the algorithm instead of a key that it does not have."""
    found = {}
    for key in keys:
        name = key if key in run.config else "algo.name"
        found[name] = run.config.get(name)
    return tuple(found.items())


def _label(signature: dict[str, object], everyone: Sequence[dict[str, object]]) -> str:
    """`trpo`, or `trpo delta=0.03` where groups of the same algorithm, and of the same choice of a section, differ
    in delta: what only follows from another optimizer's choice is not said."""
    alike = [other for other in everyone if other.get("algo.name") == signature.get("algo.name")]
    said = []
    for key in signature.keys() - {"algo.name"}:
        choice = f"{key.partition('.')[0]}.name"
        peers = alike if key == choice else [o for o in alike if o.get(choice) == signature.get(choice)]
        if "algo.name" not in signature or len({peer.get(key) for peer in peers}) > 1:
            said.append(key)
    said = [key for key in signature if key in said]
    ends = {key: key.removesuffix(".name").rsplit(".", 1)[-1] for key in said}
    count = Counter(ends.values())
    parts = [str(signature["algo.name"])] if "algo.name" in signature else []
    for key, end in ends.items():
        value = "none" if signature[key] is None else signature[key]
        parts.append(f"{end if count[end] == 1 else key}={value}".replace(", ", ","))
    return " ".join(parts)


def _one_per_seed(label: str, group: list[Run]) -> tuple[list[Run], list[str]]:
    """The unit is the seed: of several runs of one seed and config, the one that got furthest, then the latest."""
    best: dict[object, Run] = {}
    for run in sorted(group, key=lambda run: (run.x["steps"][-1], run.path.name)):
        best[run.config.get("seed", run.path)] = run
    notes = [
        f"seed {run.config.get('seed')} of {label} was run more than once, left out: {run.path}"
        for run in group if run not in best.values()
    ]  # fmt: skip
    return sorted(best.values(), key=lambda run: run.path), notes


def _differing(runs: Sequence[Run]) -> list[str]:
    """The keys of the config, bookkeeping aside, in which the runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    told = [key for key in keys if key not in IGNORED and not key.startswith(IGNORED_GROUPS)]
    return [key for key in told if len({run.config.get(key) for run in runs}) > 1]


def _values(runs: Sequence[Run], key: str) -> set:
    return {run.config[key] for run in runs if key in run.config}
