"""Searches and clusters: the same jobs, chosen by Optuna or run by submitit."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from sweeps import PROBE, environment, report, start, sweep
from whole_runs import wait_until

from rl_natgrad.config import command as cli
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.run import folder, lock
from rl_natgrad.run.logger import Logger
from rl_natgrad.sweep.cluster import Cluster
from rl_natgrad.sweep.job import Job
from rl_natgrad.sweep.search import MARKS, Search

DELTA = "algo.delta=tag(log,interval(0.001,0.1))"


def search(tmp_path: Path, *words: str) -> Search:
    """The plan of a search, opened."""
    pytest.importorskip("optuna")
    named = any(word.startswith("search.study=") for word in words)
    words = ["-m", f"runs_dir={tmp_path}", *([] if named else ["search.study=x"]), *words]
    return Search.of(cli.parse(words)).open(folder.new(tmp_path / "sweeps"))


def study(tmp_path: Path):
    """Optuna's own record of it, from the disk."""
    import optuna

    return optuna.load_study(study_name="x", storage=f"sqlite:///{tmp_path}/sweeps/studies/x/study.db")


def begin(job: Job) -> Logger:
    """What the process of a job does first."""
    job.outcome = "running"
    tree = job.config.model_dump(mode="json")
    job.run = folder.create(job.config.runs_dir, "CartPole-v1", "trpo", 0)
    folder.RunRecord.start(
        job.run, command="", config=tree, threads=1, device="cpu", backend="sync", restorable=True
    )
    return Logger(job.run)


def end(plan: Search, job: Job, value: float | None, outcome: str = "finished") -> None:
    job.outcome = outcome
    job.row = {"eval/return": value}
    if job.run:
        folder.RunRecord(job.run, folder.read_record(job.run)).finish(outcome)
    plan.ended(job)


def words(job: Job) -> dict[str, str]:
    return dict(word.split("=", 1) for word in job.fresh)


def states(tmp_path: Path) -> list[str]:
    return [trial.state.name for trial in study(tmp_path).get_trials()]


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 40), ("random", 10)])
def test_a_search_finds_the_best_delta(tmp_path, sampler, trials):
    """A return of −(log₁₀ δ + 2)²: best at 0.01. TPE's later trials are nearer to it than its first ones."""
    plan = search(tmp_path, DELTA, "algo=npg,trpo", f"search.trials={trials}", f"search.sampler={sampler}")
    errors = []
    while job := plan.next():
        errors.append((math.log10(job.config.algo.delta) + 2) ** 2 + 0.1 * (job.config.algo.name == "npg"))
        job.outcome = "running"
        end(plan, job, -errors[-1])
    assert len(errors) == trials and states(tmp_path) == ["COMPLETE"] * trials
    if sampler == "tpe":
        assert sum(errors[-10:]) < sum(errors[:10]) / 2
    best = min(plan.jobs, key=lambda job: -job.eval_return)
    assert plan.closing("C")[0].startswith("best    eval return ")
    assert f"algo.delta={words(best)['algo.delta']} algo=trpo" in plan.closing("C")[0]
    assert plan.closing("C")[1:] == [f"study   x: {trials} of {trials} trials done"]


def test_every_key_gets_values_of_its_kind(tmp_path):
    plan = search(
        tmp_path, DELTA, "algo.lam=interval(0.9,1)", "critic.epochs=int(interval(1,5))",
        "horizon=range(32,129,32)", "solver=glob(c*)", "policy.hidden=[8],[8,8]", "total_steps=2000",
        "search.trials=20", "search.sampler=random",
    )  # fmt: skip
    jobs = []
    while job := plan.next():
        jobs.append(job)
    assert len(jobs) == 20
    configs = [job.config for job in jobs]
    assert all(0.001 <= cfg.algo.delta <= 0.1 and 0.9 <= cfg.algo.lam <= 1 for cfg in configs)
    assert min(cfg.algo.delta for cfg in configs) < 0.005  # a uniform draw is below it one time in 25
    assert {cfg.critic.epochs for cfg in configs} == {1, 2, 3, 4, 5}
    assert {cfg.horizon for cfg in configs} == {32, 64, 96, 128}
    assert {cfg.solver.name for cfg in configs} == {"cg", "cholesky"}
    assert {tuple(cfg.policy.hidden) for cfg in configs} == {(8,), (8, 8)}
    assert all(cfg.total_steps == 2000 for cfg in configs)


