"""Files of the format ONNX, by the package of this name: checked before anything of their sizes is allocated.

Nothing outside the folder of the file is read. Source of the format: https://onnx.ai/onnx/repo-docs/IR.html
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ModelError
from .model import Constants, Graph, Node, Value, check_size

__all__ = ["package", "read"]

OLDEST, NEWEST = 7, 24  # sets of operators whose meanings are known here
DOMAINS = ("", "ai.onnx")
POINTER = b"version https://git-lfs"  # how what stands in the place of a large file begins


def read(path: Path, operators: Container[str]) -> Graph:
    """The network of a file, all of whose operators must be among `operators`; else a `ModelError`."""
    onnx = package()
    with path.open("rb") as file:  # what is missing or a folder is said in the system's words
        start = file.read(len(POINTER))
    if not start:
        raise ModelError(f"{path} is empty.")
    if start == POINTER:
        raise ModelError(f"{path} is no ONNX file, but a pointer of Git LFS to one: `git lfs pull` fetches it.")
    try:
        proto = onnx.load_model(path, format="protobuf", load_external_data=False)
    except Exception as error:  # the errors of protobuf have no class in common
        raise ModelError(f"{path} is no ONNX file, or is damaged: {error}") from error
    try:
        return _Reader(onnx, path).graph(proto, operators)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # names that are bytes, ...
        raise ModelError(f"{path} is damaged: {error}") from error


def package() -> Any:
    """The package onnx, or an error that says how to install it."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError(
            f"An ONNX file needs the package onnx, which cannot be imported ({error}). Install it with: "
            f"pip install 'portconv[onnx]'"
        ) from error
    return onnx


