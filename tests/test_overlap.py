"""The critic's fit in a second process beside the rest: the same run, whatever becomes of that process."""

import os
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from whole_runs import (
    CRITIC,
    ENVS,
    SMALL,
    Fork,
    assert_equal,
    checkpoints,
    facts,
    only_run,
    outcome,
    reached,
    run,
    wait_until,
)  # fmt: skip

from rl_natgrad.algos.critic import AdamFit, Critic, LBFGSFit
from rl_natgrad.config import compose
from rl_natgrad.envs import cores
from rl_natgrad.envs.leftovers import children
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.run.records import read_rows
from rl_natgrad.sweep import process
from rl_natgrad.training import overlap
from rl_natgrad.training.iteration import Training
from rl_natgrad.training.loop import Loop

WORDS = [*SMALL, "total_steps=1500", "checkpoint.every=3", "eval.every=5"]
MISBEHAVING = ["env=environments:Misbehaving-v0", "env.allow_import=true", "critic.hidden=[4]"]
DEVICE = {"CartPole-device": ["env=CartPole", "env.backend=device"]}
FITS = {
    "adam": CRITIC,
    "lbfgs": ["critic=lbfgs", "critic.hidden=[8]", "critic.max_iter=3"],
    "trust region": ["critic=trust_region", "critic.hidden=[8]", "critic.max_iter=3"],
}


@pytest.fixture
def train(monkeypatch, tmp_path):
    """train(name, *words) is the exit code and the folder of a run."""

    def of(name, *words):
        code = run(monkeypatch, *WORDS, *words, f"runs_dir={tmp_path / name}")
        return code, only_run(tmp_path / name)

    return of


@pytest.fixture
def helpers(monkeypatch):
    """The processes that fitted, in the order of their starts."""
    started, fork = [], overlap._fork
    monkeypatch.setattr(overlap, "_fork", lambda work: started.append(fork(work)) or started[-1])
    return started


@pytest.fixture
def said(monkeypatch):
    """What the loop does, in order: begins and ends fits, collects, saves."""
    done = []

    def spy(owner, name, word):
        original = getattr(owner, name)

        def spied(self, *args, **kwargs):
            done.append(word)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, spied)

    for owner, name in ((Training, "collect"), (Critic, "begin"), (Critic, "_become"), (Loop, "_save")):
        spy(owner, name, name)
    return done


def finite_if(monkeypatch, right):
    """Adam's fit is NaN, but where right(x)."""
    fit = AdamFit.__call__
    monkeypatch.setattr(
        AdamFit, "__call__",
        lambda self, net, theta, x, *more: fit(self, net, theta, x, *more) * (1.0 if right(x) else float("nan")),
    )  # fmt: skip


# ---- the same bits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo, env, fit", [
    ("trpo", "CartPole-native", "adam"), ("pg", "CartPole-sync", "adam"), ("npg", "CartPole-native", "lbfgs"),
    ("trpo", "CartPole-sync", "trust region"), ("trpo", "CartPole-device", "adam"),
])  # fmt: skip
def test_the_same_run_as_without(train, helpers, algo, env, fit):
    words = [f"algo={algo}", *(ENVS | DEVICE)[env], *FITS[fit]]
    code, alone = train("alone", *words, "critic.overlap=false")
    assert code == 0 and not helpers
    code, path = train("beside", *words, "critic.overlap=true")
    assert code == 0 and len(helpers) == 1
    assert_equal(path, facts(alone))
    assert [list(row) for row in read_rows(path)] == [list(row) for row in read_rows(alone)]  # clocks too


def test_the_next_rollout_comes_before_the_fit_has_ended_unless_something_wants_the_critic(train, said):
    train("beside", *CRITIC, "critic.overlap=true", "eval.every=5", "checkpoint.every=3")
    rows = []
    for word in said:
        rows += [[]] if word == "begin" else []
        rows[-1:] = [[*rows[-1], word]] if rows else []
    ahead = ["begin", "collect", "_become"]
    between = {3: ["begin", "_become", "_save", "collect"], 5: ["begin", "_become", "collect"],
               6: ["begin", "_become", "_save", "collect"]}  # fmt: skip
    assert rows[:-1] == [between.get(update, ahead) for update in range(1, len(rows))]
    assert len(rows) == 7 and rows[-1] == ["begin", "_become", "_save"]


