"""What vector environments are to all that use them, whatever steps them. Importing this costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from gymnasium import spaces

    from rl_natgrad.envs.view import View

Array: TypeAlias = Any
"""An array; of the backend `device`, whose every array is on one device, a tensor."""
Rows: TypeAlias = "tuple[Array, Array, Array, Array]"
"""obs (B, *O), reward (B,) float64, terminated (B,), truncated (B,)."""


class Envs(Protocol):
    """B environments stepped together.

    A policy sees observations as a float32 vector or a uint8 image (channels first), and acts in [−1, 1] where
    a Box is finite.  NEXT_STEP: at an end the observation is the true last one; the following row is a reset
    row, whose action is ignored, reward 0 and flags False.  Arrays returned may be overwritten by the next call.
    Where env.action_mask is set, observations end in the mask of the next action: see `view.MaskedObservations`.

    SAME_STEP, which only the backend `device` knows: at an end the observation begins the next episode, so that no
    row is a reset, and `last` has where it ended.
    """

    backend: str  # sync, async, split, native, envpool or device
    same_step: bool
    last: Array  # (B, *O) of SAME_STEP: the last observations of those that ended in the last step
    restorable: bool  # has `state` and `load`
    note: str | None  # what was done to the observation, for the user
    num_envs: int  # B
    view: View  # what a policy sees of one of them
    observation_space: spaces.Box  # a single environment's, as a policy sees it
    action_space: spaces.Space
    raw_observation_space: spaces.Space  # a single environment's own
    raw_action_space: spaces.Space

    def reset(self) -> Array:
        """The first observations (B, *O)."""

    def step(self, action: Array) -> Rows:
        """What comes of action (B, *A)."""

    def state(self) -> dict[str, Any]:
        """Where every environment stands, as arrays, tensors, strings and numbers. Only where `restorable`."""

    def load(self, state: dict[str, Any]) -> tuple[Array, list[int]]:
        """Puts fresh environments there; their observations, and who did not come back to the same one.

        Raises: ValueError where the state is not one of these environments.
        """

    def close(self) -> None:
        """Ends the environments and the processes they run in."""
