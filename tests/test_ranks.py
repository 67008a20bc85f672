"""One run of several processes: the bits of one process, and all of them end together."""

import collections
import contextlib
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from environments import WRONG
from torch.distributed import HashStore
from whole_runs import (
    CRITIC,
    ENVS,
    ROOT,
    SMALL,
    assert_equal,
    checkpoints,
    facts,
    only_run,
    outcome,
    ranks,
    reached,
    run,
    wait_until,
)  # fmt: skip

from rl_natgrad.config import compose
from rl_natgrad.distributed import ranks as distributed
from rl_natgrad.distributed.messages import pack, unpack
from rl_natgrad.distributed.ranks import start
from rl_natgrad.envs.episode import episode_seed
from rl_natgrad.envs.leftovers import children
from rl_natgrad.run import checkpoint
from rl_natgrad.run.records import read_record, read_rows
from rl_natgrad.training.sharded import Diverged, Part
from rl_natgrad.training.shares import shares

WORDS = [*SMALL, "checkpoint.every=3", "eval.every=4", "total_steps=2600"]
MASKED = ["env.id=environments:Doors-v0", "env.allow_import=true", "env.action_mask=true", "env.frame_stack=2"]
MANY = ENVS | {"Hopper": ["env=Hopper"], "split": ["env=Hopper", "env.backend=split"], "masked": MASKED}


def ended(processes) -> list[tuple[int, str, str]]:
    """Of each: exit code, standard output, standard error."""
    said = [process.communicate(120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def together(world, *words, output) -> None:
    """A run of so many ranks, of which only the first has something to say."""
    first, *others = ended(ranks(world, *words, output=output))
    assert first[0] == 0 and "done" in first[1] and first[2] == "", first
    assert others == [(0, "", "")] * (world - 1)


# ---- the parts -----------------------------------------------------------------------------------------------


def test_a_message_arrives_as_it_was():
    sent = {
        "a": np.arange(6, dtype=np.int16).reshape(2, 3).T, "flags": np.array([[True], [False]]),
        "empty": np.zeros((0, 2)), "number": np.array(0.1), "text": "ä", "whole": 2**100, "nothing": None,
    }  # fmt: skip
    got = unpack(pack(sent))
    assert got.keys() == sent.keys()
    for name, value in sent.items():
        np.testing.assert_array_equal(got[name], value, strict=True)


def test_every_environment_is_stepped_by_one_rank():
    cfg = compose.load(["env=Hopper", "num_envs=8"])
    for world in range(1, 11):
        mine = [list(range(8))[share] for share in shares(cfg, world)]
        assert [i for some in mine for i in some] == list(range(8))
        assert max(map(len, mine)) - min(map(len, mine)) <= 1
    native = shares(compose.load(["env=CartPole", "num_envs=8"]), 3)
    assert [list(range(8))[share] for share in native] == [list(range(8)), [], []]


def test_processes_that_start_find_each_other_and_none_that_have_died():
    store = HashStore()
    store.set("rank 2", "of one that died before it was told")
    names = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            found = set(pool.map(lambda rank: start(store, rank, 3), (2, 0, 1)))
        names += found
        assert len(found) == 1
    assert names[0] != names[1]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 7, 8])
def test_a_sum_over_ranks_has_the_same_bits_in_all(monkeypatch, world):
    """Each a thread, which sends by queues."""
    sent, me = collections.defaultdict(queue.Queue), threading.local()

    def irecv(x, rank):
        mine = sent[rank, me.rank]
        return SimpleNamespace(wait=lambda: x.copy_(mine.get(timeout=10)))

    monkeypatch.setattr(distributed, "dist", SimpleNamespace(
        send=lambda x, rank: sent[me.rank, rank].put(x.clone()), recv=lambda x, rank: irecv(x, rank).wait(),
        irecv=irecv, get_rank=lambda: me.rank, get_world_size=lambda: world,
    ))  # fmt: skip
    each = torch.randn(world, 50, generator=torch.Generator().manual_seed(world))

    def summed(rank):
        me.rank = rank
        return distributed.Ranks().sum(each[rank])

    with ThreadPoolExecutor(world) as pool:
        first, *others = pool.map(summed, range(world))
    assert all(torch.equal(first, other) for other in others)
    torch.testing.assert_close(first.double(), each.double().sum(0), rtol=1e-5, atol=1e-5)


