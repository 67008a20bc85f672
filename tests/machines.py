"""Machines inside this one: namespaces of Linux, which end with the test however that ends; a link between two.

    python tests/machines.py 0.001 -- torchrun --nnodes=2 …      on both, joined by a link that delays by 1 ms

The link is two TUN devices and a process that carries packets from one to the other, as `tc netem` is a module
that not every kernel has.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rl_natgrad.sweep.process import dies_with

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000  # linux/if_tun.h
TUN = "/dev/net/tun"
MTU = 9000
ALL = ("--net", "--mount", "--uts", "--pid")
READY = 10.0  # seconds


class Machine:
    """A host name, a network (lo only), processes: its own. Files are those of the machine that it is in."""

    def __init__(self, name: str, hosts: dict[str, str], folder: Path):
        self.name, table = name, folder / f"hosts of {name}"
        known = {"localhost": "127.0.0.1", **hosts}
        table.write_text("".join(f"{address} {host}\n" for host, address in known.items()))
        begin = 'hostname "$0" && mount --bind "$1" /etc/hosts && ip link set lo up && echo ok && exec sleep inf'
        self._holder = subprocess.Popen(
            ["unshare", *ALL, "--fork", "--kill-child", "--mount-proc", "sh", "-c", begin, name, str(table)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=partial(dies_with, os.getpid()),
        )  # fmt: skip
        assert self._holder.stdout
        said = self._holder.stdout.readline()
        if said != "ok\n":
            raise OSError(said.strip())
        self.pid = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())

    def inside(self, *command: str) -> list[str]:
        """The command that runs a command there, in this working folder."""
        return ["nsenter", f"--target={self.pid}", *ALL, f"--wd={os.getcwd()}", "--", *command]

    def start(self, *command: str, output: Path | None = None, **env: str) -> subprocess.Popen[str]:
        """Runs a command there, which says what it says to a file."""
        with open(output or os.devnull, "a") as file:
            return subprocess.Popen(
                self.inside(*command), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, **env}, preexec_fn=partial(dies_with, os.getpid()),
            )  # fmt: skip

    def run(self, *command: str, timeout: float = 60.0, **env: str) -> str:
        """What a command says there. Raises: CalledProcessError."""
        done = subprocess.run(
            self.inside(*command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
            env={**os.environ, **env},
        )  # fmt: skip
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def processes(self) -> dict[int, str]:
        """The command line of every process there but the first, by its number here."""
        found, own = {}, os.readlink(f"/proc/{self.pid}/ns/pid")
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/pid") == own and int(entry.name) != self.pid:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found.update({int(entry.name): line} if line else {})  # one that is over has none
        return found

    def kill(self) -> None:
        """Ends all that runs there, at once; the machine itself stays."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """The kernel ends all that is left there."""
        self._holder.kill()
        self._holder.communicate()


@contextlib.contextmanager
def machines(folder: Path, hosts: dict[str, str]) -> Iterator[list[Machine]]:
    """Machines of these names. Raises: OSError where this system has none to give."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in hosts:
            made.append(Machine(name, hosts, folder))
            stack.callback(made[-1].close)
        yield made


@contextlib.contextmanager
def pair(folder: Path, delay: float = 0.0) -> Iterator[list[Machine]]:
    """host1 and host2, and between them `wire`, on which a packet takes `delay` seconds. Raises: OSError."""
    hosts = {"host1": "10.77.0.1", "host2": "10.77.0.2"}
    with machines(folder, hosts) as made:
        ends = [open(TUN, "r+b", buffering=0) for _ in made]  # noqa: SIM115
        for end, machine in zip(ends, made, strict=True):
            device = f"wire{os.getpid()}"
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
            subprocess.run(["ip", "link", "set", device, "netns", str(machine.pid), "name", "wire"], check=True)
            machine.run("ip", "address", "add", f"{hosts[machine.name]}/24", "dev", "wire")
            machine.run("ip", "link", "set", "wire", "up", "mtu", str(MTU))
        carrier = subprocess.Popen(
            [sys.executable, __file__, str(delay), *(str(end.fileno()) for end in ends)],
            pass_fds=[end.fileno() for end in ends], preexec_fn=partial(dies_with, os.getpid()),
        )  # fmt: skip
        for end in ends:
            end.close()
        try:
            yield made
        finally:
            carrier.kill()
            carrier.wait()


def cut(machine: Machine) -> None:
    """Pulls the cable: nothing arrives from now on, and nobody is told."""
    machine.run("ip", "link", "set", "wire", "down")


def mend(machine: Machine) -> None:
    """Puts it back."""
    machine.run("ip", "link", "set", "wire", "up")


def carry(delay: float, *ends: int) -> None:
    """Packets from each of two devices to the other, `delay` seconds later. Does not return."""
    with contextlib.suppress(OSError):  # else it waits for those whom it serves
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    other, under_way = dict(zip(ends, reversed(ends), strict=True)), deque()
    for end in ends:
        os.set_blocking(end, False)
    while True:
        wait = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else None
        for end in select.select(ends, [], [], wait)[0]:
            with contextlib.suppress(OSError):  # no more of them; or the device is down
                for _ in range(64):
                    packet = os.read(end, 1 << 16)
                    under_way.append((time.monotonic() + delay, other[end], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, packet = under_way.popleft()
            with contextlib.suppress(OSError):
                os.write(end, packet)


def main() -> int:
    """The same command on both machines of a pair."""
    delay, _, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, pair(Path(folder), float(delay)) as made:
        dies = partial(dies_with, os.getpid())
        started = [subprocess.Popen(machine.inside(*command), preexec_fn=dies) for machine in made]
        return max(process.wait() for process in started)


if __name__ == "__main__":
    sys.exit(carry(float(sys.argv[1]), *map(int, sys.argv[2:])) if "--" not in sys.argv else main())
