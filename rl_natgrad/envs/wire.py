"""What the parent and its environment workers share: memory, and frames on a socket."""

import mmap
import os
import select
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BUILT, NOTE = b"+", b"n"  # kinds of frames that are no answers: one environment more; something to say
HEADER = struct.Struct("<cQ")  # kind and size of a frame

GRACE = 1.0  # seconds that a worker waits for what its environments left running

SPIN = 1e-3  # seconds to wait awake: longer than a policy's forward pass, shorter than anyone would notice

Field = tuple[Sequence[int], str]  # shape and dtype of one shared array


def memory_file(fields: Sequence[Field]) -> int:
    """A descriptor of nameless memory for those arrays: nothing stays behind, whatever kills us."""
    if sys.platform == "linux":
        fd = os.memfd_create("rl_natgrad")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, sum(_room(field) for field in fields))
    return fd


def shared(fd: int, fields: Sequence[Field]) -> list[NDArray]:
    """The arrays over that memory."""
    memory, start = mmap.mmap(fd, 0), 0
    views: list[NDArray] = []
    for shape, dtype in fields:
        views.append(np.ndarray(tuple(shape), dtype, memory, start))
        start += _room((shape, dtype))
    return views


def _room(field: Field) -> int:
    """Bytes of one array, in whole cache lines."""
    shape, dtype = field
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64


def ready_soon(poll: select.poll, seconds: float) -> list[tuple[int, int]]:
    """What becomes ready within so many seconds, found without going to sleep; empty where nothing does."""
    end = time.perf_counter() + seconds
    while not (ready := poll.poll(0)) and time.perf_counter() < end:
        os.sched_yield()  # to whoever else has work for this core
    return ready


def send(sock: socket.socket, kind: bytes, payload: bytes = b"") -> None:
    """One frame: a letter and bytes."""
    sock.sendall(HEADER.pack(kind, len(payload)) + payload)


def receive(sock: socket.socket) -> tuple[bytes, bytes]:
    """One frame. Raises EOFError where the other side is gone."""
    kind, size = HEADER.unpack(_exactly(sock, HEADER.size))
    return kind, _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
