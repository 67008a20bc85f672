"""Between a policy and an environment's own spaces: one flat observation in, one mapped action out.

A policy sees Box observations (a float32 vector, or a uint8 image with channels first) and acts in a
Discrete, MultiDiscrete, MultiBinary or Box space; a finite Box is [−1, 1] to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rl_natgrad.envs.errors import EnvError, EnvSetupError, printable

ACTIONS = "Discrete, MultiDiscrete, MultiBinary and Box"
OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Tuple and Dict of them"


class Leaf(NamedTuple):
    """One part of a nested observation and its place in the flat vector."""

    field: str
    path: tuple[int | str, ...]
    space: spaces.Space
    place: slice


class ObservationMap:
    """Checks an environment's observations and writes them as the policy sees them.

    space: the Box the policy sees.  note: what was changed, for the user; None where nothing was.
    grey: bytes (height, width) are an image of one channel; else they are flattened.
    """

    space: spaces.Box
    note: str | None = None
    axes: tuple[int, ...] | None = None  # of an image, in the order the policy sees them

    def __init__(self, space: spaces.Space, grey: bool = False) -> None:
        self.dtype, self.shape = space.dtype, space.shape
        self.box = space if isinstance(space, spaces.Box) else None
        self.vector = self.box is not None and len(self.box.shape) == 1
        if self.box is not None and self.dtype == np.uint8 and len(self.box.shape) == 3:
            self._image(self.box)
            return
        if self.box is not None and self.dtype == np.uint8 and len(self.box.shape) == 2 and grey:
            self.axes = (0, 1)
            self.space = spaces.Box(self.box.low[None], self.box.high[None], dtype=np.uint8)
            return
        self.leaves: list[Leaf] = []
        low, high = self._collect(space, "observation", ())
        self.space = spaces.Box(_float32(low), _float32(high), dtype=np.float32)
        if not self.vector:
            self.note = f"observation {space} is flattened to {self.space.shape[0]} numbers"

    def _image(self, box: spaces.Box) -> None:
        # Colour last (height, width, 1|3|4) becomes colour first, which is what convolutions take.
        last = box.shape[-1] in (1, 3, 4) and box.shape[0] not in (1, 3, 4)
        self.axes = (2, 0, 1) if last else (0, 1, 2)
        self.space = spaces.Box(box.low.transpose(self.axes), box.high.transpose(self.axes), dtype=np.uint8)

    def _collect(self, space: spaces.Space, field: str, path: tuple) -> tuple[NDArray, NDArray]:
        """The flat bounds of `space`, whose leaves are appended in order."""
        if isinstance(space, spaces.Tuple | spaces.Dict):
            named = space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            lows, highs = zip(*(self._collect(s, f"{field}[{k!r}]", (*path, k)) for k, s in named), strict=True)
            return np.concatenate(lows), np.concatenate(highs)
        if isinstance(space, spaces.Box):
            low, high = space.low.ravel(), space.high.ravel()
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            width = spaces.flatdim(space)
            low, high = np.zeros(width), np.ones(width)
        else:
            raise EnvSetupError(f"{field} space {space} is not supported; supported: {OBSERVATIONS}")
        start = self.leaves[-1].place.stop if self.leaves else 0
        self.leaves.append(Leaf(field, path, space, slice(start, start + low.size)))
        return low, high

    def write(self, observation: Any, out: NDArray) -> None:
        """Writes one observation into its row; raises EnvError naming the field that is not in its space."""
        if (
            self.vector
            and type(observation) is np.ndarray
            and observation.dtype is self.dtype
            and observation.shape == self.shape
        ):  # what nearly every step is, told apart in 0.15 µs
            out[:] = observation
            return
        if self.box is not None:
            observation = _as_box(observation, self.box, "observation")
            out[:] = observation.ravel() if self.axes is None else observation.transpose(self.axes)
            return
        for leaf in self.leaves:
            out[leaf.place] = _leaf_value(observation, leaf)


def _leaf_value(observation: Any, leaf: Leaf) -> Any:
    part = observation
    for key in leaf.path:
        try:
            part = part[key]
        except (KeyError, IndexError, TypeError) as error:
            raise EnvError(f"{leaf.field} is missing") from error
    if isinstance(leaf.space, spaces.Box):
        return _as_box(part, leaf.space, leaf.field).ravel()
    if not leaf.space.contains(part):
        raise EnvError(f"{leaf.field} is {brief(part)}, not in {leaf.space}")
    return spaces.flatten(leaf.space, part)


def _as_box(value: Any, space: spaces.Box, field: str) -> NDArray:
    """`value` where its shape is the space's and its dtype casts safely to the space's: Gymnasium's rule."""
    if not isinstance(value, np.ndarray | np.generic):
        raise EnvError(f"{field} is {brief(value)}, expected a numpy array of shape {space.shape}")
    if value.shape != space.shape:
        raise EnvError(f"{field} has shape {value.shape}, expected {space.shape}")
    if not np.can_cast(value.dtype, space.dtype):
        raise EnvError(f"{field} has dtype {value.dtype}, expected {space.dtype}")
    return np.asarray(value)


