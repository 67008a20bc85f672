"""Programs of ours whose k-th system call on a path fails, or is their last; see faults.c."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from whole_runs import ROOT

SOURCE = Path(__file__).with_name("faults.c")


@cache
def shim() -> Path:
    """The compiled library; skips the test where there is no compiler, or nothing to preload into."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and Linux")
    library = Path(tempfile.mkdtemp(prefix="faults-")) / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Ended(NamedTuple):
    """How a program ended (-n: by signal n), what it wrote, and how many calls it made that count."""

    code: int
    out: str
    err: str
    calls: list[str]


class Programs:
    """Runs `python -m rl_natgrad.<module> <words>` in forks of one process that has imported everything."""

    def __init__(self, folder: Path):
        self.folder, self._number = folder, 0
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], env=env | {"LD_PRELOAD": str(shim())},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, *words: str, module: str = "train", below: Path | None = None, **fault: object) -> Ended:
        """fault: call, at, errno, on, each as FAULT_… in faults.c; below: where they count."""
        self._number += 1
        out, err, log, count = (self.folder / f"{self._number}.{name}" for name in ("out", "err", "log", "count"))
        count.write_bytes(bytes(8))
        env = {f"FAULT_{key.upper()}": str(value) for key, value in fault.items()}
        env |= {"FAULT_BELOW": str(below), "FAULT_COUNT": str(count), "FAULT_LOG": str(log)} if below else {}
        asked = {"module": module, "words": words, "env": env, "out": str(out), "err": str(err)}
        assert self._server.stdin and self._server.stdout
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        code = int(self._server.stdout.readline())
        calls = log.read_text().splitlines() if log.exists() else []
        return Ended(code, out.read_text(), err.read_text(), calls)

    def close(self) -> None:
        """Ends the process."""
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(60)


def serve() -> None:
    """Forks once for each line of standard input, and answers with the exit code."""
    import rl_natgrad.config.command
    import rl_natgrad.evaluate
    import rl_natgrad.playback.agent
    import rl_natgrad.sweep.run
    import rl_natgrad.train
    import rl_natgrad.training.resume

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            os.environ.update(asked["env"])
            sys.argv = [f"rl_natgrad.{asked['module']}", *asked["words"]]
            sys.exit(getattr(rl_natgrad, asked["module"]).main())
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
