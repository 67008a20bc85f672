"""python -m rl_natgrad.watch: TensorBoard on runs, under names that people can read."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from urllib.parse import urlencode

from rl_natgrad.compare.runs import Run, find, names, without_curve
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.run.errors import say
from rl_natgrad.run.streams import unfailing

HELP = """\
python -m rl_natgrad.watch FOLDERS… [--option …]

TensorBoard on the runs at any depth below FOLDERS (those of a sweep: runs/sweeps/<name>), and on those still to
come. Each is called by what differs and its seed, such as `trpo delta=0.02 s3`. The address that it prints shows
the returns first, and all seeds of a group in one colour. Options are TensorBoard's, such as --port 6007.
"""
EVERY = 2.0  # seconds between two looks for new runs; TensorBoard's own are 5 s apart
PINNED = ("rollout/return", "eval/return")
PAGE = urlencode({
    "pinnedCards": json.dumps([{"plugin": "scalars", "tag": tag} for tag in PINNED], separators=(",", ":")),
    "runColorGroup": r"regex:(.+) s\d+",  # a colour is that of what the parentheses match: all but the seed
    "smoothing": 0,
})  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 where TensorBoard or the disk fails, 2 where the command makes no sense, 130 or 143."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    first = next((n for n, word in enumerate(argv) if word.startswith("-")), len(argv))
    folders, options = [Path(word) for word in argv[:first]], argv[first:]
    try:
        if missing := [folder for folder in folders if not folder.is_dir()]:
            raise ConfigError(f"no such folder: {missing[0]}")
        if not folders:
            raise ConfigError("name at least one folder of runs, for example: python -m rl_natgrad.watch runs")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        with TemporaryDirectory(prefix="rl_natgrad-") as scratch:
            return serve(folders, options, Path(scratch))
    except ConfigError as error:
        return say(error, 2)
    except OSError as error:
        return say(error, 1)
    except KeyboardInterrupt:
        return 130


def process() -> int:
    """main() as all that its process does."""
    unfailing()
    return main()


def serve(folders: Sequence[Path], options: Sequence[str], scratch: Path) -> int:
    """TensorBoard on <scratch>/runs, until it ends. Returns 0, or 1 with its last line where it failed."""
    view, log = scratch / "runs", scratch / "log"
    view.mkdir()
    runs, address = link(folders, view), None
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(view), *options]
    with open(log, "wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as board:
        try:
            while board.poll() is None:
                if address:
                    time.sleep(EVERY)
                    runs = link(folders, view, runs)
                elif address := re.search(r"(http://\S+)\s", log.read_text()):
                    print(f"watch   {address[1]}?{PAGE}#timeseries", flush=True)
                else:
                    time.sleep(0.1)
        finally:
            board.terminate()
    return say(log.read_text().strip().rpartition("\n")[2], 1) if board.returncode else 0


def link(folders: Sequence[Path], view: Path, known: Mapping[Path, Run] = MappingProxyType({})) -> dict[Path, Run]:
    """Makes `view` hold a link to each run below `folders`, by its name, which changes as others come that differ.

    known: what the last call returned, the runs by their folders.  Returns the same of now.
    """
    runs = {}
    for path in find(folders):
        with contextlib.suppress(OSError, ValueError):  # its record is yet to be written, or no run's
            runs[path] = known.get(path) or without_curve(path)
    if runs.keys() != known.keys():
        wanted = {_file_name(name, run): run.path.resolve() for name, run in names(runs.values()).items()}
        for old in list(view.iterdir()):
            if wanted.get(old.name) != old.readlink():
                old.unlink()
        for name in wanted.keys() - {left.name for left in view.iterdir()}:
            (view / name).symlink_to(wanted[name])
    return runs


def _file_name(name: str, run: Run) -> str:
    """The name as one that file systems take."""
    return (name if len(name) <= 150 else f"{name[:100]} {run.path.name}").replace("/", "-")


if __name__ == "__main__":
    sys.exit(process())
