"""What has become of jobs on a Slurm that keeps no accounts: submitit asks sacct alone, which then knows nothing.

It imports submitit, an extra.
"""

import subprocess

from submitit import SlurmJob
from submitit.slurm.slurm import SlurmInfoWatcher

ENDS = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
DELAY = 60  # seconds at most between two looks


class Queue(SlurmInfoWatcher):
    """Asks squeue, which knows a job until some minutes after its end."""

    def _make_command(self) -> list[str] | None:
        return ["squeue", "--me", "--noheader", "--states=all", "--format=%A %T"] if self._registered else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """The state of every job that was asked for; one that squeue does not know has ended before."""
        text = string if isinstance(string, str) else string.decode()
        states = dict(line.split() for line in text.splitlines())
        return {id: {"State": _state(states.get(id, "COMPLETED"))} for id in self._registered}


def _state(state: str) -> str:
    """In submitit's words, which takes those that it does not know, such as CONFIGURING, for an end."""
    return state if state in (*ENDS, "PENDING") else "RUNNING"


def ask_who_knows() -> None:
    """submitit asks squeue from now on, unless sacct has something to say."""
    try:
        subprocess.run(["sacct", "--noheader"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        SlurmJob.watcher = Queue(delay_s=DELAY)
