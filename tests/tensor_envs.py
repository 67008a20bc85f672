"""A vector environment of tensors whose every number is known, registered by import; it may misbehave once."""

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

LENGTHS = (3,), (1, 7, 2), (20,), (1,), (4, 4, 5)
WRONG = {
    "obs-nan": "environment 1, step 3: observation[2] is nan",
    "obs-outside": "environment 1, step 3: observation[2] is 1e+09, outside its space's [-1e+06, 1e+06]",
    "reward-inf": "environment 1, step 3: reward is inf",
    "reward-nan": "environment 1, step 3: reward is nan",
    "obs-shape": "observation has shape (4, 2), expected (4, 3)",
    "obs-dtype": "observation has dtype torch.float64, expected torch.float32",
    "obs-numpy": "observation is ndarray",
    "obs-device": "observation is on meta, expected cpu (device)",
    "reward-shape": "reward has shape (4, 1), expected (4,)",
    "reward-device": "reward is on meta, expected cpu (device)",
    "reward-complex": "reward has dtype torch.complex64, expected a real one",
    "terminated-float": "terminated has dtype torch.float32, expected torch.bool",
    "terminated-shape": "terminated has shape (4, 1), expected (4,)",
    "truncated-device": "truncated is on meta, expected cpu (device)",
    "truncated-none": "truncated is NoneType None, expected a tensor of shape (4,)",
    "raises": "step raised ValueError: the pole fell over",
    "arity": "step returned tuple",
    "reset-shape": "observation has shape (4, 2), expected (4, 3)",
    "reset-nan": "environment 1, step 0: observation[2] is nan",
    "reset-arity": "reset returned Tensor",
    "reset-raises": "reset raised ValueError: no pole",
}


class Tape(VectorEnv):
    """As vector_envs.Script: obs = (environment, episode, step), whose step earns 100 i + 10 e + s.

    mode: NextStep or SameStep.  how: what it does wrong in its step `at`.
    """

    def __init__(self, num_envs, lengths=LENGTHS, mode="NextStep", how="", at=3, device="cpu"):
        self.metadata = {"autoreset_mode": AutoresetMode(mode)}
        self.num_envs, self.same, self.how, self.at, self.device = num_envs, mode == "SameStep", how, at, device
        self.single_observation_space = spaces.Box(-1e6, 1e6, (3,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.lengths = [lengths[i % len(lengths)] for i in range(num_envs)]

    def reset(self, *, seed=None, options=None):
        self.calls = 0
        self.place, self.over = [[i, 0, 0] for i in range(self.num_envs)], [False] * self.num_envs
        obs = self._see()
        match self.how:
            case "reset-shape":
                obs = obs[:, :2]
            case "reset-nan":
                obs[1, 2] = float("nan")
            case "reset-arity":
                return obs
            case "reset-raises":
                raise ValueError("no pole")
        return obs, {}

    def _see(self):
        return torch.tensor(self.place, dtype=torch.float32, device=self.device)

    def _begin(self, i):
        self.place[i], self.over[i] = [i, self.place[i][1] + 1, 0], False

    def step(self, action):
        assert action.shape == (self.num_envs,) and action.dtype == torch.int64
        self.calls += 1
        reward, flags = torch.zeros(self.num_envs), torch.zeros(2, self.num_envs, dtype=torch.bool)
        for i, (_, e, s) in enumerate(self.place):
            if self.over[i]:
                self._begin(i)
                continue
            self.place[i][2] = s + 1
            reward[i] = 100 * i + 10 * e + s + 1
            self.over[i] = s + 1 == self.lengths[i][e % len(self.lengths[i])]
            flags[e % 2, i] = self.over[i]  # of odd number truncated
        last = self._see()
        for i in range(self.num_envs) if self.same else ():
            if self.over[i]:
                self._begin(i)
        match self.how:
            case "final-shape":
                last = last[:, :2]
            case "final-device":
                last = last.to("meta")
            case "final-nan":
                last[1, 0] = float("nan")
        info = {"final_obs": last} if self.same and flags.any() and self.how != "final" else {}
        return self._wrong(self._see(), reward.to(self.device), *flags.to(self.device), info)

    def _wrong(self, obs, reward, terminated, truncated, info):
        if self.how == "grad":
            return obs.requires_grad_(), reward.requires_grad_(), terminated, truncated, info
        if self.calls != self.at:
            return obs, reward, terminated, truncated, info
        match self.how:
            case "obs-nan" | "obs-outside":
                obs[1, 2] = float("nan") if self.how == "obs-nan" else 1e9
            case "reward-inf" | "reward-nan":
                reward[1] = float(self.how[-3:])
            case "obs-shape":
                obs = obs[:, :2]
            case "obs-dtype":
                obs = obs.double()
            case "obs-numpy":
                obs = obs.numpy()
            case "obs-device":
                obs = obs.to("meta")
            case "reward-shape":
                reward = reward[:, None]
            case "reward-device":
                reward = reward.to("meta")
            case "reward-complex":
                reward = reward.to(torch.complex64)
            case "terminated-float":
                terminated = terminated.float()
            case "terminated-shape":
                terminated = terminated[:, None]
            case "truncated-device":
                truncated = truncated.to("meta")
            case "truncated-none":
                truncated = None
            case "raises":
                raise ValueError("the pole\nfell over")
            case "arity":
                return obs, reward, terminated, info
        return obs, reward, terminated, truncated, info


gym.register("Tape-v0", vector_entry_point="tensor_envs:Tape")