# ---- the same bits -------------------------------------------------------------------------------------------


def equal_whatever_the_ranks(monkeypatch, tmp_path, *words, worlds=(1, 2, 3)):
    """A run of one process; the same of several ranks; and one that stops on three and goes on without."""
    assert run(monkeypatch, *WORDS, *words, f"runs_dir={tmp_path}/alone") == 0
    expected = facts(only_run(tmp_path / "alone"))
    for world in worlds:
        together(world, *WORDS, *words, f"runs_dir={tmp_path}/{world}", output=tmp_path / f"of{world}")
        assert_equal(only_run(tmp_path / f"{world}"), expected)
    return expected


def goes_on(monkeypatch, tmp_path, expected, *words, worlds=(1, 2)):
    """A run that has stopped on three ranks goes on, with another number of them, to the end."""
    for world in worlds:
        runs_dir = tmp_path / f"stopped{world}"
        stopped = [*WORDS, *words, "total_steps=700", f"runs_dir={runs_dir}"]
        together(3, *stopped, output=tmp_path / f"out{world}")
        path = only_run(runs_dir)
        again = [f"resume={path}", "total_steps=2600", *(word for word in words if "allow_import" in word)]
        if world == 1:
            assert run(monkeypatch, *again) == 0
        else:
            together(world, *again, output=tmp_path / f"again{world}")
        assert_equal(path, expected)
        assert read_record(path)["ranks"] == world


def test_three_ranks_give_the_bits_of_one_process_and_go_on_without_each_other(monkeypatch, tmp_path):
    words = [*CRITIC, "critic.overlap=true", "env=Pendulum", "algo=trpo"]  # discrete actions may be equal by luck
    expected = equal_whatever_the_ranks(monkeypatch, tmp_path, *words, worlds=(3,))
    assert len(expected["rows"]) >= 6
    goes_on(monkeypatch, tmp_path, expected, *words, worlds=(1,))


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["pg", "reinforce", "npg", "trpo", "ppo"])
@pytest.mark.parametrize("env", MANY)
def test_any_number_of_ranks_gives_the_same_bits(monkeypatch, tmp_path, env, algo):
    words = [*MANY[env], f"algo={algo}", *([] if algo == "reinforce" else CRITIC)]
    if algo == "ppo":
        words.append("algo.decay_lr=false")  # the run that goes on had fewer steps to begin with
    expected = equal_whatever_the_ranks(monkeypatch, tmp_path, *words)
    goes_on(monkeypatch, tmp_path, expected, *words)


# ---- learning together ---------------------------------------------------------------------------------------

# of discrete actions: those of Pendulum are rounded to float32, and an observation may so differ by 1e-7
SHARDED = ["distributed.mode=sharded", "dtype=float64", "env=LunarLander", "num_envs=5", "checkpoint.every=1",
           "total_steps=1200"]  # fmt: skip
LEARNERS = {
    "trpo": ["algo=trpo", *CRITIC],
    "npg": ["algo=npg", *CRITIC, "solver=identity", "algo.delta=0.001"],
    "pg": ["algo=pg", *CRITIC, "algo.entropy_coef=0.01"],
    "reinforce": ["algo=reinforce"],
    "fisher": ["algo=trpo", "fisher=empirical", "fisher.fraction=0.3", "critic=lbfgs", "critic.hidden=[16,16]"],
    # ten iterations on three hundred samples make 1e-15 a billionth
    "hessian": ["algo=npg", "fisher=kl_hessian", "critic=trust_region", "critic.hidden=[16]", "critic.max_iter=3"],
    "newton": ["algo=trpo", "fisher=hessian", "solver=steihaug", "critic=none"],
    "not normalised": ["algo=trpo", *CRITIC, "env.normalize_obs=false", "algo.normalize_adv=false"],
    "minibatches": ["algo=trpo", *CRITIC, "critic.minibatches=3"],
    "masked": ["algo=trpo", *CRITIC, *MASKED],
}


def near(path, expected) -> None:
    """The same run but for rounding, which three updates have made grow."""
    found = [[only_numbers(row) for row in read_rows(run)] for run in (path, expected)]
    assert [row.keys() for row in found[0]] == [row.keys() for row in found[1]]
    for row, other in zip(*found, strict=True):
        np.testing.assert_allclose([*row.values()], [*other.values()], rtol=1e-6, atol=1e-9, err_msg=str(row))
    states = [checkpoint.read(checkpoints(run)[-1]) for run in (path, expected)]
    for part in ("policy", "critic", "observe"):
        left, right = (numbers(state[part]) for state in states)
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_allclose(left[name], right[name], rtol=1e-7, atol=1e-9, err_msg=name)
    for name in ("episode_length", "prev_done"):
        np.testing.assert_array_equal(*(state["collector"][name] for state in states))


