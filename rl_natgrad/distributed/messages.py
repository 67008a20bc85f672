"""Arrays and JSON values as bytes, for ranks that trust each other with data but not with code."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Message = dict[str, Any]
"""Names of arrays and of what JSON can say."""


def pack(message: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The message as bytes: the length of a line of JSON, the line, the arrays."""
    arrays = {name: np.ascontiguousarray(part) for name, part in message.items() if isinstance(part, np.ndarray)}
    kinds = {name: (part.dtype.str, message[name].shape) for name, part in arrays.items()}
    plain = {name: part for name, part in message.items() if name not in arrays}
    head = json.dumps({"arrays": kinds, "plain": plain}).encode()
    parts = [np.array(len(head)).reshape(1), np.frombuffer(head, np.uint8), *arrays.values()]
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])


def unpack(data: NDArray[np.uint8]) -> Message:
    """What `pack` was given; its arrays are the caller's."""
    start = 8 + int(data[:8].view(np.int64)[0])
    head = json.loads(data[8:start].tobytes())
    message: Message = dict(head["plain"])
    for name, (kind, shape) in head["arrays"].items():
        end = start + int(np.prod(shape)) * np.dtype(kind).itemsize
        message[name] = data[start:end].copy().view(kind).reshape(shape)
        start = end
    return message
