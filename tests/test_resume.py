"""Stopping and going on gives the bits of the run that never stopped."""

import json
import os

import gymnasium
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from whole_runs import CRITIC, ENVS, SMALL, assert_equal, checkpoints, copy, curves, facts, only_run, outcome, run

from rl_natgrad.config import compose
from rl_natgrad.run import checkpoint, lock
from rl_natgrad.run.records import read_rows
from rl_natgrad.training import resume

STEPS = 5000  # 20 updates of 256 rows, or some more where many rows are resets
RECIPES = {
    "reinforce": ["algo=reinforce"],
    **{f"pg-{name}": ["algo=pg", f"optimizer={name}"] for name in compose.choices()["optimizer"]},
    **{f"npg-{name}": ["algo=npg", f"solver={name}"] for name in compose.choices()["solver"]},
    **{f"trpo-{name}": ["algo=trpo", f"fisher={name}", *(["solver=steihaug"] if name == "hessian" else [])]
       for name in compose.choices()["fisher"]},
    **{f"critic-{name}": ["algo=trpo", f"critic={name}"] for name in compose.choices()["critic"]},
    "ppo": ["algo=ppo", "algo.decay_lr=true", "algo.decay_clip=true", "algo.target_kl=0.02"],
    "warm-up": ["algo=pg", "optimizer=sgd", "optimizer.warmup=6"],
    "sampled-fisher": ["algo=trpo", "fisher.fraction=0.3"],
    "not-normalised": ["algo=trpo", "env.normalize_obs=false", "env.normalize_return=false"],
    "evaluated": ["algo=trpo", "eval.every=2"],
    "multi-binary-free": ["algo=pg", "env=Pendulum"],
    "sigma-of-the-state": ["algo=trpo", "env=Pendulum", "policy.std=state"],
    "float64": ["algo=trpo", "env=Pendulum", "dtype=float64"],
    "float64-not-normalised": ["algo=pg", "dtype=float64", "env.normalize_obs=false"],
    "async": ["algo=trpo", "env.backend=async"],
    "split": ["algo=trpo", "env.backend=split"],
    "masked-and-stacked": ["algo=trpo", "env=Taxi-v4", "env.action_mask=true", "env.frame_stack=2"],
    "device": ["algo=trpo", "env=CartPole", "env.backend=device"],
    "device-actions-in-a-box": ["algo=trpo", "env=Pendulum", "env.backend=device"],
}
BIG = "reinforce", "pg-adam", "npg-cg", "trpo-gauss_newton", "ppo"
FAST = (
    *BIG, "pg-momentum", "critic-lbfgs", "critic-trust_region", "sampled-fisher", "evaluated", "async", "split",
    "device", "sigma-of-the-state", "warm-up", "float64", "float64-not-normalised", "masked-and-stacked",
)  # fmt: skip