def test_several_seeds_are_one_trial_worth_their_mean(tmp_path):
    plan = search(tmp_path, DELTA, "seed=3,4", "search.trials=1")
    first, second = plan.next(), plan.next()
    assert plan.next() is None and [first.config.seed, second.config.seed] == [3, 4]
    assert words(first)["algo.delta"] == words(second)["algo.delta"] and first.label.endswith("seed=3")
    first.outcome = second.outcome = "running"
    end(plan, first, 1.0)
    assert states(tmp_path) == ["RUNNING"]
    end(plan, second, 2.0)
    assert study(tmp_path).best_value == 1.5


def test_a_failed_or_unevaluated_trial_teaches_nothing(tmp_path):
    plan = search(tmp_path, DELTA, "seed=0,1", "search.trials=2")
    bad = plan.next()
    end(plan, bad, None, "failed")
    one, two = plan.next(), plan.next()  # the other seed of the failed trial is not run
    assert words(one)["algo.delta"] == words(two)["algo.delta"] != words(bad)["algo.delta"]
    one.outcome = two.outcome = "running"
    end(plan, one, 1.0)
    end(plan, two, None)
    assert states(tmp_path) == ["FAIL", "FAIL"] and plan.next() is None


def test_the_median_pruner_stops_what_does_worse(tmp_path):
    plan = search(tmp_path, DELTA, "search.trials=7", "total_steps=10000")
    for number in range(7):
        job = plan.next()
        log, value = begin(job), 1.0 if number == 6 else 100.0
        for update in range(1, 11):
            log.write({"rollout/return": value + update}, 1000 * update, update)
            why = plan.look(job)
            if why:
                break
        assert bool(why) == (number == 6)
        end(plan, job, value, "stopped" if why else "finished")
    assert why == "pruned at 20%: others did better there"  # at the first mark after the warm-up
    assert states(tmp_path) == ["COMPLETE"] * 6 + ["PRUNED"]
    assert len(study(tmp_path).trials[0].intermediate_values) == MARKS - 1


def test_the_same_search_is_the_same_study_and_another_is_another(tmp_path):
    names = []
    linear = "algo.delta=interval(0.001,0.1)"
    for words in ([DELTA, "seed=1,2"], [DELTA, "seed=1,2"], [DELTA], [linear], [DELTA, "env=Acrobot"]):
        plan = search(tmp_path, *words, "search.trials=3", "search.study=null")
        names.append(plan.name)
        plan._held.close()
    assert names[0] == names[1] and len(set(names)) == 4


def test_a_search_goes_on_and_reruns_what_was_interrupted(tmp_path):
    plan = search(tmp_path, DELTA, "search.trials=3")
    done, cut = plan.next(), plan.next()
    begin(done), begin(cut)
    end(plan, done, 5.0)
    end(plan, cut, None, "stopped")
    assert plan.closing("C x")[-1] == "go on   C x"
    with pytest.raises(lock.Busy, match="in use by process"):
        search(tmp_path, DELTA, "search.trials=3")
    plan._held.close()

    again = search(tmp_path, DELTA, "search.trials=3", "sweep.jobs=1")
    first, last = again.next(), again.next()
    assert again.next() is None and states(tmp_path) == ["COMPLETE", "FAIL", "RUNNING", "RUNNING"]
    assert first.fresh == cut.fresh and first.words == [f"resume='{cut.run}'"]
    assert last.fresh not in (done.fresh, cut.fresh) and last.words == last.fresh
    again._held.close()
    with pytest.raises(ConfigError, match="is another search"):
        search(tmp_path, DELTA, "search.trials=3", "horizon=64")
    kept = {each.name for each in (tmp_path / "sweeps").iterdir()} - {"studies"}
    assert len(kept) == 2  # the refused ones have left none