def only_numbers(row) -> dict:
    return {tag: value for tag, value in row.items() if not tag.startswith("time/")}


def numbers(node, name="") -> dict:
    """The arrays of floats in a state, by their places."""
    if isinstance(node, dict):
        return {key: value for k, child in node.items() for key, value in numbers(child, f"{name}/{k}").items()}
    array = np.asarray(node)
    return {name: array} if array.dtype.kind == "f" else {}


@pytest.mark.parametrize(
    "name", [name if name == "trpo" else pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS])
def test_ranks_that_learn_together_learn_what_one_process_learns(monkeypatch, tmp_path, name):
    words = [*SMALL, *SHARDED, *LEARNERS[name]]
    assert run(monkeypatch, *words, f"runs_dir={tmp_path}/alone") == 0
    alone = only_run(tmp_path / "alone")
    for world in (3,) if name == "trpo" else (2, 3):
        together(world, *words, f"runs_dir={tmp_path}/{world}", output=tmp_path / f"of{world}")
        near(only_run(tmp_path / f"{world}"), alone)


@pytest.mark.parametrize("others", [0, 1])
def test_parameters_that_are_not_the_same_in_all_ranks_are_noticed(others):
    """Others of two have a number that differs by so much."""
    fake = SimpleNamespace(rank=0, world=2, sum=lambda x: torch.tensor([int(x[0]), int(x[0]) + others]))
    with pytest.raises(Diverged) if others else contextlib.nullcontext():
        Part(fake, slice(0, 2), 4).same(torch.arange(3.0))


@pytest.mark.slow
def test_a_run_that_learned_together_goes_on_with_another_number_of_ranks(monkeypatch, tmp_path):
    words = [*SMALL, *SHARDED, *LEARNERS["trpo"]]
    assert run(monkeypatch, *words, f"runs_dir={tmp_path}/alone") == 0
    together(3, *words, "total_steps=700", f"runs_dir={tmp_path}/runs", output=tmp_path / "of3")
    path = only_run(tmp_path / "runs")
    together(2, f"resume={path}", "total_steps=1200", output=tmp_path / "of2")
    near(path, only_run(tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["step raises", "step nan"])
def test_an_error_in_one_rank_ends_all_that_learn_together(tmp_path, how):
    kwargs = f"env.kwargs={{max_episode_steps: 8, how: {how}, victim: {episode_seed(0, 3, 1)}}}"
    words = [*SMALL, *CRITIC, *BAD, "distributed.mode=sharded", kwargs, f"runs_dir={tmp_path}/runs"]
    (code, _, said), *others = in_time(ranks(3, *words, output=tmp_path / "out"))
    (line,) = said.splitlines()
    assert code == 1 and "environment 3, " in line and "step 3: " in line and WRONG[how] in line
    assert others == [(0, "", "")] * 2
    path = only_run(tmp_path / "runs")
    assert outcome(path) == "failed" and [file.stem for file in checkpoints(path)] == ["00000001"]


@pytest.mark.slow
def test_a_signal_stops_those_that_learn_together(tmp_path):
    processes = ranks(3, *LONG, "distributed.mode=sharded", f"runs_dir={tmp_path}/runs", output=tmp_path / "out")
    wait_until(lambda: reached(tmp_path / "runs", 3))
    processes[1].send_signal(signal.SIGTERM)
    ends = in_time(processes)
    assert [code for code, _, _ in ends] == [143, 0, 0] and outcome(only_run(tmp_path / "runs")) == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["env=CartPole"], ["env=Pendulum", "num_envs=2"]])
def test_ranks_without_environments_cannot_learn_together(tmp_path, words):
    words = [*SMALL, *words, "distributed.mode=sharded", f"runs_dir={tmp_path}/runs"]
    (code, _, said), *_ = in_time(ranks(3, *words, output=tmp_path / "out"))
    assert code == 2 and len(said.splitlines()) == 1 and "needs environments of its own" in said


# ---- together or not at all ----------------------------------------------------------------------------------

