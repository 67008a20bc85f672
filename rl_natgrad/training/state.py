"""All the state there is of a Training, and its way into another one, where it is distrusted first."""

from typing import Any

import numpy as np

from rl_natgrad.envs.contract import Envs
from rl_natgrad.rollout.arrays import copied
from rl_natgrad.run.checkpoint import State, fit, number, whole
from rl_natgrad.training import build
from rl_natgrad.training.iteration import GIVE_UP, WINDOW, Training


def of(training: Training) -> State:
    """Everything that the next iteration depends on: nested dicts of arrays, tensors and JSON values.

    The training has begun: environments that were never reset have no state.
    """
    return training.learned() | {
        "collector": training.collector.state() if training.envs.restorable else {},
        "envs": training.envs.state() if training.envs.restorable else {},
    }


def load(training: Training, state: State) -> list[int]:
    """A fresh training goes on from the state `of` another.

    Returns: indices of environments that came back different: they have random sources of their own.
    Raises:  ValueError, naming the part, where the state is not one of this training.
    """
    with build.undisturbed():
        training.collector.obs = copied(training.envs.reset())
    fit(state, _like(training))
    training.relearn(state)
    differed: list[int] = []
    if training.envs.restorable:
        training.collector.load(state["collector"])
        with build.undisturbed():
            obs, differed = training.envs.load(state["envs"])
        training.collector.obs = copied(obs)
    if not differed:
        fit(of(training), state)  # nothing was left out, and nothing more was in it
    return differed


def _like(training: Training) -> State:
    """What a state of this training must be like; parts that are empty now are checked by what loads them."""
    like = of(training)
    like |= {"step": whole(), "update": whole(), "not_finite": whole(GIVE_UP - 1), "returns": _returns}
    if training.envs.restorable:
        like["envs"] = _like_envs(training.envs, like["envs"])
    return like


def _returns(node: Any) -> bool:
    return isinstance(node, list) and len(node) <= WINDOW and all(number(value) for value in node)


def _like_envs(envs: Envs, state: State) -> State:
    """Of the same kind; actions as many as there were, each one that the environments take."""

    def actions(node: Any) -> bool:
        space, now = envs.raw_action_space, state["actions"]
        right = isinstance(node, np.ndarray) and node.dtype == now.dtype and node.shape[1:] == now.shape[1:]
        return right and all(space.contains(action) for action in node)

    like = state | ({"actions": actions} if "actions" in state else {})
    return like | ({"rng": lambda node: isinstance(node, str)} if "rng" in state else {})
