"""The schema of everything configs/ may say: each key, its type and its range. Values live in YAML alone."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import BaseModel, BeforeValidator, Field, GetPydanticSchema, JsonValue, create_model, model_validator

from rl_natgrad.config.refusals import listing

MAX_BATCH = 10_000_000  # samples per update; above it a slip of the keyboard is likelier than so much memory
MAX_WEIGHTS = 100_000_000  # between hidden layers; a network of more takes gigabytes before it does anything
DEPENDENT = ("optimizer", "solver", "fisher", "critic")  # the groups that only some algorithms have


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # total_steps=1e6


Seed = Annotated[int, Field(ge=0, le=2**63 - 1), BeforeValidator(_whole)]
Natural = Annotated[int, Field(ge=0, le=10**12), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1, le=10**12), BeforeValidator(_whole)]
Tries = Annotated[int, Field(ge=0, le=1000), BeforeValidator(_whole)]  # 0.99**1000 of a step is no step
Stack = Annotated[int, Field(ge=1, le=100), BeforeValidator(_whole)]
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
Activation = Literal["tanh", "relu", "sigmoid"]
Text = Annotated[str, Field(min_length=1, description="text of at least one character")]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d{1,3})?)$", description="cpu, cuda or cuda:N")]
EnvId = Annotated[str, Field(pattern=r"^([\w.]+:)?([\w-]+/)?\w[\w.-]*$",
                             description="an environment's name, such as CartPole-v1 or module:Name-v0")]


class Section(BaseModel):
    """Keys that belong together: all of them, no others, each of its very type; nothing changes them."""
    model_config = {"extra": "forbid", "strict": True, "frozen": True, "allow_inf_nan": False}


class Choice(Section):
    """A group, of which a file is chosen by its name."""
    groups: ClassVar[tuple[str, ...]] = ()  # of DEPENDENT, those that an algorithm has
    name: str


def _choices(table: dict[str, dict[str, Any]], every: Mapping[str, Any] = {}) -> dict[str, type[Choice]]:
    """A model for each name, with the name, the keys that the table gives it, and those of `every` one."""
    found = {}
    for name, kinds in table.items():
        keys: dict[str, Any] = {key: (kind, ...) for key, kind in {**kinds, **every}.items()}
        found[name] = create_model(name, __base__=Choice, **{"name": (Literal[name], ...), **keys})
    return found


def _one_of(models: dict[str, type[Choice]]) -> GetPydanticSchema:
    """Any of these models, told apart by their names."""
    union: Any = Annotated[Union[tuple(models.values())], Field(discriminator="name")]  # noqa: UP007
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(union))


class Reinforce(Choice):
    """Monte Carlo returns, a first-order optimizer, no critic."""
    groups = ("optimizer",)
    name: Literal["reinforce"]
    gamma: Unit
    normalize_adv: bool
    entropy_coef: NonNegative


class Pg(Choice):
    """Policy gradient with generalised advantages and a first-order optimizer."""
    groups = ("optimizer", "critic")
    name: Literal["pg"]
    gamma: Unit
    lam: Unit
    normalize_adv: bool
    entropy_coef: NonNegative


class Npg(Choice):
    """Natural policy gradient: a step along F⁻¹g of KL radius `delta`, or of fixed rate `lr`."""
    groups = ("solver", "fisher", "critic")
    name: Literal["npg"]
    delta: Positive
    lr: Positive | None
    gamma: Unit
    lam: Unit
    normalize_adv: bool


class Trpo(Choice):
    """NPG's step with a line search that keeps KL ≤ delta."""
    groups = ("solver", "fisher", "critic")
    name: Literal["trpo"]
    delta: Positive
    max_backtracks: Tries
    shrink: Inside
    gamma: Unit
    lam: Unit
    normalize_adv: bool


class Ppo(Choice):
    """Epochs of minibatch Adam on a surrogate that holds the ratio π_θ/π_old near 1."""
    groups = ("critic",)
    name: Literal["ppo"]
    surrogate: Literal["clip", "spo", "none"]
    clip: Positive
    decay_clip: bool
    lr: Positive
    decay_lr: bool
    epochs: Count
    minibatch: Count
    target_kl: Positive | None
    max_grad_norm: Positive | None
    gamma: Unit
    lam: Unit
    normalize_adv: bool
    entropy_coef: NonNegative


