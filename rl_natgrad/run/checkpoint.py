"""All the state of a run in one file: tensors and JSON in the safetensors format, nothing that can run code."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from rl_natgrad.run.files import naming, pause, sync_folder, write_atomically

FORMAT = 1
FOLDER, BEST = "checkpoints", "best.safetensors"
NAME = re.compile(r"\d{8,}\.safetensors")
MAX_BYTES = 8 * 2**30  # of a file: more is not a checkpoint of ours
MAX_HEADER = 16 * 2**20  # of its JSON, which is some kilobytes
SEAL = '"sha256":"'  # what stands before the checksum in the file
BLANK = "0" * 64  # what stands for the checksum while it is computed
GENERATORS = {"PCG64": np.random.PCG64}  # whose states may be in a checkpoint: that of numpy's default_rng

State = dict[str, Any]
"""Nested mappings whose leaves are tensors, arrays and JSON values."""


class Damaged(ValueError):
    """A file that is not, or no longer, a checkpoint that can be read; the message names it."""


def encode(state: State, version: str) -> bytes:
    """The state as one safetensors file, whose metadata hold the JSON part and a checksum of every byte."""
    arrays: dict[str, NDArray] = {}
    content = {"format": FORMAT, "version": version, "tree": _split(state, "", arrays)}
    data = save(arrays, {"rl_natgrad": json.dumps(content, allow_nan=False), "sha256": BLANK})
    at = data.index(f"{SEAL}{BLANK}".encode()) + len(SEAL)
    return b"".join((data[:at], hashlib.sha256(data).hexdigest().encode(), data[at + len(BLANK) :]))


def decode(data: bytes, name: str) -> State:
    """The state that `encode` was given; tensors on the CPU.

    Raises: Damaged where not every byte is as `encode` wrote it, or another format than this one was written.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        if length > min(MAX_HEADER, len(data)):
            raise Damaged(f"{name} is not a whole checkpoint")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        content = json.loads(metadata["rl_natgrad"])
        if content["format"] != FORMAT:
            raise Damaged(
                f"{name} is in checkpoint format {str(content['format'])[:20]}, of rl_natgrad "
                f"{str(content['version'])[:20]}; this version reads format {FORMAT}"
            )
        if metadata["sha256"] != _checksum(data):
            raise Damaged(f"{name} is damaged: its checksum does not match")
        return _join(content["tree"], load(data))
    except Damaged:
        raise
    except (Exception, RecursionError) as error:  # parsers fed with anything raise anything
        raise Damaged(f"{name} is not a whole checkpoint ({type(error).__name__})") from error


def read(path: Path) -> State:
    """The state in a file. Raises: Damaged, OSError."""
    with naming(path):
        if path.stat().st_size > MAX_BYTES:
            raise Damaged(f"{path} is larger than any checkpoint ({MAX_BYTES:,} bytes)")
        return decode(path.read_bytes(), str(path))


class Checkpoints:
    """The checkpoints of one run folder: the newest `keep`, and the best by evaluation."""

    def __init__(self, run: Path, keep: int, version: str):
        self.folder, self.keep, self.version = run / FOLDER, keep, version

    def save(self, state: State, update: int) -> Path:
        """Writes the state, then removes the oldest ones past `keep`. Raises: OSError with errno and path."""
        path = self._write(f"{update:08d}.safetensors", state)
        for old in self.all()[: -self.keep]:
            pause()
            old.unlink(missing_ok=True)
        return path

    def save_best(self, state: State) -> Path:
        """Writes the state beside the others, from which it is never pruned."""
        return self._write(BEST, state)

    def all(self) -> list[Path]:
        """Oldest first; the best one is not among them."""
        found = [path for path in self.folder.glob("*.safetensors") if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem))

    def _write(self, name: str, state: State) -> Path:
        if not self.folder.exists():
            with naming(self.folder):
                self.folder.mkdir()
            sync_folder(self.folder.parent)
        write_atomically(self.folder / name, encode(state, self.version))
        return self.folder / name


def fit(node: Any, like: Any, name: str = "") -> None:
    """Checks a part of a state against what it must be like, before anything is made of it.

    Args:   like: a mapping with the same keys (or empty: any mapping); a tensor or array of the same dtype and
            shape, where floats must be finite; a generator's state; a function that says whether the part is
            right; or the very value.
    Raises: ValueError, naming the part.
    """
    match like:
        case {"bit_generator": str(kind)}:
            right = kind in GENERATORS and _is_generator(node, GENERATORS[kind]())
        case Mapping():
            right = isinstance(node, dict) and (not like or node.keys() == like.keys())
            if isinstance(node, dict) and not right:
                raise ValueError(f"{name or 'the state'} has {str(sorted(node))[:200]}, expected {sorted(like)}")
            for key in like if right else ():
                fit(node[key], like[key], f"{name}.{key}" if name else key)
        case torch.Tensor() | np.ndarray():
            right = isinstance(node, torch.Tensor if isinstance(like, torch.Tensor) else np.ndarray)
            if right:
                _fit_array(node, like, name)
        case _:
            right = like(node) if callable(like) else node == like
    if not right:
        raise ValueError(f"{name or 'the state'} is not what it can be: {str(node)[:60]!r}")


def _fit_array(node: Any, like: Any, name: str) -> None:
    if node.dtype != like.dtype or node.shape != like.shape:
        raise ValueError(
            f"{name} is {node.dtype} of shape {tuple(node.shape)}, expected {like.dtype} of {tuple(like.shape)}"
        )
    if not torch.as_tensor(node).isfinite().all():
        raise ValueError(f"{name} holds numbers that are not finite")


def whole(most: float = 2**53) -> Callable[[Any], bool]:
    """A whole number from 0 to `most`."""
    return lambda node: type(node) is int and 0 <= node <= most


def number(node: Any) -> bool:
    """A finite number."""
    return type(node) in (int, float) and -1e308 < node < 1e308


def _is_generator(node: Any, rng: np.random.PCG64) -> bool:
    try:
        rng.state = node
        return rng.state == node
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return False


def _split(node: Any, name: str, arrays: dict[str, NDArray]) -> Any:
    """The JSON part of a state; what is not goes to `arrays` under its path, and leaves {"tensor": path}."""
    if isinstance(node, Mapping):
        return {key: _split(child, f"{name}/{key}" if name else key, arrays) for key, child in node.items()}
    if isinstance(node, torch.Tensor | np.ndarray):
        kind = "tensor" if isinstance(node, torch.Tensor) else "array"
        array = node.detach().cpu().numpy() if isinstance(node, torch.Tensor) else node
        arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
        return {kind: name}
    return node.item() if isinstance(node, np.generic) else node


def _join(node: Any, arrays: dict[str, NDArray]) -> Any:
    if not isinstance(node, dict):
        return node
    match node:
        case {"tensor": str(name), **rest} if not rest:
            return torch.from_numpy(arrays[name])
        case {"array": str(name), **rest} if not rest:
            return arrays[name]
    return {key: _join(child, arrays) for key, child in node.items()}


def _checksum(data: bytes) -> str:
    """SHA-256 of a file with its own checksum blanked."""
    at = data.index(SEAL.encode()) + len(SEAL)
    sha = hashlib.sha256(memoryview(data)[:at])
    sha.update(BLANK.encode())
    sha.update(memoryview(data)[at + len(BLANK) :])
    return sha.hexdigest()
