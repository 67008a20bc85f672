"""The text of --help, read from configs/."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from rl_natgrad.config import compose

PROGRAM = "python -m rl_natgrad.train"
EXAMPLES = {
    "algo=trpo env=CartPole": "train; the run lands in runs/CartPole-v1/trpo/",
    "algo=npg solver=cholesky env=Pendulum total_steps=2e5": "other choices, another key",
    "-m algo=pg,trpo,ppo 'seed=range(10)'": "a sweep: 30 runs, one process each",
}
OPTIONS = {
    "-m, --multirun": "a sweep: one job for each combination of a=1,2 or 'a=range(10)' or 'a=glob(*)'",
    "--cfg job": "print the composed configuration, all keys of it, and exit; -p env prints one part",
    "--config-dir DIR": "one's own DIR/env/mine.yaml and so on, beside the shipped files; ./configs is found",
    "--version": "print the version and exit",
    "-h, --help": "print this and exit; --help metrics says what every logged number means, and which are healthy",
}


def help_text() -> str:
    """Every group and choice with one line each, and the common keys, all read from configs/."""
    folder = compose.config_dir()
    defaults = "".join(file.read_text() for file in (folder / "train.yaml", *sorted(folder.glob("algo/*.yaml"))))
    default = dict(re.findall(r"^  - /?(\w+)(?:@\S+)?: (\w+)", defaults, re.MULTILINE))
    lines = [f"usage: {PROGRAM} [-m] [key=value …]", "", "Train with PG, NPG, TRPO or PPO.", "", "examples"]
    lines += [f"  {PROGRAM} {words}\n      {what}" for words, what in EXAMPLES.items()]
    for group, names in compose.choices().items():
        lines += ["", f"{group}=…" + (f" (default {default[group]})" if group in default else "")]
        lines += [_entry(name, _title(compose.file(group, name)), 24) for name in names]
    for title, prefix, file in (("keys", "", "train"), ("keys of algo=trpo", "algo.", "algo/trpo")):
        lines += ["", title]
        lines += [_entry(f"{prefix}{key}", what, 32) for key, what in _commented(folder / f"{file}.yaml")]
    lines += ["", "options"] + [_entry(option, what, 24) for option, what in OPTIONS.items()]
    return "\n".join(lines)


def _entry(name: str, what: str, width: int) -> str:
    indent = " " * (width + 2)
    return textwrap.fill(what, 108, initial_indent=f"  {name:<{width}}", subsequent_indent=indent)


def _title(file: Path) -> str:
    return next(line[2:] for line in file.read_text().splitlines() if re.match(r"# [^@]", line))


def _commented(file: Path) -> Iterator[tuple[str, str]]:
    """(key=value, comment) of each key that has a comment; keys of a section get its name in front."""
    section = ""
    for line in file.read_text().splitlines():
        if match := re.match(r"( *)(\w+): (.*?) +# (.*)", line):
            indent, key, value, comment = match.groups()
            yield f"{section if indent else ''}{key}={value}", comment
        elif match := re.match(r"(\w+):$", line):
            section = f"{match[1]}."
