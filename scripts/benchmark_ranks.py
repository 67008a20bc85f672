"""What two ranks are faster than one process, what they tell each other, and what that makes of 4, 16 and 64.

    python scripts/benchmark_ranks.py                          two cores to itself; the ratios take eight minutes
    python scripts/benchmark_ranks.py --only gather --rounds 1      or sharded, or messages

gather: Hopper, `sync`, whole updates.  sharded: HalfCheetah, 256×256 networks, 8 × 2048 steps, the policy's step.
One process with critic.overlap=auto (the default, which fits the critic on the second core) and =false.  Whole
commands alternate; a figure is the median over rounds of the median update.  ms: of wall time between two rows
(update), and of its parts.

messages: tensors that rank 0 of two sends and receives in an update, and their bytes, counted; with them, and with
what one process takes, a table on paper. See `on_paper` for what it assumes.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from math import ceil, log2
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"

import torch.distributed as dist

from rl_natgrad.config import compose
from rl_natgrad.distributed.launch import launched
from rl_natgrad.distributed.ranks import joined
from rl_natgrad.run.records import read_rows
from rl_natgrad.training.iteration import Training

TRAIN = [sys.executable, "-m", "rl_natgrad.train"]
SHARDED = "distributed.mode=sharded"
WIDE = ["policy.hidden=[256,256]", "critic.hidden=[256,256]"]
WAYS = {"one process": (1, []), "one process, critic.overlap=false": (1, ["critic.overlap=false"])}
CASES = {  # words, ways, and the part that the issue is about
    "gather": (["env=Hopper", "env.backend=sync", "total_steps=50000"],
               WAYS | {"2 ranks, gather": (2, [])}, "wall"),
    "sharded": (["env=HalfCheetah", "env.backend=sync", "horizon=2048", "total_steps=65000", *WIDE,
                 "critic.minibatches=16"],
                WAYS | {"2 ranks, sharded": (2, [SHARDED])}, "update"),
}  # fmt: skip
PARTS = ("wall", "collect", "update", "critic")
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


def laps(world: int, words: list[str]) -> dict[str, float]:
    """Milliseconds of a run's median update: wall time, and its parts."""
    with tempfile.TemporaryDirectory() as runs:
        train(world, [*words, "eval.episodes=1", f"runs_dir={runs}"])
        (path,) = Path(runs).glob("*/*/*/")
        rows = [row for row in read_rows(path) if "time/collect" in row]
    ends = [row["time/elapsed"] for row in rows]
    took = {"wall": [after - before for before, after in pairwise(ends)]}
    took |= {part: [row[f"time/{part}"] for row in rows[1:]] for part in PARTS[1:]}
    return {part: 1e3 * median(each) for part, each in took.items()}


def ratios(case: str, rounds: int) -> Iterator[str]:
    """A row per way; × says how much faster two ranks are than that."""
    words, ways, part = CASES[case]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for round_ in range(rounds):
        for way in [*ways][round_ % len(ways) :] + [*ways][: round_ % len(ways)]:
            world, more = ways[way]
            found[way].append(laps(world, [*words, *more]))
            print(f"round {round_ + 1} {way}: {found[way][-1]}", file=sys.stderr, flush=True)
    yield f"| {case} | " + " | ".join(f"{each}, ms" for each in PARTS) + f" | × {part} | (rounds) | × wall |"
    yield "|:--|" + "--:|" * 7
    ranks = found[[*ways][-1]]
    for way, each in found.items():
        times = {part: [one[part] / two[part] for one, two in zip(each, ranks, strict=True)] for part in PARTS}
        cells = [f"{median(one[part] for one in each):.1f}" for part in PARTS]
        of = times[part]
        cells += [f"{median(of):.2f}", f"{min(of):.2f} to {max(of):.2f}", f"{median(times['wall']):.2f}"]
        yield f"| {way} | {' | '.join(cells)} |"


class Told(NamedTuple):
    """In one update, what two ranks tell each other."""

    sums: int
    sum_bytes: int
    told_bytes: int  # by rank 0 to all
    answered_bytes: int  # to rank 0