@pytest.mark.parametrize("given, part", [
    ([DELTA], "write range(start,stop,step) or a,b,c, or search it with search.trials=20"),
    (["search.trials=5", "seed=1,2"], "search.trials has nothing to search"),
    (["search.trials=5,6", DELTA], "one value"),
    (["search.trials=5", "algo.delta=interval(-1,1)"], "algo.delta must be a number > 0, got -1"),
    (["search.trials=5", "algo.delta=interval(1,0.1)"], "low < high"),
    (["search.trials=5", "algo.gamma=tag(log,interval(0,1))"], "low > 0"),
    (["search.trials=5", "algo=pg,trpo", "algo.delta=interval(0.1,1)"], "algo.delta belongs to npg and trpo"),
    (["search.trials=5", "experiment=optimizers"], "one sweep"),
    (["search.study=a/b", "search.trials=5", DELTA], "search.study must be a name"),
    (["search.sampler=cma", DELTA, "search.trials=5"], "search.sampler must be tpe or random"),
])  # fmt: skip
def test_a_wrong_search_is_refused(given, part):
    with pytest.raises(ConfigError) as caught:
        cli.parse(["-m", *given])
    assert part in str(caught.value)


def test_without_optuna_a_search_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'rl-natgrad\[search\]'"):
        Search.of(cli.parse(["-m", "search.trials=2", DELTA]))


@pytest.mark.slow
def test_a_whole_search_and_its_continuation(tmp_path):
    pytest.importorskip("optuna")
    words = [*PROBE, DELTA, "total_steps=1000", "seed=0,1", "sweep.jobs=2", f"runs_dir={tmp_path}"]
    code, text = sweep(*words, "search.trials=2", "search.study=s")
    assert code == 0 and "study   s: 2 of 2 trials done" in text, text
    assert len(report(tmp_path)["jobs"]) == 4
    code, text = sweep(*words, "search.trials=3", "search.study=s")
    assert code == 0 and "study s: 1 of 3 trials to do, 2 jobs each" in text, text
    assert [job["outcome"] for job in report(tmp_path)["jobs"]] == ["finished"] * 2


# clusters

def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


LOCAL = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=20")


@pytest.mark.parametrize("given, part", [
    (["hydra/launcher=joblib"], "hydra/launcher must be submitit_slurm or submitit_local, got joblib"),
    (["hydra.launcher.timeout_min=5"], "got None"),
    ([*LOCAL, "hydra.launcher.timeoutmin=5"], "did you mean 'timeout_min'?"),
    ([*LOCAL, "hydra.launcher.partition=gpu"], "hydra/launcher=submitit_local has no key"),
    ([*LOCAL, "hydra.launcher.submitit_folder=x"], "has no key"),
    ([*LOCAL, "hydra.launcher.nodes=two"], "hydra.launcher.nodes: "),
])  # fmt: skip
def test_a_wrong_launcher_is_refused(given, part):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with pytest.raises(ConfigError) as caught:
        Cluster.of(tuple(given))
    assert part in str(caught.value)


def test_slurm_without_srun_is_refused(monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"needs Slurm's srun on the PATH; start it on a login node"):
        Cluster.of(("hydra/launcher=submitit_slurm",))


def test_slurm_gets_the_keys_of_hydras_plugin(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    words = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=cpu", "hydra.launcher.cpus_per_task=2",
             "hydra.launcher.max_num_timeout=3", "hydra.launcher.array_parallelism=8")  # fmt: skip
    cluster = Cluster.of(words)
    made = {}

    class Executor(submitit.AutoExecutor):
        def __init__(self, folder, **kwargs):
            made["folder"], made["init"] = folder, kwargs
            super().__init__(folder, cluster="debug")

        def update_parameters(self, **kwargs):
            made["parameters"] = {key: value for key, value in kwargs.items() if value is not None}

        def submit(self, task):
            made["task"] = task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submitit, "AutoExecutor", Executor)
        cluster.start(["seed=1"], tmp_path / "1.log")
    assert cluster.at_once == 8 and made["folder"] == tmp_path / "submitit" / "%j"
    assert made["init"] == {"cluster": "slurm", "slurm_max_num_timeout": 3}
    assert made["task"].words == ["seed=1"]
    expected = {"name": "rl_natgrad", "slurm_partition": "cpu", "cpus_per_task": 2, "timeout_min": 60}
    assert expected.items() <= made["parameters"].items()


