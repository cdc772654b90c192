"""What all of them need of MLX: its dtypes by name, its default device, values where there are any, and the steps."""

from __future__ import annotations

import io
import math
from functools import lru_cache
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np

from ...core.epilogue import Activation
from ...cpu.views import BFLOAT16_BITS
from ...engines.steps import Steps
from ...namespaces import mlx as namespace

__all__ = [
    "STEPS",
    "bits",
    "check_tracing",
    "default_device",
    "dtype_named",
    "evaluated",
    "name_of",
    "remembered",
    "view",
]


@lru_cache(maxsize=64)
def name_of(dtype: Any) -> str:
    """The name of a dtype, which MLX makes anew whenever it is asked."""
    return str(dtype).rpartition(".")[2]


def default_device() -> str:
    """MLX's default device as it is now: "cpu" or "gpu"."""
    return "gpu" if mx.default_device().type == mx.gpu else "cpu"


def dtype_named(name: str) -> Any:
    """The dtype of this name."""
    return mx.bool_ if name == "bool" else getattr(mx, name)


def view(x: Any) -> np.ndarray[Any, Any]:
    """MLX's memory as a NumPy array, without a copy; evaluates `x`. bfloat16 has no NumPy dtype and is cast."""
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x, copy=False)


def bits(x: Any) -> np.ndarray[Any, Any]:
    """MLX's memory of bfloat16 as bits, without a copy; evaluates `x`. What NumPy sees already is left as it is."""
    shown: np.ndarray[Any, Any] = x if isinstance(x, np.ndarray) else np.array(x.view(mx.uint16), copy=False)
    return shown.view(BFLOAT16_BITS) if shown.dtype == np.uint16 else shown


def evaluated(x: Any) -> Any:
    """A packed weight needs values: a lazy array can only be evaluated in the thread that made it (mlx issue 3348)."""
    try:
        mx.eval(x)
    except ValueError as error:
        check_tracing(error)
    return x


def check_tracing(error: ValueError) -> None:
    """Raise the error again unless it says that the array has no values yet."""
    if "during function transformations" not in str(error):
        raise error


def remembered(*arrays: Any) -> bool:
    """Whether MLX knows what arrays are made of, or cannot say their values: it differentiates them, or traces.

    An array that has its values forgets what it was made of, unless MLX needs to know that for a derivative. Other
    libraries that compute with such values lose the derivative, unless they are a function with rules of its own; which
    costs more than a small layer does, so that others had better do without.
    """
    try:
        mx.eval(*arrays)
    except ValueError as error:
        check_tracing(error)
        return True
    return not _tells_histories() or _has_history(*arrays)


def _has_history(*arrays: Any) -> bool:
    """Whether there is an edge in the graph of what they are made of."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return "->" in graph.getvalue()


@lru_cache(maxsize=1)
def _tells_histories() -> bool:
    """Whether this version of MLX shows the histories of arrays that are differentiated, in either direction."""
    found = []

    def look(x: Any) -> Any:
        y = x * x
        for array in (x, y):
            mx.eval(array)
            found.append(_has_history(array))
        return y

    one = mx.array(1.0)
    mx.grad(look)(one)
    mx.jvp(look, [one], [one])
    return all(found)


class MlxSteps(Steps):
    """The generic steps, which MLX's names suffice for."""

    def keep(self, x: Any) -> Any:
        """As in `Steps`, with a value where it can have one."""
        return evaluated(mx.contiguous(x))

    def records(self, *arrays: Any) -> bool:
        return remembered(*arrays)

    def seen(self, *arrays: Any) -> bool:
        return not remembered(*arrays)

    @property
    def elementwise(self) -> ModuleType:
        return namespace

    def activated(self, x: Any, activation: Activation) -> Any:
        # by one operation each in the place of a dozen; those of float64 MLX computes in float32
        match activation.name if x.dtype != mx.float64 else "":
            case "sigmoid":
                return mx.sigmoid(x)
            case "silu":
                return x * mx.sigmoid(x)
            case "gelu":
                return x * (mx.erf(x * math.sqrt(0.5)) + 1) / 2
        return super().activated(x, activation)


STEPS = MlxSteps(mx)