def brief(value: Any) -> str:
    """Type and beginning of a value, on one line."""
    try:
        text = printable(repr(value)[:1000])
    except BaseException:  # an int of too many digits among them
        text = "(its repr raises)"
    return f"{type(value).__name__} {text[:60]}"


def _float32(bound: NDArray) -> NDArray:
    with np.errstate(over="ignore"):  # a float64 bound past float32's largest is no bound
        return bound.astype(np.float32)


def action_map(space: spaces.Space) -> tuple[spaces.Space, Callable[[NDArray], NDArray]]:
    """The space the policy acts in, and the function from its actions (B, *A) to the environment's.

    Finite Box: a ↦ clip(low·(1 − c)/2 + high·(1 + c)/2, low, high), c = clip(a, −1, 1).  The second clip is
    needed: bounds such as (−1.7, 0.3) overshoot by rounding.  Other Boxes are clipped to what bounds they
    have.  Integer spaces are shifted to start at 0.
    """
    if isinstance(space, spaces.Discrete):
        shift = int(space.start)
        return spaces.Discrete(int(space.n)), lambda action: action.astype(space.dtype) + shift
    if isinstance(space, spaces.MultiDiscrete):
        start = space.start
        return spaces.MultiDiscrete(space.nvec.ravel()), (
            lambda action: action.reshape(-1, *space.shape).astype(space.dtype) + start
        )
    if isinstance(space, spaces.MultiBinary):
        width = int(np.prod(space.shape))
        return spaces.MultiBinary(width), lambda action: action.reshape(-1, *space.shape).astype(space.dtype)
    if isinstance(space, spaces.Box):
        return _box_actions(space)
    raise EnvSetupError(f"action space {space} is not supported; supported: {ACTIONS}")


def _box_actions(space: spaces.Box) -> tuple[spaces.Box, Callable[[NDArray], NDArray]]:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    width = int(np.prod(space.shape))
    whole = np.issubdtype(space.dtype, np.integer)
    finite = bool(np.isfinite(low).all() and np.isfinite(high).all())

    symmetric = finite and np.array_equal(low, -high)  # high · clip(a) is exact at its ends

    def to_env(action: NDArray) -> NDArray:
        """The environment's own actions."""
        action = action.reshape(-1, *space.shape)
        if finite:
            action = np.minimum(np.maximum(action, -1.0), 1.0)
        if symmetric:
            action = high * action
        else:
            if finite:  # in two terms: high − low can overflow, and each end comes out exact
                action = low * (0.5 - 0.5 * action) + high * (0.5 + 0.5 * action)
            action = np.minimum(np.maximum(action, low), high)
        return (np.rint(action) if whole else action).astype(space.dtype)

    if finite:
        return spaces.Box(-1.0, 1.0, (width,), np.float32), to_env
    return spaces.Box(_float32(low.ravel()), _float32(high.ravel()), dtype=np.float32), to_env


def to_plain(space: spaces.Space) -> Any:
    """A space that an environment may have, as JSON has it: its kind, then what makes it."""
    match space:
        case spaces.Box():
            return ["Box", space.low.tolist(), space.high.tolist(), list(space.shape), space.dtype.str]
        case spaces.Discrete():
            return ["Discrete", int(space.n), int(space.start), space.dtype.str]
        case spaces.MultiDiscrete():
            return ["MultiDiscrete", space.nvec.tolist(), space.start.tolist(), space.dtype.str]
        case spaces.MultiBinary():
            return ["MultiBinary", space.n if isinstance(space.n, int) else list(space.n)]
        case spaces.Dict():
            return ["Dict", *([key, to_plain(part)] for key, part in space.items())]
        case spaces.Tuple():
            return ["Tuple", *map(to_plain, space)]
    raise EnvSetupError(f"space {space} is not supported by workers; use env.backend=sync")


def to_space(plain: Any) -> spaces.Space:
    """What `to_plain` was called on."""
    kind, *rest = plain
    if kind == "Box":
        low, high, shape, dtype = rest
        arrays = [np.array(bound, dtype).reshape(shape) for bound in (low, high)]
        return spaces.Box(arrays[0], arrays[1], tuple(shape), np.dtype(dtype).type)
    if kind == "Discrete":
        n, start, dtype = rest
        return spaces.Discrete(n, start=start, dtype=np.dtype(dtype).type)
    if kind == "MultiDiscrete":
        nvec, start, dtype = rest
        return spaces.MultiDiscrete(nvec, dtype=np.dtype(dtype).type, start=start)
    if kind == "MultiBinary":
        return spaces.MultiBinary(*rest)
    if kind == "Dict":
        return spaces.Dict([(key, to_space(part)) for key, part in rest])
    return spaces.Tuple([to_space(part) for part in rest])
