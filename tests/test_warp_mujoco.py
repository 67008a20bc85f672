"""MuJoCo's tasks on Warp, held against Gymnasium's on MuJoCo's C code, step by step from the same states."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import whole_runs

from rl_natgrad.envs.warp_mujoco import WALKERS

pytest.importorskip("mujoco_warp", reason="needs the extra gpu")
pytestmark = pytest.mark.slow  # a task's kernels take up to a minute to compile for a CPU, the first time
ROWS, B = 60, 3
FORCES = {"Ant-v5": 78, "Humanoid-v5": 78}  # of contacts, last in the observation: they come and go by rounding


def round_cones(envs, ones):
    """Friction cones are pyramids otherwise, whose sides Warp turns another way than MuJoCo's C code."""
    for one in (envs.one, *ones):
        one.model.opt.cone = 1
    with envs._here():
        envs.model = envs.mjw.put_model(envs.one.model)


@pytest.mark.parametrize("id", WALKERS)
def test_steps_rewards_and_ends_are_gymnasiums(id):
    envs, *ones = WALKERS[id](gym.make(id).unwrapped, B, 40), *(gym.make(id).unwrapped for _ in range(B))
    if id == "Ant-v5":
        round_cones(envs, ones)
    obs, _ = envs.reset(seed=0)
    rng, begins, at, ends = np.random.default_rng(0), np.ones(B, bool), np.zeros(B, int), 0
    smooth, same = obs.shape[1] - FORCES.get(id, 0), []
    for k in range(B):
        ones[k].reset(seed=0)
        ones[k].model.opt.solver = envs.one.model.opt.solver  # Humanoid's own is PGS
    for _ in range(ROWS):
        now = {name: envs.at[name].numpy().astype(np.float64) for name in ("qpos", "qvel")}
        for k, one in enumerate(ones):
            if begins[k]:
                one.reset(seed=0)
                one.set_state(now["qpos"][k], now["qvel"][k])
                np.testing.assert_allclose(obs[k], one._get_obs(), rtol=1e-3, atol=1e-3)
            one.data.qpos[:], one.data.qvel[:] = now["qpos"][k], now["qvel"][k]
        action = torch.from_numpy(rng.uniform(-1, 1, (B, *ones[0].action_space.shape)).astype(np.float32))
        action *= float(ones[0].action_space.high[0])
        over = envs.done.numpy().copy()
        obs, reward, terminated, truncated, _ = envs.step(action)
        at = np.where(over, 0, at + 1)
        for k, one in enumerate(ones):
            if over[k]:
                continue
            o, r, te, _, _ = one.step(action[k].numpy())
            gap = abs(obs[k].numpy() - o) / (1 + abs(o))
            assert gap[:smooth].max() < 2e-2
            same.append((gap[smooth:] < 2e-2).mean() if id in FORCES else 1.0)
            assert float(reward[k]) == pytest.approx(float(r), rel=2e-2, abs=2e-2)
            assert (bool(terminated[k]), bool(truncated[k])) == (te, at[k] >= 40)
        begins, ends = over, ends + int((terminated | truncated).sum())
    assert ends >= B and np.mean(same) > 0.9, np.mean(same)


def pendulum():
    return WALKERS["InvertedPendulum-v5"](gym.make("InvertedPendulum-v5").unwrapped, B, 30)


def test_what_was_saved_is_restored():
    envs = pendulum()
    envs.reset(seed=0)
    action = torch.zeros(B, 1)
    for _ in range(10):
        envs.step(action)
    saved, went_on = envs.save(), [envs.step(action)[0] for _ in range(30)]
    again = pendulum()
    again.reset(seed=9)
    again.load(saved)
    for obs in went_on:
        torch.testing.assert_close(again.step(action)[0], obs)


def test_a_run_on_warp_trains(monkeypatch, tmp_path):
    words = ["env=Hopper", "env.backend=device", "num_envs=4", "horizon=8", "total_steps=60"]
    words += ["eval.episodes=2", "policy.hidden=[4]", "critic.hidden=[4]", "env.kwargs.forward_reward_weight=0"]
    assert whole_runs.run(monkeypatch, *words, f"runs_dir={tmp_path}") == 0
    path = whole_runs.only_run(tmp_path)
    assert whole_runs.run(monkeypatch, f"resume={path}", "total_steps=100") == 0


def test_a_buffer_that_overflows_is_an_error():
    envs = pendulum()
    envs.reset(seed=0)
    envs.at["overflow"][1] = int(envs.mjw.OverflowType.NARROWPHASE)
    with pytest.raises(RuntimeError, match=r"1, step 1: a buffer of contacts overflowed \(.*NARROWPHASE"):
        envs._refuse_overflow()
