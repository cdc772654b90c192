"""Running a graph: each node in turn, small integers on NumPy, images in the library of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import array_namespace
from ..core.errors import ModelError
from ..dispatch.registry import get_backend
from . import host
from .convolutions import Convolution, Excitation, Product, Recurrence
from .model import Constants, Graph, Node
from .operators import OPERATORS
from .sizes import in_order, of_sizes

__all__ = ["SUPPORTED", "Runner", "folded"]

SUPPORTED = frozenset({*OPERATORS, "Conv"} - {"Silu"})


# Operators that make new memory, and those that leave nothing behind that sees the memory of their inputs.
NEW = frozenset({"Add", "Conv", "Div", "Excitation", "HardSigmoid", "Mul", "Sigmoid", "Sub"})
READING = NEW | {"GlobalAveragePool", "GlobalMaxPool", "Shape", "Size"}
# Those that can write into the memory of an input.
IN_PLACE: dict[str, Callable[..., Any]] = {"Add": np.add, "Mul": np.multiply}


class _Step:
    """A node that is ready to run: its function, and where the values that it reads and makes have their places.

    Parameters
    ----------
    node, constants
        Of the graph.
    places
        The place of each name's value. That of "" is always None.
    done
        Names that nothing after it needs.
    spare
        Those of its inputs whose memory nobody else sees, then or later.
    """

    def __init__(
        self, node: Node, constants: Constants, places: Mapping[str, int], done: Sequence[str] = (),
        spare: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.node = node
        self.host: frozenset[int] = frozenset()
        self.function: Callable[..., Any]
        self.convolves = node.operator == "Conv"
        weight, bias = (constants.get(name) for name in (*node.inputs, "", "", "")[1:3])
        if self.convolves:
            self.function = Convolution(node, weight, bias)
            # a layer holds its own
            self.names = tuple("" if k in (1, 2) and name in constants else name for k, name in enumerate(node.inputs))
        elif node.operator == "Excitation":
            self.convolves = True
            self.function = Excitation(node, constants, node.inputs[0] in spare)
            self.names = (node.inputs[0],)
        elif weight is not None and Product.suits(node, weight, bias):
            self.convolves = True
            self.function = Product(node, weight, bias)
            self.names = (node.inputs[0],)
        else:
            operator = OPERATORS[node.operator]
            self.function, self.host, self.names = operator.function, operator.host, node.inputs
            if weight is not None and Recurrence.suits(node, weight):
                biases = constants.get(node.inputs[3]) if node.has(3) else None
                self.function = Recurrence(self.function, node, weight, bias, biases)
        self._inputs = tuple(places[name] for name in self.names)
        self._outputs = tuple(places[name] if name else None for name in node.outputs)
        self._first = self._outputs[0] if self._outputs else None
        self._done = tuple(places[name] for name in done)
        self._spare = [k for k, name in enumerate(node.inputs) if name in spare] if node.operator in IN_PLACE else []

    def __call__(self, values: list[Any], home: _Home) -> None:
        inputs = [values[place] for place in self._inputs]
        own = home.library is not None and self._moved(inputs, home)
        try:
            if self.convolves:
                found = self.function(*inputs)
            elif not self._spare or (found := self._in_place(*inputs)) is None:
                found = self.function(home.namespace if own else home.numpy, self.node, *inputs)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = type(error) if type(error) in (TypeError, ValueError) else ModelError
            shapes = ", ".join("none" if value is None else str(tuple(value.shape)) for value in inputs)
            what = f"{error} is missing." if isinstance(error, KeyError) else str(error)
            raise kind(f"{self.node}, of arrays of shapes {shapes}: {what}") from error
        if type(found) is np.ndarray and self._first is not None:
            values[self._first] = found
        else:
            results = found if isinstance(found, tuple) else (found,)
            for place, value in zip(self._outputs, results, strict=False):
                if place is not None:
                    values[place] = np.asarray(value) if isinstance(value, np.generic) else value
        for place in self._done:
            values[place] = None

    def _in_place(self, a: Any, b: Any) -> Any:
        """The result in the memory of an input of NumPy's that is as large; None where neither is."""
        if type(a) is not np.ndarray or type(b) is not np.ndarray or a.dtype != b.dtype:
            return None
        for k in self._spare:
            target, other = (a, b) if k == 0 else (b, a)
            if target.ndim == other.ndim and all(n in (1, m) for n, m in zip(other.shape, target.shape, strict=True)):
                return IN_PLACE[self.node.operator](a, b, out=target)
        return None

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