def test_a_slurm_that_keeps_no_accounts_is_asked_for_its_queue(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    from rl_natgrad.sweep.queue import ask_who_knows

    for name, does in {"sacct": "exit 1", "squeue": "echo '1 PENDING\n2 CONFIGURING\n3 CANCELLED'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submitit.SlurmJob, "watcher", submitit.SlurmJob.watcher)
    ask_who_knows()
    watcher = submitit.SlurmJob.watcher
    for job in "1234":
        watcher.register_job(job)
    assert [watcher.get_state(job) for job in "1234"] == ["PENDING", "RUNNING", "CANCELLED", "COMPLETED"]
    assert [watcher.is_done(job) for job in "1234"] == [False, False, True, True]


def test_without_submitit_a_launcher_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'rl-natgrad\[slurm\]'"):
        Cluster.of(LOCAL)


@pytest.mark.slow
def test_a_preempted_cluster_job_saves_is_queued_again_and_goes_on(tmp_path, monkeypatch):
    """submitit's own signal, before a machine is taken away; its local executor queues again by itself."""
    pytest.importorskip("submitit")
    words = [*PROBE, "total_steps=3000", "checkpoint.every=1", f"runs_dir={tmp_path}"]
    for key, value in environment(SWEEP_SLOW="0.002").items():
        monkeypatch.setenv(key, value)
    running = Cluster.of(LOCAL).start(words, tmp_path / "1.log")
    [saved] = wait_until(lambda: list(tmp_path.glob("*/*/*/checkpoints")), 120)
    tasks = [pid for child in children(os.getpid()) for pid in children(child)]
    task = next(pid for pid in tasks if "submitit.core._submit" in command(pid))
    os.kill(task, signal.SIGUSR2)
    assert wait_until(lambda: running.poll() is not None, 120) and running.poll() == 0
    record = folder.read_record(saved.parent)
    assert record["outcome"] == "finished" and [one["after"] for one in record["resumed"]] == ["stopped"]


@pytest.mark.slow
def test_a_sweep_on_submitits_local_executor(tmp_path):
    """The same words, statuses and going on as without a cluster."""
    pytest.importorskip("submitit")
    words = [*PROBE, "env.kwargs.job=0,2", "total_steps=1000", "sweep.jobs=2", f"runs_dir={tmp_path}", *LOCAL]
    code, text = sweep(*words)
    assert code == 1, text
    good, bad = report(tmp_path)["jobs"]
    assert good["outcome"] == "finished" and bad["outcome"] == "failed" and "the pole fell over" in bad["error"]
    code, text = sweep(*words, "sweep.skip_finished=true", SWEEP_FIXED="1")
    assert code == 0 and text.count("start ") == 1, text
    assert report(tmp_path)["jobs"][0] == good


@pytest.mark.slow
def test_ctrl_c_reaches_the_jobs_of_a_cluster(tmp_path):
    pytest.importorskip("submitit")
    process = start(*PROBE, "total_steps=1e6", "seed=0,1", "checkpoint.every=1", f"runs_dir={tmp_path}", *LOCAL)
    wait_until(lambda: len(list(tmp_path.glob("*/*/*/checkpoints"))) == 2, 120)
    process.send_signal(signal.SIGINT)
    text = process.communicate()[0]
    assert process.returncode == 130, text
    assert [job["outcome"] for job in report(tmp_path)["jobs"]] == ["stopped"] * 2
    assert all(folder.read_record(job["run"])["outcome"] == "stopped" for job in report(tmp_path)["jobs"])
