"""What is refused, and the words that all refusals share. Imports nothing that takes time."""

import difflib
from collections.abc import Iterable
from typing import Any

NEAR = 0.65  # likeness of a word and a name, 0 to 1, from which the name is offered


class ConfigError(ValueError):
    """A command line or configuration that is refused; its text is the one line to print."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split())[:600])


def listing(names: Iterable[str], word: str = "and") -> str:
    """The names as prose: `a, b and c`."""
    *head, last = list(names) or ["none"]
    return f"{', '.join(head)} {word} {last}" if head else last


def show(value: Any) -> str:
    """A value as the command line writes it, cut to a readable length."""
    words = {None: "null", True: "true", False: "false"}
    plain = value is None or isinstance(value, bool)
    text = words[value] if plain else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def nearest(word: str, names: Iterable[str], least: float = NEAR) -> list[str]:
    """The names most like the word, in whole or in their last part (`delta` is `algo.delta`)."""
    likeness = {name: _likeness(word[:100], name) for name in names}
    best = max(likeness.values(), default=(0.0, 0.0))
    return [name for name in likeness if likeness[name] == best] if best[0] >= least else []


def _likeness(word: str, name: str) -> tuple[float, float]:
    """How like the two are, and, for a choice between equals, their sections; 0 to 1."""
    word, name = (text.lower().strip("+-").replace("-", "_") for text in (word, name))
    (group, _, end), (section, _, last) = word.rpartition("."), name.rpartition(".")
    if section and word.startswith(f"{section}."):  # that both begin so makes them no more alike
        word, name = word.removeprefix(f"{section}."), last
    return max(_ratio(word, name), _ratio(end, last)), _ratio(group, section)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message that points to the nearest name; empty where none is near."""
    near = nearest(word, names)
    return f"; did you mean {listing(map(repr, near), 'or')}?" if near else ""