# Sizes of inputs for which a network remembers what depends on them alone, and how many elements of that.
MAX_SIZES = 64
MOST_SIZED = 1 << 16


class Runner:
    """A graph that is ready to run, for arrays of any library; it keeps the constants of each in its own arrays.

    What depends on the sizes of the inputs alone is computed once for each of them.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        places = _places(graph)
        sized = of_sizes(graph)
        nodes = in_order(graph, sized)
        last: dict[str, int] = {}
        for k, node in enumerate(nodes):
            last |= dict.fromkeys((*node.inputs, *node.outputs), k)
        kept = {*graph.outputs, *graph.constants, *sized, ""}
        ends: list[list[str]] = [[] for _ in nodes]
        for name, k in last.items():
            if name not in kept:
                ends[k].append(name)
        spare = _spare(graph)
        self._steps = [
            _Step(node, graph.constants, places, done, spare.intersection(done))
            for node, done in zip(nodes, ends, strict=True)
        ]
        of_images = [not sized.issuperset(node.outputs) for node in nodes]
        self._steps_of_images = [step for step, own in zip(self._steps, of_images, strict=True) if own]
        read = {*graph.outputs}.union(*(node.inputs for node, own in zip(nodes, of_images, strict=True) if own))
        self._sized = [places[name] for name in sorted(sized & read)]
        self._known: dict[Any, list[Any]] = {}  # the values at these places, by the sizes of the inputs
        self._inputs, self._outputs = ([places[name] for name in names] for names in (graph.inputs, graph.outputs))
        self._values: list[Any] = [graph.constants.get(name) for name in places]
        self._copies: dict[Any, dict[str, Any]] = {}

    def __call__(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs, in their order, for the inputs in theirs."""
        first = _Home(inputs[0], self.graph.constants, {})
        seen = None if first.library is None else host.seen(inputs)
        home = first
        if seen is not None:
            inputs, home = seen, _Home(seen[0], self.graph.constants, {})
        elif first.library is not None and not first.library.describe(inputs[0]).traced:
            home._copies = self._copies.setdefault((first.library.name, first.device), {})
        values = self._values.copy()
        for place, value in zip(self._inputs, inputs, strict=True):
            values[place] = value
        if self._sized:
            self._run_sized(values, home, tuple([tuple(x.shape) for x in inputs]))
        else:
            for step in self._steps:
                step(values, home)
        found = [values[place] for place in self._outputs]
        if first.library is None:
            return tuple(found)
        return tuple(first.array(y) if isinstance(y, np.ndarray) else y for y in found)

    def _run_sized(self, values: list[Any], home: _Home, sizes: Any) -> None:
        """Run all steps, or where those of sizes have run before for such inputs, the others."""
        known = self._known.get(sizes)
        if known is not None:
            for place, value in zip(self._sized, known, strict=True):
                values[place] = value
        for step in self._steps if known is None else self._steps_of_images:
            step(values, home)
        found = [values[place] for place in self._sized]
        if known is None and sum(value.size for value in found) <= MOST_SIZED:
            if len(self._known) >= MAX_SIZES:
                self._known.clear()
            self._known[sizes] = found
        for place in self._outputs:  # the caller may write there
            if place in self._sized:
                values[place] = values[place].copy()


def _places(graph: Graph) -> dict[str, int]:
    """A place for the value of each name, first that of none."""
    names = dict.fromkeys(("", *graph.inputs, *graph.constants))
    for node in graph.nodes:
        names |= dict.fromkeys(node.outputs)
    return {name: place for place, name in enumerate(names)}


def _spare(graph: Graph) -> set[str]:
    """Values in memory of their own, which no other value shares: whoever reads one last may write there."""
    found = {name for node in graph.nodes if node.operator in NEW for name in node.outputs}
    for node in graph.nodes:
        if node.operator not in READING:
            found.difference_update(node.inputs)
    return found - {*graph.outputs, *graph.constants, *graph.inputs, ""}


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
        places = _places(Graph({}, {}, {name: constants[name] for name in names}, (node,)))
        values = [constants.get(name) if name in names else None for name in places]
        _Step(node, constants, places)(values, home)
        made = {name: np.asarray(values[places[name]]) for name in node.outputs if name}
        if sum(math.prod(value.shape) for value in made.values()) > MOST and node.operator != "Constant":
            nodes.append(node)
            continue
        constants |= made
    return Graph(graph.inputs, graph.outputs, constants, tuple(nodes))
