"""How much of the machine is ours."""

import os
import sys


def cores() -> int:
    """Cores that this process may run on; all there are where the system does not say."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
