"""The command line of training: what argv asks for, or the one line that says why it is refused.

Nothing is written before `parse` has returned: a refused command or sweep leaves no trace.
"""

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from rl_natgrad.config import compose
from rl_natgrad.config.experiment import unfold
from rl_natgrad.config.explain import keys
from rl_natgrad.config.help import help_text
from rl_natgrad.config.options import instead
from rl_natgrad.config.overrides import corners, expand, is_launcher, line, read
from rl_natgrad.config.refusals import ConfigError, did_you_mean, listing, show
from rl_natgrad.config.schema import Config
from rl_natgrad.run.errors import say
from rl_natgrad.run.tags import metrics_text
from rl_natgrad.version import __version__

SHORT = {"-m": "--multirun", "-c": "--cfg", "-p": "--package", "-h": "--help"}
FLAGS = (*SHORT.values(), "--config-dir", "--version")


@dataclass(frozen=True)
class NewRun:
    """A run to start, alone or as a job of a sweep: its words, and the configuration that they give."""

    overrides: list[str]
    config: Config


@dataclass(frozen=True)
class Resume:
    """A run to go on with, its folder or checkpoint; the other words are not checked, see compose.override."""

    run: str
    overrides: list[str]


@dataclass(frozen=True)
class Multirun:
    """A sweep, or a search where search.trials is given.

    jobs: its runs; of a search, those at the ends of its intervals.  overrides: its words; of an experiment of
    several sweeps, the first's.  launcher: the hydra/launcher words.
    """

    jobs: list[NewRun]
    overrides: list[str]
    launcher: tuple[str, ...]

    @property
    def config(self) -> Config:
        """The first job's, for what is of the whole sweep: `sweep`, `search` and runs_dir."""
        return self.jobs[0].config


Request = NewRun | Resume | Multirun


def parse_or_exit(argv: Sequence[str]) -> Request:
    """`parse` for a main program: a text is printed (exit 0), a refusal is one line on stderr (exit 2)."""
    try:
        asked = parse(argv)
    except ConfigError as e:
        sys.exit(say(e, 2))
    if isinstance(asked, str):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # δ on a terminal that has only ASCII
        print(asked, flush=True)
        sys.exit(0)
    return asked


def parse(argv: Sequence[str]) -> Request | str:
    """What these words ask for, composed and validated, or the text that they ask to print.

    Raises: ConfigError with the one line to print.
    """
    if "--version" in argv:
        return f"rl_natgrad {__version__}"
    own, argv = _config_dir(argv)
    compose.use_config_dir(own)
    if {"-h", "--help"} & set(argv):
        return metrics_text() if "metrics" in argv else help_text()
    flags, words = _split(argv)
    if "--package" in flags and "--cfg" not in flags:
        raise ConfigError("-p goes with --cfg job; see --help")
    if "--multirun" in flags:
        if "--cfg" in flags:
            raise ConfigError("--cfg job prints one configuration; leave out -m")
        return _multirun(words)
    [words, *more] = unfold(words)
    if more:
        raise ConfigError("this experiment is several sweeps; write -m")
    if "--cfg" in flags:
        return _composed(compose.load(words), flags["--cfg"], flags.get("--package"))
    given = read(words)
    folder = given.pop("resume").value() if "resume" in given else None
    if folder is None:
        return NewRun(words, compose.load(words))
    if not isinstance(folder, str) or not folder:
        raise ConfigError(f"resume must be a run folder or null, got {show(folder)}")
    return Resume(folder, [line(override) for override in given.values()])


def _config_dir(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --config-dir, and the words without it."""
    for n, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == "--config-dir":
            rest = argv[n + 1 :] if equals else argv[n + 2 :]
            return value if equals else argv[n + 1] if argv[n + 1 :] else "", [*argv[:n], *rest]
    return None, list(argv)


def _split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Our own flags with their values, and the key=value words."""
    flags: dict[str, str] = {}
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if name in ("--cfg", "--package"):
            flags[name] = value if equals else rest.pop(0) if rest else ""
        elif name in FLAGS and not equals:
            flags[name] = ""
        elif word.startswith("-") or not (equals or word.startswith(("+", "~"))):
            raise ConfigError(_neither(word, rest[0] if rest else ""))
        else:
            words.append(word)
    return flags, words


def _neither(word: str, after: str) -> str:
    """The answer to what is neither flag nor key=value: `--algo trpo`, `algo trpo`, `CartPole`."""
    said, advice = f"expected key=value, got {show(word)}", "see --help"
    if word.startswith("-"):
        said, advice = f"unknown option {show(word)}", f"there are {listing(FLAGS)}, and all else is key=value"
        if hint := did_you_mean(word, FLAGS):
            return said + hint
    files = compose.choices()
    if chosen := [f"{group}={word}" for group, names in files.items() if word in names]:
        return f"{said}; write {' or '.join(chosen)}"
    return f"{said}; {instead(word, after, [*files, *keys(compose.load([]).tree())]) or advice}"


def _multirun(words: list[str]) -> Multirun:
    launcher = [word for word in words if is_launcher(word)]
    read(launcher, launcher=True)
    parts = unfold([word for word in words if not is_launcher(word)])
    listed = [job for part in parts for job in _jobs(part, alone=len(parts) == 1)]
    jobs = []
    for number, job in enumerate(listed, 1):
        try:
            jobs.append(NewRun(job, compose.load(job)))
        except ConfigError as e:
            which = f"job {number} of {len(listed)}: " if len(listed) > 1 else ""
            raise ConfigError(f"{which}{e}") from None
    return Multirun(jobs, parts[0], tuple(launcher))


def _jobs(words: list[str], *, alone: bool) -> list[list[str]]:
    """The jobs of one sweep; of a search, those at the ends of its intervals, which must all be allowed."""
    given = read(words, sweeps=True)
    for key, override in given.items():
        if key == "resume":
            raise ConfigError("resume goes on with one run; leave out -m, or use sweep.skip_finished=true")
        if key.startswith(("sweep", "search")) and override.is_sweep_override():
            raise ConfigError(f"{line(override)}: {key} is of the whole sweep, one value")
    if "search.trials" not in given or given["search.trials"].value() is None:
        return expand(words, compose.choices())
    if not alone:
        raise ConfigError("search.trials needs one sweep; this experiment is several")
    if not any(override.is_sweep_override() for key, override in given.items() if key != "seed"):
        raise ConfigError("search.trials has nothing to search; add 'algo.delta=interval(0.001,0.1)'")
    return [job for end in corners(words) for job in expand(end, compose.choices())]


def _composed(cfg: Config, what: str, package: str | None) -> str:
    if what != "job":
        raise ConfigError(f"--cfg takes job, got {what!r}")
    tree = cfg.tree()
    if package is not None and package not in tree:
        raise ConfigError(f"-p takes one of {', '.join(tree)}, got {package!r}")
    tree = tree if package is None else {package: tree[package]}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).rstrip()
