"""The `linalg` extension. MLX factorises on its CPU device; what it has for no complex matrix, NumPy does there."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ...core.errors import UnsupportedError
from .creation import asarray
from .devices import placed
from .dtypes import COMPLEX, DEFAULT_INT, INTEGERS, REALS, finfo, name_of, operands
from .elementwise import exp
from .reductions import sum as _sum

__all__ = [
    "cholesky", "cross", "det", "diagonal", "eig", "eigh", "eigvals", "eigvalsh", "inv", "matmul", "matrix_norm",
    "matrix_power", "matrix_rank", "matrix_transpose", "outer", "pinv", "qr", "slogdet", "solve", "svd", "svdvals",
    "tensordot", "trace", "vecdot", "vector_norm",
]  # fmt: skip

# Elements of the products of an integer matmul that are in memory at a time.
BLOCK = 1 << 22


class EigResult(NamedTuple):
    """Of `eig`."""

    eigenvalues: Any
    eigenvectors: Any


class EighResult(NamedTuple):
    """Of `eigh`."""

    eigenvalues: Any
    eigenvectors: Any


class QRResult(NamedTuple):
    """Of `qr`."""

    Q: Any
    R: Any


class SlogdetResult(NamedTuple):
    """Of `slogdet`."""

    sign: Any
    logabsdet: Any


class SVDResult(NamedTuple):
    """Of `svd`."""

    U: Any
    S: Any
    Vh: Any


# --- products ---------------------------------------------------------------------------------------------------------


def matmul(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    return _integer_matmul(x1, x2) if x1.dtype in INTEGERS else mx.matmul(x1, x2)


def _integer_matmul(x1: Any, x2: Any) -> Any:
    """MLX multiplies floating matrices only: here integers, term by term, which wrap around as integers do."""
    if 0 in (x1.ndim, x2.ndim):
        raise ValueError(f"`x1` and `x2` must have at least one dimension, but got {x1.shape} and {x2.shape}.")
    a = x1[None, :] if x1.ndim == 1 else x1
    b = x2[:, None] if x2.ndim == 1 else x2
    inner = a.shape[-1]
    if inner != b.shape[-2]:
        raise ValueError(f"`x1` and `x2` do not fit: their shapes are {x1.shape} and {x2.shape}.")
    batch = mx.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    total = mx.zeros((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    step = max(1, BLOCK // max(total.size, 1))
    for k in range(0, inner if total.size else 0, step):
        products = a[..., :, k : k + step, None] * b[..., None, k : k + step, :]
        total = total + mx.sum(products, -2).astype(a.dtype)
    if x1.ndim == 1:
        total = total.squeeze(-2)
    return total.squeeze(-1) if x2.ndim == 1 else total


def matrix_transpose(x: Any, /) -> Any:
    if x.ndim < 2:
        raise ValueError(f"`x` must have at least two dimensions, but its shape is {x.shape}.")
    return mx.swapaxes(x, -1, -2)


def tensordot(x1: Any, x2: Any, /, *, axes: Any = 2) -> Any:
    if isinstance(axes, int):
        axes = (range(x1.ndim - axes, x1.ndim), range(axes))
    first, second = ([a % x.ndim for a in part] for x, part in zip((x1, x2), axes, strict=True))
    if [x1.shape[a] for a in first] != [x2.shape[a] for a in second]:
        raise ValueError(f"`axes` pairs axes of different sizes: the shapes are {x1.shape} and {x2.shape}.")
    free1 = [a for a in range(x1.ndim) if a not in first]
    free2 = [a for a in range(x2.ndim) if a not in second]
    size = math.prod(x1.shape[a] for a in first)
    rows, cols = [x1.shape[a] for a in free1], [x2.shape[a] for a in free2]
    left = mx.transpose(x1, [*free1, *first]).reshape(math.prod(rows), size)
    right = mx.transpose(x2, [*second, *free2]).reshape(size, math.prod(cols))
    return mx.reshape(matmul(left, right), (*rows, *cols))  # the method crashes without sizes


def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> Any:
    x1, x2 = operands(x1, x2)
    if x1.shape[axis] != x2.shape[axis]:
        raise ValueError(f"`x1` and `x2` differ in size along `axis` {axis}: {x1.shape} and {x2.shape}.")
    x1, x2 = (mx.moveaxis(x, axis, -1) for x in (x1, x2))
    products = (mx.conj(x1) if x1.dtype in COMPLEX else x1) * x2
    return _sum(products, axis=-1).astype(x1.dtype)


def outer(x1: Any, x2: Any, /) -> Any:
    if x1.ndim != 1 or x2.ndim != 1:
        raise ValueError(f"`x1` and `x2` must have one dimension, but their shapes are {x1.shape} and {x2.shape}.")
    x1, x2 = operands(x1, x2)
    return x1[:, None] * x2[None, :]


def cross(x1: Any, x2: Any, /, *, axis: int = -1) -> Any:
    x1, x2 = operands(x1, x2)
    if x1.shape[axis] != 3 or x2.shape[axis] != 3:
        raise ValueError(f"`x1` and `x2` must have size 3 along `axis` {axis}: {x1.shape} and {x2.shape}.")
    first, second = mx.moveaxis(x1, axis, -1), mx.moveaxis(x2, axis, -1)
    a, b, c = (first[..., i] for i in range(3))
    d, e, f = (second[..., i] for i in range(3))
    shape = mx.broadcast_shapes(x1.shape, x2.shape)
    return mx.stack([b * f - c * e, c * d - a * f, a * e - b * d], axis % len(shape) if axis >= 0 else axis)


def matrix_power(x: Any, n: int, /) -> Any:
    _square(x)
    if n < 0:
        x, n = inv(x), -n
    result = mx.broadcast_to(mx.eye(x.shape[-1], dtype=x.dtype), x.shape)
    while n:
        result = matmul(result, x) if n & 1 else result
        n >>= 1
        x = matmul(x, x) if n else x
    return result


# --- parts ------------------------------------------------------------------------------------------------------------


def diagonal(x: Any, /, *, offset: int = 0) -> Any:
    _matrix(x)
    return mx.diagonal(x, offset, -2, -1)


def trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Any:
    return _sum(diagonal(x, offset=offset), axis=-1, dtype=dtype)


# --- factorisations ---------------------------------------------------------------------------------------------------


def _matrix(x: Any) -> None:
    if x.ndim < 2:
        raise ValueError(f"`x` must be a matrix or a stack of matrices, but its shape is {x.shape}.")


def _square(x: Any) -> None:
    _matrix(x)
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"`x` must be a square matrix or a stack of them, but its shape is {x.shape}.")


def _floating(x: Any) -> None:
    if x.dtype not in REALS + COMPLEX:
        raise TypeError(f"`x` must be floating, but its dtype is {name_of(x.dtype)}; convert it with `astype`.")


def _native(*arrays: Any) -> bool:
    """Whether MLX can: it cannot factorise complex matrices, and dies of some that are empty."""
    return all(x.dtype not in COMPLEX and x.size for x in arrays)


def _by_numpy(function: Callable[..., Any], *arrays: Any) -> Any:
    """MLX sees no gradient through NumPy, and would take it for zero: refused where one is asked for."""

    def compute(*arrays: Any) -> Any:
        try:
            values = [np.array(x) for x in arrays]
        except ValueError as error:
            if "during function transformations" in str(error):
                raise UnsupportedError(
                    "MLX cannot factorise such matrices (complex, empty), nor NumPy inside mx.compile and mx.vmap."
                ) from None
            raise
        result = function(*values)
        return tuple(asarray(part) for part in result) if isinstance(result, tuple) else asarray(result)

    def refuse(*_: Any) -> Any:
        raise UnsupportedError(
            "there is no gradient of this: MLX cannot factorise such matrices (complex, empty), and NumPy did."
        )

    differentiable = mx.custom_function(compute)
    differentiable.vjp(refuse)
    differentiable.jvp(refuse)
    return differentiable(*arrays)


def cholesky(x: Any, /, *, upper: bool = False) -> Any:
    _floating(x)
    _square(x)
    if _native(x):
        return mx.linalg.cholesky(x, upper, stream=mx.cpu)
    return _by_numpy(functools.partial(np.linalg.cholesky, upper=upper), x)


def det(x: Any, /) -> Any:
    _floating(x)
    _square(x)
    if not _native(x):
        return _by_numpy(np.linalg.det, x)
    if x.dtype == mx.float64 and x.shape[-1] > 3:  # MLX's own ends with an exponential in float32
        sign, logabsdet = slogdet(x)
        return sign * exp(logabsdet)
    return mx.linalg.det(x, stream=mx.cpu)


def slogdet(x: Any, /) -> SlogdetResult:
    _floating(x)
    _square(x)
    return SlogdetResult(*(mx.linalg.slogdet(x, stream=mx.cpu) if _native(x) else _by_numpy(np.linalg.slogdet, x)))


def inv(x: Any, /) -> Any:
    _floating(x)
    _square(x)
    return mx.linalg.inv(x, stream=mx.cpu) if _native(x) else _by_numpy(np.linalg.inv, x)


def solve(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    _floating(x1)
    _square(x1)
    if not _native(x1, x2):
        return _by_numpy(np.linalg.solve, x1, x2)
    vector = x2.ndim == 1
    x2 = x2[:, None] if vector else x2
    batch = mx.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    x1, x2 = (mx.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (x1, x2))
    result = mx.linalg.solve(x1, x2, stream=mx.cpu)
    return result.squeeze(-1) if vector else result


def eigh(x: Any, /) -> EighResult:
    _floating(x)
    _square(x)
    return EighResult(*(mx.linalg.eigh(x, stream=mx.cpu) if x.size else _by_numpy(np.linalg.eigh, x)))


def eigvalsh(x: Any, /) -> Any:
    _floating(x)
    _square(x)
    return mx.linalg.eigvalsh(x, stream=mx.cpu) if x.size else _by_numpy(np.linalg.eigvalsh, x)


def _for_eigenvalues(x: Any) -> None:
    _floating(x)
    _square(x)
    if x.dtype == mx.float64:
        raise TypeError(
            "`x` is float64, of which the eigenvalues are complex128, which MLX does not have; cast it to float32 with "
            "`astype`, or call `eigh`, if it is symmetric."
        )


def eig(x: Any, /) -> EigResult:
    _for_eigenvalues(x)
    if _native(x):
        return EigResult(*mx.linalg.eig(x, stream=mx.cpu))
    return EigResult(*_by_numpy(np.linalg.eig, x.astype(mx.complex64)))  # MLX's own would be their conjugates


def eigvals(x: Any, /) -> Any:
    _for_eigenvalues(x)
    return mx.linalg.eigvals(x, stream=mx.cpu) if _native(x) else _by_numpy(np.linalg.eigvals, x.astype(mx.complex64))


def qr(x: Any, /, *, mode: str = "reduced") -> QRResult:
    _floating(x)
    _matrix(x)
    if mode not in ("reduced", "complete"):
        raise ValueError(f"`mode` must be 'reduced' or 'complete', but got {mode!r}.")
    if mode == "reduced" and _native(x):
        return QRResult(*mx.linalg.qr(x, stream=mx.cpu))
    return QRResult(*_by_numpy(functools.partial(np.linalg.qr, mode=mode), x))


def svd(x: Any, /, *, full_matrices: bool = True) -> SVDResult:
    _floating(x)
    _matrix(x)
    if not x.size:
        return SVDResult(*_by_numpy(functools.partial(np.linalg.svd, full_matrices=full_matrices), x))
    u, s, vh = mx.linalg.svd(x, stream=mx.cpu)
    rank = s.shape[-1]
    return SVDResult(u, s, vh) if full_matrices else SVDResult(u[..., :, :rank], s, vh[..., :rank, :])


def svdvals(x: Any, /) -> Any:
    _floating(x)
    _matrix(x)
    if not x.size:
        return mx.zeros((*x.shape[:-2], min(x.shape[-2:])), mx.float32 if x.dtype in COMPLEX else x.dtype)
    return mx.linalg.svd(x, compute_uv=False, stream=mx.cpu)


def pinv(x: Any, /, *, rtol: Any = None) -> Any:
    u, s, vh = svd(x, full_matrices=False)
    if not x.size:
        return mx.zeros((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)
    kept = s > _cutoff(x, s, rtol)
    inverted = mx.where(kept, 1 / mx.where(kept, s, mx.array(1, s.dtype)), mx.array(0, s.dtype))
    left, right = (matrix_transpose(mx.conj(m) if m.dtype in COMPLEX else m) for m in (vh, u))
    return mx.matmul(left * inverted[..., None, :].astype(x.dtype), right)


def matrix_rank(x: Any, /, *, rtol: Any = None) -> Any:
    s = svdvals(x)
    if not x.size:
        return mx.zeros(x.shape[:-2], DEFAULT_INT)
    return mx.sum((s > _cutoff(x, s, rtol)).astype(DEFAULT_INT), -1)


def _cutoff(x: Any, s: Any, rtol: Any) -> Any:
    """What singular values must exceed to count, of each matrix."""
    if rtol is None:
        rtol = max(x.shape[-2:]) * finfo(x).eps
    rtol = rtol[..., None].astype(s.dtype) if isinstance(rtol, mx.array) else mx.array(rtol, s.dtype)
    return mx.max(s, -1, keepdims=True) * rtol


# --- norms ------------------------------------------------------------------------------------------------------------


def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Any:
    _floating(x)
    size = mx.abs(x)
    if ord == math.inf:
        return mx.max(size, axis, keepdims)
    if ord == -math.inf:
        return mx.min(size, axis, keepdims)
    if ord == 0:
        return mx.sum((size != 0).astype(size.dtype), axis, keepdims)
    if ord == 1:
        return _sum(size, axis=axis, keepdims=keepdims)
    if ord == 2:
        return mx.sqrt(_sum(size * size, axis=axis, keepdims=keepdims))
    return mx.power(_sum(mx.power(size, ord), axis=axis, keepdims=keepdims), 1 / ord)


def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Any:
    _floating(x)
    _matrix(x)
    if ord == "fro":
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord in (1, -1, math.inf, -math.inf):
        first, second = (-2, -1) if abs(ord) == 1 else (-1, -2)
        extreme = mx.max if ord > 0 else mx.min
        norm = extreme(mx.sum(mx.abs(x), first, keepdims=True), second, keepdims=True)
    elif ord in ("nuc", 2, -2):
        reduce = {"nuc": mx.sum, 2: mx.max, -2: mx.min}[ord]
        norm = reduce(svdvals(x), -1, keepdims=True)[..., None]
    else:
        raise ValueError(f"`ord` must be 'fro', 'nuc', 1, -1, 2, -2, inf or -inf, but got {ord!r}.")
    return norm if keepdims else norm.squeeze((-2, -1))


for _name in __all__:
    globals()[_name] = placed(globals()[_name])
