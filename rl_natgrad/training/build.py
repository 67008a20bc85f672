"""From a checked configuration to the parts of a run. Every name that configs/ may say stands in a table here."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch.optim import SGD, Adadelta, Adagrad, Adam, RAdam, RMSprop

from rl_natgrad.algos.critic import AdamFit, Critic, LBFGSFit, NoCritic, Regression, TrustRegionFit
from rl_natgrad.algos.learner import Learner, Recipe
from rl_natgrad.algos.npg import npg
from rl_natgrad.algos.pg import PG
from rl_natgrad.algos.ppo import PPO, Slope, clipped, penalised, unclipped
from rl_natgrad.algos.problem import Problem, empirical, gauss_newton, hessian, kl_hessian, surrogate
from rl_natgrad.algos.trpo import trpo
from rl_natgrad.config.refusals import ConfigError
from rl_natgrad.config.schema import Cnn, Config, Ppo, Section
from rl_natgrad.envs.view import MaskedObservations
from rl_natgrad.optim.first_order import AdamP, uncompiled
from rl_natgrad.optim.fisher import Fisher
from rl_natgrad.optim.solvers import (
    Solution,
    TooLarge,
    cg,
    cholesky,
    diagonal,
    identity,
    operations,
    pinv,
    refuse_too_large,
    steihaug,
    svd,
    woodbury,
)
from rl_natgrad.policy.activations import Activation, Relu, Sigmoid, Tanh
from rl_natgrad.policy.heads import Head
from rl_natgrad.policy.masked import Masked, Unmasked
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.networks import Network, ValueNetwork, cnn
from rl_natgrad.policy.noise import Rng
from rl_natgrad.policy.policy import Policy, head_for, with_head
from rl_natgrad.rollout.normalize import ObservationNormalizer, Unchanged
from rl_natgrad.rollout.returns import Estimate, estimate_gae, estimate_monte_carlo
from rl_natgrad.run.streams import kept
from rl_natgrad.training.cost import samples
from rl_natgrad.training.threads import threaded

ALGORITHMS: dict[str, tuple[Callable[..., Estimate], Callable[..., Any]]] = {
    "reinforce": (estimate_monte_carlo, PG), "pg": (estimate_gae, PG),
    "npg": (estimate_gae, npg), "trpo": (estimate_gae, trpo), "ppo": (estimate_gae, PPO),
}  # fmt: skip
"""How it estimates advantages, and how it learns from them."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": uncompiled(SGD), "momentum": uncompiled(SGD), "nag": partial(uncompiled(SGD), nesterov=True),
    "adagrad": uncompiled(Adagrad), "adadelta": uncompiled(Adadelta), "rmsprop": uncompiled(RMSprop),
    "adam": uncompiled(Adam), "radam": uncompiled(RAdam), "adamp": AdamP,
}  # fmt: skip
SOLVERS: dict[str, Callable[..., Solution]] = {
    "identity": identity, "cg": cg, "steihaug": steihaug, "cholesky": cholesky, "woodbury": woodbury, "pinv": pinv,
    "svd": svd, "diagonal": diagonal,
}  # fmt: skip
FISHERS: dict[str, Callable[[Problem], Fisher]] = {
    "gauss_newton": gauss_newton, "kl_hessian": kl_hessian, "empirical": empirical, "hessian": hessian
}  # fmt: skip
CRITICS: dict[str, Callable[..., Regression]] = {
    "adam": AdamFit, "lbfgs": LBFGSFit, "trust_region": TrustRegionFit
}  # fmt: skip
SLOPES: dict[str, Slope] = {"clip": clipped, "spo": penalised, "none": unclipped}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
ACTIVATIONS: dict[str, Activation] = {"tanh": Tanh, "relu": Relu, "sigmoid": Sigmoid}


@dataclass(frozen=True)
class Algorithm:
    """How a batch is estimated (`estimate_gae`), looked at, (policy, batch, rows=) ↦ Problem, and learned from."""

    estimate: Callable[..., Estimate]
    problem: Callable[..., Problem]
    learner: Learner