ADAM = {"lr": Positive, "betas": Betas, "eps": Positive}
OPTIMIZERS = _choices({
    "sgd": {"lr": Positive},
    "momentum": {"lr": Positive, "momentum": Decay},
    "nag": {"lr": Positive, "momentum": Inside},  # torch refuses Nesterov without momentum
    "adagrad": {"lr": Positive, "eps": Positive},
    "adadelta": {"lr": Positive, "rho": Decay, "eps": Positive},
    "rmsprop": {"lr": Positive, "alpha": Decay, "momentum": Decay, "eps": Positive},
    "adam": ADAM,
    "radam": ADAM,
    "adamp": {**ADAM, "delta": NonNegative},
}, every={"warmup": Natural})
SOLVERS = _choices({
    "identity": {},
    "cg": {"damping": NonNegative, "max_iter": Count, "tol": NonNegative, "float64": bool},
    "steihaug": {"damping": NonNegative, "max_iter": Count, "tol": NonNegative},
    "cholesky": {"damping": NonNegative, "max_gib": Positive},
    "woodbury": {"damping": Positive, "max_gib": Positive},  # without damping its matrix is singular
    "pinv": {"rtol": Inside, "max_gib": Positive},
    "svd": {"rtol": Inside, "max_gib": Positive},
    "diagonal": {"damping": NonNegative, "max_gib": Positive},
})
INDEFINITE_SOLVERS = ("steihaug", "pinv", "identity")  # those that give a direction for a matrix that is not PSD
BY_PRODUCTS = ("identity", "cg", "steihaug")  # those that need no more of the matrix
NEEDS_ROWS, HAS_ROWS = ("woodbury", "svd"), ("gauss_newton", "empirical")  # solvers, and Fishers that are RᵀR
LAYERS = {"hidden": Sizes, "activation": Activation}
FIT = {**LAYERS, "overlap": Literal["auto"] | bool}
CRITICS = _choices({
    "adam": {**FIT, "lr": Positive, "epochs": Count, "minibatch": Count, "minibatches": Count | None},
    "lbfgs": {**FIT, "max_iter": Count, "history": Count},
    "trust_region": {**FIT, "delta": Positive | None, "damping": NonNegative, "max_iter": Count,
                     "steps": Count},
    "none": {},
})


class Fisher(Choice):
    """Which Fisher matrix, from what share of the batch."""
    name: Literal["gauss_newton", "kl_hessian", "empirical", "hessian"]
    fraction: Fraction


class Mlp(Choice):
    """A policy of dense layers."""
    name: Literal["mlp"]
    hidden: Sizes
    activation: Activation
    init: Literal["orthogonal", "uniform"]
    std: Literal["free", "state"]
    log_std: LogStd


class Cnn(Choice):
    """A policy of convolutions and one dense layer, for images."""
    name: Literal["cnn"]
    channels: Sizes
    kernels: Sizes
    strides: Sizes
    hidden: Size
    std: Literal["free", "state"]
    log_std: LogStd

    @model_validator(mode="after")
    def one_each(self) -> "Cnn":
        """Checks the lengths of the lists."""
        if not len(self.channels) == len(self.kernels) == len(self.strides) > 0:
            raise ValueError("policy.channels, policy.kernels and policy.strides need one entry per layer")
        return self


class Env(Section):
    """The environment, and how it is stepped and normalised."""
    id: EnvId
    backend: Literal["auto", "sync", "async", "split", "native", "envpool", "device"]
    allow_import: bool
    timeout: Positive
    normalize_obs: bool
    normalize_return: bool
    kwargs: Annotated[dict[str, JsonValue], Field(description="a mapping, such as {gravity: 9.8}")]
    frame_stack: Stack | None
    stagger: bool
    action_mask: bool


class Eval(Section):
    """Evaluation episodes."""
    episodes: Size  # each has an environment of its own
    every: Natural


class Checkpoint(Section):
    """When to save, and how many to keep."""
    every: Natural
    keep: Count


class Sweep(Section):
    """How the jobs of a sweep are run."""
    jobs: Size | None
    job_timeout: Positive | None
    skip_finished: bool
    fail_fast: bool


class Search(Section):
    """Optuna's search over the keys of a sweep."""
    trials: Count | None
    study: Annotated[str, Field(pattern=r"^[\w.-]+$", description="a name of letters, digits, _ . -")] | None
    sampler: Literal["tpe", "random"]
    pruner: Literal["median", "none"]


class Distributed(Section):
    """What several ranks do."""
    mode: Literal["gather", "sharded"]


