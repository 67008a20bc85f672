"""What torchrun tells a process that it starts. Importing this costs nothing."""

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One process of a run of several.

    rank: 0 ≤ rank < world; rank 0 leads.  id: the same for all processes that one torchrun starts, also for
    those that take the place of others that died.  attempt: how often that has been, from 0.
    """

    rank: int
    world: int
    id: str
    attempt: int


def launched() -> Launch | None:
    """How this process was started; None where it is alone, as torchrun did not."""
    told = os.environ
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= told.keys():
        return None
    id = told.get("TORCHELASTIC_RUN_ID", "none")
    if id == "none":  # of a rendezvous that was given no id: what stays is who starts the processes
        id = f"{socket.gethostname()}-{os.getppid()}"
    attempt = int(told.get("TORCHELASTIC_RESTART_COUNT", 0))
    return Launch(int(told["RANK"]), int(told["WORLD_SIZE"]), id, attempt)