LONG = [*SMALL, *CRITIC, "env=Pendulum", "total_steps=1e7", "checkpoint.every=1", "checkpoint.keep=2"]
BAD = ["env.id=environments:Misbehaving-v0", "env.allow_import=true", "horizon=8", "total_steps=64",
       "eval.episodes=2", "checkpoint.every=1"]  # fmt: skip
IN_TIME = 30  # seconds
KILLS = int(os.environ.get("RL_NATGRAD_KILLS", 20))


def in_time(processes):
    start = time.monotonic()
    ends = ended(processes)
    assert time.monotonic() - start < IN_TIME
    return ends


@pytest.mark.parametrize("how, timeout", [("step raises", 30), *(pytest.param(*case, marks=pytest.mark.slow)
                         for case in [("step nan", 30), ("step sleeps", 0.5), ("step stubborn", 0.5)])])
def test_an_error_in_one_rank_ends_all_with_its_line(tmp_path, how, timeout):
    """Environment 3 of 4 is the last rank's."""
    kwargs = f"env.kwargs={{max_episode_steps: 8, how: {how}, victim: {episode_seed(0, 3, 1)}}}"
    words = [*SMALL, *CRITIC, *BAD, f"env.timeout={timeout}", kwargs, f"runs_dir={tmp_path}/runs"]
    (code, _, said), *others = in_time(ranks(3, *words, output=tmp_path / "out"))
    (line,) = said.splitlines()
    assert code == 1 and "environment 3, " in line and "step 3: " in line and line.startswith("error: ")
    assert WRONG.get(how, "did not return within 0.5 s") in line
    assert all((out, err) == ("", "") for _, out, err in others)
    path = only_run(tmp_path / "runs")
    assert outcome(path) == "failed" and [file.stem for file in checkpoints(path)] == ["00000001"]
    if how == "step raises":
        assert "in _raise" in (path / "traceback.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [
    ["env.id=environments:Misbehaving-v0", "env.allow_import=true"],  # its constructor wants an argument
    ["env=LunarLander", "policy.std=state"], ["env=Pendulum", "device=cuda:99"],
    ["env=CartPole", "env.backend=device"],
])  # fmt: skip
def test_what_no_rank_can_use_is_refused_in_one_line(tmp_path, wrong):
    words = [*SMALL, *wrong, f"runs_dir={tmp_path}/runs"]
    (code, _, said), *others = in_time(ranks(2, *words, output=tmp_path / "out"))
    assert code == 2 and len(said.splitlines()) == 1 and not (tmp_path / "runs").exists()
    assert all((out, err) == ("", "") for _, out, err in others)


