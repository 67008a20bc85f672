"""What learns from a problem, with or without a memory of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rl_natgrad.algos.problem import Problem, Update


class Remembering(Protocol):
    """What has a state that a checkpoint keeps."""

    def state(self) -> dict[str, Any]:
        """What it remembers from one update to the next."""

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""


class Learner(Remembering, Protocol):
    """Problem ↦ Update; the policy is not touched."""

    def __call__(self, problem: Problem) -> Update:
        """The update that one batch makes."""


class Stateless:
    """Remembers nothing from one update to the next."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Recipe(Stateless):
    """A learner that is a function, such as npg or trpo with their settings."""

    update: Callable[[Problem], Update]

    def __call__(self, problem: Problem) -> Update:
        """The update that one batch makes."""
        return self.update(problem)
