"""The Python array API standard, 2025.12, for MLX: `portconv.array_namespace` returns this module for MLX arrays.

Arrays are `mlx.core.array`. Each function means what the standard says of the function of its name; where MLX cannot,
it raises: there is no complex128, no shape may depend on values (`nonzero`, `unique_*`, boolean masks), and dtypes of
different kinds do not mix. Names beyond the standard (`float16`, `stop_gradient`, `compile`, ...) are MLX's own.

MLX's arrays have no device: memory is shared, and a device is where operations run. `device=` says where, float64 runs
on the CPU device because only that has it, and all else runs on MLX's default device.

Examples
--------
>>> import mlx.core as mx, portconv  # doctest: +SKIP
>>> xp = portconv.array_namespace(mx.array([1.0]))  # doctest: +SKIP
>>> xp.sum(xp.asarray([1, 2, 3], dtype=xp.uint8)).dtype  # doctest: +SKIP
mlx.core.uint32
"""

from math import e, inf, nan, pi
from typing import Any

import mlx.core as mx

from .. import memory_order
from . import creation, dtypes, elementwise, fft, inspection, linalg, manipulation, reductions
from .devices import placed

__array_api_version__ = "2025.12"
newaxis = None

bool = mx.bool_  # the standard's name
int8, int16, int32, int64 = mx.int8, mx.int16, mx.int32, mx.int64
uint8, uint16, uint32, uint64 = mx.uint8, mx.uint16, mx.uint32, mx.uint64
float32, float64, complex64 = mx.float32, mx.float64, mx.complex64

__all__ = [
    "__array_api_version__", "__array_namespace_info__", "e", "fft", "inf", "linalg", "nan", "newaxis", "pi",
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "complex64",
]  # fmt: skip

_reductions = ("all", "any", "count_nonzero", "max", "mean", "min", "prod", "std", "sum", "var")
_in_order: dict[str, Any] = {
    **dict.fromkeys(elementwise.__all__, memory_order.elementwise),
    **dict.fromkeys(_reductions, memory_order.reduction),
    "reshape": memory_order.reshaping,
}
for _module in (creation, dtypes, elementwise, manipulation, reductions):
    for _name in _module.__all__:
        _function = getattr(_module, _name)
        globals()[_name] = placed(_in_order[_name](_function) if _name in _in_order else _function)
    __all__ += _module.__all__
for _name in ("matmul", "matrix_transpose", "tensordot", "vecdot"):
    globals()[_name] = getattr(linalg, _name)
    __all__ += [_name]
__array_namespace_info__ = inspection.__array_namespace_info__


def __getattr__(name: str) -> Any:
    """What the standard does not have, from MLX."""
    return getattr(mx, name)


def __dir__() -> list[str]:
    return __all__