def generator(seed: int, stream: str) -> np.random.Generator:
    """The run's random numbers for one purpose; a purpose more leaves the others as they were."""
    streams = ("parameters", "actions", "minibatches", "fisher", "evaluation", "policy minibatches")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(streams.index(stream),)))


def acting_generator(cfg: Config, rng: np.random.Generator) -> Rng:
    """What draws the actions' noise: `rng`, or one on the environments' device that is seeded by it."""
    if cfg.env.backend != "device":
        return rng
    return torch.Generator(cfg.device).manual_seed(int(rng.integers(2**63)))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Around what runs environments' code: what it may change of torch, numpy and standard output is as before
    at the end."""
    grad, dtype, errors = torch.is_grad_enabled(), torch.get_default_dtype(), np.geterr()
    threads = torch.get_num_threads()
    try:
        with kept():
            yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        np.seterr(**errors)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def build_policy(
    cfg: Config, obs_space: spaces.Box, action_space: spaces.Space, theta: torch.Tensor | None = None
) -> Policy:
    """A policy for these spaces, with a new observation normaliser (one that changes nothing where there is none).

    theta: its parameters; drawn from the run's seed where there are none yet.
    """
    head = _head(cfg, action_space)
    net, (seen, masked) = _policy_network(cfg, obs_space, head), _parts(obs_space)
    normalize = cfg.env.normalize_obs and obs_space.dtype != np.uint8  # networks scale images themselves
    observe = ObservationNormalizer(seen.shape, np.dtype(cfg.dtype), masked) if normalize else Unchanged()
    return Policy(net, head, _theta(cfg, net, "policy") if theta is None else theta, observe)


def policy_size(cfg: Config, obs_space: spaces.Box, action_space: spaces.Space) -> int:
    """P, at no cost: a configuration from elsewhere may ask for a network that fits no memory."""
    with torch.device("meta"):
        return _policy_network(cfg, obs_space, _head(cfg, action_space)).size


def build_critic(cfg: Config, obs_space: spaces.Box) -> Critic | NoCritic:
    """V(s): a network of the policy's kind with one output, and how it is fitted."""
    if cfg.critic is None or cfg.critic.name == "none":
        return NoCritic()
    seen, masked = _parts(obs_space)
    net = _network(cfg, cfg.critic, seen, 1, last_gain=1.0)
    if masked:
        net = Unmasked(net, seen.shape[0])
    theta = _theta(cfg, net, "critic")
    options = cfg.critic.model_dump(exclude={"name", "hidden", "activation", "overlap"})
    if cfg.critic.name == "adam":
        options |= {"theta": theta, "rng": generator(cfg.seed, "minibatches")}
    N, parts = cfg.num_envs * cfg.horizon, options.get("minibatches")
    rows = math.ceil(N / parts) if parts else options.get("minibatch", N)
    regress = threaded(cfg, CRITICS[cfg.critic.name](**options), rows, net.size)
    return Critic(net, theta, regress, cfg.env.normalize_return)


