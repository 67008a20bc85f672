"""python -m rl_natgrad.train: what the command line asks for, and nothing imported that it does not need."""

import sys
from pathlib import Path

from rl_natgrad.distributed.launch import end_with_torchrun, launched
from rl_natgrad.envs.leftovers import tidy
from rl_natgrad.run.errors import say
from rl_natgrad.run.imports import for_good
from rl_natgrad.run.signals import Stop, Stopped, deafen
from rl_natgrad.run.streams import unfailing


def main() -> int:
    """Trains, resumes or sweeps. Returns the exit code: 0 done, 1 failed, 2 refused, 130 or 143 stopped."""
    launch = launched()
    if launch:
        end_with_torchrun()
    if launch and launch.rank:
        with for_good():
            from rl_natgrad.training.follow import follow
        return follow(launch)
    with Stop(relayed=launch is not None) as stop:  # before the imports that take time
        try:
            from rl_natgrad.config.command import NewRun, Resume, parse_or_exit

            asked = parse_or_exit(sys.argv[1:])
            if isinstance(asked, Resume):
                with for_good():
                    from rl_natgrad.training.resume import resume
                return resume(Path(asked.run), asked.overrides, stop, launch)
            if isinstance(asked, NewRun):
                with for_good():
                    from rl_natgrad.training.loop import start
                if launch:
                    from rl_natgrad.training.resume import begun, resume

                    if path := begun(asked.config, launch):
                        return resume(path, [], stop, launch)
                return start(asked.config, asked.overrides, stop, launch)
        except Stopped:
            print("stop    before the first update", file=sys.stderr)
            return stop.code
    if launch:
        return say("-m starts a process for each run; start it without torchrun", 2)
    from rl_natgrad.sweep.run import sweep

    return sweep(asked)


def process() -> int:
    """main() as all that its process does."""
    unfailing()
    return tidy(_deaf_in_the_end)


def _deaf_in_the_end() -> int:
    code = main()
    deafen()  # the interpreter's own end takes a while, and its exit code is settled
    return code


if __name__ == "__main__":
    sys.exit(process())