class _Reader:
    """Reads one file; `onnx` is the package."""

    def __init__(self, onnx: Any, path: Path) -> None:
        self._onnx, self._folder = onnx, path.resolve().parent

    def graph(self, proto: Any, operators: Container[str]) -> Graph:
        opset = _opset(proto)
        if not proto.graph.node:
            raise ModelError("there is no network in it.")
        _check_operators(proto.graph.node, operators)
        if proto.functions:
            raise ModelError("it defines functions, which are not supported.")
        if proto.graph.sparse_initializer:
            raise ModelError("it has sparse constants, which are not supported.")
        for tensor in proto.graph.initializer:
            self._check_tensor(tensor)
        constants: Constants = {}
        for tensor in proto.graph.initializer:
            if tensor.name in constants:
                raise ModelError(f"there are two constants {tensor.name!r}.")
            constants[tensor.name] = self._array(tensor)
        nodes = [self._node(node, opset) for node in proto.graph.node]
        inputs = {value.name: self._value(value) for value in proto.graph.input if value.name not in constants}
        _check_order(nodes, {*inputs, *constants}, [value.name for value in proto.graph.output])
        self._check_package(proto)
        outputs = {value.name: self._value(value) for value in proto.graph.output}
        if not inputs:
            raise ModelError("it has no inputs.")
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        return Graph(inputs, outputs, constants, tuple(nodes), metadata)

    def _check_package(self, proto: Any) -> None:
        """What the package finds: missing inputs, attributes that no operator has or that are of the wrong type."""
        onnx = self._onnx
        bare = onnx.ModelProto()
        bare.CopyFrom(proto)
        for tensor in bare.graph.initializer:  # the package would read external data anew, and has no use for values
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                bare.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        for value in bare.graph.output:  # the package wants a shape, which other readers do without
            value.type.tensor_type.shape.SetInParent()
        kept = [t for t in bare.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        del bare.graph.initializer[:]
        bare.graph.initializer.extend(kept)
        try:
            onnx.checker.check_model(bare)
        except Exception as error:  # whatever class the package has for it
            raise ModelError(f"the package onnx refuses it: {str(error).strip().splitlines()[0]}") from error

    def _node(self, node: Any, opset: int) -> Node:
        attributes: dict[str, Any] = {}
        for attribute in node.attribute:
            value = self._onnx.helper.get_attribute_value(attribute)
            if isinstance(value, bytes):
                value = value.decode("utf-8", "replace")
            elif isinstance(value, self._onnx.TensorProto):
                self._check_tensor(value)
                value = self._array(value)
            elif isinstance(value, list) and all(isinstance(v, (int, float, bytes)) for v in value):
                value = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]
            elif not isinstance(value, (int, float)):
                raise ModelError(f"the attribute {attribute.name!r} of {node.op_type} is of a kind not supported.")
            attributes[attribute.name] = value
        return Node(node.op_type, tuple(node.input), tuple(node.output), attributes, opset)

    def _value(self, info: Any) -> Value:
        tensor = info.type.tensor_type
        if not info.type.HasField("tensor_type"):
            raise ModelError(f"{info.name!r} is no tensor.")
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(_size(d) for d in tensor.shape.dim)
        return Value(self._dtype(tensor.elem_type, info.name).name, shape)

    def _dtype(self, number: int, name: str) -> np.dtype[Any]:
        try:
            dtype: np.dtype[Any] = np.dtype(self._onnx.helper.tensor_dtype_to_np_dtype(number))
        except (KeyError, TypeError, ValueError):
            dtype = np.dtype(object)
        if dtype.kind not in "fiub":
            kinds = self._onnx.TensorProto.DataType
            kind = kinds.Name(number) if number in kinds.values() else number
            raise ModelError(f"{name!r} is of dtype {kind}, which is not supported.")
        return dtype

    # --- constants ----------------------------------------------------------------------------------------------------

    def _check_tensor(self, tensor: Any) -> None:
        """Whether the sizes of a constant are those of its data."""
        name, dtype = tensor.name, self._dtype(tensor.data_type, tensor.name)
        count = math.prod(check_size(tensor.dims))
        if tensor.data_location == self._onnx.TensorProto.EXTERNAL:
            self._span(tensor, count * dtype.itemsize)
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != count * dtype.itemsize:
                raise ModelError(
                    f"the constant {name!r} of shape {tuple(tensor.dims)} and dtype {dtype.name} needs "
                    f"{count * dtype.itemsize} bytes, but has {len(tensor.raw_data)}."
                )
        else:
            fields = (tensor.float_data, tensor.double_data, tensor.int32_data, tensor.int64_data, tensor.uint64_data)
            if sum(map(len, fields)) != count:
                raise ModelError(
                    f"the constant {name!r} of shape {tuple(tensor.dims)} needs {count} numbers, but has "
                    f"{sum(map(len, fields))}."
                )

    def _array(self, tensor: Any) -> np.ndarray[Any, Any]:
        if tensor.data_location != self._onnx.TensorProto.EXTERNAL:
            array = self._onnx.numpy_helper.to_array(tensor)
        else:
            dtype = self._dtype(tensor.data_type, tensor.name)
            file, offset, size = self._span(tensor, math.prod(tensor.dims) * dtype.itemsize)
            with file.open("rb") as data:
                data.seek(offset)
                read = data.read(size)
            array = np.frombuffer(read, dtype.newbyteorder("<")).astype(dtype).reshape(tuple(tensor.dims))
        array = np.asarray(array)
        array.flags.writeable = False
        return array

    def _span(self, tensor: Any, needed: int) -> tuple[Path, int, int]:
        """Where the data of a constant lie, in a file of their own in the model's folder."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = (self._folder / location).resolve()  # through links, too
        if not location or not file.is_relative_to(self._folder):
            raise ModelError(f"the data of {tensor.name!r} are in {location!r}, outside the folder of the model.")
        if not file.is_file():
            raise ModelError(f"the data of {tensor.name!r} are in {location!r}, which is not there.")
        try:
            offset, size = int(entries.get("offset", 0)), int(entries.get("length", needed))
        except ValueError:
            raise ModelError(f"the place of the data of {tensor.name!r} is no number.") from None
        if offset < 0 or size != needed or offset + size > file.stat().st_size:
            raise ModelError(
                f"the constant {tensor.name!r} needs {needed} bytes, but {location!r} has {file.stat().st_size}, and "
                f"{size} from {offset} on are named."
            )
        return file, offset, size


def _opset(proto: Any) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in DOMAINS]
    if len(versions) != 1 or not OLDEST <= versions[0] <= NEWEST:
        raise ModelError(f"it must name one set of operators from {OLDEST} to {NEWEST}, but names {versions}.")
    return int(versions[0])


def _check_operators(nodes: Iterable[Any], operators: Container[str]) -> None:
    unknown: dict[str, str] = {}
    for node in nodes:
        name = node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"
        if name not in operators:
            unknown.setdefault(name, node.name or (node.output[0] if node.output else ""))
    if unknown:
        found = ", ".join(f"{name} (first in {where!r})" for name, where in sorted(unknown.items(), key=str))
        raise ModelError(f"these operators are not supported: {found}.")


def _check_order(nodes: Iterable[Node], known: set[str], outputs: Iterable[str]) -> None:
    for node in nodes:
        for name in node.inputs:
            if name and name not in known:
                raise ModelError(f"{node} needs {name!r}, which nothing before it makes: there is a gap or a cycle.")
        for name in node.outputs:
            if name and name in known:
                raise ModelError(f"{node} makes {name!r}, which is there already.")
        known.update(node.outputs)
    for name in outputs:
        if name not in known:
            raise ModelError(f"nothing makes the output {name!r}.")


def _size(dimension: Any) -> int | str | None:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value) if dimension.dim_value >= 0 else None
    return dimension.dim_param or None
