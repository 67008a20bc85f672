"""The process that steps some of the environments of an `async` or `split` run. Imports no torch."""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

from numpy.typing import NDArray

from rl_natgrad.envs import errors
from rl_natgrad.envs.episode import Episodes, Recipe
from rl_natgrad.envs.errors import EnvError, RaisedEnvError, unmade
from rl_natgrad.envs.leftovers import tidy
from rl_natgrad.envs.positions import Positions
from rl_natgrad.envs.spaces import to_plain
from rl_natgrad.envs.view import WithSpaces
from rl_natgrad.envs.wire import BUILT, GRACE, NOTE, ready_soon, receive, send, shared

PR_SET_PDEATHSIG = 1


def main(fd: int) -> None:
    """Builds its environments, then serves until the socket closes."""
    sock = socket.socket(fileno=fd)
    job = json.loads(receive(sock)[1])
    die_with(job["parent"], at_once=job["from_main_thread"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # so that a KeyboardInterrupt is an environment's
    errors.tell = lambda text: send(sock, NOTE, text.encode())
    tidy(lambda: _work(sock, job), GRACE)


def _work(sock: socket.socket, job: dict[str, Any]) -> int:
    try:
        episodes, actions = _build(sock, job)
    except EnvError as error:
        _report(sock, str(error), isinstance(error, RaisedEnvError))
        return 1
    except BaseException as error:
        _report(sock, unmade(job["recipe"]["id"], error))
        return 1
    send(sock, b".")
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLHUP)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            ready_soon(poll, job["spin"])
            kind, payload = receive(sock)
            try:
                reply = _serve(episodes, actions, kind, payload)
            except EnvError as error:
                _report(sock, str(error), isinstance(error, RaisedEnvError))
            else:
                send(sock, b".", reply)
    episodes.close()
    return 0


def die_with(parent: int, *, at_once: bool = True) -> None:
    """A closed socket ends an idle worker; this ends one that hangs inside an environment (Linux).

    at_once: the thread that started it is the main one; the signal comes when that thread ends.
    """
    if sys.platform == "linux" and at_once:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _build(sock: socket.socket, job: dict[str, Any]) -> tuple[Episodes, NDArray]:
    """Makes the environments, tells of their spaces, then hears of the memory that results go to."""
    episodes = Episodes(Recipe.from_dict(job["recipe"]), range(*job["indices"]))
    episodes.build(lambda: send(sock, BUILT))
    env = episodes.all[0].env
    recipe = episodes.recipe
    WithSpaces(env.observation_space, env.action_space, recipe.stack, recipe.action_mask)  # refuses unusable ones
    send(sock, b".", json.dumps([to_plain(env.observation_space), to_plain(env.action_space)]).encode())
    (memory,) = socket.recv_fds(sock, 1, 1)[1]
    actions, *results, at = shared(memory, json.loads(receive(sock)[1]))
    os.close(memory)
    mine = slice(*job["indices"])
    episodes.attach(*(array[mine] for array in results), at[job["worker"] :])
    return episodes, actions[mine]


def _serve(episodes: Episodes, actions: NDArray, kind: bytes, payload: bytes) -> bytes:
    """One command: r reset, s step, t state, l load."""
    if kind == b"s":
        episodes.step(actions.copy())  # the memory is written again before the next step; episodes keep these
    elif kind == b"r":
        episodes.reset()
    elif kind == b"t":
        return episodes.state().encode()
    elif kind == b"l":
        episodes.load(Positions.decode(payload, actions))
    return b""


def _report(sock: socket.socket, line: str, raised: bool = False) -> None:
    """The error being handled, as one line and its traceback. Args: raised: by the environment's own code."""
    told = {"line": line, "raised": raised, "traceback": traceback.format_exc()}
    with contextlib.suppress(OSError):
        send(sock, b"!", json.dumps(told).encode())
