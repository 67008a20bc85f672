"""Where seeded environments stand, as plain arrays: episode numbers and the actions since each reset."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

Snapshot = dict[str, Any]


def pack(numbers: list[int], actions: list[np.ndarray], obs: np.ndarray) -> Snapshot:
    """episode (B,), length (B,), actions (Σ length, *A) in the environment's own space, obs (B, *O)."""
    return {
        "kind": "replay",
        "episode": np.array(numbers, np.int64),
        "length": np.array([len(sent) for sent in actions], np.int64),
        "actions": np.concatenate(actions),
        "obs": obs.copy(),
    }


def unpack(
    snapshot: Snapshot, num_envs: int, obs: np.ndarray, space: spaces.Space
) -> tuple[list[int], list[np.ndarray], np.ndarray]:
    """What `pack` was given. Raises ValueError where the snapshot is not one of these environments."""
    expect(snapshot, "replay")
    episode, length, actions = snapshot["episode"], snapshot["length"], snapshot["actions"]
    shapes = [episode.shape, length.shape, actions.shape[1:], snapshot["obs"].shape]
    if shapes != [(num_envs,), (num_envs,), space.shape, obs.shape] or actions.dtype != space.dtype:
        raise ValueError("environment snapshot does not fit these environments (shape or dtype)")
    if episode.min() < 0 or length.min() < 0 or length.sum() != len(actions):
        raise ValueError("environment snapshot has inconsistent lengths")
    return episode.tolist(), np.split(actions, np.cumsum(length)[:-1]), snapshot["obs"]


def expect(snapshot: Snapshot, kind: str) -> None:
    """Raises ValueError where the snapshot was taken by another kind of environments."""
    if snapshot.get("kind") != kind:
        raise ValueError(f"environment snapshot is of kind {snapshot.get('kind')!r}, expected {kind!r}")


def differing(obs: np.ndarray, stored: np.ndarray) -> list[int]:
    """The environments whose observation is not, bit for bit, the stored one."""
    return [i for i, row in enumerate(stored) if row.tobytes() != obs[i].tobytes()]
