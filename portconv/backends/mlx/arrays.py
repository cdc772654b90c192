"""What all of them need of MLX: its dtypes by name, its default device, values where there are any, and the steps."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...engines.steps import Steps

__all__ = ["STEPS", "check_tracing", "default_device", "dtype_named", "evaluated", "view"]


def default_device() -> str:
    """MLX's default device as it is now: "cpu" or "gpu"."""
    return "gpu" if mx.default_device().type == mx.gpu else "cpu"


def dtype_named(name: str) -> Any:
    """The dtype of this name."""
    return mx.bool_ if name == "bool" else getattr(mx, name)


def view(x: Any) -> np.ndarray[Any, Any]:
    """MLX's memory as a NumPy array, without a copy; evaluates `x`. bfloat16 has no NumPy dtype and is cast."""
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x, copy=False)


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


class MlxSteps(Steps):
    """The generic steps, which MLX's names suffice for."""

    def keep(self, x: Any) -> Any:
        """As in `Steps`, with a value where it can have one."""
        return evaluated(mx.contiguous(x))


STEPS = MlxSteps(mx)
