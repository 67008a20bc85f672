"""Several processes that are one run: rank 0 tells, the others answer, over torch.distributed (gloo)."""

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from rl_natgrad.distributed.messages import Message, pack, unpack

PATIENCE = timedelta(days=7)  # rank 0 may evaluate for long; who has died is noticed by its closed connection
SILENCE = 20  # seconds without an answer from another machine's kernel, after which it is gone
SMALL = 1 << 20  # bytes of a sum, up to which its time is that of the way and not of the bytes


class Lost(ConnectionError):
    """Another rank has ended, or cannot be reached."""


class Ranks:
    """The processes of this run; this is number `rank` of `world`.

    heard: called in rank 0 with the signal that another rank has heard.  notes: what goes to rank 0 with the next
    answer, for people.
    """

    def __init__(self, heard: Callable[[int], None] = lambda number: None):
        self.rank, self.world, self.heard = dist.get_rank(), dist.get_world_size(), heard
        self.notes: list[str] = []
        self._signal = 0

    def note(self, signal: int) -> None:
        """Rank 0 gets to know of the signal with the next answer."""
        self._signal = signal

    def tell(self, message: Message) -> None:
        """From rank 0 to all others. Raises: Lost."""
        data = torch.from_numpy(pack(message))
        with _connected("another rank"):
            dist.broadcast(torch.tensor([len(data)]), 0)
            dist.broadcast(data, 0)

    def hear(self) -> Message:
        """What rank 0 tells the others. Raises: Lost."""
        with _connected("rank 0"):
            size = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(size, 0)
            data = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(data, 0)
        return unpack(data.numpy())

    def answer(self, message: Message) -> None:
        """To rank 0, of which each other rank owes one to each that it has heard. Raises: Lost."""
        data = torch.from_numpy(pack({**message, "notes": self.notes, "signal": self._signal}))
        self.notes.clear()
        with _connected("rank 0"):
            dist.send(torch.tensor([len(data)]), 0)
            dist.send(data, 0)

    def answers(self) -> list[Message]:
        """In rank 0, those of ranks 1, 2, …  Raises: Lost."""
        return [self._answer(rank) for rank in range(1, self.world)]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Over all ranks, of a tensor that has the same shape in each; the same bits in all. Raises: Lost."""
        total = x.detach().clone()
        with _connected("another rank"):
            if total.is_cpu and total.nbytes <= SMALL:
                self._double(total)
            else:
                dist.all_reduce(total)
        return total

    def _double(self, total: torch.Tensor) -> None:
        """The sum, in its place, in log2 W round trips, where gloo's ring takes 2(W − 1): in each, who has the sum
        of 1, 2, 4, … ranks swaps it with another such. Recursive doubling, Thakur et al. 2005.

        a + b and b + a have the same bits. Ranks beyond the largest power of two, `full`, go through another.
        """
        full, other = 1 << self.world.bit_length() - 1, torch.empty_like(total)
        if self.rank >= full:
            dist.send(total, self.rank - full)
            dist.recv(total, self.rank - full)
            return
        beyond = self.rank + full
        if beyond < self.world:
            dist.recv(other, beyond)
            total += other
        for step in (1 << k for k in range(full.bit_length() - 1)):
            coming = dist.irecv(other, self.rank ^ step)
            assert coming  # None is for who is in no group
            dist.send(total, self.rank ^ step)
            coming.wait()
            total += other
        if beyond < self.world:
            dist.send(total, beyond)

    def _answer(self, rank: int) -> Message:
        with _connected(f"rank {rank}"):
            size = torch.zeros(1, dtype=torch.int64)
            dist.recv(size, rank)
            data = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(data, rank)
        message = unpack(data.numpy())
        if number := message.pop("signal"):
            self.heard(number)
        return message


@contextmanager
def joined(heard: Callable[[int], None] = lambda number: None) -> Iterator[Ranks]:
    """This process among the others, until the end of the block. Raises: Lost."""
    with _connected("another rank"), _mortal():
        store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
        _notice_silence()
        # torchrun's store outlives the processes: one that finds the address of a dead one there waits for ever
        store = dist.PrefixStore(start(store, rank, world), store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE)
        _notice_silence()
    try:
        yield Ranks(heard)
    finally:
        dist.destroy_process_group()


@contextmanager
def _connected(who: str) -> Iterator[None]:
    """What torch raises of a connection, as Lost."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(f"{who} has ended, or cannot be reached") from error


def start(store: dist.Store, rank: int, world: int) -> str:
    """A name that these processes have in common, and those in whose place they are had not.

    torchrun's count of restarts is none: where one machine sees a failure, another may see a new member instead.
    """
    own = uuid4().hex
    if rank:
        store.set(f"rank {rank}", own)
        start = store.get(own).decode()  # waits for rank 0
        store.set(f"{start} {rank}", "")
        return start
    waited = set(range(1, world))
    while waited:
        for other in list(waited):
            if store.check([f"rank {other}"]):
                store.set(store.get(f"rank {other}").decode(), own)  # maybe to a dead one, which does not answer
            if store.check([f"{own} {other}"]):
                waited.remove(other)
        time.sleep(0.01)
    return own


def _notice_silence() -> None:
    """The kernel asks every other machine whether it is there, and breaks the connection to one that is not.

    A cut cable or a lost power closes no connection, and gloo does not ask. It keeps its sockets to itself.
    """
    if sys.platform != "linux":
        return
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile, or not of TCP
            if not file.is_socket():
                continue
            with socket.fromfd(int(file.name), socket.AF_INET, socket.SOCK_STREAM) as shared:
                shared.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE)
                shared.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE // 2)
                shared.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
                shared.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


@contextmanager
def _mortal() -> Iterator[None]:
    """SIGINT and SIGTERM end the process at once: waiting for the others is done in C++, where no handler runs."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
