"""What a network is, once it has been read: nodes with names for what they take and give, and constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.errors import ModelError

__all__ = ["LARGEST", "Constants", "Graph", "Node", "Value", "check_size"]

Constants = dict[str, "np.ndarray[Any, Any]"]

# Elements that no array in a network of images has: a file that asks for more is damaged, or means harm.
LARGEST = 1 << 28


@dataclass(frozen=True, slots=True)
class Value:
    """What a network takes or gives: the name of its dtype, and its sizes; a name or None where any size will do.

    Examples
    --------
    >>> from portconv.onnx import Value
    >>> print(Value("float32", (None, 3, 224, 224)))
    float32 (?, 3, 224, 224)
    """

    dtype: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}, of any shape"
        return f"{self.dtype} ({', '.join('?' if size is None else str(size) for size in self.shape)})"


@dataclass(frozen=True, slots=True)
class Node:
    """An operator, the names of its inputs ("" for one that is left out) and outputs, and its attributes.

    `opset` is the version of the set of operators that the file names: some of them changed their meaning.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17

    def has(self, index: int) -> bool:
        """Whether there is an input at this place."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def __str__(self) -> str:
        return f"{self.operator} ({', '.join(self.outputs)})"


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in an order in which they can run. `metadata` is what the file says of itself, and no part of the work."""

    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    constants: Constants
    nodes: tuple[Node, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def check_size(shape: Any) -> tuple[int, ...]:
    """The shape, as ints; an error before there is an array if it is negative or larger than any that makes sense."""
    sizes = tuple(int(size) for size in shape)
    count = 1
    for size in sizes:
        count *= size
    if min(sizes, default=0) < 0 or count > LARGEST:
        raise ModelError(f"an array of shape {sizes} is asked for, which cannot be: at most {LARGEST} elements.")
    return sizes
