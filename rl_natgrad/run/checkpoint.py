"""All the state of a run in one file: tensors and JSON in the safetensors format, nothing that can run code."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rl_natgrad.run.files import naming, sync_folder, write_atomically

FORMAT = 1
FOLDER, BEST = "checkpoints", "best.safetensors"
MAX_BYTES = 8 * 2**30  # more than that is not a checkpoint of ours
NAME = re.compile(r"\d{8}\.safetensors")

State = dict[str, Any]
"""Nested mappings whose leaves are arrays (or CPU tensors) and JSON values."""


class Damaged(ValueError):
    """A file that is not, or no longer, a whole checkpoint; the message names it."""


def encode(state: State, version: str) -> bytes:
    """The state as one safetensors file."""
    arrays: dict[str, NDArray] = {}
    tree = _split(state, "", arrays)
    text = json.dumps({"format": FORMAT, "version": version, "tree": tree}, allow_nan=False)
    return save(arrays, {"rl_natgrad": json.dumps({"sha256": _digest(arrays, text), "state": text})})


def decode(data: bytes, name: str) -> State:
    """The state that `encode` was given, with arrays for tensors.

    Raises: Damaged where not every byte is as `encode` wrote it; ValueError for a newer format.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        envelope = json.loads(header["__metadata__"]["rl_natgrad"])
        text, arrays = envelope["state"], load(data)
        whole = envelope["sha256"] == _digest(arrays, text) and save(arrays, header["__metadata__"]) == data
        content = json.loads(text) if whole else {}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as e:
        raise Damaged(f"{name} is not a whole checkpoint ({type(e).__name__})") from e
    if not whole:
        raise Damaged(f"{name} is damaged: its checksum does not match")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{name} was written by rl_natgrad {content['version']} in checkpoint format {content['format']}; "
            f"this version reads format {FORMAT}"
        )
    return _join(content["tree"], arrays)


def read(path: Path) -> State:
    """The state in a file. Raises: Damaged, OSError."""
    with naming(path):
        if path.stat().st_size > MAX_BYTES:
            raise Damaged(f"{path} is larger than any checkpoint ({MAX_BYTES} bytes)")
        data = path.read_bytes()
    return decode(data, str(path))


class Checkpoints:
    """The checkpoints of one run folder: the newest `keep`, and the best by evaluation."""

    def __init__(self, run: Path, keep: int, version: str):
        self.folder, self.keep, self.version = run / FOLDER, keep, version

    def save(self, state: State, update: int) -> Path:
        """Writes the state, then removes the oldest ones past `keep`. Raises: OSError with errno and path."""
        path = self._write(f"{update:08d}.safetensors", state)
        for old in self.all()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def save_best(self, state: State) -> Path:
        return self._write(BEST, state)

    def all(self) -> list[Path]:
        """Oldest first; the best one is not among them."""
        return sorted(path for path in self.folder.glob("*.safetensors") if NAME.fullmatch(path.name))

    def _write(self, name: str, state: State) -> Path:
        if not self.folder.exists():
            with naming(self.folder):
                self.folder.mkdir()
            sync_folder(self.folder.parent)
        write_atomically(self.folder / name, encode(state, self.version))
        return self.folder / name


def _split(node: Any, name: str, arrays: dict[str, NDArray]) -> Any:
    """The JSON part of a state; its arrays go to `arrays` under their path, and leave {"array": path}."""
    if isinstance(node, Mapping):
        return {key: _split(child, f"{name}/{key}" if name else key, arrays) for key, child in node.items()}
    if hasattr(node, "detach"):
        node = node.detach().cpu().numpy()
    if isinstance(node, np.ndarray):
        arrays[name] = np.ascontiguousarray(node).reshape(node.shape)
        return {"array": name}
    return node.item() if isinstance(node, np.generic) else node


def _join(node: Any, arrays: dict[str, NDArray]) -> Any:
    if isinstance(node, dict):
        if node.keys() == {"array"}:
            return arrays[node["array"]]
        return {key: _join(child, arrays) for key, child in node.items()}
    return node


def _digest(arrays: dict[str, NDArray], text: str) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        a = arrays[name]
        sha.update(f"{name} {a.dtype.str} {a.shape} ".encode())
        sha.update(a.tobytes())
    return sha.hexdigest()
