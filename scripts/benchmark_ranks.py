"""What two ranks are faster than one process, what they tell each other, and what that makes of 4, 16 and 64.

    python scripts/benchmark_ranks.py                          two cores to itself, five minutes
    python scripts/benchmark_ranks.py --only gather --updates 5       or sharded, or messages

gather: Hopper, `sync`, whole updates; beside them two processes that tell each other nothing and step half of the
environments each, with the first policy: what the machine allows.  sharded: HalfCheetah, 256×256 networks,
8 × 2048 steps, the policy's step.
One process with critic.overlap=auto (the default, which fits the critic on the second core) and =false.  All
are there at once, and take turns update by update, so that a machine's drift is in none of them: each update has
the same samples (to rounding, where ranks learn together).  ms: of the median update; ratios: of each, then their
median and quartiles.  cpu: what the first process was on a core, which tells more where others want the cores too.

messages: tensors that rank 0 of two sends and receives in an update, and their bytes, counted; with them, and with
what one process takes, a table on paper. See `on_paper` for what it assumes.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import ceil, log2
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from statistics import median, quantiles
from typing import NamedTuple
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"

import torch.distributed as dist
from torch import Tensor

from rl_natgrad.algos.critic import Critic
from rl_natgrad.config import compose
from rl_natgrad.distributed.launch import launched
from rl_natgrad.distributed.ranks import SMALL, Ranks, joined
from rl_natgrad.training import overlap
from rl_natgrad.training.iteration import Collected, Training

TRAIN = [sys.executable, "-m", "rl_natgrad.train"]
SHARDED = "distributed.mode=sharded"
WIDE = ["policy.hidden=[256,256]", "critic.hidden=[256,256]"]
CASES = {  # words, those of two ranks, and the part that is asked about
    "gather": (["env=Hopper", "env.backend=sync"], [], "wall"),
    "sharded": (["env=HalfCheetah", "env.backend=sync", "horizon=2048", *WIDE, "critic.minibatches=16"],
                [SHARDED], "update"),
}  # fmt: skip
PARTS = ("wall", "cpu", "collect", "update", "critic")
N = 64 * 256
PAPER = {  # of N steps from 64 environments; a CNN's times are of one step in 64, and multiplied
    "64×64": (["env=HalfCheetah", "num_envs=64", "critic.minibatches=4"], 1),
    "256×256": (["env=HalfCheetah", "num_envs=64", *WIDE, "critic.minibatches=4"], 1),
    "CNN": (["env=Breakout", "num_envs=2", "horizon=128", "critic.minibatches=4"], 64),
}
WORLDS, PINGS, BYTES_PER_SECOND = (4, 16, 64), (0.05, 0.5, 2.0), 1.25e9


def environment(world: int) -> list[dict[str, str]]:
    """Of each rank: what torchrun tells it; nothing of one process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [{**told, "RANK": str(rank)} for rank in range(world)] if world > 1 else [{}]


def train(world: int, words: list[str]) -> None:
    """One run of so many processes."""
    ranks = [
        subprocess.Popen([*TRAIN, *words], env=os.environ | told, stdout=subprocess.DEVNULL)
        for told in environment(world)
    ]
    if any([process.wait() for process in ranks]):
        raise SystemExit(f"failed: {' '.join(words)}")


@contextmanager
def first_of_two(words: list[str]) -> Iterator[Training]:
    """The run of two ranks, of which this process is the first."""
    told, other = environment(2)
    second = subprocess.Popen([*TRAIN, *words], env=os.environ | other, stdout=subprocess.DEVNULL)
    with patch.dict(os.environ, told):
        launch = launched()
        assert launch
        with joined(launch) as ranks, Training(compose.load(words), ranks) as training:
            yield training
    second.wait()


Update = Callable[[], dict[str, float]]


@contextmanager
def fitted_beside(training: Training, ahead: bool) -> Iterator[Update]:
    """An update with critic.overlap, as the command does it.

    ahead: the next rollout comes before the fit has ended.
    """
    assert isinstance(training.critic, Critic)
    collected: Collected | None = None

    def update() -> dict[str, float]:
        nonlocal collected
        finish = training.begin(training.gather(collected))
        collected = training.collect() if ahead else None
        return finish()

    with overlap.beside(training.critic, print):
        yield update


