"""The schema of everything configs/ may say: each key, its type and its range. Values live in YAML alone."""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

MAX_BATCH = 10_000_000  # samples per update; above it a slip of the keyboard is likelier than so much memory
MAX_WEIGHTS = 100_000_000  # between hidden layers; a network of more takes gigabytes before it does anything
DEPENDENT = ("optimizer", "solver", "fisher", "critic")  # the groups that only some algorithms have


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # total_steps=1e6


Seed = Annotated[int, Field(ge=0, le=2**63 - 1), BeforeValidator(_whole)]
Natural = Annotated[int, Field(ge=0, le=10**12), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1, le=10**12), BeforeValidator(_whole)]
Tries = Annotated[int, Field(ge=0, le=1000), BeforeValidator(_whole)]  # 0.99**1000 of a step is no step
Size = Annotated[int, Field(ge=1, le=65_536), BeforeValidator(_whole)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Inside = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
LogStd = Annotated[float, Field(ge=-20, le=2)]
Betas = Annotated[list[Decay], Field(min_length=2, max_length=2)]
Sizes = Annotated[list[Size], Field(max_length=16)]
Activation = Literal["tanh", "relu"]
Text = Annotated[str, Field(min_length=1, description="text of at least one character")]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d{1,3})?)$", description="cpu, cuda or cuda:N")]
EnvId = Annotated[str, Field(pattern=r"^([\w.]+:)?([\w-]+/)?\w[\w.-]*$",
                             description="an environment's name, such as CartPole-v1 or module:Name-v0")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Reinforce(Section):
    groups: ClassVar = ("optimizer",)
    name: Literal["reinforce"]
    gamma: Unit
    normalize_adv: bool
    entropy_coef: NonNegative


class Pg(Section):
    groups: ClassVar = ("optimizer", "critic")
    name: Literal["pg"]
    gamma: Unit
    lam: Unit
    normalize_adv: bool
    entropy_coef: NonNegative


class Npg(Section):
    groups: ClassVar = ("solver", "fisher", "critic")
    name: Literal["npg"]
    delta: Positive
    lr: Positive | None
    gamma: Unit
    lam: Unit
    normalize_adv: bool


class Trpo(Section):
    groups: ClassVar = ("solver", "fisher", "critic")
    name: Literal["trpo"]
    delta: Positive
    max_backtracks: Tries
    shrink: Inside
    gamma: Unit
    lam: Unit
    normalize_adv: bool


class Sgd(Section):
    name: Literal["sgd"]
    lr: Positive


class Momentum(Section):
    name: Literal["momentum"]
    lr: Positive
    momentum: Decay


class Nag(Section):
    name: Literal["nag"]
    lr: Positive
    momentum: Inside  # torch refuses Nesterov without momentum


class Adagrad(Section):
    name: Literal["adagrad"]
    lr: Positive
    eps: Positive


class Adadelta(Section):
    name: Literal["adadelta"]
    lr: Positive
    rho: Decay
    eps: Positive


class Rmsprop(Section):
    name: Literal["rmsprop"]
    lr: Positive
    alpha: Decay
    momentum: Decay
    eps: Positive


class Adam(Section):
    name: Literal["adam", "radam"]
    lr: Positive
    betas: Betas
    eps: Positive


class Identity(Section):
    name: Literal["identity"]


class Cg(Section):
    name: Literal["cg"]
    damping: NonNegative
    max_iter: Count
    tol: NonNegative
    float64: bool


class Cholesky(Section):
    name: Literal["cholesky"]
    damping: NonNegative
    max_gib: Positive


class Woodbury(Section):
    name: Literal["woodbury"]
    damping: Positive  # its matrix is singular without
    max_gib: Positive


class Pinv(Section):
    name: Literal["pinv"]
    rtol: Inside
    max_gib: Positive


class Fisher(Section):
    name: Literal["gauss_newton", "kl_hessian", "empirical"]
    fraction: Fraction


class Mlp(Section):
    name: Literal["mlp"]
    hidden: Sizes
    activation: Activation
    log_std: LogStd


class Cnn(Section):
    name: Literal["cnn"]
    channels: Sizes
    kernels: Sizes
    strides: Sizes
    hidden: Size
    log_std: LogStd

    @model_validator(mode="after")
    def one_each(self) -> "Cnn":
        if not len(self.channels) == len(self.kernels) == len(self.strides) > 0:
            raise ValueError("policy.channels, policy.kernels and policy.strides need one entry per layer")
        return self


class CriticAdam(Section):
    name: Literal["adam"]
    hidden: Sizes
    activation: Activation
    lr: Positive
    epochs: Count
    minibatch: Count


class CriticLbfgs(Section):
    name: Literal["lbfgs"]
    hidden: Sizes
    activation: Activation
    max_iter: Count
    history: Count


class CriticTrustRegion(Section):
    name: Literal["trust_region"]
    hidden: Sizes
    activation: Activation
    delta: Positive | None
    damping: NonNegative
    max_iter: Count
    steps: Count


class NoCritic(Section):
    name: Literal["none"]


class Env(Section):
    id: EnvId
    backend: Literal["auto", "sync", "async", "split", "native", "envpool"]
    allow_import: bool
    timeout: Positive
    normalize_obs: bool
    normalize_return: bool
    kwargs: Annotated[dict[str, JsonValue], Field(description="a mapping, such as {gravity: 9.8}")]


class Eval(Section):
    episodes: Size  # each has an environment of its own
    every: Natural


class Checkpoint(Section):
    every: Natural
    keep: Count


class Sweep(Section):
    jobs: Size | None
    job_timeout: Positive | None
    skip_finished: bool
    fail_fast: bool


class Search(Section):
    trials: Count | None
    study: Annotated[str, Field(pattern=r"^[\w.-]+$", description="a name of letters, digits, _ . -")] | None
    sampler: Literal["tpe", "random"]
    pruner: Literal["median", "none"]


class Config(Section):
    """One run. A group that the algorithm does not have (solver of pg, critic of reinforce) is None."""

    seed: Seed
    total_steps: Count
    num_envs: Size
    horizon: Count
    device: Device
    torch_threads: Size
    runs_dir: Text
    resume: Text | None
    algo: Reinforce | Pg | Npg | Trpo = Field(discriminator="name")
    optimizer: Sgd | Momentum | Nag | Adagrad | Adadelta | Rmsprop | Adam | None = Field(
        None, discriminator="name")
    solver: Identity | Cg | Cholesky | Woodbury | Pinv | None = Field(None, discriminator="name")
    fisher: Fisher | None = None
    critic: CriticAdam | CriticLbfgs | CriticTrustRegion | NoCritic | None = Field(None, discriminator="name")
    policy: Mlp | Cnn = Field(discriminator="name")
    env: Env
    eval: Eval
    checkpoint: Checkpoint
    sweep: Sweep
    search: Search

    @model_validator(mode="after")
    def consistent(self) -> "Config":
        for group in DEPENDENT:
            if (getattr(self, group) is None) == (group in self.algo.groups):
                verb = "needs" if group in self.algo.groups else "has no"
                raise ValueError(f"algo={self.algo.name} {verb} {group}")
        if not 2 <= self.num_envs * self.horizon <= MAX_BATCH:
            raise ValueError(f"horizon × num_envs must be 2 to {MAX_BATCH:,} samples per update, "
                             f"got {self.horizon} × {self.num_envs}")
        for group, part in (("policy", self.policy), ("critic", self.critic)):
            if _weights(part) > MAX_WEIGHTS:
                raise ValueError(f"{group} has {_weights(part):,} weights between its hidden layers; "
                                 f"at most {MAX_WEIGHTS:,} are allowed")
        module, colon, _ = self.env.id.partition(":")
        if colon and not self.env.allow_import:
            raise ValueError(f"env.id={self.env.id} imports the module {module}; "
                             "write env.allow_import=true to allow that")
        return self


def _weights(part: Section | None) -> int:
    """Weights between the hidden layers of a network: those that need no environment to be known."""
    if isinstance(part, Cnn):
        return sum(a * b * k * k for (a, b), k in zip(pairwise(part.channels), part.kernels[1:], strict=True))
    return sum(a * b for a, b in pairwise(getattr(part, "hidden", ())))


def _models(group: str) -> dict[str, type[Section]]:
    annotation = Config.model_fields[group].annotation
    models = [model for model in get_args(annotation) or (annotation,) if model is not type(None)]
    return {name: model for model in models for name in get_args(model.model_fields["name"].annotation)}


MODELS = {group: _models(group) for group in ("algo", "policy", *DEPENDENT)}