def test_environments_that_want_all_cores_step_after_the_fit(train, said):
    code, path = train("beside", *CRITIC, "critic.overlap=true", "env.backend=split", "checkpoint.every=0")
    assert said[1:-2] == ["begin", "_become", "collect"] * (len(read_rows(path)) - 2) + ["begin"]
    code, alone = train("alone", *CRITIC, "critic.overlap=false", "env.backend=split")
    assert code == 0
    assert_equal(path, facts(alone))


def test_a_training_steps_in_memory_while_a_fit_waits(closed):
    a, b = (closed(Training(compose.load([*SMALL, *CRITIC, "env=CartPole"]))) for _ in range(2))
    rows, collected = [a.iterate() for _ in range(3)], None
    for row in rows:
        gathered = b.gather(collected)
        before = b.critic.values(gathered.batch.obs)
        finish = b.begin(gathered)
        collected = b.collect()
        assert torch.equal(b.critic.values(gathered.batch.obs), before)
        told = finish()
        assert not torch.equal(b.critic.values(gathered.batch.obs), before)
        assert told.keys() == row.keys()
        assert all(told[tag] == row[tag] for tag in row if not tag.startswith("time/"))
    assert torch.equal(a.critic.theta, b.critic.theta) and torch.equal(a.policy.theta, b.policy.theta)


def test_a_fit_that_is_not_finite_is_told_in_its_own_row(train, monkeypatch):
    finite_if(monkeypatch, lambda x: len(x) % 3)
    alone, beside = (train(name, *CRITIC, f"critic.overlap={name}")[1] for name in ("false", "true"))
    assert_equal(beside, facts(alone))
    told = ["critic/not_finite" in row for row in read_rows(beside)]
    assert any(told) and not all(told[:-1])


# ---- stops and resumes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [2, 3, 4])  # collected ahead; the same of an update that is saved; not ahead
def test_a_signal_in_a_rollout_ends_the_run_after_its_update(train, monkeypatch, at):
    _, alone = train("alone", *CRITIC, "critic.overlap=false")
    collect, rollouts = Training.collect, []

    def interrupted(self):
        rollouts.append(self.update)
        if len(rollouts) == at:
            signal.raise_signal(signal.SIGTERM)
        return collect(self)

    monkeypatch.setattr(Training, "collect", interrupted)
    code, path = train("beside", *CRITIC, "critic.overlap=true")
    assert (code, outcome(path)) == (143, "stopped")
    assert int(checkpoints(path)[-1].stem) == at == len(read_rows(path))
    for word in ("critic.overlap=false", "total_steps=1500"):  # what may change at a resume
        assert run(monkeypatch, f"resume={path}", word) == 0
    assert_equal(path, facts(alone))


def test_an_environment_that_fails_in_the_next_rollout_takes_no_row_with_it(train, capfd):
    words = [*MISBEHAVING, "env.kwargs={how: step raises, at: 150}", "checkpoint.every=0", "eval.every=0"]
    for name in ("false", "true"):
        code, path = train(name, *words, f"critic.overlap={name}")
        assert (code, outcome(path)) == (1, "failed") and [row["update"] for row in read_rows(path)] == [1, 2]
        assert "step 150: step raised ValueError" in capfd.readouterr().err


def test_an_environment_that_hangs_for_good_in_the_next_rollout_takes_no_row_with_it(tmp_path):
    words = [*MISBEHAVING, "env.kwargs={how: step stubborn, at: 150}", "env.timeout=0.3", "critic.overlap=true"]
    ended = Fork(*WORDS, *words, "checkpoint.every=0", f"runs_dir={tmp_path}", output=tmp_path / "output")
    out, err = ended.communicate(30)
    path = only_run(tmp_path)
    assert ended.returncode == 1 and "did not return" in err, out + err
    assert [row["update"] for row in read_rows(path)] == [1, 2] and outcome(path) == "failed"


# ---- the process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["killed before", "killed after", "stopped", "raises", "no process"])
def test_without_the_process_the_run_goes_on_alone(train, monkeypatch, helpers, capfd, end):
    _, alone = train("alone", *CRITIC, "critic.overlap=false")
    monkeypatch.setattr(overlap, "PATIENCE", 0.3 if end == "stopped" else 60)
    start, fits, here = overlap.Helper.start, [], os.getpid()

    def started(self, *args):
        number = {"stopped": signal.SIGSTOP}.get(end, signal.SIGKILL)
        fits.append(self.process)
        hit = len(fits) == 3 and end not in ("raises", "no process")
        if hit and end != "killed after":
            os.kill(self.process, number)
        waits = start(self, *args)
        if hit and end == "killed after":
            os.kill(self.process, number)
        return waits

    monkeypatch.setattr(overlap.Helper, "start", started)
    if end == "raises":
        def framed(state, frame=overlap._frame, **tensors):
            return frame(state, **tensors) if len(tensors) > 1 else 1 / (os.getpid() == here)

        monkeypatch.setattr(overlap, "_frame", framed)
    if end == "no process":
        monkeypatch.setattr(os, "fork", lambda: (_ for _ in ()).throw(BlockingIOError(11, "no more of them")))
    code, path = train("beside", *CRITIC, "critic.overlap=true")
    out = capfd.readouterr().out
    assert code == 0
    assert_equal(path, facts(alone))
    assert out.count("note    the ") == 1 and ("gone" in out) == (end != "no process"), out
    assert len(fits) > 5 and not fits[-1]
    assert all(gone(process) for process in helpers)