def steps(pipe: Connection, words: list[str]) -> None:
    """Collects a rollout whenever it is told to, and says so."""
    with Training(compose.load(words)) as training:
        while pipe.recv():
            training.collect()
            pipe.send(None)


@contextmanager
def halves(words: list[str]) -> Iterator[Update]:
    """Collection alone, by two processes that tell each other nothing but when to begin."""
    half = [*words, "num_envs=4"]
    here, there = Pipe()
    second = Process(target=steps, args=(there, half))
    second.start()
    with Training(compose.load(half)) as first:

        def update() -> dict[str, float]:
            start = time.perf_counter()
            here.send(True)
            first.collect()
            here.recv()
            return {"time/collect": time.perf_counter() - start, "time/update": 0.0, "time/critic": 0.0}

        yield update
    here.send(False)
    second.join()


def timed(update: Update) -> dict[str, float]:
    """Milliseconds: wall time, this process's on a core, and the parts of the former."""
    start = time.perf_counter(), time.process_time()
    row = update()
    took = {"wall": time.perf_counter() - start[0], "cpu": time.process_time() - start[1]}
    return {part: 1e3 * each for part, each in (took | {part: row[f"time/{part}"] for part in PARTS[2:]}).items()}


def ratios(case: str, updates: int) -> Iterator[str]:
    """A row per way; × says how much faster two ranks are than that."""
    words, more, part = CASES[case]
    with ExitStack() as stack:  # forked before threads begin
        apart = {} if more else {"two halves apart, no learning": stack.enter_context(halves(words))}
        one, plain = (stack.enter_context(Training(compose.load(words))) for _ in range(2))
        two = stack.enter_context(first_of_two([*words, *more]))
        ways: dict[str, Update] = apart | {
            "one process": stack.enter_context(fitted_beside(one, ahead=True)),
            "one process, critic.overlap=false": plain.iterate,
            f"2 ranks, {case}": two.iterate if more else stack.enter_context(fitted_beside(two, ahead=False)),
        }
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(updates + 1):
            for way, update in ways.items():
                found[way].append(timed(update))
            print(*(f"{found[way][-1]['wall']:.0f}" for way in ways), file=sys.stderr, flush=True)
    yield (
        f"| {case} | "
        + " | ".join(f"{each}, ms" for each in PARTS)
        + f" | × {part} | (quartiles) | × wall | × cpu |"
    )
    yield "|:--|" + "--:|" * 9
    ranks = found[[*ways][-1]][1:]
    for way, each in found.items():
        each = each[1:]  # the first is slower
        times = {p: [x[p] / y[p] for x, y in zip(each, ranks, strict=True)] for p in (part, "wall", "cpu")}
        cells = [f"{median(x[p] for x in each):.1f}" for p in PARTS]
        low, middle, high = quantiles(times[part], n=4, method="inclusive")
        cells += [
            f"{middle:.2f}",
            f"{low:.2f} to {high:.2f}",
            *(f"{median(times[p]):.2f}" for p in ("wall", "cpu")),
        ]
        yield f"| {way} | {' | '.join(cells)} |"


class Told(NamedTuple):
    """In one update, what two ranks tell each other."""

    sums: list[int]  # bytes of each
    told: int  # bytes, by rank 0 to all
    answered: int  # bytes, to rank 0


def noting(name: str, real: Callable, seen: list[tuple[str, int]]) -> Callable:
    """What does the same, and notes the bytes of the tensor that it is given."""

    def noted(*given):
        seen.append((name, next(each.nbytes for each in given if isinstance(each, Tensor))))
        return real(*given)

    return noted


@contextmanager
def counted(seen: list[tuple[str, int]]) -> Iterator[None]:
    """While entered, what this rank tells, hears and sums is noted there."""
    with ExitStack() as stack:
        for owner, name in ((Ranks, "sum"), (dist, "broadcast"), (dist, "recv")):
            stack.enter_context(patch.object(owner, name, noting(name, vars(owner)[name], seen)))
        yield


