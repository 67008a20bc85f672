"""python scripts/classic_control.py [key=value …]: makes results/classic-control/, trainings included.

Stop it whenever you like and start it again: finished runs are kept, stopped ones go on.

  steps   environment steps per run  [what BUDGET says of each environment]
  seeds   runs per algorithm and environment  [10]
  jobs    runs at once  [one per core]
  runs    folder of the runs  [runs/classic-control]
  out     folder of README.md and curves.png  [results/classic-control]
"""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from classic_control_page import ALGOS, facts, readme

from rl_natgrad.compare import plot, runs, summary
from rl_natgrad.compare.options import AXES, CompareError, Options
from rl_natgrad.config import command as cli
from rl_natgrad.run.files import write_atomically
from rl_natgrad.sweep.earlier import Earlier

BUDGET = {"CartPole-v1": 100_000, "Acrobot-v1": 100_000, "Pendulum-v1": 200_000, "LunarLander-v3": 300_000}
DEFAULTS = {"steps": "", "seeds": "10", "jobs": "null", "runs": "runs/classic-control",
            "out": "results/classic-control"}  # fmt: skip
METRIC = "rollout/return"


def main(argv: Sequence[str]) -> int:
    """Trains what is missing, then writes. Exit code: 0, 1 (a run failed), 2 (refused), 130 or 143 (stopped)."""
    if {"-h", "--help"} & set(argv):
        print(__doc__, end="")
        return 0
    given = dict(word.split("=", 1) for word in argv if "=" in word)
    if len(given) < len(argv) or given.keys() - DEFAULTS.keys():
        print(f"error: expected {'=…, '.join(DEFAULTS)}=…, got {shlex.join(argv)}", file=sys.stderr)
        return 2
    options = DEFAULTS | given
    failed = 0
    for command in sweeps(options):
        print(f"+ {shlex.join(command)}", flush=True)
        code = call([sys.executable, *command[1:]])
        if code not in (0, 1):
            return code
        failed |= code
    found, missing = trained(options)
    notes = [f"{len(missing)} runs did not finish and are left out: {', '.join(missing)}."] if missing else []
    shown = [word for word in argv if not word.startswith(("out=", "runs=", "jobs="))]
    try:
        write(found, Path(options["out"]), ["python", "scripts/classic_control.py", *shown], notes)
    except CompareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote   {options['out']}/README.md, curves.png")
    return failed


def call(command: Sequence[str]) -> int:
    """Runs a command to its end; Ctrl-C is passed on to it once, so that it stops in good order."""
    child = subprocess.Popen(command, process_group=0)  # of its own, or the terminal would tell it as well
    before = {n: signal.signal(n, lambda n, _: child.send_signal(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sweeps(options: dict[str, str]) -> list[list[str]]:
    """The commands that train: one per environment, as each has its own budget."""
    return [
        ["python", "-m", "rl_natgrad.train", "-m", f"algo={','.join(ALGOS)}", f"env={env}",
         f"seed=range({options['seeds']})", f"total_steps={options['steps'] or budget}",
         f"runs_dir={options['runs']}", "sweep.skip_finished=true", f"sweep.jobs={options['jobs']}"]
        for env, budget in BUDGET.items()
    ]  # fmt: skip


def trained(options: dict[str, str]) -> tuple[list[Path], list[str]]:
    """The finished runs of just these commands (a default may have changed since others), and who is missing."""
    found, missing = [], []
    earlier = Earlier([options["runs"]])
    for job in (job for command in sweeps(options) for job in cli.parse(command[3:]).jobs):
        run = earlier.claim(job.config)
        if run and run.outcome == "finished":
            found.append(run.path)
        else:
            missing.append(f"{job.config.algo.name} on {job.config.env.id}, seed {job.config.seed}")
    return found, missing


def write(folders: Sequence[Path], out: Path, command: Sequence[str], notes: Sequence[str] = ()) -> None:
    """README.md and curves.png in `out`, from the runs in these folders and from nothing else."""
    if not folders:
        raise CompareError("no run has finished")
    options = Options(list(folders), by=["env"], x=list(AXES), metric=METRIC)
    found, unread = runs.read_runs(options)
    groups, said = runs.comparisons(found, options.by)
    by_axis = {
        axis: [summary.compare(env, members, replace(options, x=[axis])) for env, members in groups.items()]
        for axis in AXES
    }
    out.mkdir(parents=True, exist_ok=True)
    plot.curves(by_axis["steps"], list(AXES), METRIC, out / "curves.png")
    text = readme(by_axis, facts(found), [*notes, *unread, *said], shlex.join(command))
    write_atomically(out / "README.md", text.encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
