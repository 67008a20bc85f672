"""How much of the machine is ours."""

import os
import sys

JOBS = "RL_NATGRAD_JOBS"
"""The environment variable that tells a sweep's job how many run at once."""


def share() -> int:
    """Cores for this run: all of ours, or a job's part of them."""
    return cores() // int(os.environ.get(JOBS) or 1)


def cores() -> int:
    """Cores that this process may run on; all there are where the system does not say."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
