"""From `key=value` overrides, or a stored mapping, to a checked Config or one line that says what is wrong.

Hydra composes the chosen files of configs/; the keys given are then set on the result one by one, so that
nothing can be added, removed or instantiated, and each refusal can name its key.
"""

import copy
import functools
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from rl_natgrad.config.explain import belongs, explain, unknown
from rl_natgrad.config.overrides import read
from rl_natgrad.config.refusals import ConfigError, did_you_mean, listing, show
from rl_natgrad.config.schema import DEPENDENT, MODELS, Config, Env

OWN = "RL_NATGRAD_CONFIG_DIR"
"""The environment variable that tells a sweep's jobs of one's own folder of files."""


def load(overrides: Iterable[str]) -> Config:
    """The configuration that `key=value` overrides give; raises ConfigError if anything in them is wrong."""
    values = {key: given.value() for key, given in read(overrides).items()}
    env, key = values.get("env"), "env.id" if "env.id" in values else "env"
    if isinstance(env, str) and env not in choices()["env"]:  # an id: its own file, or the default one
        values["env"] = _env_files().get(env, "default")
        if values["env"] == "default":
            if "env.id" in values:
                raise ConfigError(f"env.id is given twice: env={env} and env.id={values['env.id']}")
            values["env.id"] = env
    files = {group: choice(group, values.pop(group)) for group in choices() if group in values}
    tree = copy.deepcopy(_compose(**files))
    for name, value in values.items():
        _assign(tree, name, value)
    config = validate(tree)
    _check_id(key, config.env)
    return config


def validate(tree: dict[str, Any]) -> Config:
    """The configuration in a plain mapping, for example one read back from run.json."""
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        raise ConfigError(explain(e.errors(include_url=False)[0])) from None


def override(config: Config, overrides: Iterable[str], allowed: Collection[str]) -> Config:
    """A stored configuration with `key=value` overrides set, of which only the allowed keys may be named."""
    tree = config.tree()
    for key, given in read(overrides).items():
        if key not in choices():
            _assign(tree, key, given.value())  # first, so that an unknown key is answered as such
        if key not in allowed:
            raise ConfigError(f"{key} is fixed by the run that is resumed, got {given.input_line}; "
                              f"{listing(sorted(allowed))} can change")
    return validate(tree)


