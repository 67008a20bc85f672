"""The command line of training: what argv asks for, or the one line that says why it is refused.

Nothing is written before `parse` has returned: a refused command or sweep leaves no trace.
"""

import io
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import yaml

from rl_natgrad import __version__
from rl_natgrad.config import compose
from rl_natgrad.config.experiment import unfold
from rl_natgrad.config.explain import leaves
from rl_natgrad.config.help import help_text
from rl_natgrad.config.overrides import MAX_JOBS, corners, expand, is_launcher, read
from rl_natgrad.config.refusals import ConfigError, nearest, show
from rl_natgrad.config.schema import DEPENDENT, Config
from rl_natgrad.run.errors import say

NOT_HERE = {
    "-cn --config-name": "there is one configuration; choose its parts with algo=…, env=… and so on",
    "-cd --config-dir -cp --config-path": "configurations are the files in configs/; add one there",
    "-i --info": "--cfg job prints the configuration",
    "-sc --shell-completion": "there is no completion; --help lists every choice",
    "-r --run": "one run is the default; leave it out",
    "--resolve": "--cfg job prints resolved values already",
    "--hydra-help": "see --help",
    "--experimental-rerun": "write resume=<run folder> to go on with a run",
}


class Job(NamedTuple):
    """One run of a sweep."""

    overrides: list[str]
    config: Config


@dataclass(frozen=True)
class Command:
    """What argv asks for.

    train      config, overrides
    resume     resume (the run folder), overrides: those beside it, read but not checked; see compose.override
    multirun   jobs; config: the first job's, for sweep and runs_dir; launcher: the hydra/launcher words;
               of a search (config.search.trials), overrides are what to search, and jobs its corners
    help, cfg, version   text, for standard output
    """

    kind: Literal["train", "resume", "multirun", "help", "cfg", "version"]
    config: Config | None = None
    overrides: tuple[str, ...] = ()
    resume: str = ""
    jobs: tuple[Job, ...] = ()
    launcher: tuple[str, ...] = ()
    text: str = ""


def command(argv: Sequence[str]) -> Command:
    """`parse` for a main program: texts are printed (exit 0), a refusal is one line on stderr (exit 2)."""
    try:
        asked = parse(argv)
    except ConfigError as e:
        sys.exit(say(e, 2))
    if asked.kind in ("help", "cfg", "version"):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # δ on a terminal that has only ASCII
        print(asked.text)
        sys.exit(0)
    return asked


def parse(argv: Sequence[str]) -> Command:
    """What these words ask for, composed and validated; raises ConfigError with the one line to print."""
    flags, words = _split(argv)
    if "help" in flags:
        return Command("help", text=help_text())
    if "version" in flags:
        return Command("version", text=f"rl_natgrad {__version__}")
    _check_bare(words)
    if "package" in flags and "cfg" not in flags:
        raise ConfigError("-p goes with --cfg job; see --help")
    if "multirun" in flags:
        if "cfg" in flags:
            raise ConfigError("--cfg job prints one configuration; leave out -m")
        return _multirun(words)
    [words, *more] = unfold(words)
    if more:
        raise ConfigError("this experiment is several sweeps; write -m")
    if "cfg" in flags:
        return Command("cfg", text=_composed(compose.load(words), flags["cfg"], flags.get("package")))
    given = read(words)
    folder = given["resume"].value() if "resume" in given else None
    if folder is None:
        return Command("train", config=compose.load(words), overrides=tuple(words))
    if not isinstance(folder, str) or not folder:
        raise ConfigError(f"resume must be a run folder or null, got {show(folder)}")
    others = tuple(given[key].input_line or "" for key in given if key != "resume")
    return Command("resume", resume=folder, overrides=others)


