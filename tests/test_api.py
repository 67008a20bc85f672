"""rl_natgrad.load(run).act(obs): what an environment says goes in, what it takes comes out."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from whole_runs import CRITIC, ROOT, SMALL, only_run, run

import rl_natgrad
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.envs.episode import episode_seed
from rl_natgrad.run.records import read_rows
from rl_natgrad.training import evaluation

SHORT = [*SMALL, *CRITIC, "total_steps=300", "env.allow_import=true", "eval.episodes=1"]


class Shifted(gym.Env):
    """Takes what people think of last: actions in [-3, 7] × {whole numbers}, images, nested observations."""

    observation_space: spaces.Space = spaces.Box(-1.0, 1.0, (3,), np.float32)

    def __init__(self, actions: str = "box", observations: str = "vector") -> None:
        self.action_space = {
            "box": spaces.Box(np.array([-3.0, 0.0], np.float32), np.array([7.0, 0.1], np.float32)),
            "whole": spaces.Box(-3, 7, (2, 2), np.int64),
            "discrete": spaces.Discrete(3, start=5),
            "several": spaces.MultiDiscrete([2, 4]),
            "binary": spaces.MultiBinary(3),
        }[actions]
        self.observation_space = {
            "vector": spaces.Box(-1.0, 1.0, (3,), np.float32),
            "matrix": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
            "number": spaces.Discrete(4, start=2),
            "nested": spaces.Dict(
                a=spaces.Discrete(3), b=spaces.Tuple([spaces.Box(0, 1, (2, 2)), spaces.Discrete(2)])
            ),
        }[observations]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(np.sum(action)), False, False, {}


gym.register("Shifted-v0", entry_point=Shifted, max_episode_steps=10)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A short run's agent."""

    def train(*words):
        assert run(monkeypatch, *SHORT, *words, f"runs_dir={tmp_path}") == 0
        return rl_natgrad.load(only_run(tmp_path), allow_import=True)

    return train


def test_importing_the_package_is_cheap():
    code = "import sys, rl_natgrad; print({'torch', 'gymnasium', 'numpy', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("actions", ["box", "whole", "discrete", "several", "binary"])
def test_actions_are_the_environments_own(load, actions):
    agent = load("env=Shifted-v0", f"env.kwargs={{actions: {actions}}}")
    obs = np.stack([agent.spaces.observation.sample() for _ in range(7)])
    for deterministic in (True, False):
        batch = agent.act(obs, deterministic=deterministic)
        assert len(batch) == 7
        for action in (*batch, agent.act(obs[0], deterministic=deterministic)):
            assert agent.spaces.action.contains(action), action


def test_continuous_actions_are_clipped_and_rescaled(load):
    agent = load("env=Shifted-v0")
    with_mean = agent.policy.theta.clone()
    with_mean[-4:-2] = with_mean.new_tensor([9.0, -9.0])  # the last layer's bias; log σ comes after it
    agent.policy.become(with_mean)
    assert agent.act(np.zeros(3, np.float32)).tolist() == [7.0, 0.0]
    with_mean[-4:-2] = with_mean.new_tensor([0.0, 0.0])
    with_mean[-4 - 2 * 16 : -4] = 0  # and its weights
    agent.policy.become(with_mean)
    assert agent.act(np.zeros(3, np.float32)) == pytest.approx([2.0, 0.05])


@pytest.mark.parametrize("observations", ["vector", "matrix", "number", "nested"])
def test_one_observation_or_a_batch(load, observations):
    agent = load("env=Shifted-v0", f"env.kwargs={{observations: {observations}}}")
    space = agent.spaces.observation
    space.seed(0)
    single = [space.sample() for _ in range(5)]
    batch = gym.vector.utils.concatenate(space, single, gym.vector.utils.create_empty_array(space, 5))
    together = agent.act(batch)
    assert together.shape == (5, 2)
    assert len(np.unique(together, axis=0)) > 1
    np.testing.assert_allclose(together, [agent.act(obs) for obs in single], rtol=1e-5)


def test_lists_and_doubles_are_fine(load):
    agent = load("env=Shifted-v0")
    obs = np.array([0.5, -0.25, 1.0], np.float32)
    assert agent.act(obs).tolist() == agent.act(obs.tolist()).tolist() == agent.act(obs.astype(float)).tolist()
    assert agent.act(obs[None]).shape == (1, 2)


@pytest.mark.parametrize(
    "obs",
    [np.zeros(4, np.float32), np.zeros((2, 4)), np.zeros((1, 1, 3)), 0.0, "abc", None, [1j, 0, 0], [np.nan, 0, 0],
     [[0, 0, 0], [0, 0]], {"a": 1}],
)  # fmt: skip
def test_what_is_no_observation_is_refused(load, obs):
    agent = load("env=Shifted-v0")
    with pytest.raises(ValueError, match="observation"):
        agent.act(obs)


