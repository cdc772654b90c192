"""Dtypes by their standard names: which there are, and what they promote to."""

from __future__ import annotations

from .hints import word

__all__ = ["FLOATING", "INTEGERS", "INTEGRAL", "compute_dtype", "dtype_name", "integer_range", "promote", "result_name"]

FLOATING = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
INTEGRAL = ("bool", "bool_", *INTEGERS)


def promote(x_dtype: str, weight_dtype: str, bias_dtype: str | None, residual_dtype: str | None = None) -> str:
    """The result's dtype: floating inputs promote as in the array API standard, other images take the weight's.

    float16 with bfloat16, which the standard leaves open, gives float32, as in PyTorch and JAX.
    """
    given = {"x": x_dtype, "weight": weight_dtype, "bias": bias_dtype, "residual": residual_dtype}
    for name, dtype in given.items():
        if dtype is None or dtype in FLOATING or (name == "x" and dtype in INTEGRAL):
            continue
        integers = ", or integers or booleans" if name == "x" else ""
        mend = " Convert it: `astype('float32')`." if dtype in INTEGRAL else ""
        raise TypeError(
            f"`{name}` must be of a floating dtype ({', '.join(FLOATING)}){integers}, but got {dtype}.{mend}"
        )
    present = {dtype for dtype in given.values() if dtype in FLOATING}
    if "float64" in present:
        return "float64"
    return present.pop() if len(present) == 1 else "float32"


def dtype_name(dtype: object) -> str:
    """The standard name of a floating dtype: of a name, a scalar type or a library's dtype object; None is float32."""
    return "float32" if dtype is None else _name("dtype", dtype, FLOATING)


def result_name(dtype: object) -> str | None:
    """The standard name of a result's dtype, floating or of integers; None where it is to follow the arguments."""
    return None if dtype is None else _name("out_dtype", dtype, (*FLOATING, *INTEGERS))


def _name(argument: str, dtype: object, allowed: tuple[str, ...]) -> str:
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    name = name.rpartition(".")[2]
    if name not in allowed:
        raise TypeError(
            f"`{argument}` must be one of {', '.join(allowed)}, but got {dtype!r}.{word(argument, name, allowed)}"
        )
    return name


def integer_range(name: str) -> tuple[int, int] | None:
    """The smallest and the largest number of a dtype of integers; None for other dtypes."""
    if name not in INTEGERS:
        return None
    bits = int(name.lstrip("uint"))
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def compute_dtype(dtype: str) -> str:
    """The dtype that products are summed in: float32 at least."""
    return "float64" if dtype == "float64" else "float32"
