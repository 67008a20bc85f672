"""`key=value` options of the doors that have a few: a table from key to what it takes. Imports nothing heavy."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rl_natgrad.config.refusals import ConfigError, did_you_mean, listing, nearest, show

SURE = 0.8  # likeness from which a key is what was meant: --env-id is env.id, but --resolve is not solver (0.77)


@dataclass(frozen=True)
class Option:
    """What an option takes: `allowed` says it in words, and `read` turns text into the value.

    `read` raises ValueError or KeyError for what is not allowed.  several: commas separate several values.
    """

    allowed: str
    read: Callable[[str], Any]
    several: bool = False

    def value(self, key: str, text: str) -> Any:
        """What `key=text` means; a list where there may be several. Raises: ConfigError."""
        if self.several:
            return [self._one(key, part.strip()) for part in text.split(",")]
        return self._one(key, text)

    def _one(self, key: str, text: str) -> Any:
        try:
            return self.read(text)
        except (ValueError, KeyError):
            raise ConfigError(f"{key} must be {self.allowed}, got {show(text)}") from None


def choice(meanings: Mapping[str, Any], *, several: bool = False) -> Option:
    """One of these words, for what it means."""
    return Option(listing(meanings, "or"), lambda text: meanings[text.lower()], several)


def whole(low: int, high: int) -> Option:
    """A whole number from `low` to `high`."""

    def read(text: str) -> int:
        if not low <= (number := int(text)) <= high:
            raise ValueError(number)
        return number

    return Option(f"a whole number from {low:,} to {high:,}", read)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(number)
    return number


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


TRUTH = choice({"true": True, "false": False})
NUMBER = Option("a finite number", _finite)
TEXT = Option("text of at least one character", _not_empty)
TEXTS = Option(TEXT.allowed, _not_empty, several=True)


def _folder(text: str) -> Path:
    if not text or not Path(text).is_dir():
        raise ValueError(text)
    return Path(text)


def _checkpoint(text: str) -> str:
    return text if text in ("last", "best") else str(whole(0, 10**12).read(text))


AGENT = {
    "run": Option("a run folder", _folder),
    "checkpoint": Option("last, best or the number of an update", _checkpoint),
    "allow_import": TRUTH,
}
"""Which trained policy is meant."""


def parse(argv: Sequence[str], options: Mapping[str, Option]) -> dict[str, Any]:
    """The value of each option that these words give. Raises: ConfigError."""
    given: dict[str, Any] = {}
    for word, after in pairwise([*argv, ""]):
        key, equals, text = word.partition("=")
        if word.startswith("-") or not equals:
            what = "unknown option" if word.startswith("-") else "expected key=value, got"
            raise ConfigError(f"{what} {show(word)}; {instead(word, after, options) or 'see --help'}")
        if key not in options:
            hint = did_you_mean(key, options) or f"; there are {listing(options)}"
            raise ConfigError(f"unknown option {show(key)}{hint}")
        if key in given:
            raise ConfigError(f"{key} is given twice")
        given[key] = options[key].value(key, text)
    return given


def parse_for_agent(argv: Sequence[str], options: Mapping[str, Option], door: str) -> dict[str, Any]:
    """The same for a door that takes those of `AGENT`, of which `run` must be given. Raises: ConfigError."""
    for word in argv:
        if "=" not in word and Path(word).is_dir():
            raise ConfigError(f"expected key=value, got {word!r}; write run={word}")
    given = parse(argv, options)
    if "run" not in given:
        raise ConfigError(f"name a run folder: python -m rl_natgrad.{door} run=runs/…")
    return given


def instead(word: str, after: str, keys: Iterable[str]) -> str:
    """What to write for `--key value`, `--key=value` or `key value`, where `after` follows; empty for no key."""
    name, equals, text = word.partition("=")
    text = text if equals else after
    text = "…" if not text or "=" in text or text.startswith("-") else text
    near = [f"{key}={text}" for key in nearest(name, keys, SURE)]
    return f"write {' or '.join(near)}" if near else ""
