"""What the pages of results/ share: jobs in, rows out, stopped and started again at will.

A question is a module of this folder with three functions:

    jobs(smoke)     the work, a flat dict a job; with smoke a minute's worth of it
    rows(job)       what one job measured, flat dicts
    answer(rows)    what all rows say: page.Answer, text, tables and figure

`python scripts/questions/<name>.py` runs what is missing, writes results/<name>/data.csv, and renders the page from it.
`render` only renders.  smoke=1 writes below runs/questions/smoke instead.  jobs=N jobs at once (one per core; a
question that is timed sets ALONE = True and runs one).  A question whose work takes days sets OPEN = True: its page
is of what is there, also when the work was stopped, jobs=0 makes it without running anything, and a new checkout goes on from
the committed data.csv.  only=trpo,Ant runs the jobs that have these values alone.  answer() may raise NoPage.
"""

import csv
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from page import markdown

from rl_natgrad.envs.cores import cores
from rl_natgrad.run.files import write_atomically
from rl_natgrad.run.provenance import git_state, versions

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]
LIBRARIES = ("rl_natgrad", "torch", "gymnasium", "numpy", "python")


class NoPage(Exception):
    """The rows say nothing of the question yet; the message says what is missing."""


def main(question: ModuleType, argv: Sequence[str]) -> int:
    """Runs what is missing, then writes data.csv and the page.

    Exit code: 0, 1 (a job failed, or no page yet; the page stays as it was), 2 (refused), 130 (stopped).
    """
    name = title(question)
    words = {"jobs": "1" if getattr(question, "ALONE", False) else str(cores()), "smoke": "0", "render": "0", "only": ""}
    given = dict(word.split("=", 1) if "=" in word else (word, "1") for word in argv)
    if given.keys() - words.keys():
        print(f"error: expected [render] [smoke=1] [jobs=N] [only=…], got {shlex.join(argv)}", file=sys.stderr)
        return 2
    words |= given
    smoke, code = words["smoke"] == "1", 0
    out = ROOT / ("runs/questions/smoke" if smoke else "results") / name
    if words["render"] == "0":
        kept = ROOT / "runs/questions" / f"{name}{'-smoke' if smoke else ''}.jsonl"
        jobs, incomplete = question.jobs(smoke), getattr(question, "OPEN", False)
        if incomplete:
            restore(jobs, out / "data.csv", kept)
        wanted = set(filter(None, words["only"].split(",")))
        now = [job for job in jobs if wanted <= set(map(str, job.values()))] if words["jobs"] != "0" else []
        code = work(question, now, kept, int(words["jobs"])) if now else 0
        if code and not incomplete:
            return code
        there = {_key(line["job"]) for line in read(kept)}
        missing = [job for job in jobs if _key(job) not in there]
        if missing and not (incomplete and len(missing) < len(jobs)):
            print(f"error: {len(missing)} of {len(jobs)} jobs are not in {kept}", file=sys.stderr)
            return code or 1
        out.mkdir(parents=True, exist_ok=True)
        done = [job for job in jobs if job not in missing]
        write_atomically(out / "data.csv", to_csv(*collected(done, kept)).encode())
    try:
        render(question, out)
    except NoPage as error:
        print(f"error: no page yet: {error}", file=sys.stderr)
        return code or 1
    print(f"wrote   {out.relative_to(ROOT)}/README.md, figure.png, data.csv")
    return code


def title(question: ModuleType) -> str:
    """Its folder below results/: batch_size.py writes batch-size, mujoco_.py, whose name is taken, mujoco."""
    return Path(question.__file__).stem.replace("_", "-").rstrip("-")


def work(question: ModuleType, jobs: Sequence[Row], kept: Path, at_once: int) -> int:
    """Runs the jobs that `kept` does not hold yet, each once, appending a line a job. Returns the exit code."""
    done = {_key(line["job"]) for line in read(kept)}
    left = [job for job in jobs if _key(job) not in done]
    commit, began, failed = (git_state() or {}).get("hash"), time.monotonic(), 0
    # Forked, the imports are paid for once; nothing has started a thread yet.
    with ProcessPoolExecutor(at_once, get_context("fork"), _one_thread) as pool, _appending(kept) as file:
        futures = {pool.submit(_measured, question.rows, job, commit): job for job in left}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                if error := future.exception():
                    failed += 1
                    print(f"\nerror: {_key(futures[future])}: {error!r}", file=sys.stderr)
                else:
                    file.write(future.result() + "\n")
                    file.flush()
                _show(number, len(left), time.monotonic() - began)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            print(f"\nstopped; the same command goes on ({kept})")
            return 130
    return int(failed > 0)