class Config(Section):
    """One run. A group that the algorithm does not have (solver of pg, critic of reinforce) is None."""

    seed: Seed
    total_steps: Count
    num_envs: Size
    horizon: Count
    device: Device
    dtype: Literal["float32", "float64"]
    torch_threads: Size
    runs_dir: Text
    resume: Text | None
    algo: Reinforce | Pg | Npg | Trpo | Ppo = Field(discriminator="name")
    optimizer: Annotated[Choice, _one_of(OPTIMIZERS)] | None = None
    solver: Annotated[Choice, _one_of(SOLVERS)] | None = None
    fisher: Fisher | None = None
    critic: Annotated[Choice, _one_of(CRITICS)] | None = None
    policy: Mlp | Cnn = Field(discriminator="name")
    env: Env
    eval: Eval
    checkpoint: Checkpoint
    distributed: Distributed = Distributed(mode="gather")  # older records have none
    sweep: Sweep
    search: Search

    def tree(self) -> dict[str, Any]:
        """It as YAML would say it, without the groups that the algorithm does not have."""
        tree = self.model_dump(mode="json")
        return {key: value for key, value in tree.items() if value is not None or key not in DEPENDENT}

    @property
    def overlap(self) -> Literal["auto"] | bool:
        """critic.overlap; False where nothing is fitted."""
        return self.critic.model_dump().get("overlap", False) if self.critic else False

    @property
    def can_overlap(self) -> bool:
        """Whether the critic can be fitted in a fork, which has no GPU and none of torch's threads."""
        return (self.device, self.torch_threads, self.policy.name) == ("cpu", 1, "mlp")

    @model_validator(mode="after")
    def consistent(self) -> "Config":
        """Checks what no key shows by itself."""
        for group in DEPENDENT:
            if (dict(self)[group] is None) == (group in self.algo.groups):
                verb = "needs" if group in self.algo.groups else "has no"
                raise ValueError(f"algo={self.algo.name} {verb} {group}")
        solver, fisher = (part and part.name for part in (self.solver, self.fisher))
        if fisher == "hessian" and solver not in INDEFINITE_SOLVERS:
            raise ValueError("fisher=hessian may be indefinite: solver must be "
                             f"{listing(INDEFINITE_SOLVERS, 'or')}, got {solver}")
        if solver in NEEDS_ROWS and fisher not in HAS_ROWS:
            raise ValueError(f"solver={solver} needs a Fisher with rows: fisher must be "
                             f"{listing(HAS_ROWS, 'or')}, got {fisher}")
        if self.distributed.mode == "sharded" and self.algo.name == "ppo":
            raise ValueError("distributed.mode=sharded is not for algo=ppo, whose many small minibatches would "
                             "each wait for all ranks; take gather")
        if self.distributed.mode == "sharded" and solver not in (None, *BY_PRODUCTS):
            raise ValueError("distributed.mode=sharded has no matrix, only products with it: solver must be "
                             f"{listing(BY_PRODUCTS, 'or')}, got {solver}")
        if not 2 <= self.num_envs * self.horizon <= MAX_BATCH:
            raise ValueError(f"horizon × num_envs must be 2 to {MAX_BATCH:,} samples per update, "
                             f"got {self.horizon} × {self.num_envs}")
        if self.overlap is True and not self.can_overlap:
            raise ValueError("critic.overlap=true needs device=cpu, torch_threads=1 and policy=mlp")
        for group, part in (("policy", self.policy), ("critic", self.critic)):
            if _weights(part) > MAX_WEIGHTS:
                raise ValueError(f"{group} has {_weights(part):,} weights between its hidden layers; "
                                 f"at most {MAX_WEIGHTS:,} are allowed")
        if self.env.stagger and self.env.backend != "device":
            raise ValueError(f"env.stagger=true needs env.backend=device, got {self.env.backend}")
        module, colon, _ = self.env.id.partition(":")
        if colon and not self.env.allow_import:
            raise ValueError(f"env.id={self.env.id} imports the module {module}; "
                             "write env.allow_import=true to allow that")
        return self


def _weights(part: Choice | None) -> int:
    """Weights between the hidden layers of a network: those that need no environment to be known."""
    if isinstance(part, Cnn):
        return sum(a * b * k * k for (a, b), k in zip(pairwise(part.channels), part.kernels[1:], strict=True))
    return sum(a * b for a, b in pairwise(part.model_dump().get("hidden", ()))) if part else 0


MODELS: dict[str, dict[str, type[Choice]]] = {
    "algo": {"reinforce": Reinforce, "pg": Pg, "npg": Npg, "trpo": Trpo, "ppo": Ppo},
    "policy": {"mlp": Mlp, "cnn": Cnn},
    "optimizer": OPTIMIZERS,
    "solver": SOLVERS,
    "fisher": dict.fromkeys(("gauss_newton", "kl_hessian", "empirical", "hessian"), Fisher),
    "critic": CRITICS,
}