def whole(monkeypatch, runs_dir, *words):
    """A run of 20 updates that keeps all its checkpoints."""
    kept = ["checkpoint.every=1", "checkpoint.keep=100", f"runs_dir={runs_dir}"]
    assert run(monkeypatch, *SMALL, f"total_steps={STEPS}", *kept, *words) == 0
    return only_run(runs_dir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Such a run, not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        return whole(patch, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of it, to be changed."""
    return copy(trained, tmp_path / "finished")


def assert_resumes(monkeypatch, path, tmp_path, updates):
    expected = facts(path)
    for update in updates:
        again = copy(path, tmp_path / str(update))
        assert run(monkeypatch, f"resume={again}/checkpoints/{update:08d}.safetensors") == 0
        assert_equal(again, expected)


@pytest.mark.parametrize("env", ENVS)
def test_resuming_gives_the_bits_of_the_run_that_never_stopped(monkeypatch, tmp_path, env):
    path = whole(monkeypatch, tmp_path / "whole", *CRITIC, *ENVS[env])
    last = int(checkpoints(path)[-1].stem)
    assert last >= 20
    rows = read_rows(path)
    assert [row["update"] for row in rows] == [*range(1, last + 1), last] and "eval/return" in rows[-1]
    middle = [checkpoint.read(file)["collector"] for file in checkpoints(path)]
    assert sum(bool((part["episode_length"] > 0).any()) for part in middle) > 15  # stopped inside episodes
    assert_resumes(monkeypatch, path, tmp_path, (1, 17))


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVS)
def test_resuming_from_every_update_gives_the_same_bits(monkeypatch, tmp_path, env):
    path = whole(monkeypatch, tmp_path / "whole", *CRITIC, *ENVS[env])
    assert_resumes(monkeypatch, path, tmp_path, range(1, len(checkpoints(path)) + 1))


@pytest.mark.parametrize(
    "recipe", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES])
def test_every_algorithm_and_part_resumes(monkeypatch, tmp_path, recipe):
    words = [*SMALL, "total_steps=900", *RECIPES[recipe], f"runs_dir={tmp_path / 'whole'}"]
    assert run(monkeypatch, *words, "checkpoint.every=1", "checkpoint.keep=9") == 0
    assert_resumes(monkeypatch, only_run(tmp_path / "whole"), tmp_path, (2,))


def test_a_record_from_before_a_key_was_there_resumes(monkeypatch, finished, tmp_path):
    expected, record = facts(finished), json.loads((finished / "run.json").read_text())
    del record["config"]["dtype"], record["config"]["critic"]["overlap"], record["config"]["critic"]["minibatches"]
    del record["config"]["policy"]["std"], record["config"]["policy"]["init"]
    del record["config"]["env"]["frame_stack"], record["config"]["env"]["action_mask"]
    del record["config"]["env"]["stagger"]
    (finished / "run.json").write_text(json.dumps(record))
    assert_resumes(monkeypatch, finished, tmp_path, (18,))
    assert_equal(finished, expected)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["LunarLander", "HalfCheetah"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_algorithm_and_part_resumes_elsewhere(monkeypatch, tmp_path, recipe, env):
    if {"env=Pendulum", "env=Taxi-v4", "env.backend=device"} & set(RECIPES[recipe]):
        return
    words = [*SMALL, "total_steps=1300", *ENVS[env], *RECIPES[recipe], f"runs_dir={tmp_path / 'whole'}"]
    assert run(monkeypatch, *words, "checkpoint.every=1", "checkpoint.keep=9") == 0
    assert_resumes(monkeypatch, only_run(tmp_path / "whole"), tmp_path, (3,))


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("recipe", BIG)
def test_same_seed_same_bits(monkeypatch, tmp_path, recipe, env, num_envs):
    for runs_dir in ("a", "b"):
        words = [*SMALL, *ENVS[env], *RECIPES[recipe], f"num_envs={num_envs}", "total_steps=1000"]
        assert run(monkeypatch, *words, f"runs_dir={tmp_path / runs_dir}") == 0
    assert_equal(only_run(tmp_path / "a"), facts(only_run(tmp_path / "b")))


def test_same_seed_same_bits_and_another_seed_others(monkeypatch, tmp_path):
    paths = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = [*SMALL, "total_steps=700", f"seed={seed}", f"runs_dir={tmp_path / name}"]
        assert run(monkeypatch, *words) == 0
        paths.append(only_run(tmp_path / name))
    assert_equal(paths[0], facts(paths[1]))
    assert facts(paths[0])["checkpoint"] != facts(paths[2])["checkpoint"]


@pytest.mark.parametrize("words", [
    ["eval.every=1"], ["eval.every=3", "eval.episodes=1"], ["checkpoint.every=0"],
    ["checkpoint.every=1", "checkpoint.keep=1"],
], ids=" ".join)  # fmt: skip
@pytest.mark.parametrize("env", [name if name == "CartPole-sync" else pytest.param(name, marks=pytest.mark.slow)
                                 for name in ENVS])  # fmt: skip
def test_evaluating_and_saving_are_passive(monkeypatch, tmp_path, words, env):
    def training(*more):
        runs_dir = tmp_path / ("other" if more else "plain")
        assert run(monkeypatch, *SMALL, "total_steps=1300", *ENVS[env], f"runs_dir={runs_dir}", *more) == 0
        found = facts(only_run(runs_dir))
        rows = [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in found["rows"]]
        return {k: v for k, v in found["checkpoint"].items() if k != "/run/best"}, rows

    assert training() == training(*words)


def test_a_finished_run_has_nothing_left_to_do(monkeypatch, finished, capfd):
    path = finished
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != lock.LOCK}
    assert run(monkeypatch, f"resume={path}") == 0
    assert "nothing is left to do" in capfd.readouterr().out
    assert before == {file: file.read_bytes() for file in before}


@pytest.mark.parametrize("words", [[], ["eval.every=3"]], ids=["", "evaluated"])
def test_a_finished_run_with_more_steps_is_the_longer_run(monkeypatch, tmp_path, words):
    short, long = tmp_path / "short", tmp_path / "long"
    assert run(monkeypatch, *SMALL, *words, "total_steps=1000", f"runs_dir={short}") == 0
    assert run(monkeypatch, f"resume={only_run(short)}", "total_steps=2500") == 0
    assert run(monkeypatch, *SMALL, *words, "total_steps=2500", f"runs_dir={long}") == 0
    assert_equal(only_run(short), facts(only_run(long)))
    assert outcome(only_run(short)) == "finished"
    best = [path / "checkpoints" / checkpoint.BEST for path in (only_run(short), only_run(long))]
    assert [file.exists() for file in best] == [bool(words)] * 2


def test_only_what_changes_no_update_can_be_given_anew(monkeypatch, finished, capfd):
    path = finished
    record = (path / "run.json").read_bytes()
    for word in ("seed=1", "algo.delta=0.1", "num_envs=2", "runs_dir=elsewhere", "torch_threads=2", "algo=pg",
                 "env=Pendulum", "horizon=3", "policy.hidden=[3]"):  # fmt: skip
        assert run(monkeypatch, f"resume={path}", word, "total_steps=9999") == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"error: {word.split('=')[0]} is fixed by the run")
        assert all(key in line for key in resume.RESUMABLE)
    assert run(monkeypatch, f"resume={path}", "sede=1") == 2
    assert "unknown key 'sede'; did you mean 'seed'?" in capfd.readouterr().err
    assert (path / "run.json").read_bytes() == record
    allowed = ["device=cpu", "eval.every=2", "eval.episodes=1", "checkpoint.every=2", "checkpoint.keep=1"]
    assert run(monkeypatch, f"resume={path}", f"total_steps={STEPS + 500}", *allowed) == 0
    assert json.loads((path / "run.json").read_text())["config"]["checkpoint"] == {"every": 2, "keep": 1}


def test_a_run_without_checkpoint_begins_anew(monkeypatch, finished):
    """It was killed before its first one."""
    path, expected = finished, facts(finished)
    for file in checkpoints(path):
        file.unlink()
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(record | {"outcome": "running"}))
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "upd')  # half a line
    assert run(monkeypatch, f"resume={path}") == 0
    assert_equal(path, expected)


def test_going_on_from_an_older_checkpoint_drops_what_came_after(monkeypatch, finished):
    path = finished
    last = int(checkpoints(path)[-1].stem)
    leftover = path / "checkpoints" / ".00000012.safetensors.77.tmp"
    leftover.write_bytes(b"half")
    monkeypatch.setattr(resume.Loop, "go", lambda self: 5)
    assert run(monkeypatch, f"resume={path}/checkpoints/00000007.safetensors") == 5
    assert [int(file.stem) for file in checkpoints(path)] == list(range(1, 8))
    assert [row["update"] for row in read_rows(path)] == list(range(1, 8))
    assert not leftover.exists() and last > 8
    assert max(step for points in curves(path).values() for step, _ in points) == read_rows(path)[-1]["step"]


def test_what_is_not_a_run_is_refused(monkeypatch, tmp_path, capfd):
    for where in (tmp_path, tmp_path / "none", tmp_path / "checkpoints" / "00000003.safetensors"):
        assert run(monkeypatch, f"resume={where}") == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: resume must be a run folder or one of its checkpoints, got ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there_is_refused(monkeypatch, finished, tmp_path, capfd):
    for words in ([f"resume={finished}", "total_steps=1e5"], [f"runs_dir={tmp_path / 'other'}"]):
        assert run(monkeypatch, "device=cuda:7", *words) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: device=cuda:7 cannot be used: ")
    assert not (tmp_path / "other").exists()


def test_a_run_in_use_is_refused(monkeypatch, finished, capfd):
    path = finished
    with lock.hold(path):
        assert run(monkeypatch, f"resume={path}", "total_steps=1e5") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} is in use by process ")
    assert run(monkeypatch, f"resume={path}") == 0


class PrivatelyNoisy(PendulumEnv):
    """Pendulum with a random source that no seed reaches."""

    def step(self, action):
        obs, *rest = super().step(action)
        return obs + int.from_bytes(os.urandom(2)) / 1e9, *rest


def test_private_randomness_is_noticed_and_said(monkeypatch, tmp_path, capfd):
    gymnasium.register("PrivatelyNoisy-v0", PrivatelyNoisy, max_episode_steps=100)
    try:
        path = whole(monkeypatch, tmp_path, "env=PrivatelyNoisy-v0", "total_steps=600")
        assert run(monkeypatch, f"resume={path}", "total_steps=900") == 0
    finally:
        del gymnasium.registry["PrivatelyNoisy-v0"]
    says = "note    environments [0, 1, 2, 3] have random sources of their own and did not come back the same"
    assert says in capfd.readouterr().out


def test_environments_that_cannot_be_saved_say_so_and_begin_new_episodes(monkeypatch, tmp_path, capfd):
    pytest.importorskip("envpool")
    path = whole(monkeypatch, tmp_path, "env.backend=envpool", "total_steps=600")
    assert "note    backend envpool cannot save environments: resuming starts new" in capfd.readouterr().out
    assert json.loads((path / "run.json").read_text())["restorable"] is False
    assert run(monkeypatch, f"resume={path}", "total_steps=900") == 0
    rows = read_rows(path)
    assert [row["update"] for row in rows] == [*range(1, len(rows)), len(rows) - 1] and rows[-1]["step"] >= 900


def test_other_versions_are_said(monkeypatch, tmp_path, capfd):
    path = whole(monkeypatch, tmp_path, "total_steps=600")
    record = json.loads((path / "run.json").read_text())
    record["versions"]["torch"] = "1.0"
    (path / "run.json").write_text(json.dumps(record))
    assert run(monkeypatch, f"resume={path}", "total_steps=900") == 0
    assert "note    versions have changed, so numbers may: torch 1.0, now " in capfd.readouterr().out
