"""Tasks and methods of clock.py: likelihood models, first-order loops, natural-gradient loops, and a stopwatch.

Every method is a function (task, theta, settings, rng) ↦ step, where step() makes one update of theta (P,), in
place, and returns how many samples' gradients it took.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize  # here, so that the runner's limit on threads finds its matrix products
from torch import Tensor

from rl_natgrad.algos.problem import likelihood
from rl_natgrad.optim.first_order import Adam
from rl_natgrad.optim.fisher import Fisher
from rl_natgrad.optim.solvers import Solution, cg, cholesky
from rl_natgrad.optim.steps import backtrack, to_radius
from rl_natgrad.policy.heads import Bernoulli, Categorical, DiagGaussian, Head
from rl_natgrad.policy.mlp import MLP
from rl_natgrad.policy.model import Model

Settings = dict[str, Any]
Step = Callable[[], int]
SHARES = {"loose": 0.1, "middle": 0.02, "strict": 0.004}  # targets: what is left of the way to the best loss


# ------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """A likelihood model and its data, split in three. cap: CPU seconds that a run may take at most."""

    net: MLP
    head: Head
    train: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    cap: float

    def start(self, seed: int) -> Tensor:
        """θ before training (P,)."""
        return self.net.init(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def nll(self, theta: Tensor, data: tuple[Tensor, Tensor]) -> float:
        """−E log p(y|x)."""
        x, y = data
        return -float(self.head.log_prob(self.net.forward(theta, x), y).mean())


TASKS: dict[str, Settings] = {
    "cancer, linear": {"data": "breast_cancer", "hidden": (), "cap": 0.5},
    "cancer": {"data": "breast_cancer", "hidden": (16,), "cap": 0.5},
    "diabetes": {"data": "diabetes", "hidden": (), "cap": 0.5},
    "digits": {"data": "digits", "hidden": (32,), "cap": 0.6},
    "digits, wide": {"data": "digits", "hidden": (128, 128), "cap": 1.5},
    "autoencoder": {"data": "pixels", "hidden": (32, 8, 32), "cap": 2.0},
    "logistic, κ = 1": {"data": "logistic", "kappa": 1, "cap": 0.5},
    "logistic, κ = 10": {"data": "logistic", "kappa": 10, "cap": 0.5},
    "logistic, κ = 100": {"data": "logistic", "kappa": 100, "cap": 0.5},
    "logistic, κ = 1000": {"data": "logistic", "kappa": 1000, "cap": 0.5},
    "logistic, κ = 100, N = 20,000": {"data": "logistic", "kappa": 100, "n": 20_000, "cap": 1.0},
    "logistic, κ = 100, 200 features": {"data": "logistic", "kappa": 100, "d": 200, "cap": 0.8},
    "Normal, κ = 100": {"data": "normal", "kappa": 100, "cap": 0.5},
}


def task(name: str, seed: int) -> Task:
    """One split: 60 % to train on, 20 % to choose on, 20 % to test on."""
    about, rng = TASKS[name], np.random.default_rng(seed)
    if "kappa" in about:
        x, y = synthetic(rng, about["data"], about["kappa"], about.get("n", 2000), about.get("d", 50))
    else:
        x, y = measured(about["data"])
    order = rng.permutation(len(x))
    a, b = int(0.6 * len(x)), int(0.8 * len(x))
    parts = [order[:a], order[a:b], order[b:]]
    if about["data"] in ("breast_cancer", "diabetes"):
        x = (x - x[parts[0]].mean(0)) / x[parts[0]].std(0)
    if about["data"] == "diabetes":
        y = (y - y[parts[0]].mean()) / y[parts[0]].std()
    heads = {"breast_cancer": Bernoulli(1), "digits": Categorical(10), "pixels": Bernoulli(64),
             "logistic": Bernoulli(1), "normal": DiagGaussian(1, std="state"),
             "diabetes": DiagGaussian(1, std="state")}  # fmt: skip
    head, hidden = heads[about["data"]], about.get("hidden", ())
    net = MLP((x.shape[1], *hidden, head.size), last_gain=1.0 if hidden else 0.0)
    x = x.astype(np.float32)
    y = y.astype(np.int64) if not isinstance(head, DiagGaussian) else y.astype(np.float32)
    data = [(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for rows in parts]
    return Task(net, head, *data, cap=about["cap"])


def measured(name: str) -> tuple[NDArray, NDArray]:
    """(x, y) of a data set that comes with scikit-learn."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name.replace('pixels', 'digits')}")(return_X_y=True)
    match name:
        case "digits":
            return x / 16, y
        case "pixels":  # which of the 64 are dark, from themselves
            return (x > 8) * 2.0 - 1, x > 8
    return x, y[:, None]


