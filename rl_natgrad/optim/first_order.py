"""Adam for small parameter vectors, AdamP for flat ones, and the state of torch's optimizers as plain tensors."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Adam:
    """torch.optim.Adam's arithmetic on one flat θ (P,), without its bookkeeping.

        m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  θ ← θ − lr · m̂ / (√v̂ + ε)      Kingma & Ba 2015

    For the thousands of small steps of a critic: on 4,600 numbers the kernel takes a tenth of that class's time.
    """

    def __init__(self, theta: Tensor, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.theta, self.betas, self.eps = theta, betas, eps
        self.m, self.v = torch.zeros_like(theta), torch.zeros_like(theta)
        self.steps = torch.zeros((), device=theta.device)  # a float, as torch.optim.Adam has it

    def step(self, grad: Tensor, lr: float) -> None:
        """Moves theta, in place, by one step at rate lr along grad (P,)."""
        self.steps += 1
        torch._fused_adam_(  # what torch.optim.Adam(fused=True) calls
            [self.theta], [grad], [self.m], [self.v], [], [self.steps], lr=lr, beta1=self.betas[0],
            beta2=self.betas[1], eps=self.eps, weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """m, v (P,) and steps ()."""
        return {"m": self.m.clone(), "v": self.v.clone(), "steps": self.steps.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Raises: ValueError where it is not a state of this many parameters."""
        for name, ours in (("m", self.m), ("v", self.v)):
            value = torch.as_tensor(state[name])
            if value.shape != self.theta.shape or value.dtype != self.theta.dtype or not value.isfinite().all():
                raise ValueError(f"Adam's {name} is of another shape or dtype, or not finite")
            ours.copy_(value)
        if not float(state["steps"]) >= 0:
            raise ValueError(f"Adam's steps are {state['steps']}")
        self.steps.fill_(float(state["steps"]))


def uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """torch's optimizer without what torch.compile needs around its methods: importing that takes a second."""
    methods = {
        "add_param_group": inspect.unwrap(kind.add_param_group),
        "step": torch.no_grad()(inspect.unwrap(kind.step)),
    }
    return type(kind.__name__, (kind,), methods)


class AdamP(torch.optim.Optimizer):
    """Adam without the part of its step that would only lengthen a weight whose length has no effect.

        p = m̂ / (√v̂ + ε);  where |cos(w, g)| < δ / √dim w:  p ← p − (ŵᵀp) ŵ;  θ ← θ − lr · p

    for each weight w of θ, its rows (what makes one output or channel) where all of them pass, else as a whole.
    Heo et al. 2021, section 3.  Differs: no weight decay.

    Args: params: one flat θ (P,).  tensors: where θ holds each tensor, and its shape; those of one axis are no
          weights.  delta: δ, of a cosine, ≥ 0; 0 is Adam.
    """

    def __init__(
        self, params: list[torch.nn.Parameter], *, tensors: Sequence[tuple[slice, tuple[int, ...]]],
        lr: float, betas: Sequence[float], eps: float, delta: float,
    ):  # fmt: skip
        super().__init__(params, {"tensors": tensors, "lr": lr, "betas": betas, "eps": eps, "delta": delta})

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)  # see uncompiled

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves θ along its .grad."""
        group = self.param_groups[0]
        (theta,), (beta1, beta2), eps = group["params"], group["betas"], group["eps"]
        g, state = theta.grad, self.state[theta]
        if not state:
            state |= {"step": torch.zeros(()), "m": torch.zeros_like(theta), "v": torch.zeros_like(theta)}
        state["step"] += 1
        t, m, v = float(state["step"]), state["m"], state["v"]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
        for place, shape in group["tensors"]:
            if len(shape) > 1:
                p[place] = _tangent(theta[place].view(shape), g[place], p[place], group["delta"], eps)
        theta.sub_(p, alpha=group["lr"])


def _tangent(w: Tensor, g: Tensor, p: Tensor, delta: float, eps: float) -> Tensor:
    """p without its part along w, or along each row of w, where the gradient has next to none; else p."""
    for rows in (len(w), 1):
        u, h, q = w.reshape(rows, -1), g.reshape(rows, -1), p.reshape(rows, -1)
        length = u.norm(dim=1)
        cosine = (u * h).sum(1).abs() / (length * h.norm(dim=1) + eps)
        if float(cosine.max()) < delta / u.shape[1] ** 0.5:
            u = u / (length + eps).unsqueeze(1)
            return (q - (u * q).sum(1, keepdim=True) * u).flatten()
    return p


def optimizer_state(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Tensor]:
    """What `optimizer` remembers of its one parameter; nothing before its first step."""
    state = optimizer.state.get(param, {})
    return {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}


def load_optimizer_state(optimizer: torch.optim.Optimizer, param: Tensor, state: dict[str, Tensor]) -> None:
    """Puts back an `optimizer_state`; `step` counters stay where torch keeps them, on the CPU unless fused.

    Raises: ValueError where it is not one of this optimizer and parameter, or not finite.
    """
    like = _stepped(optimizer, param) if state else {}
    if state.keys() != like.keys():
        raise ValueError(f"the optimizer's state has {sorted(state)}, expected {sorted(like)}")
    for name, value in state.items():
        if value.shape != like[name].shape or value.dtype != like[name].dtype or not value.isfinite().all():
            raise ValueError(f"the optimizer's {name} is of another shape or dtype, or not finite")
        if name == "step" and value < 0:
            raise ValueError(f"the optimizer's step is {value}")
    optimizer.state[param] = {
        name: value.clone() if name == "step" else value.to(param.device, copy=True)
        for name, value in state.items()
    }


def _stepped(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Tensor]:
    """The state of an optimizer like this one after a step: its names, shapes and dtypes."""
    probe = torch.nn.Parameter(torch.zeros_like(param))
    probe.grad = torch.zeros_like(probe)
    twin = type(optimizer)([probe], **optimizer.defaults)
    twin.step()
    return optimizer_state(twin, probe)