@functools.cache
def config_dir() -> Path:
    """The folder of train.yaml: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "configs", package.parent / "configs")
    for folder in folders:
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no train.yaml in {folders[0]} or {folders[1]}; the installation is incomplete")


def use_config_dir(folder: str | None) -> None:
    """Adds the files of a folder's env/, algo/, … to the shipped ones, here and in the processes of a sweep.

    None: those of ./configs, where that has any and is no checkout's.
    Raises: ConfigError where the folder has no such files.
    """
    found = Path(folder or "configs").resolve()
    if folder is None and (OWN in os.environ or (found / "train.yaml").exists()):  # a sweep's job, or a checkout
        return
    groups = {group.name for group in config_dir().iterdir() if group.is_dir()}
    has = {file.parent.name for file in found.glob("*/*.yaml")} & groups
    if folder is not None and not has:
        raise ConfigError(f"--config-dir takes a folder with files such as {sorted(groups)[0]}/mine.yaml, got "
                          f"{show(folder)}; the groups are {listing(sorted(groups))}")
    if has:
        os.environ[OWN] = str(found)
        for cached in (choices, _compose, _env_files):
            cached.cache_clear()


def folders() -> list[Path]:
    """The shipped files' folder, and one's own."""
    return [config_dir(), *([Path(os.environ[OWN])] if os.environ.get(OWN) else [])]


def file(group: str, name: str) -> Path:
    """The file of a choice, which `choices` names."""
    return next(path for folder in folders() if (path := folder / group / f"{name}.yaml").is_file())


@functools.cache
def choices() -> dict[str, list[str]]:
    """The files of each group, by name: {"algo": ["npg", "pg", …], …}.

    Raises: ConfigError where one's own file has the name of a shipped one.
    """
    found: dict[str, list[str]] = {}
    for group in sorted(folder.name for folder in config_dir().iterdir() if folder.is_dir()):
        files = [path for folder in folders() for path in sorted((folder / group).glob("*.yaml"))]
        names = [path.stem for path in files]
        if twice := [path for path in files if names.count(path.stem) > 1]:
            raise ConfigError(f"{twice[-1]} has the name of a shipped file; call it something else")
        found[group] = sorted(names)
    return found


def choice(group: str, value: Any) -> str:
    """The value, if it is the name of a file of the group; raises ConfigError."""
    names = choices()[group]
    if value not in names:
        raise ConfigError(f"{group} must be {listing(names, 'or')}, got {show(value)}"
                          + did_you_mean(str(value), names))
    return value


@functools.cache  # a sweep over seeds composes once
def _compose(**files: str) -> dict[str, Any]:
    """What these files say, before any key is set."""
    always = {group: name for group, name in files.items() if group not in DEPENDENT}
    if lacking := [group for group in files if group not in always and group not in _compose(**always)]:
        raise ConfigError(belongs(lacking[0], _compose(**always)))
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            own = [f"hydra.searchpath=[file://{folder}]" for folder in folders()[1:]]
            tree = compose("train", [*own, *(f"{group}={name}" for group, name in files.items())])
            return _fitting(_for_algo(OmegaConf.to_container(tree, resolve=True)))  # type: ignore[arg-type]
    except (HydraException, OmegaConfBaseException) as e:
        where = " or ".join(map(str, folders()))
        raise ConfigError(f"{where} does not compose: {' '.join(str(e).split())}") from None


def _for_algo(tree: dict[str, Any]) -> dict[str, Any]:
    """An environment's file may have settings `for:` single algorithms; those of the chosen one are set.

    A section of them that says `name:` is for that choice alone, such as Adam's rate and not SGD's.
    """
    settings = tree.pop("for", {})
    if wrong := [name for name in settings if name not in MODELS["algo"]]:
        raise ConfigError(f"for.{wrong[0]} in a file of env/ must be for {listing(MODELS['algo'], 'or')}")
    for key, value in settings.get(tree["algo"]["name"], {}).items():
        if not isinstance(value, dict):
            tree[key] = value
        elif value.get("name") in (None, tree.get(key, {}).get("name")):
            tree.setdefault(key, {}).update(value)
    return tree


def _fitting(tree: dict[str, Any]) -> dict[str, Any]:
    """An environment's file may set keys of several algorithms; those that the chosen one lacks are left out."""
    for group, models in MODELS.items():
        if "name" in tree.get(group, {}):
            every = {key for model in models.values() for key in model.model_fields}
            lacking = every - models[tree[group]["name"]].model_fields.keys()
            tree[group] = {key: value for key, value in tree[group].items() if key not in lacking}
        else:
            tree.pop(group, None)
    return tree


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a key that the tree has; a mapping is set key by key, and env.kwargs takes any."""
    *path, last = key.split(".")
    free = key.startswith("env.kwargs.")
    node: Any = tree
    for part in path:
        if isinstance(node, dict):
            node = node.setdefault(part, {}) if free else node.get(part)
    if not isinstance(node, dict) or not (last in node or free):
        raise ConfigError(unknown(key, tree))
    if last == "name" and path and path[0] in MODELS:
        raise ConfigError(f"{key} is set by the choice of a file; write {path[0]}={value}")
    if isinstance(node.get(last), dict) and not key.startswith("env.kwargs"):
        if not isinstance(value, dict):
            raise ConfigError(f"{key} is a section of keys, got {show(value)}; "
                              f"write {key}.<key>=…, with {listing(node[last], 'or')}")
        for name, inner in value.items():
            _assign(tree, f"{key}.{name}", inner)
    else:
        node[last] = value


@functools.cache
def _env_files() -> dict[str, str]:
    """The file of configs/env for each id that has one."""
    trees = {name: yaml.safe_load(file("env", name).read_text()) for name in choices()["env"]}
    return {tree.get("env", tree).get("id"): name for name, tree in trees.items()}


def _check_id(key: str, env: Env) -> None:
    """Raises ConfigError unless the id, given as `key`, is known or may be so to what is imported later."""
    if ":" in env.id or env.id.startswith("ALE/") or env.backend == "envpool" or env.id in _env_files():
        return
    import gymnasium  # here, because it takes 0.1 s and only unknown names need it

    if env.id not in gymnasium.registry:
        files = choices()["env"] if key == "env" else []
        ids = sorted(gymnasium.registry, key=lambda name: int(name.rsplit("-v", 1)[-1]))
        newest = {name.rsplit("-v", 1)[0]: name for name in ids}
        raise ConfigError(f"{key} must be {', '.join([*files, 'a registered Gymnasium id or module:Name-v0'])}, "
                          f"got {env.id!r}" + did_you_mean(env.id, [*files, *newest.values()]))