@contextmanager
def counted(seen: list[tuple[str, int]]) -> Iterator[None]:
    """While entered, names and bytes of what this rank sends and receives go there."""
    with ExitStack() as stack:
        for name, real in (("all_reduce", dist.all_reduce), ("broadcast", dist.broadcast), ("recv", dist.recv)):

            def noting(tensor, *rest, name=name, real=real):
                seen.append((name, tensor.nbytes))
                return real(tensor, *rest)

            stack.enter_context(patch.object(dist, name, noting))
        yield


def messages(words: list[str]) -> Told:
    """Of the second update of two ranks, of which this process is the first."""
    told, other = environment(2)
    seen: list[tuple[str, int]] = []
    second = subprocess.Popen([*TRAIN, *words], env=os.environ | other, stdout=subprocess.DEVNULL)
    with patch.dict(os.environ, told):
        launch = launched()
    assert launch
    with patch.dict(os.environ, told), joined(launch) as ranks, Training(compose.load(words), ranks) as training:
        training.iterate()
        with counted(seen):
            training.iterate()
    second.wait()
    sizes = {how: [size for name, size in seen if name == how] for how in ("all_reduce", "broadcast", "recv")}
    return Told(len(sizes["all_reduce"]), *map(sum, sizes.values()))


def alone(words: list[str]) -> tuple[int, dict[str, float]]:
    """Parameters of the policy, and seconds of the parts of one process's second update."""
    with Training(compose.load([*words, "critic.overlap=false"])) as training:
        training.iterate()
        row = training.iterate()
        return training.policy.theta.numel(), {part: row[f"time/{part}"] for part in PARTS[1:]}


def on_paper(
    times: dict[str, float], gather: Told, sharded: Told, world: int, ping: float, cnn: bool
) -> tuple[float, float]:
    """How many times faster than one process gather and sharded are, of W ranks with a machine each.

    One process: collection and the longer of policy and critic (critic.overlap, which a CNN has not).  What is
    shared out takes 1/W.  A sum goes round a ring in 2(W − 1) steps; in each the receiver says that it is ready,
    and then is sent its part: a ping.  (Counted on two to four namespaces with a delay between them.)  So is an
    answer to rank 0, one after the other, and the broadcasts, all at once; each is two messages, of which the
    first says how long the other is.  In gather the rollout is the same whatever W is, and rank 0 has 1/W of it.
    """
    trip = ping / 1e3
    policy, critic = times["update"], times["critic"]
    one = times["collect"] + (policy + critic if cnn else max(policy, critic))
    tell, answers = 2 * trip, 2 * (world - 1) * trip
    rollout = 2 * (world - 1) / world * gather.answered_bytes  # of two ranks it is half
    data = ceil(log2(world)) * gather.told_bytes + rollout
    gathered = times["collect"] / world + (one - times["collect"]) + tell + answers + data / BYTES_PER_SECOND
    ring = 2 * (world - 1) * (sharded.sums * trip + sharded.sum_bytes / world / BYTES_PER_SECOND)
    together = sum(times.values()) / world + 2 * tell + answers + ring
    return one / gathered, one / together


def paper() -> Iterator[str]:
    """What was counted, and the table that follows."""
    rows, table = [], []
    for name, (words, scale) in PAPER.items():
        P, times = alone(words)
        times = {part: scale * each for part, each in times.items()}
        told = [messages([*words, "critic.overlap=false", *more]) for more in ([], [SHARDED])]
        gather = told[0]._replace(answered_bytes=scale * told[0].answered_bytes)
        megabytes = [each / 1e6 for each in (gather.told_bytes, 2 * gather.answered_bytes, told[1].sum_bytes)]
        cells = [
            f"{P:,}",
            *(f"{1e3 * each:,.0f}" for each in times.values()),
            *(f"{each:,.2f}" for each in megabytes),
        ]
        rows.append(f"| {name} | {' | '.join([*cells[:-1], str(told[1].sums), cells[-1]])} |")
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
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for case in CASES:
        if args.only in (None, case):
            print(*ratios(case, args.rounds), "", sep="\n", flush=True)
    if args.only in (None, "messages"):
        print(*paper(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