def underway(tmp_path, world=3):
    """Ranks of a run that has written some updates, and its folder."""
    processes = ranks(world, *LONG, f"runs_dir={tmp_path}/runs", output=tmp_path / "out")
    wait_until(lambda: reached(tmp_path / "runs", 3))
    return processes, only_run(tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_any_rank_stops_all_after_the_update(tmp_path, number):
    processes, path = underway(tmp_path)
    processes[2].send_signal(number)
    (code, said, _), *others = in_time(processes)
    assert code == 128 + number and "resume  python -m rl_natgrad.train resume=" in said
    assert others == [(0, "", "")] * 2
    assert outcome(path) == "stopped" and int(checkpoints(path)[-1].stem) == read_rows(path)[-1]["update"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_takes_the_others_with_it(tmp_path, killed):
    processes, path = underway(tmp_path)
    processes[killed].send_signal(signal.SIGKILL)
    ends = in_time(processes)
    assert [code for code, _, _ in ends] == [-9 if rank == killed else 1 for rank in range(3)]
    if killed:
        lost = [f"error: {who} has ended, or cannot be reached\n" for who in ("rank 1", "another rank")]
        assert ends[0][2] in lost and outcome(path) == "failed"  # rank 0 was waiting for it, or telling all
    assert all((out, err) == ("", "") for _, out, err in ends[1:])
    assert run_on(path)


def run_on(path):
    """Whether the run goes on from what it left."""
    with pytest.MonkeyPatch.context() as patch:
        return run(patch, f"resume={path}", f"total_steps={read_rows(path)[-1]['step'] + 1}") == 0


# ---- torchrun itself -----------------------------------------------------------------------------------------


class Torchrun:
    """torchrun with three ranks; no process of them outlives the block.

    What they say goes to a file: nobody reads it meanwhile, and a full pipe would stop them.
    """

    def __init__(self, *words, output, restarts=0):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
        self.output = output
        with open(output, "w") as file:
            self.process = subprocess.Popen(
                [*command, f"--max-restarts={restarts}", "-m", "rl_natgrad.train", *words], env=env,
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        left = self.ranks()
        self.process.kill()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def ranks(self) -> list[int]:
        """The pids of the processes that train."""
        return sorted(children(self.process.pid)) if self.process.poll() is None else []

    def end(self) -> tuple[int, str]:
        return self.process.wait(timeout=300), self.output.read_text()


@pytest.mark.slow
def test_torchrun_stops_goes_on_and_refuses(monkeypatch, tmp_path):
    with Torchrun(*LONG, f"runs_dir={tmp_path}/runs", output=tmp_path / "out.txt") as torchrun:
        wait_until(lambda: reached(tmp_path / "runs", 3))
        left = torchrun.ranks()
        start = time.monotonic()
        torchrun.process.send_signal(signal.SIGTERM)
        _, said = torchrun.end()
        assert time.monotonic() - start < IN_TIME and len(left) == 3
    path = only_run(tmp_path / "runs")
    assert outcome(path) == "stopped" and "resume  python -m" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert run_on(path)
    start = time.monotonic()
    with Torchrun("algo.delta=no", output=tmp_path / "refused.txt") as torchrun:
        assert torchrun.end()[1].count("error: algo.delta") == 1
    assert time.monotonic() - start < IN_TIME


def test_ranks_that_start_again_after_the_end_have_nothing_left_to_do(tmp_path):
    """As where one is killed while it ends."""
    words = [*SMALL, *CRITIC, "env=Pendulum", "total_steps=600", f"runs_dir={tmp_path}"]
    for attempt in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo",
            "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "again", "TORCHELASTIC_RESTART_COUNT": str(attempt),
        }  # fmt: skip
        both = [
            subprocess.Popen([sys.executable, "-m", "rl_natgrad.train", *words], text=True, stdout=subprocess.PIPE,
                             env=env | {"RANK": rank, "LOCAL_RANK": rank})
            for rank in "01"
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=60)[0] for process in both]
        finally:
            for process in both:
                process.kill()
        assert [process.returncode for process in both] == [0, 0]
    assert "nothing is left to do" in said[0]


def new_ranks(torchrun, old) -> list[int]:
    """The ranks in the place of those that died, once all are there; at the end, any."""
    ranks = torchrun.ranks()
    return ranks if not set(old) & set(ranks) and len(ranks) == 3 else [0] * (torchrun.process.poll() is not None)


def logged(tmp_path) -> float:
    """When something was last logged."""
    return max((file.stat().st_mtime for file in tmp_path.glob("runs/*/*/*/metrics.jsonl")), default=0.0)


@pytest.mark.slow
def test_random_ranks_are_killed_and_the_run_is_the_one_that_never_was(monkeypatch, tmp_path):
    """torchrun starts all of them again, and they go on in the same folder."""
    words = [*SMALL, *CRITIC, "env=Pendulum", "total_steps=150000", "checkpoint.every=2"]
    assert run(monkeypatch, *words, f"runs_dir={tmp_path}/alone") == 0
    expected, rng, seen, in_training = facts(only_run(tmp_path / "alone")), random.Random(0), [], 0
    with Torchrun(*words, f"runs_dir={tmp_path}/runs", output=tmp_path / "out.txt", restarts=KILLS) as torchrun:
        over = lambda: torchrun.process.poll() is not None  # noqa: E731
        for kill in range(KILLS):
            seen, start = wait_until(partial(new_ranks, torchrun, seen), 300), time.time()
            if kill % 4:  # else while it starts
                wait_until(lambda start=start: over() or logged(tmp_path) > start, 300)
                in_training += not over()
            time.sleep(rng.uniform(0, 0.5 if kill % 4 else 1.5))  # a fast machine must not be done before
            with contextlib.suppress(ProcessLookupError):
                if not over():
                    os.kill(rng.choice(seen), signal.SIGKILL)
        code, said = torchrun.end()
    assert code == 0, said
    assert_equal(only_run(tmp_path / "runs"), expected)
    assert in_training >= KILLS // 2 and len(read_record(only_run(tmp_path / "runs"))["resumed"]) >= KILLS // 2
