"""TRPO of other libraries, with this project's default settings, each with its own critic fit.

    python scripts/peers.py sb3 Hopper-v5 20000                  one training, one line of JSON at its end
    python scripts/peers.py tianshou Hopper-v5 300000 --seed 3 --normalize --evaluate 20
    pip install "rl-natgrad[bench]"                              brings them

8 environments × 256 steps, 64×64 tanh, δ = 0.01, 10 CG iterations, γ = 0.99, λ = 0.95, one thread.  All else is
as these libraries have it: sb3-contrib fits its critic by 10 epochs of Adam on minibatches of 128; tianshou by 20
steps on the whole batch, and starts and scales its networks as in its own MuJoCo example.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch


class Settings(NamedTuple):
    num_envs: int = 8
    horizon: int = 256
    delta: float = 0.01
    gamma: float = 0.99
    normalize: bool = False  # observations, by running statistics
    log_std: float | None = None  # log σ at the start; None as the library has it


class Clock:
    """Seconds spent in collection, in the policy's update and in the critic's; `returns` of episodes, in order."""

    def __init__(self) -> None:
        self.seconds = {"collect": 0.0, "policy": 0.0, "critic": 0.0}
        self.returns: list[float] = []
        self.rows: list[tuple[int, float]] = []  # steps, mean of the last 100 returns
        self._part, self._since = "", 0.0

    def now(self, part: str) -> None:
        """What was going on ends, and `part` begins; "" is none of the three."""
        now = time.perf_counter()
        if self._part:
            self.seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def during(self, part: str, work: Callable) -> Callable:
        """`work`, counted as `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.now(part)
            try:
                return work(*args, **kwargs)
            finally:
                self.now("")

        return timed


class Sb3:
    """sb3-contrib's TRPO with its default networks (64 × 64 tanh)."""

    def __init__(self, env: str, seed: int, settings: Settings):
        from sb3_contrib import TRPO
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize

        vec = make_vec_env(env, settings.num_envs, seed=seed)
        start = {} if settings.log_std is None else {"policy_kwargs": {"log_std_init": settings.log_std}}
        self.env = VecNormalize(vec, norm_reward=False) if settings.normalize else vec
        self.model = TRPO(
            "MlpPolicy", self.env, n_steps=settings.horizon, seed=seed, device="cpu", cg_max_steps=10,
            target_kl=settings.delta, gamma=settings.gamma, gae_lambda=0.95, n_critic_updates=10, batch_size=128,
            **start,
        )  # fmt: skip

    def collect(self) -> Callable[[], int]:
        """One rollout. Returns its steps."""
        model = self.model
        _, callback = model._setup_learn(10**9)
        callback.on_training_start({}, {})

        def work() -> int:
            model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
            return model.n_steps * self.env.num_envs

        return work

    def train(self, steps: int, clock: Clock) -> None:
        from stable_baselines3.common.callbacks import BaseCallback

        class Returns(BaseCallback):
            def _on_step(self) -> bool:
                clock.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
                return True

            def _on_rollout_end(self) -> None:
                clock.rows.append((self.num_timesteps, float(np.mean(clock.returns[-100:] or [np.nan]))))

        model = self.model
        get = model.rollout_buffer.get

        def reads(batch_size: int | None) -> Any:
            if batch_size:  # the critic's minibatches; the policy takes all at once
                clock.now("critic")
            return get(batch_size)

        model.rollout_buffer.get = reads
        model.collect_rollouts = clock.during("collect", model.collect_rollouts)
        model.train = clock.during("policy", model.train)
        model.learn(steps, callback=Returns())

    def evaluate(self, env: str, episodes: int, seed: int) -> float:
        """Mean return of the most likely actions."""
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.evaluation import evaluate_policy
        from stable_baselines3.common.vec_env import VecNormalize

        vec = make_vec_env(env, 1, seed=seed)
        if isinstance(self.env, VecNormalize):
            vec = VecNormalize(vec, training=False, norm_reward=False)
            vec.obs_rms = self.env.obs_rms
        return float(evaluate_policy(self.model, vec, n_eval_episodes=episodes)[0])


class Tianshou:
    """tianshou's TRPO, networks and their start as in its examples/mujoco/mujoco_trpo.py."""

    def __init__(self, env: str, seed: int, settings: Settings):
        from tianshou.algorithm import TRPO
        from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
        from tianshou.algorithm.optim import AdamOptimizerFactory
        from tianshou.data import Collector, VectorReplayBuffer
        from tianshou.env import DummyVectorEnv, VectorEnvNormObs
        from tianshou.utils.net.common import Net
        from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
        from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic, dist_fn_categorical_from_logits
        from torch.distributions import Independent, Normal

        np.random.seed(seed)  # noqa: NPY002, where tianshou draws from
        torch.manual_seed(seed)
        one = gym.make(env)

        def body() -> Net:
            return Net(state_shape=one.observation_space.shape, hidden_sizes=[64, 64], activation=torch.nn.Tanh)

        discrete = hasattr(one.action_space, "n")
        if discrete:
            actor = DiscreteActor(preprocess_net=body(), action_shape=(one.action_space.n,), softmax_output=False)
            critic = DiscreteCritic(preprocess_net=body())
            dist, options = dist_fn_categorical_from_logits, {"action_scaling": False}
        else:
            shape = one.action_space.shape
            actor = ContinuousActorProbabilistic(preprocess_net=body(), action_shape=shape, unbounded=True)
            critic = ContinuousCritic(preprocess_net=body())
            torch.nn.init.constant_(actor.sigma_param, -0.5 if settings.log_std is None else settings.log_std)

            def dist(loc_scale):
                return Independent(Normal(*loc_scale), 1)

            options = {"action_scaling": True, "action_bound_method": "clip"}
        for module in [*actor.modules(), *critic.modules()]:
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.orthogonal_(module.weight, 2**0.5)
                torch.nn.init.zeros_(module.bias)
        head = actor.last if discrete else actor.mu
        for module in head.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data.mul_(0.01)
        policy = ProbabilisticActorPolicy(actor=actor, dist_fn=dist, action_space=one.action_space, **options)
        self.algorithm = TRPO(
            policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=1e-3), max_kl=settings.delta,
            backtrack_coeff=0.8, max_backtracks=10, optim_critic_iters=20, advantage_normalization=True,
            gamma=settings.gamma, gae_lambda=0.95,
        )  # fmt: skip
        vec = DummyVectorEnv([lambda: gym.make(env)] * settings.num_envs)
        vec.seed(seed)
        self.env = VectorEnvNormObs(vec) if settings.normalize else vec
        self.batch = settings.horizon * settings.num_envs
        self.collector = Collector(policy, self.env, VectorReplayBuffer(self.batch * 2, settings.num_envs))

    def collect(self) -> Callable[[], int]:
        """One rollout. Returns its steps."""
        self.collector.reset()

        def work() -> int:
            with torch.no_grad():
                return self.collector.collect(n_step=self.batch).n_collected_steps

        return work

    def train(self, steps: int, clock: Clock) -> None:
        from tianshou.trainer import OnPolicyTrainerParams

        algorithm, collector, taken = self.algorithm, self.collector, 0
        collect, value, update = collector.collect, algorithm.critic.forward, algorithm._update_with_batch
        updating = False

        def collects(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            clock.now("collect")
            stats = collect(*args, **kwargs)
            clock.now("policy")  # values and advantages are counted as that
            taken += stats.n_collected_steps
            clock.returns += stats.returns.tolist()
            clock.rows.append((taken, float(np.mean(clock.returns[-100:] or [np.nan]))))
            return stats

        def updates(*args: Any, **kwargs: Any) -> Any:
            nonlocal updating
            updating = True
            try:
                return update(*args, **kwargs)
            finally:
                updating = False
                clock.now("")

        def values(*args: Any, **kwargs: Any) -> Any:
            if updating:  # after the policy's step
                clock.now("critic")
            return value(*args, **kwargs)

        collector.collect, algorithm.critic.forward, algorithm._update_with_batch = collects, values, updates
        algorithm.run_training(
            OnPolicyTrainerParams(
                training_collector=collector, max_epochs=1, epoch_num_steps=steps, batch_size=None,
                update_step_num_repetitions=1, collection_step_num_env_steps=self.batch, test_in_training=False,
                verbose=False, show_progress=False,
            )
        )  # fmt: skip

    def evaluate(self, env: str, episodes: int, seed: int) -> float:
        """Mean return of the most likely actions."""
        from tianshou.data import Collector
        from tianshou.env import DummyVectorEnv, VectorEnvNormObs

        vec = DummyVectorEnv([lambda: gym.make(env)])
        vec.seed(seed)
        if isinstance(self.env, VectorEnvNormObs):
            vec = VectorEnvNormObs(vec, update_obs_rms=False)
            vec.set_obs_rms(self.env.get_obs_rms())
        self.algorithm.policy.deterministic_eval = True
        collector = Collector(self.algorithm.policy, vec)
        collector.reset()
        self.algorithm.policy.eval()
        with torch.no_grad():
            return float(np.mean(collector.collect(n_episode=episodes).returns))


PEERS = {"sb3": Sb3, "tianshou": Tianshou}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("env", help="an id of Gymnasium")
    parser.add_argument("steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--horizon", type=int, default=256, help="steps per environment per update")
    parser.add_argument("--delta", type=float, default=0.01, help="KL radius, in the library's own unit")
    parser.add_argument("--gamma", type=float, default=0.99, help="discount")
    parser.add_argument("--log-std", type=float, help="log σ at the start  [as the library has it]")
    parser.add_argument("--normalize", action="store_true", help="observations, by running statistics")
    parser.add_argument("--evaluate", type=int, default=0, help="episodes at the end, most likely actions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock, start = Clock(), time.perf_counter()
    settings = Settings(
        horizon=args.horizon, delta=args.delta, gamma=args.gamma, normalize=args.normalize, log_std=args.log_std
    )  # fmt: skip
    peer = PEERS[args.peer](args.env, args.seed, settings)
    peer.train(args.steps, clock)
    took = time.perf_counter() - start
    result = {"steps": clock.rows[-1][0], "seconds": took, **clock.seconds, "rows": clock.rows}
    if args.evaluate:
        result["eval"] = peer.evaluate(args.env, args.evaluate, args.seed + 10_000)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
