"""A policy as ONNX: onnxruntime gives the actions of `act`, and nothing of it needs torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from texts import program
from whole_runs import CRITIC, SMALL, only_run, run

from rl_natgrad.config import compose
from rl_natgrad.envs.spaces import action_map
from rl_natgrad.envs.view import View
from rl_natgrad.export import OPTIONS, main
from rl_natgrad.playback import graph
from rl_natgrad.playback.agent import Agent, Spaces
from rl_natgrad.run.records import read_rows
from rl_natgrad.training.build import build_policy
from rl_natgrad.version import __version__

N = 1000
SHORT = [*SMALL, *CRITIC, "total_steps=700", "eval.episodes=1", "checkpoint.every=1"]
IMAGES = ["policy=cnn", "policy.channels=[4,8]", "policy.kernels=[3,2]", "policy.strides=[2,1]"]
ACTIONS = {
    "symmetric": spaces.Box(-2.0, 2.0, (2,), np.float32),
    "shifted": spaces.Box(np.array([-3.0, 0.0]), np.array([7.0, 0.1]), dtype=np.float64),
    "whole": spaces.Box(-3, 7, (2, 2), np.int64),
    "unbounded": spaces.Box(np.array([-np.inf, 0.0], np.float32), np.array([0.5, np.inf], np.float32)),
    "discrete": spaces.Discrete(3, start=5),
    "several": spaces.MultiDiscrete(np.array([[2, 4], [3, 3]]), start=np.array([[1, 0], [0, -2]])),
    "binary": spaces.MultiBinary((2, 2)),
}
LENGTHS = {"discrete": [3], "several": [2, 4, 3, 3]}  # of what can be masked
OBSERVATIONS = {
    "vector": spaces.Box(-1.0, 30.0, (3,), np.float32),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "number": spaces.Discrete(4, start=2),
    "several": spaces.MultiDiscrete(np.array([[2, 4], [3, 3]]), start=np.array([[1, 0], [0, -2]])),
    "binary": spaces.MultiBinary((2, 2)),
    "grey": spaces.Box(0, 255, (9, 8), np.uint8),
    "channels first": spaces.Box(0, 255, (1, 9, 8), np.uint8),
    "channels last": spaces.Box(0, 255, (9, 8, 3), np.uint8),
    "nested": spaces.Dict(
        a=spaces.Discrete(3), b=spaces.Tuple([spaces.Box(0, 1, (2, 2)), spaces.MultiBinary(2)]),
        c=spaces.Box(0, 9, (), np.int64),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of CartPole, not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        runs_dir = tmp_path_factory.mktemp("runs") / "runs"
        assert run(patch, *SHORT, "env=CartPole", f"runs_dir={runs_dir}") == 0
        return only_run(runs_dir)


@pytest.fixture
def folder(trained, tmp_path):
    """A run to write into, and to spoil."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def export(capfd):
    """(exit code, standard output, standard error) of python -m rl_natgrad.export."""

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


