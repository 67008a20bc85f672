"""Where seeded environments stand: which episode, and the actions since its reset, which lead there again."""

import json
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


class Positions(NamedTuple):
    """Where several environments stand, an entry for each.

    numbers: of their episodes, from 0.  actions: what each was sent since the reset, (length, *A) in
    the environment's own space.
    """

    numbers: list[int]
    actions: list[NDArray]

    def state(self, obs: NDArray) -> dict[str, Any]:
        """As plain arrays: episode (B,), length (B,), actions (Σ length, *A), and obs (B, *O), seen there."""
        return {
            "kind": "replay",
            "episode": np.array(self.numbers, np.int64),
            "length": np.array([len(sent) for sent in self.actions], np.int64),
            "actions": np.concatenate(self.actions),
            "obs": obs.copy(),
        }

    @classmethod
    def of(cls, state: dict[str, Any], obs: NDArray, space: spaces.Space) -> "Positions":
        """The positions that `state` tells, of environments that take actions in `space` and show such `obs`.

        Raises: ValueError where it is not one of these environments.
        """
        check_kind(state, "replay")
        episode, length, actions = state["episode"], state["length"], state["actions"]
        shapes = [episode.shape, length.shape, actions.shape[1:], state["obs"].shape]
        if shapes != [(len(obs),), (len(obs),), space.shape, obs.shape] or actions.dtype != space.dtype:
            raise ValueError("the environments' state does not fit these environments (shape or dtype)")
        if episode.min() < 0 or length.min() < 0 or length.sum() != len(actions):
            raise ValueError("the environments' state has inconsistent lengths")
        return cls(episode.tolist(), np.split(actions, np.cumsum(length)[:-1]))

    def encode(self) -> bytes:
        """One line of JSON, then the actions' bytes."""
        head = {"numbers": self.numbers, "lengths": [len(sent) for sent in self.actions]}
        return json.dumps(head).encode() + b"\n" + b"".join(sent.tobytes() for sent in self.actions)

    @classmethod
    def decode(cls, data: bytes, like: NDArray) -> "Positions":
        """What `encode` was called on; actions are of the shape and dtype of the rows of `like`."""
        head, _, body = data.partition(b"\n")
        told = json.loads(head)
        flat = np.frombuffer(body, like.dtype).reshape(-1, *like.shape[1:])
        return cls(told["numbers"], np.split(flat, np.cumsum(told["lengths"])[:-1]))


def part(state: dict[str, Any], mine: slice) -> dict[str, Any]:
    """Of the state of several environments, that of some of them."""
    cuts = np.concatenate([[0], np.cumsum(state["length"])])
    sent = state["actions"][cuts[mine.start] : cuts[mine.stop]]
    return {
        "kind": state["kind"], "episode": state["episode"][mine], "length": state["length"][mine],
        "actions": sent, "obs": state["obs"][mine],
    }  # fmt: skip


def check_kind(state: dict[str, Any], kind: str) -> None:
    """Raises ValueError where the state is one of another kind of environments."""
    if state.get("kind") != kind:
        raise ValueError(f"the environments' state is of kind {state.get('kind')!r}, expected {kind!r}")


def differing(obs: NDArray, stored: NDArray) -> list[int]:
    """The environments whose observation is not, bit for bit, the stored one."""
    return [i for i, row in enumerate(stored) if row.tobytes() != obs[i].tobytes()]