def test_acting_in_gymnasiums_own_environment_gives_the_evaluations_returns(load, closed):
    agent = load("env=CartPole", "total_steps=3000")
    evaluated = evaluation.evaluate(agent.config, agent.policy, 3, ["deterministic"])["deterministic"][0]
    env, seed = closed(gym.make("CartPole-v1")), evaluation.streams(agent.config)[1]
    for index, expected in enumerate(evaluated):
        obs, _ = env.reset(seed=episode_seed(seed, index, 0))
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs))
            total, over = total + reward, terminated or truncated
        assert total == expected


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("nvec", ["4", "[2, 3]"])
def test_acting_under_masks_on_stacked_observations(load, closed, stack, nvec):
    words = f"env.kwargs={{nvec: {nvec}}}", "env.action_mask=true", f"env.frame_stack={stack}"
    agent = load("env=environments:Doors-v0", *words)
    evaluated = evaluation.evaluate(agent.config, agent.policy, 4, ["deterministic"])["deterministic"]
    seed, seen = evaluation.streams(agent.config)[1], []
    env = closed(gym.make("Doors-v0", nvec=json.loads(nvec)))
    env = gym.wrappers.FrameStackObservation(env, stack) if stack > 1 else env
    assert env.observation_space == agent.spaces.observation
    for index, (total, length) in enumerate(zip(*evaluated, strict=True)):
        obs, info = env.reset(seed=episode_seed(seed, index, 0))
        earned = 0.0
        for _ in range(length):
            seen.append((obs, info["action_mask"], agent.act(obs, info["action_mask"])))
            obs, reward, *_, info = env.step(seen[-1][-1])  # which refuses what is not allowed
            earned += reward
        assert earned == total
    obs, masks, actions = map(np.stack, zip(*seen, strict=True))
    assert (agent.act(obs, masks) == actions).all()
    assert (agent.act(obs, masks.astype(bool)) == actions).all()
    width = masks.shape[1]
    for mask, told in [
        (None, 'write act\\(obs, info\\["action_mask"\\]\\)'), (np.zeros(width), "mask allows no action"),
        (np.ones(9), rf"mask has shape \(9,\), expected \({width},\)"), ("x", "mask is str 'x'"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=told):
            agent.act(obs[0], mask)
    with pytest.raises(ValueError, match="masks for"):
        agent.act(obs, masks[:2])


def test_a_mask_is_refused_where_there_were_none(load):
    agent = load("env=CartPole")
    with pytest.raises(ValueError, match=r"env\.action_mask=false"):
        agent.act(np.zeros(4, np.float32), [1, 0])


def test_an_agent_knows_its_run(load):
    agent = load("env=CartPole", "seed=7")
    assert (agent.config.seed, agent.config.env.id, agent.config.algo.name) == (7, "CartPole-v1", "trpo")
    assert agent.spaces.action == spaces.Discrete(2) and agent.spaces.observation.shape == (4,)
    assert agent.update == 2 and agent.step >= 300


def test_the_normaliser_comes_along(load):
    agent = load("env=CartPole")
    obs = np.array([0.01, 0.1, -0.02, 0.3], np.float32)
    moments = agent.policy.observe.moments
    assert moments.count >= 300
    seen = (obs - moments.mean) / moments.std
    np.testing.assert_allclose(agent.policy.observe(obs[None])[0], seen, rtol=1e-4)


def test_drawn_actions_vary_and_repeat_with_the_agent(load, tmp_path):
    agent = load("env=Shifted-v0")
    again = rl_natgrad.load(str(only_run(tmp_path)), checkpoint="last", allow_import=True)
    obs = np.zeros(3, np.float32)
    drawn, same = ([a.act(obs, deterministic=False).tolist() for _ in range(5)] for a in (agent, again))
    assert drawn == same
    assert len({tuple(action) for action in drawn}) == 5


def test_a_folder_that_is_no_run_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        rl_natgrad.load(tmp_path)
    with pytest.raises(ValueError, match="is no run folder"):
        rl_natgrad.load(tmp_path / "nowhere")


def test_a_loop_of_ones_own_is_the_commands_run_and_leaves_nothing(tmp_path, monkeypatch):
    words = [*SMALL, *CRITIC, "env=CartPole", "seed=3", "total_steps=300"]
    monkeypatch.chdir(tmp_path)
    with rl_natgrad.Training(*words) as training:
        rows = list(training)
        assert training.evaluate()["eval/return"] > 0
    assert not list(tmp_path.iterdir())
    assert run(monkeypatch, *words, f"runs_dir={tmp_path}") == 0
    logged = [row for row in read_rows(only_run(tmp_path)) if "policy/kl" in row]
    assert len(rows) == len(logged) > 1
    for mine, theirs in zip(rows, logged, strict=True):
        same = {tag for tag in theirs if not tag.startswith("time/")}
        assert {tag: mine[tag] for tag in same} == {tag: theirs[tag] for tag in same}


def test_a_wrong_word_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"unknown key 'algo.detla'; did you mean"):
        rl_natgrad.Training("algo.detla=1")