def synthetic(rng: np.random.Generator, kind: str, kappa: float, n: int, d: int) -> tuple[NDArray, NDArray]:
    """Features whose singular values fall geometrically from κ to 1 along random axes, so that no scaling of each
    feature helps; every axis counts as much for y as any other. n of them are for training."""
    white = rng.standard_normal((round(n / 0.6), d))
    axes, _ = np.linalg.qr(rng.standard_normal((d, d)))
    scales = np.geomspace(1, 1 / kappa, d)
    x = white * (scales / np.sqrt((scales**2).mean())) @ axes.T
    signal = white @ rng.choice([-1.0, 1.0], d) / d**0.5
    if kind == "logistic":
        return x, rng.random((len(x), 1)) < 1 / (1 + np.exp(-3 * signal[:, None]))
    return x, (signal + np.exp(-1 + 0.3 * white[:, 0]) * rng.standard_normal(len(x)))[:, None]


# ------------------------------------------------------------------------------------------- loss and gradient


def forward(layers: list[tuple[NDArray, NDArray]], x: NDArray, outs: list[NDArray] | None = None) -> list[NDArray]:
    """[x, h₁, …, z], into the arrays `outs` where there are such."""
    hs = [x]
    for k, (W, b) in enumerate(layers):
        h = np.matmul(hs[-1], W.T, out=outs[k] if outs else None)
        h += b
        hs.append(np.tanh(h, out=h) if k < len(layers) - 1 else h)
    return hs


class Gradient:
    """(x (n, in), y (n, …)) ↦ ∇ −E log p(y|x) (P,), for a θ that is moved in place; overwritten by the next.

    The chain rule on arrays that are kept: what the first-order loops spend their time in.
    """

    def __init__(self, net: MLP, head: Head, theta: Tensor):
        self.net, self.head, self.layers = net, head, net.layers(theta.numpy())
        self.grad = torch.empty_like(theta)
        self.grads = net.layers(self.grad.numpy())
        self.kept: dict[int, tuple] = {}

    def __call__(self, x: NDArray, y: NDArray) -> Tensor:
        """The gradient."""
        n, last = len(x), len(self.layers) - 1
        if n not in self.kept:
            arrays = ([np.empty((n, o), x.dtype) for o in self.net.sizes[1:]] for _ in range(3))
            self.kept[n] = np.ones(n, x.dtype), *arrays
        ones, outs, ss, slopes = self.kept[n]
        *hs, z = forward(self.layers, x, outs)
        s = SIGNALS[type(self.head)](z, y)
        s *= 1 / n
        for k in range(last, -1, -1):
            dW, db = self.grads[k]
            np.matmul(s.T, hs[k], out=dW)
            np.matmul(ones, s, out=db)
            if k:
                slope = np.multiply(hs[k], hs[k], out=slopes[k - 1])
                np.subtract(1, slope, out=slope)
                s = np.matmul(s, self.layers[k][0], out=ss[k - 1])
                s *= slope
        return self.grad


