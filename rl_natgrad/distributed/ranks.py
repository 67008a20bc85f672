"""Several processes that are one run: rank 0 tells, the others answer, over torch.distributed (gloo)."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from rl_natgrad.distributed.launch import Launch
from rl_natgrad.distributed.messages import Message, pack, unpack

PATIENCE = timedelta(days=7)  # rank 0 may evaluate for long; who has died is noticed by its closed connection


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
        """Over all ranks, of a tensor that has the same shape in each. Raises: Lost."""
        total = x.detach().clone()
        with _connected("another rank"):
            dist.all_reduce(total)
        return total

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
def joined(launch: Launch, heard: Callable[[int], None] = lambda number: None) -> Iterator[Ranks]:
    """This process among the others, until the end of the block. Raises: Lost."""
    with _connected("another rank"), _mortal():
        store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
        # torchrun's store outlives the processes: one that finds the address of a dead one there waits for ever
        store = dist.PrefixStore(f"attempt {launch.attempt}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE)
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


@contextmanager
def _mortal() -> Iterator[None]:
    """SIGINT and SIGTERM end the process at once: waiting for the others is done in C++, where no handler runs."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
