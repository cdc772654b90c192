"""Running a graph: each node in turn, small integers on NumPy, images in the library of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..arrays import array_namespace
from ..core.errors import ModelError
from ..dispatch.registry import get_backend
from .convolutions import Convolution, Product
from .model import Constants, Graph, Node
from .operators import OPERATORS

__all__ = ["SUPPORTED", "Runner", "folded"]

SUPPORTED = frozenset({*OPERATORS, "Conv"} - {"Silu"})


class _Step:
    """A node that is ready to run: its function, and the names that nothing after it needs."""

    def __init__(self, node: Node, constants: Constants, done: tuple[str, ...] = ()) -> None:
        self.node, self.done = node, done
        self.host: frozenset[int] = frozenset()
        self.function: Callable[..., Any]
        self.convolves = node.operator == "Conv"
        weight, bias = (constants.get(name) for name in (*node.inputs, "", "", "")[1:3])
        if self.convolves:
            self.function = Convolution(node, weight, bias)
            # a layer holds its own
            self.names = tuple("" if k in (1, 2) and name in constants else name for k, name in enumerate(node.inputs))
        elif weight is not None and Product.suits(node, weight, bias):
            self.convolves = True
            self.function = Product(node, weight, bias)
            self.names = (node.inputs[0],)
        else:
            operator = OPERATORS[node.operator]
            self.function, self.host, self.names = operator.function, operator.host, node.inputs

    def __call__(self, values: dict[str, Any], home: _Home) -> None:
        node = self.node
        inputs = [values[name] if name else None for name in self.names]
        own = False
        if home.library is not None:
            own = self._moved(inputs, home)
        try:
            if self.convolves:
                found = self.function(*inputs)
            else:
                found = self.function(home.namespace if own else home.numpy, node, *inputs)
        except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
            kind = ModelError if isinstance(error, ModelError) else type(error)
            shapes = ", ".join("none" if value is None else str(tuple(value.shape)) for value in inputs)
            if kind is KeyError:
                kind, error = ModelError, ValueError(f"{error} is missing.")
            raise kind(f"{node}, of arrays of shapes {shapes}: {error}") from error
        results = found if isinstance(found, tuple) else (found,)
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                values[name] = np.asarray(value) if isinstance(value, np.generic) else value
        for name in self.done:
            values.pop(name, None)

    def _moved(self, inputs: list[Any], home: _Home) -> bool:
        """Bring the inputs to where the node computes, in their list; whether that is the library of the images."""
        everything = -1 in self.host
        own = not everything and any(
            i not in self.host and value is not None and not isinstance(value, np.ndarray)
            for i, value in enumerate(inputs)
        )
        for i, value in enumerate(inputs):
            if value is None:
                continue
            if everything or i in self.host:
                inputs[i] = home.to_numpy(value)
            elif own and isinstance(value, np.ndarray):
                inputs[i] = home.constant(self.names[i], value)
        return own


class _Home:
    """Where a run computes: the library and the device of its inputs, and the constants there."""

    def __init__(self, x: Any, constants: Constants, copies: dict[str, Any]) -> None:
        import array_api_compat.numpy as numpy

        self.library = None if isinstance(x, np.ndarray) else get_backend(x)
        self.namespace: Any = numpy if self.library is None else array_namespace(x)
        self.numpy: Any = numpy
        self.device = None if self.library is None else self.library.describe(x).device
        self._constants, self._copies = constants, copies

    def to_numpy(self, value: Any) -> Any:
        return value if isinstance(value, np.ndarray) else self.library.to_numpy(value)  # type: ignore[union-attr]  # of arrays

    def constant(self, name: str, value: Any) -> Any:
        """A NumPy array in the library; those of the file are kept."""
        if self._constants.get(name) is not value:
            return self.array(value)
        if name not in self._copies:
            self._copies[name] = self.array(value)
        return self._copies[name]

    def array(self, value: Any) -> Any:
        assert self.library is not None
        dtype = value.dtype.name
        if self.library.name == "jax" and dtype in ("int64", "uint64"):  # which it has not, unless it is told to
            dtype = self.namespace.asarray(np.zeros(0, np.int32)).dtype.name if value.dtype.kind == "i" else "uint32"
        return self.library.from_numpy(value, dtype=dtype, device=self.device)


class Runner:
    """A graph that is ready to run, for arrays of any library; it keeps the constants of each in its own arrays."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        last: dict[str, int] = {}
        for k, node in enumerate(graph.nodes):
            last |= dict.fromkeys((*node.inputs, *node.outputs), k)
        kept = {*graph.outputs, *graph.constants, ""}
        ends: list[list[str]] = [[] for _ in graph.nodes]
        for name, k in last.items():
            if name not in kept:
                ends[k].append(name)
        self._steps = [_Step(node, graph.constants, tuple(done)) for node, done in zip(graph.nodes, ends, strict=True)]
        self._copies: dict[Any, dict[str, Any]] = {}

    def __call__(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs, in their order, for the inputs in theirs."""
        x = inputs[0]
        home = _Home(x, self.graph.constants, {})
        if home.library is not None and not home.library.describe(x).traced:
            home._copies = self._copies.setdefault((home.library.name, home.device), {})
        values = {**self.graph.constants, **dict(zip(self.graph.inputs, inputs, strict=True))}
        for step in self._steps:
            step(values, home)
        found = [values[name] for name in self.graph.outputs]
        if home.library is None:
            return tuple(found)
        return tuple(home.array(y) if isinstance(y, np.ndarray) else y for y in found)


# Elements of a constant that is computed when the network is read: more would make a small file a large network.
MOST = 1 << 20


def folded(graph: Graph) -> Graph:
    """The graph without the nodes that are the same for every input."""
    constants, nodes = dict(graph.constants), []
    home = _Home(np.zeros(0), constants, {})
    for node in graph.nodes:
        names = [name for name in node.inputs if name]
        if not all(name in constants for name in names) or node.operator in ("Conv", "ConvTranspose"):
            nodes.append(node)
            continue
        values = {name: constants[name] for name in names}
        _Step(node, constants)(values, home)
        made = {name: np.asarray(values[name]) for name in node.outputs if name}
        if sum(math.prod(value.shape) for value in made.values()) > MOST and node.operator != "Constant":
            nodes.append(node)
            continue
        constants |= made
    return Graph(graph.inputs, graph.outputs, constants, tuple(nodes))