def _split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Our own flags with their values, and the words that are left."""
    flags: dict[str, str] = {}
    words: list[str] = []
    names = {"-h": "help", "--help": "help", "--version": "version", "-m": "multirun",
             "--multirun": "multirun"}
    valued = {"-c": "cfg", "--cfg": "cfg", "-p": "package", "--package": "package"}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in names:
            flags[names[word]] = ""
        elif name in valued:
            flags[valued[name]] = value if equals else rest.pop(0) if rest else ""
        elif word.startswith("-"):
            raise ConfigError(_not_an_option(name, value if equals else rest[0] if rest else ""))
        else:
            words.append(word)
    return flags, words


def _not_an_option(name: str, value: str) -> str:
    for names, instead in NOT_HERE.items():
        if name in names.split():
            return f"{name} is not an option here; {instead}"
    value = "…" if not value or "=" in value or value.startswith("--") else value
    key = _key(name.lstrip("-").replace("-", "_"))
    return f"unknown option {name!r}; " + (f"write {key}={value}" if key else "see --help")


def _key(word: str) -> str:
    """The key of the default configuration that a word is most like; empty where none is."""
    keys = nearest(word, [*compose.choices(), *leaves(compose.load([]).model_dump(exclude_none=True))])
    return keys[0] if keys else ""


def _check_bare(words: list[str]) -> None:
    """Answer `algo trpo` and `CartPole` with what to write."""
    for word, after in itertools.pairwise([*words, "="]):
        if "=" in word or word[:1] in ("+", "~"):
            continue
        groups = [group for group, names in compose.choices().items() if word in names]
        instead = " or ".join(f"{group}={word}" for group in groups)
        if not groups and (key := _key(word)):
            instead = f"{key}={'…' if '=' in after else after}"
        advice = f"write {instead}" if instead else "see --help"
        raise ConfigError(f"expected key=value, got {word!r}; {advice}")


def _multirun(words: list[str]) -> Command:
    launcher = [word for word in words if is_launcher(word)]
    read(launcher, launcher=True)
    parts = unfold([word for word in words if not is_launcher(word)])
    lines = [line for part in parts for line in _lines(part, alone=len(parts) == 1)]
    if len(lines) > MAX_JOBS:
        raise ConfigError(f"the sweep has more than {MAX_JOBS:,} jobs; split it")
    jobs = []
    for number, line in enumerate(lines, 1):
        try:
            jobs.append(Job(line, compose.load(line)))
        except ConfigError as e:
            which = f"job {number} of {len(lines)}: " if len(lines) > 1 else ""
            raise ConfigError(f"{which}{e}") from None
    return Command("multirun", jobs[0].config, tuple(parts[0]), jobs=tuple(jobs), launcher=tuple(launcher))


def _lines(words: list[str], *, alone: bool) -> list[list[str]]:
    """The jobs of one sweep; of a search, those at the ends of its intervals, which must all be allowed."""
    given = read(words, sweeps=True)
    for key, override in given.items():
        if key == "resume":
            raise ConfigError("resume goes on with one run; leave out -m, or use sweep.skip_finished=true")
        if key.startswith(("sweep", "search")) and override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: {key} is of the whole sweep, one value")
    if "search.trials" not in given or given["search.trials"].value() is None:
        return expand(words, compose.choices())
    if not alone:
        raise ConfigError("search.trials needs one sweep; this experiment is several")
    if not any(override.is_sweep_override() for key, override in given.items() if key != "seed"):
        raise ConfigError("search.trials has nothing to search; add 'algo.delta=interval(0.001,0.1)'")
    return [line for end in corners(words) for line in expand(end, compose.choices())]


def _composed(cfg: Config, what: str, package: str | None) -> str:
    if what != "job":
        raise ConfigError(f"--cfg takes job, got {what!r}")
    tree = cfg.model_dump(mode="json")
    tree = {key: value for key, value in tree.items() if value is not None or key not in DEPENDENT}
    if package is not None and package not in tree:
        raise ConfigError(f"-p takes one of {', '.join(tree)}, got {package!r}")
    tree = tree if package is None else {package: tree[package]}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).rstrip()
