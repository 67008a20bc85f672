"""Environments in worker processes: several per worker, results in shared memory, a limit on every step."""

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl_natgrad.envs.backstop import stopped
from rl_natgrad.envs.contract import Rows
from rl_natgrad.envs.cores import cores
from rl_natgrad.envs.episode import CONSTRUCTOR, Episodes, Recipe
from rl_natgrad.envs.errors import EnvError, RaisedEnvError, note
from rl_natgrad.envs.positions import Positions, differing
from rl_natgrad.envs.spaces import to_space
from rl_natgrad.envs.view import WithSpaces
from rl_natgrad.envs.watchdog import START, Watchdog
from rl_natgrad.envs.wire import BUILT, GRACE, NOTE, SPIN, memory_file, ready_soon, receive, send, shared

# A fresh interpreter and not a fork: no locks, threads or CUDA context of torch are inherited, `__main__` is
# not imported again, and a worker needs a tenth of our memory.
BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from rl_natgrad.envs.worker import main
main(int(sys.argv[2]))
"""

LEAVE = 3 * GRACE  # seconds in which a worker names and ends what its environments left running


class WorkerTraceback(Exception):
    """The traceback of an error inside a worker, as the cause of the EnvError it led to."""


class AsyncEnvs(WithSpaces):
    """See `contract.Envs`. The same transitions as `sync`, bit for bit.

    async: workers step all of them, one worker per core, and none of them can harm this process.
    split: this process steps its share too, and everybody waits for everybody with eyes open: a process that
    sleeps takes 50 to 150 µs to wake on a virtual machine, which is a step of most environments.
    """

    restorable = True

    def __init__(self, recipe: Recipe, num_envs: int, split: bool = False) -> None:
        self.recipe, self.num_envs, self.backend = recipe, num_envs, "split" if split else "async"
        cuts = np.linspace(0, num_envs, min(num_envs, cores()) + 1).astype(int).tolist()
        shares = list(itertools.pairwise(cuts))
        own, self.indices = (shares[0], shares[1:]) if split else ((0, 0), shares)
        self.own, self.spin = Episodes(recipe, range(*own)), SPIN if split else 0.0
        self.watchdog = Watchdog(self.own, recipe.timeout) if split else None
        self.processes: list[subprocess.Popen] = []
        self.sockets: list[socket.socket] = []
        self.number, self.length = np.full(num_envs, -1), np.zeros(num_envs, int)
        self.done = np.ones(num_envs, bool)
        self.at = np.array([first for first, _ in self.indices])
        try:
            self._start()
        except BaseException:
            self._kill()
            self.close()
            raise

    def _start(self) -> None:
        job = {"recipe": self.recipe.to_dict(), "parent": os.getpid(), "spin": self.spin}
        job["from_main_thread"] = threading.current_thread() is threading.main_thread()
        for worker, indices in enumerate(self.indices):
            self._spawn({**job, "worker": worker, "indices": indices})
        patience = max(self.recipe.timeout, START)
        told = self._wait(f"{CONSTRUCTOR} did not return", patience, CONSTRUCTOR)
        if self.watchdog:  # only now: a constructor that ends its process ended a worker's
            with self.watchdog:
                self.own.build()
            env = self.own.all[0].env  # of one environment, or on one core, there is no worker to ask
            raw = env.observation_space, env.action_space
        else:
            observation, action = (to_space(plain) for plain in json.loads(told[0]))
            raw = observation, action
        super().__init__(*raw, self.recipe.stack, self.recipe.action_mask)
        self._share()
        self._wait("did not start", patience)

    def _share(self) -> None:
        """The memory in which results are found, and from which actions are read."""
        B, W, action, seen = self.num_envs, len(self.indices), self.raw_action_space, self.observation_space
        fields = [
            ([B, *(action.shape or ())], np.dtype(action.dtype).str),
            ([B, *seen.shape], seen.dtype.str),
            ([B], "<f8"),
            ([B], "|b1"),
            ([B], "|b1"),
            ([W], "<i8"),
        ]
        memory = memory_file(fields)
        self.actions, *results, self.at = shared(memory, fields)
        self.obs, self.reward, self.terminated, self.truncated = results
        self.at[:] = [first for first, _ in self.indices]
        k = len(self.own.all)
        self.own.attach(*(array[:k] for array in results), np.zeros(1, np.int64))
        for worker, sock in enumerate(self.sockets):
            try:
                socket.send_fds(sock, [b"m"], [memory])
                send(sock, b"m", json.dumps(fields).encode())
            except OSError as error:
                raise self._dead(worker, "start") from error
        os.close(memory)

    def _spawn(self, job: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        process = subprocess.Popen(
            [sys.executable, "-c", BOOT, path, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the trainer, which finishes the update first
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        theirs.close()
        self.processes.append(process)
        self.sockets.append(ours)
        send(ours, b"j", json.dumps(job).encode())

    def reset(self) -> NDArray:
        """The first observations (B, *O)."""
        self._ask(b"r", "reset", self.own.reset)
        self.number += 1
        self.length[:], self.done[:] = 0, False
        return self.obs

    def step(self, action: NDArray) -> Rows:
        """What comes of action (B, *A)."""
        self.actions[:] = self.to_env(action)
        self.number += self.done
        self.length += 1
        self.length[self.done] = 0
        mine = self.actions[: len(self.own.all)].copy()  # the memory is written again before the next step
        self._ask(b"s", "step", lambda: self.own.step(mine))
        self.done = self.terminated | self.truncated
        return self.obs, self.reward, self.terminated, self.truncated

    def state(self) -> dict[str, Any]:
        """Where every environment stands."""
        whole = self.own.state()
        for reply in self._ask(b"t", "saving"):
            part = Positions.decode(reply, self.actions)
            whole.numbers.extend(part.numbers)
            whole.actions.extend(part.actions)
        return whole.state(self.obs)

    def load(self, state: dict[str, Any]) -> tuple[NDArray, list[int]]:
        """Replays fresh environments to there; their observations, and who came back different."""
        whole = Positions.of(state, self.obs, self.raw_action_space)
        self.number, self.length = state["episode"].copy(), state["length"].copy()
        shares = [(0, len(self.own.all)), *self.indices]
        mine, *theirs = (Positions(whole.numbers[a:b], whole.actions[a:b]) for a, b in shares)
        # A replay is many steps, each of which may take its time.
        patience = self.recipe.timeout * (1 + int(self.length.max()))
        self._ask(b"l", "replay", lambda: self.own.load(mine), [each.encode() for each in theirs], patience)
        self.done = self.terminated | self.truncated
        return self.obs, differing(self.obs, state["obs"])

    def close(self) -> None:
        """Ends the environments and the workers."""
        if self.watchdog:
            if self.own.all:
                with self.watchdog:
                    self.own.close()
            self.watchdog.close()
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
        end = time.monotonic() + self.recipe.timeout + LEAVE
        for process, sock in zip(self.processes, self.sockets, strict=True):
            try:
                if code := process.wait(max(end - time.monotonic(), 0)):
                    note(f"{self.recipe.id}: close ended its process ({_how(code)})")
            except subprocess.TimeoutExpired:
                note(f"{self.recipe.id}: close did not return within {self.recipe.timeout:g} s (env.timeout)")
            sock.setblocking(False)
            with contextlib.suppress(EOFError, OSError):
                while True:
                    note(receive(sock)[1].decode())
        self._kill()

    def _kill(self) -> None:
        """Ends the workers and whatever their environments started."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for sock in self.sockets:
            sock.close()
        self.processes, self.sockets = [], []

    def _ask(
        self, kind: bytes, doing: str, here: Callable[[], object] = lambda: None,
        payloads: list[bytes] | None = None, patience: float | None = None,
    ) -> list[bytes]:  # fmt: skip
        """One command to every worker; their answers. `here` is done by this process meanwhile."""
        if len(self.sockets) < len(self.indices):
            raise EnvError(f"{self.recipe.id}: its worker processes have ended")
        for worker, sock in enumerate(self.sockets):
            try:
                send(sock, kind, payloads[worker] if payloads else b"")
            except OSError as error:
                raise self._dead(worker, doing) from error
        if self.watchdog:
            try:
                with self.watchdog:
                    here()
            except BaseException:
                self._kill()
                raise
        return self._wait(f"{doing} did not return", patience or self.recipe.timeout, doing)

    def _wait(self, hung: str, patience: float, doing: str = "start") -> list[bytes]:
        """An answer from every worker, each environment taking at most `patience` seconds."""
        replies: list[bytes] = [b""] * len(self.sockets)
        waiting = {sock.fileno(): worker for worker, sock in enumerate(self.sockets)}
        poll = select.poll()
        for fd in waiting:
            poll.register(fd, select.POLLIN | select.POLLHUP)
        # Waits are counted and clocks are not read: who is stopped (Ctrl-Z) has not hung.
        period, still, before = min(1.0, patience / 4), [0.0] * len(self.sockets), self.at.tolist()
        while waiting:
            ready = ready_soon(poll, self.spin) or poll.poll(period * 1000)
            if not ready:
                now = self.at.tolist()
                for w in waiting.values():
                    hangs = before[w] == now[w] and not stopped(self.processes[w].pid)
                    still[w] = still[w] + period if hangs else 0.0
                    if still[w] >= patience:
                        raise self._fail(w, f"{hung} within {patience:g} s (env.timeout)", doing)
                before = now
            for fd, _ in ready:
                worker = waiting[fd]
                kind, replies[worker] = self._answer(worker, doing)
                if kind == BUILT:
                    self.at[worker] += 1
                elif kind == NOTE:
                    note(replies[worker].decode())
                else:
                    del waiting[fd]
                    poll.unregister(fd)
        return replies

    def _answer(self, worker: int, doing: str) -> tuple[bytes, bytes]:
        try:
            kind, payload = receive(self.sockets[worker])
        except (EOFError, OSError) as error:
            raise self._dead(worker, doing) from error
        if kind == b"!":
            told = json.loads(payload)
            self._kill()
            kind_of = RaisedEnvError if told["raised"] else EnvError
            raise kind_of(told["line"]) from WorkerTraceback("\n" + told["traceback"])
        return kind, payload

    def _dead(self, worker: int, doing: str) -> EnvError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.processes[worker].wait(2)
        code = self.processes[worker].returncode
        how = "" if code is None else f" ({_how(code)})"
        return self._fail(worker, f"its process died in {doing}{how}", doing)

    def _fail(self, worker: int, what: str, doing: str) -> EnvError:
        i = int(self.at[worker])
        self._kill()
        where = self.recipe.where(i)
        if doing != CONSTRUCTOR:
            where += f", episode {max(self.number[i], 0)}, step {self.length[i]}"
        return EnvError(f"{where}: {what}")


def _how(code: int) -> str:
    """How a process ended, by its return code."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