def leaves(space, obs, name="observation"):
    """Inputs by name, of a batch of observations."""
    if isinstance(space, spaces.Dict):
        parts = [leaves(part, obs[key], f"{name}[{key!r}]") for key, part in space.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [leaves(part, obs[k], f"{name}[{k}]") for k, part in enumerate(space)]
    else:
        return {name: obs}
    return {key: value for part in parts for key, value in part.items()}


CASES = [
    *[(["policy.std=free"], action, "vector") for action in ACTIONS],
    *[(["policy.std=state"], action, "vector") for action in ("symmetric", "shifted", "whole")],
    *[([], "discrete", obs) for obs in ("matrix", "bytes", "number", "several", "binary", "nested")],
    *[(IMAGES, action, "channels last") for action in ("discrete", "several", "symmetric")],
    ([*IMAGES, "policy.std=state"], "symmetric", "channels first"),
    (["policy.activation=relu"], "symmetric", "vector"),
    (["policy.activation=sigmoid", "policy.hidden=[7]"], "symmetric", "vector"),
    (["policy.hidden=[]", "env.normalize_obs=false"], "symmetric", "matrix"),
    (["dtype=float64"], "shifted", "vector"),
    *[(["env.frame_stack=3"], "discrete", obs) for obs in ("vector", "number", "several", "nested")],
    *[([*IMAGES, "env.frame_stack=2"], "discrete", obs) for obs in ("channels last", "grey")],
    *[(["env.action_mask=true"], action, "vector") for action in ("discrete", "several")],
    ([*IMAGES, "env.frame_stack=2", "env.action_mask=true", "dtype=float64"], "several", "channels last"),
    ([*IMAGES, "dtype=float64"], "symmetric", "channels last"),
]


@pytest.mark.parametrize(("words", "actions", "observations"), CASES)
def test_onnxruntime_gives_the_actions_of_act(words, actions, observations):
    space, own, rng = OBSERVATIONS[observations], ACTIONS[actions], np.random.default_rng(7)
    cfg = compose.load(["env=CartPole", *words])
    view = View(space, own, cfg.env.frame_stack or 1, cfg.env.action_mask)
    policy = build_policy(cfg, view.space, action_map(own)[0])
    policy.become(policy.theta + torch.from_numpy(rng.normal(0, 0.3, len(policy.theta))).to(policy.theta))
    agent = Agent(cfg, Spaces(space, own), view, policy, 1, 2)
    space = agent.spaces.observation
    space.seed(3)
    obs = concatenate(space, [space.sample() for _ in range(N)], create_empty_array(space, N))
    policy.observe.update(agent._rows(obs)[0][: N // 2])
    masks = rng.integers(2, size=(N, view.width), dtype=np.int8) if view.masked else None
    if masks is not None:
        masks[:, np.cumsum([0, *LENGTHS[actions][:-1]])] = 1  # an action at least
    masked = {} if masks is None else {"action_mask": masks}
    session = onnxruntime.InferenceSession(graph.model(agent, Path("a")).SerializeToString())
    inputs = leaves(space, obs) | masked
    (got,), wanted = session.run(None, inputs), agent.act(obs, masks)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert len(np.unique(wanted.reshape(N, -1), axis=0)) > 1
    if got.dtype.kind == "f":
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    else:
        assert (got == wanted).all()
    (one,) = session.run(None, {key: value[:1] for key, value in inputs.items()})
    assert own.contains(one[0]) and (one[0] == got[0]).all()


def test_the_file_says_whose_policy_it_is_and_is_never_replaced_in_silence(folder, export):
    code, out, err = export(f"run={folder}")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"run     {folder}"
    assert out.splitlines()[2:] == [
        f"wrote   {folder}/policy.onnx", "input   observation (batch, 4) float32", "output  action (batch) int64"
    ]  # fmt: skip
    first = (folder / "policy.onnx").read_bytes()
    facts = {entry.key: entry.value for entry in onnx.load(folder / "policy.onnx").metadata_props}
    assert facts == {"env": "CartPole-v1", "algo": "trpo", "run": "run", "seed": "0", "update": "3",
                     "step": str(read_rows(folder)[-1]["step"]), "rl_natgrad": __version__}  # fmt: skip
    assert f"\nrewrote {folder}/policy.onnx\n" in export(f"run={folder}")[1]
    assert (folder / "policy.onnx").read_bytes() == first
    assert export(f"run={folder}", "checkpoint=1")[0] == 0
    assert (folder / "policy.onnx").read_bytes() != first


def test_the_maps_script_plays_without_torch(folder, export, tmp_path):
    assert export(f"run={folder}", f"out={tmp_path}/policy.onnx")[0] == 0
    assert not (folder / "policy.onnx").exists()
    script = "import sys\nsys.modules['torch'] = sys.modules['rl_natgrad'] = None\n" + program("onnxruntime")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert 8 <= float(done.stdout) <= 500


@pytest.mark.parametrize(("words", "said"), [
    ([], "name a run folder: python -m rl_natgrad.export run=runs/…"),
    (["{run}"], "write run="),
    (["run=/nonexistent"], "run must be a run folder"),
    (["run={run}", "out=policy"], "out must be a file that ends in .onnx, in a folder that is there, got"),
    (["run={run}", "out={run}/no/policy.onnx"], "in a folder that is there"),
    (["run={run}", "output=a.onnx"], "unknown option 'output'"),
    (["run={run}", "checkpoint=99"], "there are 1, 2, 3"),
])  # fmt: skip
def test_a_wrong_command_is_one_line(folder, export, words, said):
    assert said in refused(export(*(word.format(run=folder) for word in words)))
    assert not list(folder.rglob("*.onnx*"))


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(folder, export, tmp_path):
    (tmp_path / "policy.onnx").write_text("mine")
    full = Mock(side_effect=OSError(28, "No space left on device"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left" in refused(export(f"run={folder}", f"out={tmp_path}/policy.onnx"), 1)
    assert (tmp_path / "policy.onnx").read_text() == "mine" and not list(tmp_path.glob(".*"))


def test_the_missing_extra_is_named(folder, export, monkeypatch):
    monkeypatch.delitem(sys.modules, "rl_natgrad.playback.graph")
    monkeypatch.delattr("rl_natgrad.playback.graph")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert 'pip install "rl-natgrad[onnx]"' in refused(export(f"run={folder}"))


def test_help_names_every_option(export):
    code, out, _ = export("--help")
    assert code == 0
    assert all(f"\n  {key} " in out for key in OPTIONS)
