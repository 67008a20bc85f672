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
    """Puts back an `optimizer_state`; `step` counters stay where torch keeps them, on the CPU unless fused."""
    optimizer.state[param] = {
        name: value.clone() if name == "step" else value.to(param.device, copy=True)
        for name, value in state.items()
    }
