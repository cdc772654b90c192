"""Networks from ONNX files, run by portconv's operations on the arrays of any library.

The nodes of the network are computed by `portconv.Conv2d` and the array namespace of the input: the same file runs on
arrays of NumPy, MLX, PyTorch, JAX and every other array API library, on their devices. Reading a file needs the extra
``portconv[onnx]``.

`ReferenceConv` and `ReferenceConvTranspose` take the place of slow operators of `onnx.reference.ReferenceEvaluator`.

Examples
--------
>>> import numpy as np
>>> from portconv import onnx
>>> network = onnx.load("detector.onnx")  # doctest: +SKIP
>>> network  # doctest: +SKIP
Network(images float32 (1, 3, 416, 416) -> output float32 (1, 3549, 6), 170 nodes)
>>> boxes = network(np.zeros((1, 3, 416, 416), np.float32))  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import hints
from .core.array_types import library_of
from .core.errors import ModelError, no_array
from .dispatch.registry import get_backend
from .graph.fusing import fused
from .graph.model import Graph, Value
from .graph.reading import read
from .graph.reference import reference_conv, reference_conv_transpose
from .graph.running import SUPPORTED, Runner, folded

# Derived from classes of the package onnx, which nobody else needs before `load`.
DERIVED = {"ReferenceConv": reference_conv, "ReferenceConvTranspose": reference_conv_transpose}

if TYPE_CHECKING:
    ReferenceConv: Any
    ReferenceConvTranspose: Any

__all__ = ["ModelError", "Network", "ReferenceConv", "ReferenceConvTranspose", "Value", "load"]


def __getattr__(name: str) -> Any:
    if name in DERIVED:
        return DERIVED[name]()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Network:
    """A network, as `load` reads it from a file.

    It keeps its weights, once converted and packed, for each library and device that it has seen.

    Attributes
    ----------
    inputs, outputs
        The `Value` of each, with its `dtype` and `shape`, by its name, in order. A size is an int, or any size will do:
        then it is a name, or None.
    metadata
        What the file says of itself, texts by name: the classes that a network tells apart, say.

    Examples
    --------
    >>> import tempfile, numpy as np, onnx
    >>> from onnx import helper
    >>> from portconv.onnx import load
    >>> image, features = (helper.make_tensor_value_info(name, 1, [None, 3, 8, 8]) for name in ("image", "features"))
    >>> graph = helper.make_graph([helper.make_node("Relu", ["image"], ["features"])], "net", [image], [features])
    >>> with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
    ...     version = {"opset_imports": [helper.make_opsetid("", 21)], "ir_version": 10}
    ...     onnx.save(helper.make_model(graph, **version), file.name)
    ...     network = load(file.name)
    >>> network
    Network(image float32 (?, 3, 8, 8) -> features float32 (?, 3, 8, 8), 1 nodes)
    >>> float(network(np.full((1, 3, 8, 8), -1, np.float32)).max())
    0.0
    """

    def __init__(self, graph: Graph, nodes: int, metadata: Mapping[str, str]) -> None:
        self.inputs: Mapping[str, Value] = dict(graph.inputs)
        self.outputs: Mapping[str, Value] = dict(graph.outputs)
        self.metadata: Mapping[str, str] = dict(metadata)
        self._nodes = nodes
        self._run = Runner(graph)

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """The output of the network for its inputs: an array, or with several outputs a tuple of them, in their order.

        Parameters
        ----------
        arrays, named
            The inputs, in their order or by name: arrays of one library, of the dtypes and shapes that `inputs` has.

        Raises
        ------
        TypeError
            If there are not as many arrays as `inputs`, they are of two libraries, or their dtypes are others.
        ValueError
            If shapes do not fit. A `ModelError`, if the network makes no sense for inputs of these shapes.
        """
        names = list(self.inputs)
        given = dict(zip(names, arrays, strict=False))
        twice = sorted(given.keys() & named.keys())
        given |= named
        if len(arrays) > len(names) or twice or given.keys() != self.inputs.keys():
            by_name = f", and {sorted(named)} by name" if named else ""
            raise TypeError(
                f"the network takes {', '.join(names)}, each once, but got {len(arrays)} in order{by_name}."
            )
        if arrays and isinstance(arrays[0], dict):
            raise TypeError(f"`{names[0]}` must be an array, but got dict. Inputs by name are network(**inputs).")
        libraries = {name: library_of(array) for name, array in given.items()}
        for name, library in libraries.items():
            if library is None:
                raise no_array(name, given[name])
        if len(set(libraries.values())) > 1:
            raise TypeError(f"the inputs must be arrays of one library, but are of {libraries}.")
        for name, expected in self.inputs.items():
            _check(name, given[name], expected)
        found = self._run([given[name] for name in names])
        return found[0] if len(found) == 1 else found

    def __repr__(self) -> str:
        inputs, outputs = (
            ", ".join(f"{name} {value}" for name, value in values.items()) for values in (self.inputs, self.outputs)
        )
        return f"Network({inputs} -> {outputs}, {self._nodes} nodes)"


def load(path: str | os.PathLike[str]) -> Network:
    """Read a network from an ONNX file.

    Constants are computed, and what follows a convolution (batch normalization, constant factors and terms, an
    activation, a residual) becomes part of it.

    Parameters
    ----------
    path
        The file. Weights that it keeps in files of their own must be in its folder, or one below.

    Raises
    ------
    ImportError
        If the package onnx is not installed.
    OSError
        If the file cannot be read.
    ModelError
        (a `ValueError`) If it is damaged or makes no sense, names files outside its folder, asks for arrays that are
        too large, or has operators or dtypes that are not supported; the message names them.

    Examples
    --------
    >>> import tempfile, onnx.helper, portconv.onnx  # doctest: +SKIP
    >>> network = portconv.onnx.load("classifier.onnx")  # doctest: +SKIP
    >>> network.inputs["x"].shape  # doctest: +SKIP
    (None, 3, 224, 224)
    """
    try:
        file = Path(path)
    except TypeError:
        mend = hints.no_file(type(path).__module__, type(path).__name__)
        raise TypeError(f"`path` must be a path, but got {type(path).__name__}.{mend}") from None
    graph = read(file, SUPPORTED)
    try:
        return Network(fused(folded(graph)), len(graph.nodes), graph.metadata)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ModelError(f"{file}: {error}") from error


def _check(name: str, array: Any, expected: Value) -> None:
    info = get_backend(array).describe(array)
    if info.dtype != expected.dtype:
        raise TypeError(
            f"`{name}` must be of dtype {expected.dtype}, but its dtype is {info.dtype}. "
            f"Convert it: `astype({expected.dtype!r})`."
        )
    shape = expected.shape
    fits = shape is None or (
        len(shape) == len(info.shape)
        and all(size in (None, given) or isinstance(size, str) for size, given in zip(shape, info.shape, strict=True))
    )
    if not fits:
        mend = hints.unbatched(tuple(info.shape), len(shape or ()))
        raise ValueError(f"`{name}` must be {expected}, but its shape is {tuple(info.shape)}.{mend}")
