"""From a checked configuration to the parts of a run: names to classes, in one table per kind."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from gymnasium import spaces
from threadpoolctl import threadpool_limits

from rl_natgrad.algos.critic import AdamFit, Critic, LBFGSFit, NoCritic, TrustRegionFit
from rl_natgrad.algos.npg import npg
from rl_natgrad.algos.pg import PG
from rl_natgrad.algos.problem import Problem, Update
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.config.schema import Config
from rl_natgrad.optim.solvers import SOLVERS
from rl_natgrad.policy.heads import Head
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.networks import Network, cnn
from rl_natgrad.policy.policy import Policy, head_for, with_head
from rl_natgrad.rollout.normalize import ObservationNormalizer, Unchanged

Learner = Callable[[Problem], Update]


def generator(seed: int, stream: str) -> np.random.Generator:
    """The run's random numbers for one purpose; a purpose more leaves the others as they were."""
    streams = ("parameters", "actions", "minibatches", "fisher", "evaluation")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(streams.index(stream),)))


def use_threads(n: int) -> None:
    """Threads of torch and of numpy's matrix products, from here on; their number is part of a run's bits."""
    torch.set_num_threads(n)
    threadpool_limits(n, "blas")


def build_policy(
    cfg: Config, obs_space: spaces.Box, action_space: spaces.Space, theta: torch.Tensor | None = None
) -> Policy:
    """A policy for these spaces, with a new observation normaliser (the identity where there is none).

    theta: its parameters; drawn from the run's seed where there are none yet.
    """
    head = head_for(action_space)
    net = _policy_network(cfg, obs_space, head)
    image = obs_space.dtype == np.uint8
    observe = ObservationNormalizer(obs_space.shape) if cfg.env.normalize_obs and not image else Unchanged()
    return Policy(net, head, _theta(cfg, net, "policy") if theta is None else theta, observe)


def policy_size(cfg: Config, obs_space: spaces.Box, action_space: spaces.Space) -> int:
    """P, at no cost: a configuration from elsewhere may ask for a network that fits no memory."""
    with torch.device("meta"):
        return _policy_network(cfg, obs_space, head_for(action_space)).size


def build_critic(cfg: Config, obs_space: spaces.Box):
    """V(s): a network of the policy's kind with one output, and how it is fitted."""
    if cfg.critic is None or cfg.critic.name == "none":
        return NoCritic()
    net = _network(cfg, obs_space, 1, last_gain=1.0, critic=True)
    theta = _theta(cfg, net, "critic")
    options = cfg.critic.model_dump(exclude={"name", "hidden", "activation"})
    if cfg.critic.name == "adam":
        regress = AdamFit(theta, generator(cfg.seed, "minibatches"), **options)
    else:
        regress = {"lbfgs": LBFGSFit, "trust_region": TrustRegionFit}[cfg.critic.name](**options)
    return Critic(net, theta, regress, cfg.env.normalize_return)


def build_learner(cfg: Config, policy: Policy) -> Learner:
    """Problem ↦ Update."""
    options = cfg.algo.model_dump(exclude={"name", "gamma", "lam", "normalize_adv", "entropy_coef"})
    if cfg.algo.name in ("pg", "reinforce"):
        return PG(policy.theta, cfg.optimizer.name, **cfg.optimizer.model_dump(exclude={"name"}))
    solver = cfg.solver.model_dump()
    solve = partial(SOLVERS[solver.pop("name")], **solver)
    return partial({"npg": npg, "trpo": trpo}[cfg.algo.name], solve=solve, **options)


def _policy_network(cfg: Config, obs_space: spaces.Box, head: Head) -> Network:
    return with_head(partial(_network, cfg, obs_space, last_gain=0.01), head, cfg.policy.log_std)


def _network(cfg: Config, obs_space: spaces.Box, outputs: int, *, last_gain: float, critic=False) -> Network:
    if cfg.policy.name == "cnn":
        options = cfg.policy.model_dump(include={"channels", "kernels", "strides", "hidden"})
        return cnn(obs_space.shape, outputs, last_gain=last_gain, **options)
    part = cfg.critic if critic else cfg.policy
    return MLP((*obs_space.shape, *part.hidden, outputs), part.activation, last_gain)


def _theta(cfg: Config, net: Network, part: str) -> torch.Tensor:
    seeds = generator(cfg.seed, "parameters").integers(2**63, size=2)
    rng = torch.Generator().manual_seed(int(seeds[("policy", "critic").index(part)]))
    return net.init(rng).to(cfg.device)