def _one_thread() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.nice(1)
    from rl_natgrad.training.threads import use_threads

    use_threads(1)


def _measured(rows: Callable[[Row], list[Row]], job: Row, commit: str | None) -> str:
    """The line of a job: what it gave, the CPU seconds that it took, and the code and libraries that it ran."""
    began = time.process_time()
    found = rows(job)
    seconds, there = round(time.process_time() - began, 3), versions()
    made = ", ".join(f"{name} {there.get(name, '?')}" for name in LIBRARIES)
    return json.dumps({"job": job, "rows": found, "seconds": seconds, "made": made, "commit": str(commit)[:12]})


def _show(done: int, total: int, seconds: float) -> None:
    left = f"{seconds / done * (total - done) / 60:.0f} min left"
    print(f"\r{done}/{total} jobs  {left}   ", end="\n" if done == total else "", flush=True)


def collected(jobs: Iterable[Row], kept: Path) -> tuple[list[Row], str]:
    """The rows of these jobs, in their order, and a line on how they were made."""
    lines = {_key(line["job"]): line for line in read(kept)}
    found = [lines[_key(job)] for job in jobs]
    hours = sum(line["seconds"] for line in found) / 3600
    made, commits = (" or ".join(sorted({each for line in found for each in line[key].split(" or ")}))
                     for key in ("made", "commit"))  # fmt: skip
    about = f"{len(found)} jobs, {hours:.3g} hours of one core; {made}; commit {commits}"
    return [line["job"] | row for line in found for row in line["rows"]], about


def restore(jobs: Sequence[Row], data: Path, kept: Path) -> None:
    """Appends to `kept` what it lacks of the jobs in `data`, where these are not all: a new checkout goes on from what is
    committed, and repeats what is complete. Each job has an equal share of the hours."""
    if not data.exists():
        return
    rows, about = from_csv(data.read_text())
    wanted, found = {_key(job): job for job in jobs}, {}
    for row in rows:
        key = _key({name: row.get(name) for name in jobs[0]})
        found.setdefault(key, []).append({name: cell for name, cell in row.items() if name not in jobs[0]})
    lacking = wanted.keys() & found.keys() - {_key(line["job"]) for line in read(kept)}
    if lacking and wanted.keys() - found.keys():
        hours, made, commit = re.fullmatch(r"\d+ jobs, (\S+) hours of one core; (.*); commit (.*)", about).groups()
        of_all = {"seconds": float(hours) * 3600 / len(found), "made": made, "commit": commit}
        with _appending(kept) as file:
            file.writelines(json.dumps({"job": wanted[key], "rows": found[key]} | of_all) + "\n" for key in sorted(lacking))


def _appending(kept: Path) -> TextIO:
    kept.parent.mkdir(parents=True, exist_ok=True)
    if kept.exists() and not kept.read_bytes().endswith(b"\n"):
        write_atomically(kept, kept.read_bytes() + b"\n")  # what a kill cut short stays a line of its own
    return kept.open("a")


def read(kept: Path) -> list[Row]:
    """The lines of earlier jobs; one that a kill cut short is not there."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    whole = []
    for line in lines:
        try:
            whole.append(json.loads(line))
        except ValueError:
            continue
    return whole


def _key(job: Row) -> str:
    return json.dumps(job, sort_keys=True)


def to_csv(rows: Sequence[Row], about: str) -> str:
    """The rows under one header, floats to 6 digits, and `about` as a comment above."""
    file = StringIO()
    file.write(f"# {about}\n")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(f"{v:.6g}" if isinstance(v := row.get(n), float) else "" if v is None else v for n in names)
    return file.getvalue()


def from_csv(text: str) -> tuple[list[Row], str]:
    """`to_csv` read back: numbers as numbers, an empty cell as None."""
    about, _, table = text.partition("\n")
    return [{k: _value(v) for k, v in row.items()} for row in csv.DictReader(StringIO(table))], about.removeprefix("# ")


def _value(cell: str) -> str | int | float | bool | None:
    if cell in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[cell]
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def render(question: ModuleType, out: Path) -> None:
    """README.md and figure.png from data.csv, and from nothing else."""
    rows, about = from_csv((out / "data.csv").read_text())
    answer = question.answer(rows)
    script = getattr(question, "SCRIPT", f"scripts/questions/{Path(question.__file__).name}")
    write_atomically(out / "README.md", markdown(answer, script, about).encode())
    answer.draw(out / "figure.png")
