"""CartPole that does something as it is made, in every way that a process can end: fork_environments:Does-v0."""

from __future__ import annotations

import atexit
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

IMPORTED = "DOES_IMPORTED" in os.environ  # by whoever imported it before, in this process or in one it is of
os.environ["DOES_IMPORTED"] = "1"


class Does(CartPoleEnv):
    """Does its deed, a key of DEEDS."""

    def __init__(self, deed: str = "") -> None:
        super().__init__()
        DEEDS[deed]()


def tell() -> None:
    """All that a process has from those that started it."""
    main = sys.modules["__main__"]
    handlers = [str(signal.getsignal(number)).split(" at ")[0] for number in range(1, 32)]
    print(json.dumps({
        "argv": sys.argv, "main": [main.__name__, main.__spec__ and main.__spec__.name, main.__file__],
        "path": sys.path, "environ": dict(sorted(os.environ.items())), "cwd": os.getcwd(), "umask": os.umask(0o22),
        "leads": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()], "imported": IMPORTED,
        "handlers": handlers, "mask": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "files": [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)], "open": len(os.listdir("/proc/self/fd")),
        "threads": [threading.active_count(), len(os.listdir("/proc/self/task")), torch.get_num_threads()],
        "cuda": torch.cuda.is_initialized(),
        "filters": sorted(map(str, warnings.filters)), "modules": "rl_natgrad.train" in sys.modules,
        "stdout": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stdin.read()],
    }))  # fmt: skip
    print("draws", random.random(), np.random.random(), torch.rand(1).item())  # noqa: NPY002 (who draws unseeded)
    sys.stdout.flush()


def leave_a_child() -> None:
    print("child", subprocess.Popen(["sleep", "100"]).pid, flush=True)


def left_and_deaf() -> None:
    leave_a_child()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sleep()


def sleep() -> None:
    """In short naps, as a signal just before a long one would not be heard in it."""
    while True:
        time.sleep(0.02)


def speak_late() -> None:
    """In all the ways in which a process that ends still has something to write."""
    atexit.register(print, "late: atexit")
    threading.Timer(0.3, print, ["late: thread"]).start()
    FILE.write("late: file\n")
    print("late: stdout")


FILE = os.fdopen(os.dup(1), "w")
DEEDS = {
    "late": speak_late,
    "": lambda: None,
    "tell": tell,
    "_exit": lambda: (leave_a_child(), os._exit(7)),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda: (print("hangs", flush=True), sleep()),
    "deaf": left_and_deaf,
}
gym.register("Does-v0", entry_point="fork_environments:Does", max_episode_steps=500)