def test_a_process_that_reads_nothing_holds_nobody_up(monkeypatch):
    """Nor does one that a batch of more than a socket's buffer is sent to."""
    monkeypatch.setattr(overlap, "PATIENCE", 0.2)
    net, x, target, notes = MLP((2, 4, 1), last_gain=1.0), torch.randn(2**18, 2), torch.randn(2**18, 1), []
    theta, fit = net.init(torch.Generator()), LBFGSFit(max_iter=2, history=2)
    helper = overlap.Helper(fit, net, notes.append)
    os.kill(helper.process, signal.SIGSTOP)
    waits = helper.start(fit, net, theta, x, target)
    assert not helper.process and len(notes) == 1
    assert torch.equal(waits(), fit(net, theta, x, target))


def gone(process: int) -> bool:
    """Whether there is no such process, nor its zombie."""
    return not Path(f"/proc/{process}").exists()


def test_it_ends_with_a_run_that_ends_and_with_one_that_fails(train, helpers, capfd):
    assert train("good", *CRITIC, "critic.overlap=true")[0] == 0
    assert train("bad", *MISBEHAVING, "env.kwargs={how: step raises}", "critic.overlap=true")[0] == 1
    assert len(helpers) == 2 and all(gone(process) for process in helpers)
    assert "left running" not in capfd.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_trainer_nor_ends_before_it(tmp_path, number):
    words = [*WORDS, *CRITIC, "total_steps=1e9", "eval.every=0", "critic.overlap=true"]
    trainer = Fork(*words, f"runs_dir={tmp_path}", output=tmp_path / "output")
    wait_until(lambda: reached(tmp_path, 3))
    (helper,) = children(trainer._process.pid)
    for quiet in (signal.SIGINT, signal.SIGTERM):  # of a terminal, which reach both
        os.kill(helper, quiet)
    before = len(read_rows(only_run(tmp_path)))
    wait_until(lambda: len(read_rows(only_run(tmp_path))) > before + 2)
    assert children(trainer._process.pid) == {helper}
    open_files = {os.readlink(file) for file in Path(f"/proc/{helper}/fd").iterdir()}
    assert not [name for name in open_files if str(only_run(tmp_path)) in name]  # such as the lock
    trainer.send_signal(number)
    trainer.communicate(30)
    wait_until(lambda: gone(helper) or not Path(f"/proc/{helper}/cmdline").read_bytes(), 5)  # or but a zombie


# ---- where it pays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pays, words, share", [
    (True, [], 2),
    (True, ["env=HalfCheetah", "env.backend=split"], 2),
    (False, [], 1),
    (False, ["device=cuda"], 2),
    (False, ["torch_threads=2"], 4),
    (False, ["policy=cnn", "env=Pong"], 2),
    (False, ["num_envs=1", "horizon=64"], 2),
    (False, ["algo=reinforce"], 2),
    (False, ["critic=none"], 2),
    (False, ["critic.overlap=false"], 2),
    (True, ["critic.overlap=true", "num_envs=1", "horizon=64"], 1),
])  # fmt: skip
def test_where_it_is_on(monkeypatch, pays, words, share):
    monkeypatch.setattr(overlap, "share", lambda: share)
    assert overlap.pays(compose.load(words)) is pays


def test_jobs_of_a_sweep_share_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "cores", lambda: 4)
    shares = []
    for jobs in ("", "1", "2", "3", "4", "5"):
        monkeypatch.setenv(cores.JOBS, jobs)
        shares.append(cores.share())
    assert shares == [4, 4, 2, 1, 1, 0]
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: shares.append(env[cores.JOBS]) or Nobody())
    process.Process([], tmp_path / "log", at_once=3)
    assert shares[-1] == "3" and all(a >= b for a, b in pairwise(shares[:-1]))


class Nobody:
    pid = 0
