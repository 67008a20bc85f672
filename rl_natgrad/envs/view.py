"""What a policy sees of an environment: its last observations and, where it acts under one, an action mask."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rl_natgrad.envs.errors import EnvError, EnvSetupError
from rl_natgrad.envs.spaces import ObservationMap, action_map, brief

MASK, METHODS = "action_mask", ("action_masks", "action_mask")
"""Where an environment gives its mask: in the info of reset and step, else by a method, sb3-contrib's first."""
FIELD = f'info["{MASK}"]'


class MaskedObservations(spaces.Box):
    """Observations with an action mask behind them, along the first axis: so it goes wherever they go.

    An image has a channel more, of which it takes the first bytes.

    seen: the space of the observations alone.  width: zeros and ones in the mask.
    """

    def __init__(self, seen: spaces.Box, width: int) -> None:
        rows = -(-width // int(np.prod(seen.shape[1:])))
        low = np.zeros((rows, *seen.shape[1:]), seen.dtype)
        high = np.full_like(low, 255 if seen.dtype == np.uint8 else 1)  # an image takes any byte
        super().__init__(np.concatenate([seen.low, low]), np.concatenate([seen.high, high]), dtype=seen.dtype.type)
        self.seen = seen


class View:
    """The last `stack` observations in order of time, joined along the first axis: vectors (D,) → (stack·D,),
    images (C, H, W) → (stack·C, H, W), grey ones (H, W) → (stack, H, W); the first one stands for those before
    it, as in Gymnasium's FrameStackObservation.  Then, where `masked`, the mask of the next action.

    map: of one observation.  space: what a policy sees.  seen: the same without masks.  width: zeros and ones in
    a mask.  note: what was changed, for the user, or None.
    first, next: (observation, out) ↦ None, write one into its row `out`, after a reset and after a step; the row
    must still have the earlier ones.
    """

    def __init__(
        self, observation: spaces.Space, action: spaces.Space, stack: int = 1, masked: bool = False
    ) -> None:
        self.map, self.stack, self.masked = ObservationMap(observation, stack > 1), stack, masked
        self._lengths = _choices(action) if masked else []
        self.width = sum(self._lengths)
        self.note, one = self.map.note, self.map.space
        low, high = (np.concatenate([bound] * stack) for bound in (one.low, one.high))
        self.seen = one if stack == 1 else spaces.Box(low, high, dtype=one.dtype.type)
        self.space = MaskedObservations(self.seen, self.width) if masked else self.seen
        plain = stack == 1 and not masked
        self.first: Callable[[Any, NDArray], None] = self.map.write if plain else self._fill
        self.next: Callable[[Any, NDArray], None] = self.map.write if plain else self._push

    def _frames(self, out: NDArray) -> NDArray:
        """The observations in a row, (stack, *O)."""
        return out[: self.seen.shape[0]].reshape(self.stack, *self.map.space.shape)

    def _fill(self, observation: Any, out: NDArray) -> None:
        frames = self._frames(out)
        self.map.write(observation, frames[-1])
        frames[:-1] = frames[-1]

    def _push(self, observation: Any, out: NDArray) -> None:
        frames = self._frames(out)
        frames[:-1] = frames[1:]
        self.map.write(observation, frames[-1])

    def allow(self, mask: Any, out: NDArray, field: str = FIELD) -> None:
        """Writes a mask into its row: zeros and ones, of all action dimensions in a row, or a tuple of one array
        for each. None: any action.

        Raises: EnvError, naming `field`, where it is no mask, or allows nothing in a dimension.
        """
        flat = np.ones(self.width, bool) if mask is None else self._flat(mask, field)
        behind = out[self.seen.shape[0] :].reshape(-1)
        behind[: len(flat)] = flat

    def _flat(self, mask: Any, field: str) -> NDArray:
        lengths, width = self._lengths, self.width
        try:
            if isinstance(mask, tuple) and [np.shape(part) for part in mask] == [(n,) for n in lengths]:
                mask = np.concatenate(mask)
            flat = np.asarray(mask)
        except Exception:  # a ragged list
            flat = np.array(None)
        if flat.dtype.kind not in "biuf":
            raise EnvError(f"{field} is {brief(mask)}, expected {width} zeros and ones")
        if flat.shape != (width,):
            raise EnvError(f"{field} has shape {flat.shape}, expected ({width},)")
        if not ((flat == 0) | (flat == 1)).all():
            raise EnvError(f"{field} is {brief(mask)}, expected zeros and ones")
        allowed = np.logical_or.reduceat(flat, np.cumsum([0, *lengths[:-1]]))
        if not allowed.all():
            where = f" in action dimension {int(allowed.argmin())}" if len(lengths) > 1 else ""
            raise EnvError(f"{field} allows no action{where}")
        return flat


def _choices(action: spaces.Space) -> list[int]:
    """Choices in each dimension of an action that can be masked."""
    if isinstance(action, spaces.Discrete):
        return [int(action.n)]
    if isinstance(action, spaces.MultiDiscrete):
        return action.nvec.ravel().tolist()
    raise EnvSetupError(f"env.action_mask=true needs Discrete or MultiDiscrete actions, got {action}")


class WithSpaces:
    """Environments whose own spaces are these: what `contract.Envs` says of spaces, and how actions get there."""

    same_step = False
    last: Any = None

    def __init__(
        self, observation: spaces.Space, action: spaces.Space, stack: int = 1, masked: bool = False
    ) -> None:
        self.view = View(observation, action, stack, masked)
        self.raw_observation_space, self.raw_action_space = observation, action
        self.observation_space, self.note = self.view.space, self.view.note
        self.action_space, self.to_env = action_map(action)
        seen = self.view.seen
        for name, acts, raw in (("observation", seen, observation), ("action", self.action_space, action)):
            if 0 in (acts.shape or ()):
                raise EnvSetupError(f"{name} space {raw} has nothing in it")
