"""experiment=<name>: the words of a whole sweep, kept in configs/experiment/<name>.yaml."""

import yaml

from rl_natgrad.config import compose
from rl_natgrad.config.overrides import line, read
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import DEPENDENT, MODELS

KEY = "experiment"


def unfold(words: list[str]) -> list[list[str]]:
    """The command lines that these words stand for: these, or with experiment=<name> one per part of its file.

    A file maps keys to what would follow their `=`; `---` separates parts, each a sweep of its own. The words
    beside experiment=<name> replace the file's for the same key; keys of groups that an algorithm named beside it
    does not have are left out.
    """
    if not any(word.startswith(f"{KEY}=") for word in words):
        return [words]
    given = read(words, sweeps=True)
    name = compose.choice(KEY, line(given.pop(KEY)).partition("=")[2])
    ours = {key: line(each) for key, each in given.items()}
    algo = MODELS["algo"].get(ours.get("algo", "").removeprefix("algo="))
    lacking = [group for group in DEPENDENT if algo and group not in algo.groups]
    return [
        list(({key: word for key, word in part.items() if key.partition(".")[0] not in lacking} | ours).values())
        for part in _parts(name)
    ]


def _parts(name: str) -> list[dict[str, str]]:
    file = compose.file(KEY, name)
    try:
        parts = list(yaml.load_all(file.read_text(), yaml.BaseLoader))  # numbers stay as they are written
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {error}") from None
    for part in parts:
        if not isinstance(part, dict) or not all(isinstance(value, str) for value in part.values()):
            raise ConfigError(f"{file}: expected lines of key: value, with quotes around lists and mappings")
    return [{key: f"{key}={value}" for key, value in part.items()} for part in parts]
