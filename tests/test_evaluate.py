"""Playing a run again: the returns of its final evaluation, one line for all that is wrong, films."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from whole_runs import CRITIC, ROOT, SMALL, checkpoints, only_run, run

from rl_natgrad.evaluate import OPTIONS, main
from rl_natgrad.playback import video
from rl_natgrad.rollout.play import play
from rl_natgrad.run import checkpoint
from rl_natgrad.run.records import read_record, read_rows

SHORT = [*SMALL, *CRITIC, "total_steps=700", "eval.episodes=3", "checkpoint.every=1"]
MODULE = ["env.allow_import=true", "horizon=16", "total_steps=100"]
FOLDERS = {
    "CartPole": ["env=CartPole"],
    "Pendulum": ["env=Pendulum", "env.backend=sync"],
    "Pendulum, σ of the state": ["env=Pendulum", "policy.std=state"],
    "Pendulum in float64": ["env=Pendulum", "dtype=float64"],
    "Counting": ["env=environments:Counting-v0", *MODULE],
    "Doors": ["env=environments:Doors-v0", "env.kwargs={nvec: [2, 3]}", "env.action_mask=true",
              "env.frame_stack=2", *MODULE],
    "Misbehaving": ["env=environments:Misbehaving-v0", *MODULE, "eval.episodes=2",
                    "env.kwargs={how: not at all}", "env.timeout=1"],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """name → a finished run and what training it printed; trained once, not to be changed."""
    made = {}

    def get(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(ROOT / "tests")
                words = FOLDERS[name]
                if name == "Misbehaving":  # it never ends an episode by itself
                    patch.setattr("rl_natgrad.training.evaluation.play", lambda *args: play(*args, limit=20))
                runs_dir = tmp_path_factory.mktemp("runs") / "runs"
                assert run(patch, *SHORT, *words, f"runs_dir={runs_dir}") == 0
                made[name] = only_run(runs_dir)
        return made[name]

    return get


@pytest.fixture
def folder(trained, tmp_path):
    """A run to spoil."""

    def copy(name="CartPole"):
        return shutil.copytree(trained(name), tmp_path / "run")

    return copy


@pytest.fixture
def evaluate(capfd):
    """(exit code, standard output, standard error) of python -m rl_natgrad.evaluate."""

    def call(*words):
        capfd.readouterr()
        code = main([str(word) for word in words])
        return code, *capfd.readouterr()

    return call


def refused(result, code=2):
    got, out, err = result
    assert (got, out) == (code, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def means(out):
    """mode → (mean, standard deviation), as printed."""
    found = re.findall(r"^(\w+) +return (\S+) ± (\S+) ", out, re.MULTILINE)
    return {mode: (float(mean), float(std)) for mode, mean, std in found}


def returns(out):
    """The returns of the episodes, (episodes, modes)."""
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+  ", line)]
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    return np.array([row[1:] for row in rows], float)


def assert_equals_training(out, path):
    said, final = means(out), read_rows(path)[-1]
    assert said["deterministic"] == (final["eval/return"], final["eval/return_std"])
    assert said["stochastic"][0] == final["eval/return_stochastic"]
    played = returns(out)
    assert played.mean(0).tolist() == [said["deterministic"][0], said["stochastic"][0]]


# --- the same returns -----------------------------------------------------------------------------


def test_the_command_that_training_prints_gives_its_returns_in_a_fresh_process(tmp_path, capfd, monkeypatch):
    assert run(monkeypatch, *SHORT, "env=Pendulum", f"runs_dir={tmp_path}") == 0
    *_, watch, last = capfd.readouterr().out.splitlines()
    path = only_run(tmp_path)
    assert watch == f"watch   tensorboard --logdir {tmp_path}"
    assert last == f"play    python -m rl_natgrad.evaluate run={path}"
    command = [sys.executable, *shlex.split(last)[2:]]
    fresh = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (fresh.returncode, fresh.stderr) == (0, "")
    assert_equals_training(fresh.stdout, path)
    assert len(set(returns(fresh.stdout).ravel())) == 6
    assert main([f"run={path}"]) == 0
    assert capfd.readouterr().out == fresh.stdout  # twice the same, to the last character


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "Misbehaving"])
def test_returns_are_those_of_the_final_evaluation(trained, evaluate, name):
    code, out, err = evaluate(f"run={trained(name)}", "allow_import=true")
    assert (code, err) == (0, "")
    assert_equals_training(out, trained(name))


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["reinforce", "pg", "npg", "trpo", "ppo"])
@pytest.mark.parametrize("env", ["LunarLander", "HalfCheetah"])
def test_returns_are_those_of_the_final_evaluation_elsewhere_too(monkeypatch, tmp_path, algo, env):
    words = [word for word in SHORT if algo != "reinforce" or "critic" not in word]
    assert run(monkeypatch, *words, f"algo={algo}", f"env={env}", f"runs_dir={tmp_path}") == 0
    path = only_run(tmp_path)
    command = [sys.executable, "-m", "rl_natgrad.evaluate", f"run={path}"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert_equals_training(out, path)


def test_one_mode_alone_gives_what_both_give(trained, evaluate):
    run = f"run={trained('CartPole')}"
    both = evaluate(run)[1]
    for column, (said, mode) in enumerate([("true", "deterministic"), ("false", "stochastic")]):
        alone = evaluate(run, f"deterministic={said}")[1]
        assert means(alone) == {mode: means(both)[mode]}
        assert returns(alone).ravel().tolist() == returns(both)[:, column].tolist()
    assert evaluate(run, "deterministic=both")[1] == both


def test_more_episodes_begin_with_the_same_ones(trained, evaluate):
    run = f"run={trained('CartPole')}"
    few, many = (returns(evaluate(run, "deterministic=true", f"episodes={n}")[1]) for n in (2, 7))
    assert len(many) == 7
    assert many[:2].tolist() == few.tolist()


def test_a_checkpoint_is_chosen_by_name(trained, folder, evaluate):
    path = folder()
    files = checkpoints(path)
    assert len(files) == 3
    shutil.copy(files[0], path / "checkpoints" / "best.safetensors")
    said = {}
    for which in (*(int(file.stem) for file in files), "last", "best"):
        code, out, _ = evaluate(f"run={path}", f"checkpoint={which}")
        assert code == 0
        said[which] = returns(out).tolist()
    first, _, last = (int(file.stem) for file in files)
    assert said["last"] == said[last] != said[first] == said["best"]


def test_evaluating_leaves_the_folder_as_it_was(folder, evaluate):
    path = folder()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert evaluate(f"run={path}")[0] == 0
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_tensorboard_has_the_evaluation_and_hparams_that_name_it(trained):
    events = EventAccumulator(str(trained("CartPole")))
    events.Reload()
    final = read_rows(trained("CartPole"))[-1]
    assert [point.value for point in events.Scalars("eval/return")] == [np.float32(final["eval/return"])]
    said = {}
    for tag, content in events.summary_metadata.items():
        if tag.startswith("_hparams_/"):
            said[tag] = plugin_data_pb2.HParamsPluginData.FromString(content.plugin_data.content)
    start = said["_hparams_/session_start_info"].session_start_info.hparams
    assert (start["algo"].string_value, start["env"].string_value) == ("trpo", "CartPole-v1")
    assert start["num_envs"].number_value == 4  # overridden
    assert "_hparams_/session_end_info" in said


# --- refused in one line --------------------------------------------------------------------------

WRONG = [
    ([], "name a run folder"),
    (["{run}"], "write run="),
    (["run={run}", "run={run}"], "run is given twice"),
    (["run="], "run must be a run folder"),
    (["run=/nonexistent"], "run must be a run folder"),
    (["run={run}", "episode=3"], "did you mean 'episodes'?"),
    (["run={run}", "+episodes=3"], "unknown option '+episodes'"),
    (["run={run}", "qqq=3"], "there are run, checkpoint"),
    (["run={run}", "+video"], "expected key=value, got '+video'; write video=…"),
    (["run={run}", "episodes", "3"], "expected key=value, got 'episodes'; write episodes=3"),
    (["run={run}", "--episodes", "3"], "unknown option '--episodes'; write episodes=3"),
    (["run={run}", "--checkpoint=best"], "unknown option '--checkpoint=best'; write checkpoint=best"),
    (["run={run}", "--xyzzy"], "unknown option '--xyzzy'; see --help"),
    *[(["run={run}", f"episodes={n}"], "whole number") for n in ("0", "-1", "1.5", "nan", "1e9", "99999999", "²")],
    *[(["run={run}", f"checkpoint={n}"], "last, best or") for n in ("-1", "../x", "9" * 40, "")],
    (["run={run}", "checkpoint=99"], "there are 1, 2, 3"),
    (["run={run}", "checkpoint=best"], "there are 1, 2, 3"),
    (["run={run}", "deterministic=1"], "true, false or both"),
    (["run={run}", "video=yes"], "true or false"),
]


@pytest.mark.parametrize(("words", "expected"), WRONG)
def test_a_wrong_command_is_one_line(folder, evaluate, words, expected):
    path = folder()
    assert expected in refused(evaluate(*(word.format(run=path) for word in words)))


CNN = {"name": "cnn", "channels": [9], "kernels": [9], "strides": [1], "hidden": 9, "log_std": 0.0}
NOT_RECORDS = {  # what stands in run.json → what is said of it
    b'{"config"': "run.json is not JSON",
    b"[" * 100_000: "run.json is not JSON",
    b"\xff\xfe": "run.json is not JSON",
    b"{}": "is not the record of a run",
}
CONFIGS = [  # what is changed in it
    ("policy", {"hidden": [65536] * 16}, "at most"),
    ("policy", {"hidden": [1000, 65536]}, "policy.theta is torch.float32 of shape"),  # 0.3 GB are not made first
    ("policy", {"activation": "sin"}, "policy.activation"),
    ("policy", CNN, "does not fit"),
    ("env", {"_target_": "os.system"}, "_target_"),
    ("env", {"id": "Acrobot-v1"}, "does not fit"),
    ("env", {"id": "Nothing-v7"}, "Nothing"),
    ("env", {"kwargs": {"gravitas": 1}}, "gravitas"),
    ("env", {"normalize_obs": False}, "observe"),
]
STATES = {  # what is changed in a checkpoint whose checksum is right
    "cut": (lambda state: state["policy"].update(theta=state["policy"]["theta"][:-1]), "is torch.float32 of"),
    "double": (lambda state: state["policy"].update(theta=state["policy"]["theta"].double()), "is torch.float64"),
    "nan": (lambda state: state["policy"]["theta"].fill_(torch.nan), "theta holds numbers that are not finite"),
    "text": (lambda state: state["policy"].update(theta="0 0 0"), "policy.theta is not what it can be"),
    "no policy": (lambda state: state.pop("policy"), "policy is not what it can be"),
    "no normaliser": (lambda state: state.pop("observe"), "observe is not what it can be"),
    "negative": (lambda state: state.update(step=-1), "step is not what it can be"),
}
FILES = {  # what is done to its file
    "half": (lambda file: file.write_bytes(file.read_bytes()[:5000]), "is damaged"),
    "empty": (lambda file: file.write_bytes(b""), "is not a whole checkpoint"),
    "a pickle": (lambda file: torch.save({"theta": torch.zeros(3)}, file), "is not a whole checkpoint"),
    "a pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "is not a file"),
    "none": (lambda file: shutil.rmtree(file.parent), "has no checkpoint"),
}


@pytest.mark.parametrize("content", NOT_RECORDS)
def test_what_is_no_record_is_refused(folder, evaluate, content):
    path = folder()
    (path / "run.json").write_bytes(content)
    assert NOT_RECORDS[content] in refused(evaluate(f"run={path}"))


@pytest.mark.parametrize(("group", "change", "said"), CONFIGS)
def test_a_configuration_that_does_not_fit_is_refused(folder, evaluate, group, change, said):
    path = folder()
    tree = json.loads((path / "run.json").read_text())
    tree["config"][group] = change if "name" in change else tree["config"][group] | change
    (path / "run.json").write_text(json.dumps(tree))
    assert said in refused(evaluate(f"run={path}"))


@pytest.mark.parametrize("how", STATES)
def test_a_checkpoint_that_does_not_fit_is_refused(folder, evaluate, how):
    path = folder()
    change, said = STATES[how]
    file = checkpoints(path)[-1]
    state = checkpoint.read(file)
    change(state)
    file.write_bytes(checkpoint.encode(state, "0"))
    err = refused(evaluate(f"run={path}"))
    assert said in err and file.name in err


@pytest.mark.parametrize("how", FILES)
def test_a_damaged_checkpoint_is_refused(folder, evaluate, how):
    path = folder()
    change, said = FILES[how]
    change(checkpoints(path)[-1])
    assert said in refused(evaluate(f"run={path}"))


def test_a_folder_that_is_no_run_is_refused(tmp_path, evaluate):
    assert "is no run folder" in refused(evaluate(f"run={tmp_path}"))
    assert not list(tmp_path.iterdir())


def test_flipped_bits_are_never_loaded(folder, evaluate):
    path = folder()
    file = checkpoints(path)[-1]
    data, rng = file.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(len(data), size=30):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        file.write_bytes(flipped)
        assert file.name in refused(evaluate(f"run={path}"))


def test_a_module_is_imported_only_where_the_command_line_allows_it(folder, evaluate, tmp_path, monkeypatch):
    path = folder("Counting")
    tree = json.loads((path / "run.json").read_text())
    assert tree["config"]["env"]["allow_import"] is True  # its own word for it, which does not count
    tree["config"]["env"]["id"] = "trap:Counting-v0"
    (path / "run.json").write_text(json.dumps(tree))
    (tmp_path / "trap.py").write_text("import pathlib\npathlib.Path('sprung').touch()\nimport environments\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert "allow_import=true" in refused(evaluate(f"run={path}"))
    assert "allow_import=true" in refused(evaluate(f"run={path}", "allow_import=false"))
    assert not (tmp_path / "sprung").exists()
    assert evaluate(f"run={path}", "allow_import=true")[0] == 0
    assert (tmp_path / "sprung").exists()


# --- environments that misbehave ------------------------------------------------------------------

MISBEHAVIOUR = {
    "reset raises": "reset raised ValueError: the pole fell over",
    "step raises": "step 3: step raised ValueError: the pole fell over",
    "step exits": "step raised SystemExit: 3",
    "step sleeps": "did not return within 1 s",
    "step arity": "returned 4 values, expected",
    "step shape": "observation has shape (4,), expected (3,)",
    "step dtype": "observation has dtype float64",
    "reset nan": "step 0: observation[1] is nan",
    "step nan": "step 3: observation[1] is nan",
    "step outside": "step 3: observation[1] is 1.01, outside",
    "step reward-inf": "step 3: reward is inf",
    "step reward-text": "reward is str '1.0'",
    "step terminated-none": "terminated is NoneType None",
}


def misbehave(path, how, backend):
    record = read_record(path)
    record["config"]["env"] |= {"kwargs": {"how": how}, "backend": backend}
    (path / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("how", MISBEHAVIOUR)
def test_an_environment_that_misbehaves_is_named(folder, evaluate, how):
    path = folder("Misbehaving")
    misbehave(path, how, "sync")
    err = refused(evaluate(f"run={path}", "allow_import=true"), code=1)
    assert "environments:Misbehaving-v0, environment 0" in err
    assert MISBEHAVIOUR[how] in err


@pytest.mark.slow
@pytest.mark.parametrize("how", [*MISBEHAVIOUR, "step dies", "step killed", "step spins"])
def test_an_environment_that_misbehaves_in_a_worker_is_named(folder, how):
    path = folder("Misbehaving")
    misbehave(path, how, "async")
    command = [sys.executable, "-m", "rl_natgrad.evaluate", f"run={path}", "allow_import=true"]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=60)
    err = refused((done.returncode, done.stdout, done.stderr), code=1)
    assert "environments:Misbehaving-v0, environment" in err
    assert MISBEHAVIOUR.get(how, "") in err


# --- films ----------------------------------------------------------------------------------------


def test_a_film_has_every_frame_of_its_episode(folder, evaluate):
    from moviepy import VideoFileClip

    path = folder()
    code, out, _ = evaluate(f"run={path}", "video=true", "deterministic=true")
    assert code == 0
    film = path / "deterministic-00000003.mp4"
    first = returns(out)[0, 0]
    assert out.splitlines()[-1] == f"video   {film} (return {first})"
    with VideoFileClip(str(film)) as clip:
        assert clip.size == [600, 400]
        frames = list(clip.iter_frames())
    assert abs(len(frames) - (first + 1)) <= 1  # a reward of 1 each step, and the last picture
    assert len({frame.tobytes() for frame in frames}) > len(frames) / 2
    assert not list(path.glob(".*.mp4"))


def test_filming_changes_no_return(folder, evaluate):
    path = folder()
    plain, filmed = (evaluate(f"run={path}", *more)[1].splitlines() for more in ([], ["video=true"]))
    assert filmed[:-1] == plain


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Hopper-v5"])
def test_a_lit_scene_is_brighter_and_moves_the_same(name, closed, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    dark, lit = (closed(gym.make(name, render_mode="rgb_array", width=64, height=64)) for _ in range(2))
    video.light(lit)
    for env in (dark, lit):
        env.reset(seed=0)
        env.action_space.seed(0)
    for _ in range(20):
        (seen, reward, *_), (also, too, *_) = (env.step(env.action_space.sample()) for env in (dark, lit))
        assert seen.tobytes() == also.tobytes() and reward == too
    try:
        before, after = dark.render().astype(float), lit.render().astype(float)
    except Exception as error:
        pytest.skip(f"needs OpenGL: {error}")
    assert after.mean() > before.mean() + 5
    figure = (before.max(2) - before.min(2) > 30) & (before[:, :, 0] > before[:, :, 2])  # of reddish brown
    assert figure.sum() > 20 and after[figure].mean() > 1.1 * before[figure].mean()


def test_the_missing_extra_is_named(folder, evaluate, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy.video.io.ffmpeg_writer", None)
    assert 'pip install "rl-natgrad[video]"' in refused(evaluate(f"run={folder()}", "video=true"))


def test_what_cannot_be_drawn_is_said(folder, evaluate):
    path = folder("Counting")
    assert "Counting-v0" in refused(evaluate(f"run={path}", "video=true", "allow_import=true"))
    assert not list(path.glob("*.mp4")) and not list(path.glob(".*.mp4"))


def test_help_names_every_option(evaluate):
    code, out, _ = evaluate("--help")
    assert code == 0
    assert all(f"\n  {key} " in out for key in OPTIONS)
