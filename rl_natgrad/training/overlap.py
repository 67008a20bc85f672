"""The critic's fit in a process beside this one, while here the policy learns and, on one core, environments step.

A fork, which is up within milliseconds; a fresh interpreter takes a second to import torch. It remembers nothing:
each fit brings the regression's state along and takes it back. So whatever becomes of the process, this one can do
the same fit with the same bits, and does.
"""

import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from rl_natgrad.algos.among import ALONE, Among
from rl_natgrad.algos.critic import Critic, NoCritic, Regression
from rl_natgrad.config.schema import Config
from rl_natgrad.envs.cores import share
from rl_natgrad.envs.wire import receive, send
from rl_natgrad.envs.worker import die_with
from rl_natgrad.policy.networks import ValueNetwork
from rl_natgrad.run.checkpoint import State, decode, encode
from rl_natgrad.version import __version__

ROWS = 1000  # of a batch: for fewer, sending them takes a good part of the time that fitting them does
PATIENCE = 60.0  # seconds after which a fit that has not come is done here
IDLE = ("sync", "native", "device")  # backends that step environments on one core; the others want all of them
FIT = b"f"  # the one kind of frame


def pays(cfg: Config) -> bool:
    """Whether to fit beside: as critic.overlap says; where that is auto, on a core that would be idle."""
    if cfg.overlap != "auto":
        return cfg.overlap
    idle = sys.platform == "linux" and share() > 1
    return idle and cfg.can_overlap and cfg.num_envs * cfg.horizon >= ROWS


@contextmanager
def beside(critic: Critic | NoCritic, note: Callable[[str], None]) -> Iterator[None]:
    """While entered, the fits that the critic begins go on in another process.

    note: is told, once, where there is no such process, or no longer.
    """
    assert isinstance(critic, Critic)  # else there is no critic.overlap
    helper = Helper(critic.regress, critic.net, note)
    critic.start = helper.start
    try:
        yield
    finally:
        critic.start = partial
        helper.close()


class Helper:
    """The process: 0 once it is gone, and then fits are done here. It ends with this one at the latest."""

    def __init__(self, regress: Regression, net: ValueNetwork, note: Callable[[str], None]):
        self.note, self.process = note, 0
        try:
            self._socket, theirs = socket.socketpair()
            self._socket.settimeout(PATIENCE)
            self.process = _fork(partial(_serve, theirs, regress, net))
            theirs.close()
        except OSError as error:  # no processes or files left
            note(f"the critic is fitted without a second process: {error.strerror}")

    def start(
        self, regress: Regression, net: ValueNetwork, theta: Tensor, x: Tensor, target: Tensor,
        among: Among = ALONE,
    ) -> Callable[[], Tensor]:  # fmt: skip
        """See algos.critic.Start; all samples are here, as several ranks fit nothing beside."""
        here, before = partial(regress, net, theta, x, target), regress.state()
        try:
            if self.process:
                send(self._socket, FIT, _frame(before, theta=theta, x=x, target=target))
        except OSError:
            self._gone()
        return partial(self._wait, regress, before, here) if self.process else here

    def _wait(self, regress: Regression, before: dict[str, Any], here: Callable[[], Tensor]) -> Tensor:
        """What comes back, or the same done here."""
        try:
            state, theta = _parts(receive(self._socket)[1])
            regress.load(state)
        except (OSError, EOFError, ValueError):  # the latter: a state that is not finite, of a θ that may be
            self._gone()
            regress.load(before)
            return here()
        return theta

    def _gone(self) -> None:
        self.close()
        self.note("the second process that fitted the critic is gone; the same is done in this one")

    def close(self) -> None:
        """Ends it, whatever it does: it has nothing to save."""
        gone, self.process = self.process, 0
        if gone:
            for end in (partial(os.kill, gone, signal.SIGKILL), partial(os.waitpid, gone, 0), self._socket.close):
                with suppress(OSError):  # an environment has waited for all children, or closed all files
                    end()


def _fork(work: Callable[[], None]) -> int:
    """The number of a copy of this process that does only `work`; SIGINT and SIGTERM are not for it."""
    parent, main = os.getpid(), threading.current_thread() is threading.main_thread()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12 on, where BLAS or a watchdog has threads
            child = os.fork()
        if not child:
            try:
                die_with(parent, at_once=main)
                work()
            finally:
                os._exit(0)
        return child
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@np.errstate(over="ignore", invalid="ignore")  # as in Critic
def _serve(sock: socket.socket, regress: Regression, net: ValueNetwork) -> None:
    """One fit after the other, until nobody asks any more."""
    fd = sock.fileno()
    os.closerange(3, fd)  # the run's lock, environments' pipes: nobody should wait for us to close them
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
    while True:
        state, theta, x, target = _parts(receive(sock)[1])
        regress.load(state)
        theta = regress(net, theta, x, target)
        send(sock, FIT, _frame(regress.state(), theta=theta))


def _frame(state: State, **tensors: Tensor) -> bytes:
    return encode({"state": state, **tensors}, __version__)


def _parts(frame: bytes) -> tuple[Any, ...]:
    """The state and the tensors that a frame has, these in memory aligned as torch does, on which a product's last
    bits may depend. Raises: ValueError."""
    state, *tensors = decode(frame, "what the critic's process sent").values()
    return state, *(tensor.clone() for tensor in tensors)
