"""`key=value` words read with Hydra's own grammar, minus all that could add, remove or run something."""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, OverrideType
from hydra.errors import HydraException

from rl_natgrad.config.refusals import ConfigError

MAX_JOBS = 10_000  # of one sweep; each is composed and validated before the first starts
_grammar = functools.cache(OverridesParser.create)


def read(tokens: Iterable[str], *, sweeps: bool = False, launcher: bool = False) -> dict[str, Override]:
    """The overrides by key, in order; raises ConfigError for one that is malformed or given twice.

    Args:  sweeps: let a key have several values (-m).  launcher: let keys be those of Hydra's launcher.
    """
    given: dict[str, Override] = {}
    for token in tokens:
        override = _parse(token, launcher)
        key = override.key_or_group
        if key in given:
            raise ConfigError(f"{key} is given twice: {line(given[key])} and {token}")
        if override.is_sweep_override() and not sweeps:
            raise ConfigError(f"{token} is several values: write -m to sweep, or {key}=[…] for a list")
        given[key] = override
    return given


def _parse(token: str, launcher: bool) -> Override:
    if re.search(r"\b_target_\b", token):
        raise ConfigError(f"{token!r} is refused: _target_ would run code; choices are files in configs/")
    if token[:1] in ("+", "~"):
        name = token.lstrip("+~").split("=")[0]
        raise ConfigError(f"{token!r}: keys can't be added or removed; write {name}=… to set one")
    key, equals, _ = token.partition("=")
    if not (key and equals):
        raise ConfigError(f"expected key=value, got {token!r}; see --help")
    if re.match(r"hydra\b", key) and not (launcher and is_launcher(token)):
        raise ConfigError(f"{token!r} is refused: Hydra's own are fixed, but for hydra/launcher with -m")
    if "${" in token:
        raise ConfigError(f"{token!r} is refused: write the value itself, not an interpolation")
    try:
        override = _grammar().parse_override(token)
    except (HydraException, ValueError, RecursionError) as e:  # the latter: 5,000 digits, 5,000 brackets
        reason = str(e).split("\n")[0].split(" expecting")[0][:100]
        advice = f"quote unusual text as {key}='\"…\"'"
        raise ConfigError(f"can't read {token[:200]!r} ({reason}); {advice}") from None
    if override.type is not OverrideType.CHANGE or override.package is not None:
        raise ConfigError(f"{token!r}: packages are fixed; write {override.key_or_group}=… instead")
    return override


def line(override: Override) -> str:
    """The word that an override was read from."""
    return override.input_line or ""


def is_launcher(token: str) -> bool:
    """Whether this word chooses or configures the launcher of a sweep."""
    return token.startswith(("hydra/launcher=", "hydra.launcher."))


def expand(tokens: Iterable[str], choices: dict[str, list[str]]) -> list[list[str]]:
    """One list of plain overrides per job: the product of the sweeps, the last fastest, as Hydra does."""
    axes = [list(itertools.islice(_values(override, choices), MAX_JOBS + 1))
            for override in read(tokens, sweeps=True).values()]
    count = math.prod(map(len, axes))
    if count > MAX_JOBS:
        raise ConfigError(f"the sweep has more than {MAX_JOBS:,} jobs; split it")
    if count == 0:
        raise ConfigError("the sweep is empty: a range or glob has no values")
    return [list(job) for job in itertools.product(*axes)]


def corners(tokens: Iterable[str]) -> list[list[str]]:
    """The words with every interval at its low end, and with every one at its high end."""
    given = read(tokens, sweeps=True).values()
    low, high = ([_at(end, override) for override in given] for end in ("start", "end"))
    return [low, high] if low != high else [low]


def _at(end: str, override: Override) -> str:
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return line(override)
    low, high = value.start, value.end
    if low is None or high is None or not low < high or ("log" in value.tags and low <= 0):
        raise ConfigError(f"{line(override)}: an interval needs low < high, and tag(log,…) needs low > 0")
    return f"{override.key_or_group}={low if end == 'start' else high}"


def _values(override: Override, choices: dict[str, list[str]]) -> Iterator[str]:
    key = override.key_or_group
    if not override.is_sweep_override():
        yield line(override)
    elif not override.is_discrete_sweep():
        raise ConfigError(f"{line(override)}: an interval can't be listed; write range(start,stop,step) or a,b,c, "
                          "or search it with search.trials=20")
    elif isinstance(glob := override.value(), Glob):
        if key not in choices:
            raise ConfigError(f"{line(override)}: glob is for a choice of files; {key} is not one")
        yield from (f"{key}={name}" for name in glob.filter(choices[key]))
    else:
        try:
            yield from (f"{key}={value}" for value in override.sweep_string_iterator())
        except (HydraException, ValueError) as e:  # a step of 0
            raise ConfigError(f"{line(override)}: {e}") from None