def softmax(z: NDArray, y: NDArray) -> NDArray:
    """p − 1{y}."""
    z -= z.max(1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(1, keepdims=True)
    z[np.arange(len(z)), y] -= 1
    return z


def softmax_loss(z: NDArray, y: NDArray) -> float:
    z = z - z.max(1, keepdims=True)
    return float(np.log(np.exp(z).sum(1)).mean() - z[np.arange(len(z)), y].mean())


def coins(z: NDArray, y: NDArray) -> NDArray:
    """σ(z) − y."""
    z *= 0.5
    np.tanh(z, out=z)
    z *= 0.5
    z += 0.5
    z -= y
    return z


def coins_loss(z: NDArray, y: NDArray) -> float:
    return float((np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - y * z).sum() / len(z))


def normal(z: NDArray, y: NDArray) -> NDArray:
    """z = [μ, log σ]: [(μ − y)/σ², 1 − ((μ − y)/σ)²]."""
    mu, log_sigma = np.split(z, 2, 1)
    scale = np.exp(-log_sigma)
    e = (mu - y) * scale
    np.multiply(e, scale, out=mu)
    np.subtract(1, e * e, out=log_sigma)
    return z


def normal_loss(z: NDArray, y: NDArray) -> float:
    mu, log_sigma = np.split(z, 2, 1)
    e = (mu - y) * np.exp(-log_sigma)
    return float((0.5 * e * e + log_sigma + 0.5 * math.log(2 * math.pi)).sum() / len(z))


SIGNALS = {Categorical: softmax, Bernoulli: coins, DiagGaussian: normal}  # ∂(−log p)/∂z, written over z
LOSSES = {Categorical: softmax_loss, Bernoulli: coins_loss, DiagGaussian: normal_loss}  # −E log p(y|x)


# ------------------------------------------------------------------------------------------------------ methods


def first_order(task: Task, theta: Tensor, s: Settings, rng: np.random.Generator) -> Step:
    """Momentum or Adam, on all samples or on minibatches, whose rate falls as 1 / (1 + epochs / fall)."""
    x, y = (part.numpy() for part in task.train)
    gradient, n = Gradient(task.net, task.head, theta), len(x)
    move = MOVES[s["rule"]](theta, s)
    size = min(s.get("batch", n), n)
    xs, ys = x[:size].copy(), y[:size].copy()
    at, seen, order = n, 0, np.arange(n)

    def full() -> int:
        move(gradient(x, y), s["rate"])
        return n

    def minibatch() -> int:
        nonlocal at, seen, order
        if at + size > n:
            order, at = rng.permutation(n), 0
        rows = order[at : at + size]
        np.take(x, rows, 0, out=xs)
        np.take(y, rows, 0, out=ys)
        move(gradient(xs, ys), s["rate"] / (1 + seen / (n * s["fall"])))
        at, seen = at + size, seen + size
        return size

    return full if size == n else minibatch


def momentum(theta: Tensor, s: Settings) -> Callable[[Tensor, float], None]:
    """v ← μv + g,  θ ← θ − lr·v."""
    t, mu = theta.numpy(), s["momentum"]
    v, moved = np.zeros_like(t), np.empty_like(t)

    def move(g: Tensor, lr: float) -> None:
        np.multiply(v, mu, out=v)
        np.add(v, g.numpy(), out=v)
        np.multiply(v, lr, out=moved)
        np.subtract(t, moved, out=t)

    return move


def adam(theta: Tensor, s: Settings) -> Callable[[Tensor, float], None]:
    """torch's fused kernel on the flat θ."""
    return Adam(theta, betas=(0.9, s["beta2"])).step


MOVES = {"momentum": momentum, "adam": adam}


@dataclass
class Local:
    """What the line search looks at: the loss on a batch, and no KL."""

    task: Task
    theta: Tensor
    x: NDArray
    y: NDArray
    loss_old: float

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss at θ, and 0 for the KL, which the predicted radius alone limits."""
        z = forward(self.task.net.layers(theta.numpy()), self.x)[-1]
        return LOSSES[type(self.task.head)](z, self.y), 0.0


def natural(task: Task, theta: Tensor, s: Settings, rng: np.random.Generator) -> Step:
    """θ' = θ + ½ʲ·min(β, longest)·d,  d = (F + λI)⁻¹(−g),  ½β²dᵀFd = δ,  with the first j whose loss is lower.

    TRPO's step but for the KL, which is predicted and not measured, and for what may save time:
    share: of the rows, for F alone.  longest: 1 for no more than Newton's own length.  iterations: of CG; 0 for
    the dense F.  batch: rows of the first update (gradient, F, search), `growth` times more in each; none for all.
    warm: CG goes on from so much of the last direction (Martens 2010); λ is then absolute.
    """
    x, y = task.train
    model, n, last = Model(task.net, task.head, theta), len(x), None
    size = s.get("batch", n)

    def step() -> int:
        nonlocal size, last
        xs, ys, rows, N = x, y, None, min(n, int(size))
        size *= s.get("growth", 1)
        if n > N:
            taken = torch.from_numpy(rng.integers(n, size=N))
            xs, ys = x[taken], y[taken]
        if s["share"] < 1:
            rows = torch.from_numpy(rng.integers(N, size=max(1, round(s["share"] * N))))
        problem = likelihood(model, xs, ys, rows=rows)
        F, lin, kind = problem.fisher(), problem.lin, type(task.head)
        local = Local(task, theta, xs.numpy(), ys.numpy(), LOSSES[kind](lin.z.numpy(), ys.numpy()))
        g = lin.vjp(torch.from_numpy(SIGNALS[kind](lin.z.numpy().copy(), ys.numpy()) / np.float32(N)))
        last = solve(F, -g, s, last)
        full = to_radius(last, F, s["delta"])
        if full is not None:
            full = replace(full, length=min(full.length, s["longest"]))
        theta.copy_(backtrack(local, full, delta=None, shrink=0.5, max_backtracks=10).theta)
        return N

    return step


def solve(F: Fisher, b: Tensor, s: Settings, last: Solution | None) -> Solution:
    """By the dense matrix, by CG, or by CG from the last direction, for the correction to it."""
    if s["iterations"] == 0:
        return cholesky(F, b, damping=s["damping"], max_gib=1.0)
    if "warm" not in s:
        return cg(F, b, damping=s["damping"], max_iter=s["iterations"], tol=s["tol"])
    A = Damped(F, s["damping"])
    start = torch.zeros_like(b) if last is None or not last.ok else s["warm"] * last.x
    more = cg(A, b - A.mv(start), damping=0.0, max_iter=s["iterations"], tol=s["tol"])
    return replace(more, x=start + more.x)


@dataclass(frozen=True)
class Damped:
    """F + λI, for a λ that stays."""

    F: Fisher
    lam: float

    def mv(self, v: Tensor) -> Tensor:
        """(F + λI) v."""
        return self.F.mv(v).add(v, alpha=self.lam)


@dataclass(frozen=True)
class Method:
    """A family of settings. draw: (u in [0, 1), rng, P) ↦ Settings; u goes evenly over the trials, low to high."""

    family: str  # first-order or natural
    loop: Callable[[Task, Tensor, Settings, np.random.Generator], Step]
    draw: Callable[[float, np.random.Generator, int], Settings]

    def trials(self, count: int, seed: int, P: int) -> list[Settings]:
        """So many random settings for a model of P parameters."""
        rng = np.random.default_rng(seed)
        return [self.draw((i + rng.random()) / count, rng, P) for i in range(count)]


def between(low: float, high: float, u: float) -> float:
    """Log-uniform."""
    return float(f"{low * (high / low) ** u:.3g}")


def _plain(rule: str, low: float, high: float, batches: bool):
    """Rate; momentum or β₂; and of minibatches their size, and the epochs over which the rate falls."""

    def draw(u: float, rng: np.random.Generator, P: int) -> Settings:
        s = {"rule": rule, "rate": between(low, high, u)}
        if rule == "adam":
            s["beta2"] = one_of(rng, 0.9, 0.99, 0.999)
        else:
            s["momentum"] = one_of(rng, 0.0, 0.9, 0.97) if batches else one_of(rng, 0.9, 0.97, 0.99)
        return s | ({"batch": one_of(rng, 32, 64, 128), "fall": one_of(rng, 5, 30, math.inf)} if batches else {})

    return draw


def _natural(share: float = 1.0, warm: bool = False, grow: bool = False):
    """What `natural` takes."""

    def draw(u: float, rng: np.random.Generator, P: int) -> Settings:
        dense = (0, 0) if P <= DENSE and not warm else ()
        s = {"delta": between(0.03, 30, u), "iterations": one_of(rng, 3, 5, 10, 20, *dense), "share": share,
             "tol": one_of(rng, 1e-10, 0.1), "longest": one_of(rng, 1.0, math.inf),
             "damping": between(1e-5, 1e-1, rng.random())}  # fmt: skip
        s |= {"warm": one_of(rng, 0.5, 0.95)} if warm else {}
        return s | ({"batch": one_of(rng, 64, 128, 256), "growth": one_of(rng, 1.2, 1.5, 2.0)} if grow else {})

    return draw


def one_of(rng: np.random.Generator, *values: Any) -> Any:
    return values[rng.integers(len(values))]


DENSE = 600  # parameters up to which the dense F is tried
METHODS = {
    "full-batch momentum": Method("first-order", first_order, _plain("momentum", 1e-2, 1e2, False)),
    "full-batch Adam": Method("first-order", first_order, _plain("adam", 1e-3, 1, False)),
    "minibatch momentum": Method("first-order", first_order, _plain("momentum", 1e-3, 10, True)),
    "minibatch Adam": Method("first-order", first_order, _plain("adam", 1e-4, 1, True)),
    "natural": Method("natural", natural, _natural()),
    "natural, F on 10 %": Method("natural", natural, _natural(share=0.1)),
    "natural, warm CG": Method("natural", natural, _natural(warm=True)),
    "natural, growing batch": Method("natural", natural, _natural(grow=True)),
}
FULL = ("full-batch momentum", "full-batch Adam")  # the rivals that look at all samples in each update


# ---------------------------------------------------------------------------------------------------- stopwatch


@dataclass
class Race:
    """What a run does between its updates, off the clock: the loss, the targets, the validation.

    reached: target → (seconds, updates, epochs) at the first look at which the loss was there. Looks are at
    updates 1, 2, 3, … and from the 20th on, each 5 % later.
    """

    task: Task
    targets: dict[str, float]
    seconds: float = 0.0
    updates: int = 0
    samples: int = 0

    def __post_init__(self) -> None:
        self.reached: dict[str, tuple[float, int, float]] = {}
        self.best, self.test, self.loss = math.inf, math.nan, math.inf

    def look(self, theta: Tensor) -> bool:
        """Whether all targets are reached, or the run is lost."""
        self.loss = self.task.nll(theta, self.task.train)
        for name, target in self.targets.items():
            if name not in self.reached and self.loss <= target:
                self.reached[name] = self.seconds, self.updates, self.samples / len(self.task.train[0])
        if (held := self.task.nll(theta, self.task.held)) < self.best:
            self.best, self.test = held, self.task.nll(theta, self.task.test)
        return len(self.reached) == len(self.targets) or not math.isfinite(self.loss)


def race(task: Task, method: Method, s: Settings, seed: int, targets: dict[str, float], cap: float) -> Race:
    """One run, until it has reached all targets or spent `cap` CPU seconds."""
    theta, found = task.start(seed), Race(task, targets)
    with np.errstate(all="ignore"):
        step = method.loop(task, theta, s, np.random.default_rng(seed))
        while found.seconds < cap:
            block = max(1, math.ceil(found.updates * 1.05) - found.updates)
            began = time.process_time()
            for _ in range(block):
                found.samples += step()
            found.seconds += time.process_time() - began
            found.updates += block
            if found.look(theta):
                break
    return found


def lbfgs(task: Task, history: int, seed: int, targets: dict[str, float], cap: float) -> Race:
    """The same for L-BFGS (scipy's), which is of neither kind: its curvature is made of the gradients."""
    found = Race(task, targets)

    def look(theta: NDArray, seconds: float) -> bool:
        found.seconds, found.updates = found.seconds + seconds, found.updates + 1
        return found.look(torch.from_numpy(theta).float()) or found.seconds > cap

    _minimize(task, task.start(seed), task.train[0].numpy(), history, 10_000, found, look)
    return found


def _minimize(
    task: Task, theta: Tensor, x: NDArray, history: int, most: int, race: Race,
    look: Callable[[NDArray, float], bool],
) -> float:
    """The lowest loss. look: (θ, seconds since the last) ↦ whether to stop, after each iteration."""
    y, n = task.train[1].numpy(), len(x)
    gradient, loss = Gradient(task.net, task.head, theta), LOSSES[type(task.head)]
    began = time.process_time()

    def fun(t: NDArray) -> tuple[float, NDArray]:
        theta.numpy()[:] = t
        race.samples += n
        return loss(forward(gradient.layers, x)[-1], y), gradient(x, y).numpy().astype(np.float64)

    def callback(t: NDArray) -> None:
        nonlocal began
        stop = look(t, time.process_time() - began)
        began = time.process_time()
        if stop:
            raise StopIteration

    options = {"maxcor": history, "maxiter": most, "maxfun": 2 * most, "ftol": 0.0, "gtol": 1e-9}
    with np.errstate(all="ignore"):
        start = theta.numpy().astype(np.float64)
        found = minimize(fun, start, jac=True, method="L-BFGS-B", callback=callback, options=options)
    return float(found.fun)


def targets(task: Task, seed: int) -> dict[str, float]:
    """Losses that leave so much of the way from the first to that of a long L-BFGS run, in float64, from there."""
    first, x = task.nll(task.start(seed), task.train), task.train[0].double().numpy()
    best = _minimize(task, task.start(seed).double(), x, 20, LONG, Race(task, {}), lambda theta, seconds: False)
    return {name: best + share * (first - best) for name, share in SHARES.items()}


LONG = 500  # iterations of the reference run
