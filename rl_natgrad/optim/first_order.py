"""First-order optimizers by name, and their state as plain tensors."""

from collections.abc import Callable

import torch
from torch import Tensor

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "nag": lambda params, **options: torch.optim.SGD(params, nesterov=True, **options),
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "radam": torch.optim.RAdam,
}


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
