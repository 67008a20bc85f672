"""What torchrun tells a process that it starts. Importing this costs nothing."""

import os
import signal
import socket
import sys
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Launch:
    """One process of a run of several.

    rank: 0 ≤ rank < world; rank 0 leads.  id: the same for all processes that one torchrun starts, also for
    those that take the place of others that died.  attempt: how often that has been, from 0.  speaks: whether it
    says how it ends, as one of each machine does.
    """

    rank: int
    world: int
    id: str
    attempt: int
    speaks: bool


def launched() -> Launch | None:
    """How this process was started; None where it is alone, as torchrun did not."""
    told = os.environ
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= told.keys():
        return None
    id = told.get("TORCHELASTIC_RUN_ID", "none")
    if id == "none":  # of a rendezvous that was given no id: what stays is who starts the processes
        id = f"{socket.gethostname()}-{os.getppid()}"
    attempt = int(told.get("TORCHELASTIC_RESTART_COUNT", 0))
    return Launch(int(told["RANK"]), int(told["WORLD_SIZE"]), id, attempt, told.get("LOCAL_RANK") == "0")


def end_with_torchrun() -> None:
    """Where torchrun is killed, this process is asked to stop, as it cannot do that itself (Linux)."""
    if sys.platform == "linux":
        import ctypes  # takes time

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