def messages(words: list[str]) -> Told:
    """Of the second update of two ranks."""
    seen: list[tuple[str, int]] = []
    with first_of_two(words) as training:
        training.iterate()
        with counted(seen):
            training.iterate()
    sizes = {how: [size for name, size in seen if name == how] for how in ("sum", "broadcast", "recv")}
    return Told(sizes["sum"], sum(sizes["broadcast"]), sum(sizes["recv"]))


def alone(words: list[str]) -> tuple[int, dict[str, float]]:
    """Parameters of the policy, and processor seconds that parts of one update take: each the fastest of three."""
    with Training(compose.load(words)) as training, patch.object(time, "perf_counter", time.process_time):
        rows = [training.iterate() for _ in range(4)][1:]
        fastest = {part: min(row[f"time/{part}"] for row in rows) for part in PARTS[2:]}
        return training.policy.theta.numel(), fastest


def on_paper(
    times: dict[str, float], gather: Told, sharded: Told, world: int, ping: float, cnn: bool
) -> tuple[float, float]:
    """How many times faster than one process gather and sharded are, of W ranks with a machine each.

    One process: collection and the longer of policy and critic (critic.overlap, which a CNN has not).  What is
    shared out takes 1/W.  A message takes a ping, as the receiver says first that it is ready; a broadcast too,
    and each answer to rank 0, one after the other; both are two messages, of which the first says how long the
    other is.  In gather the rollout is the same whatever W is, and rank 0 has 1/W of it itself.
    """
    trip, levels = ping / 1e3, ceil(log2(world))

    def sum_(size: int) -> float:
        if size <= SMALL:
            return levels * (trip + size / BYTES_PER_SECOND)
        return 2 * (world - 1) * (trip + size / world / BYTES_PER_SECOND)

    policy, critic = times["update"], times["critic"]
    one = times["collect"] + (policy + critic if cnn else max(policy, critic))
    tell, answers = 2 * trip, 2 * (world - 1) * trip
    rollout = 2 * (world - 1) / world * gather.answered  # of two ranks it is half
    data = (levels * gather.told + rollout) / BYTES_PER_SECOND
    gathered = times["collect"] / world + (one - times["collect"]) + tell + answers + data
    together = sum(times.values()) / world + 2 * tell + answers + sum(map(sum_, sharded.sums))
    return one / gathered, one / together


def paper() -> Iterator[str]:
    """What was counted, and the table that follows."""
    rows, table = [], []
    for name, (words, scale) in PAPER.items():
        P, times = alone(words)
        times = {part: scale * each for part, each in times.items()}
        told = [messages([*words, *more]) for more in ([], [SHARDED])]
        gather = told[0]._replace(answered=scale * told[0].answered)
        megabytes = [each / 1e6 for each in (gather.told, 2 * gather.answered, sum(told[1].sums))]
        cells = [
            f"{P:,}",
            *(f"{1e3 * each:,.0f}" for each in times.values()),
            *(f"{each:,.2f}" for each in megabytes),
        ]
        rows.append(f"| {name} | {' | '.join([*cells[:-1], str(len(told[1].sums)), cells[-1]])} |")
        for world in WORLDS:
            speeds = [on_paper(times, gather, told[1], world, ping, name == "CNN") for ping in PINGS]
            table.append(f"| {name} | {world} | " + " | ".join(f"{g:.1f} / {s:.1f}" for g, s in speeds) + " |")
    yield "| network | parameters | collect, ms | policy, ms | critic, ms | θ, MB | rollout, MB | sums | MB |"
    yield "|:--|" + "--:|" * 8
    yield from rows
    yield "\n| network | ranks | " + " | ".join(f"{ping} ms" for ping in PINGS) + " |"
    yield "|:--|--:|" + "--:|" * len(PINGS)
    yield from table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=[*CASES, "messages"])
    parser.add_argument("--updates", type=int, default=25)
    args = parser.parse_args()
    for case in CASES:
        if args.only in (None, case):
            print(*ratios(case, args.updates), "", sep="\n", flush=True)
    if args.only in (None, "messages"):
        print(*paper(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