def build_algorithm(cfg: Config, policy: Policy) -> Algorithm:
    """The algorithm with its settings. Raises: ConfigError where its solver needs a matrix over solver.max_gib."""
    estimate, learn = ALGORITHMS[cfg.algo.name]
    options = cfg.algo.model_dump(exclude={"name", "normalize_adv"})
    estimate = partial(estimate, **{key: options.pop(key) for key in ("gamma", "lam") if key in options})
    if cfg.optimizer is not None:
        keys = cfg.optimizer.model_dump(exclude={"name"})
        warmup = keys.pop("warmup")
        if cfg.optimizer.name == "adamp":
            keys["tensors"] = policy.net.tensors
        rule = partial(OPTIMIZERS[cfg.optimizer.name], **keys)
        problem = partial(Problem, objective=partial(surrogate, **options))
        learner = threaded(cfg, learn(policy.theta, rule, warmup), cfg.num_envs * cfg.horizon, policy.net.size)
        return Algorithm(estimate, problem, learner)
    if isinstance(cfg.algo, Ppo):
        problem = partial(Problem, objective=partial(surrogate, entropy_coef=cfg.algo.entropy_coef))
        rng, slope = generator(cfg.seed, "policy minibatches"), SLOPES[options.pop("surrogate")]
        ppo = learn(policy.theta, rng, slope, total_steps=cfg.total_steps, **options)
        learner = threaded(cfg, ppo, cfg.algo.minibatch, policy.net.size)
        return Algorithm(estimate, problem, learner)
    assert cfg.solver is not None and cfg.fisher is not None  # the schema sees to it
    settings = cfg.solver.model_dump(exclude={"name"})
    if "max_gib" in settings:
        _refuse_too_large(cfg, policy, settings["max_gib"])
    problem = partial(Problem, curvature=FISHERS[cfg.fisher.name], float64=settings.get("float64", False))
    solve = partial(SOLVERS[cfg.solver.name], **settings)
    N, M = samples(cfg, policy)
    work = operations(cfg.solver.name, N, M, policy.net.size)
    learner = threaded(cfg, Recipe(partial(learn, solve=solve, **options)), N, policy.net.size, work)
    return Algorithm(estimate, problem, learner)


def _refuse_too_large(cfg: Config, policy: Policy, max_gib: float) -> None:
    """A dense solver's matrix is known before the first rollout."""
    assert cfg.solver is not None
    try:
        refuse_too_large(cfg.solver.name, samples(cfg, policy)[1], policy.theta.numel(), max_gib)
    except TooLarge as error:
        raise ConfigError(str(error)) from None


def _head(cfg: Config, action_space: spaces.Space) -> Head:
    try:
        return head_for(action_space, cfg.policy.std)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _policy_network(cfg: Config, obs_space: spaces.Box, head: Head) -> Network:
    seen, masked = _parts(obs_space)
    net = with_head(partial(_network, cfg, cfg.policy, seen, last_gain=0.01), head, cfg.policy.log_std)
    return Masked(net, seen.shape[0], head.size) if masked else net


def _parts(obs_space: spaces.Box) -> tuple[spaces.Box, int]:
    """The space of the observations alone, and how many rows of an action mask are behind them."""
    seen = obs_space.seen if isinstance(obs_space, MaskedObservations) else obs_space
    return seen, obs_space.shape[0] - seen.shape[0]


def _network(cfg: Config, part: Section, obs_space: spaces.Box, outputs: int, *, last_gain: float) -> ValueNetwork:
    """A network of the policy's kind; `part`, of policy or critic, says how wide an MLP is.

    Raises: ConfigError where that kind is not for such observations.
    """
    image = obs_space.dtype == np.uint8
    if image != isinstance(cfg.policy, Cnn):
        seen = f"images {obs_space.shape}" if image else f"{obs_space.shape[0]} numbers"
        kind, other = ("mlp", "cnn") if image else ("cnn", "mlp")
        raise ConfigError(f"{cfg.env.id} has {seen} as observations, got policy={kind}; write policy={other}")
    if isinstance(cfg.policy, Cnn):
        options = cfg.policy.model_dump(include={"channels", "kernels", "strides", "hidden"})
        C, H, W = obs_space.shape
        try:
            return cnn((C, H, W), outputs, last_gain=last_gain, **options)
        except RuntimeError as error:
            raise ConfigError(f"policy.kernels do not fit images of {H} × {W} pixels: {error}") from None
    size = part.model_dump(include={"hidden", "activation"})
    sizes, orthogonal = (*obs_space.shape, *size["hidden"], outputs), cfg.policy.init == "orthogonal"
    return MLP(sizes, ACTIVATIONS[size["activation"]], last_gain, orthogonal)


def _theta(cfg: Config, net: Network, part: str) -> torch.Tensor:
    seeds = generator(cfg.seed, "parameters").integers(2**63, size=2)
    rng = torch.Generator().manual_seed(int(seeds[("policy", "critic").index(part)]))
    return net.init(rng).to(cfg.device, DTYPES[cfg.dtype])  # of either dtype the same start
