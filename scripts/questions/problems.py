"""Problems to look at closely, in float64: of a policy's batches, and of likelihood models on sklearn's data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl_natgrad import Training
from rl_natgrad.algos.problem import Batch, Problem, kl_hessian, likelihood
from rl_natgrad.policy.heads import Categorical, DiagGaussian, Head
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.model import Model
from rl_natgrad.policy.policy import with_head

DATA = {  # what is printed: sklearn's loader, the hidden layers
    "cancer, logistic": ("load_breast_cancer", ()),
    "cancer, MLP": ("load_breast_cancer", (8, 8)),
    "diabetes, Normal": ("load_diabetes", (8, 8)),
    "digits, softmax": ("load_digits", (8, 8)),
}
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@dataclass(frozen=True)
class Split:
    """A model at its start, and its data in parts: {"train": (x, y), "validation": …, "test": …}."""

    model: Model
    parts: dict[str, tuple[Tensor, Tensor]]

    def problem(self, part: str = "train", **options) -> Problem:
        """−E[log p(y|x)] around the model's present θ."""
        return likelihood(self.model, *self.parts[part], **options)


def split(task: str, seed: int) -> Split:
    """A task's data in random parts, scaled by what `train` says, and a fresh model."""
    from sklearn import datasets  # of the extra `questions`

    loader, hidden = DATA[task]
    x, y = getattr(datasets, loader)(return_X_y=True)
    return parted(x, y, hidden, seed)


def parted(x: np.ndarray, y: np.ndarray, hidden: Sequence[int], seed: int) -> Split:
    """The split of given data: integer y are classes, others are regressed on."""
    ends = np.cumsum([round(share * len(x)) for share in SHARES.values()])[:-1]
    places = dict(zip(SHARES, np.split(np.random.default_rng(seed).permutation(len(x)), ends), strict=True))
    x = scaled(x, places["train"])
    head: Head
    if np.issubdtype(y.dtype, np.integer):
        head, target = Categorical(int(y.max()) + 1), torch.from_numpy(y.astype(np.int64))
    else:
        head, target = DiagGaussian(1), torch.from_numpy(scaled(y[:, None], places["train"]))
    inputs = torch.from_numpy(x)
    net = with_head(lambda outputs: MLP((x.shape[1], *hidden, outputs)), head, 0.0)
    model = Model(net, head, net.init(torch.Generator().manual_seed(seed)).double())
    return Split(model, {name: (inputs[rows], target[rows]) for name, rows in places.items()})


def scaled(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and deviation 1 over `rows`; one that is constant there becomes 0."""
    deviation = x[rows].std(0)
    return np.where(deviation > 0, (x - x[rows].mean(0)) / np.where(deviation > 0, deviation, 1), 0.0)


def snapshots(*words: str, at: Sequence[int]) -> Iterator[tuple[int, Problem, Problem]]:
    """(updates so far, its surrogate, the same on an independent batch) of a training after `at` updates."""
    with Training(*words) as run:
        for update in range(max(at) + 1):
            gathered = run.gather()
            if update in at:
                yield update, doubled(run.policy, gathered.batch), doubled(run.policy, run.gather().batch)
            run.learn_from(gathered)


def doubled(policy, batch: Batch) -> Problem:
    """A policy's surrogate on a batch, in float64."""
    action = batch.action.double() if batch.action.is_floating_point() else batch.action
    model = Model(policy.net, policy.head, policy.theta.double())
    return Problem(model, replace(batch, obs=batch.obs.double(), action=action, adv=batch.adv.double()))


def cosine(a: Tensor, b: Tensor, F: Callable[[Tensor], Tensor] = lambda v: v) -> float:
    """aᵀFb / √(aᵀFa · bᵀFb), of a product v ↦ F v; 0 where either has no length."""
    Fa, Fb, a, b = F(a).double(), F(b).double(), a.double(), b.double()
    length = float((a @ Fa).clamp(min=0).sqrt() * (b @ Fb).clamp(min=0).sqrt())
    return float(a @ Fb) / length if length > 0 else 0.0


def ggn_error(problem: Problem, F: Tensor) -> float:
    """‖JᵀMJ v − ∇²KL v‖ / ‖JᵀMJ v‖ for a random v: the chain rule beside differentiating the KL twice."""
    v = direction(problem)
    return float((kl_hessian(problem).mv(v) - F @ v).norm() / (F @ v).norm())


def direction(problem: Problem) -> Tensor:
    """A random one, of length 1."""
    v = torch.randn(problem.theta.shape, generator=torch.Generator().manual_seed(0), dtype=problem.theta.dtype)
    return v / v.norm()
