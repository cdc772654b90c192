"""One problem computed by a library and compared with the oracle."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import UnsupportedError, conv2d, get_num_threads, plan_conv2d, set_num_threads
from ..core.array_types import library_of
from ..core.backend import Backend
from ..dispatch import registry
from .arrays import ORDERS_ELSEWHERE, arranged, overlap
from .bounds import assert_close
from .calls import CALL, DIFFERENTIATE, gradients
from .oracle import reference_at, reference_conv2d, reference_gradients
from .problems import CALLS, ORDERS, OUT_DTYPES, Problem, Scope
from .values import make_data

__all__ = ["Outcome", "scope_of", "verify"]

Array = np.ndarray[Any, Any]
WHOLE = 1_500_000  # products up to which every output is compared, and not a sample
SAMPLED = 4_000_000  # products of a sample
DRAWN = 200  # outputs of a sample that lie anywhere


class Outcome(NamedTuple):
    """What became of a problem that did not fail.

    `share` is the largest error as a share of the bound, None for a call that was refused, and `reason` says why.
    `engine` and `tier` are those that computed it.

    Examples
    --------
    >>> from portconv.testing import Problem, verify
    >>> verify(Problem((1, 3, 9, 9), (4, 3, 3, 3), engine="native")).reason
    'NumPy has no convolution of its own'
    """

    share: float | None
    engine: str = ""
    tier: str = ""
    reason: str = ""


# Libraries that take a millisecond for every operation get smaller problems.
_SLOW = {"array_api_strict": (2**22, 2**17), "jax": (2**24, 2**20)}


def scope_of(name: str, device: str | None = None) -> Scope:
    """What there is to draw from for a library: dtypes that it has, memory orders, ways to call, gradients.

    Examples
    --------
    >>> from portconv.testing import scope_of
    >>> scope_of("numpy").engines
    ('gemm', 'winograd', 'direct', 'fft')
    """
    library = registry.get_backend(name)

    def has(dtype: str) -> bool:
        try:
            return library.describe(arranged(library, np.ones(1), dtype, device, "C")).dtype.rstrip("_") == dtype
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return False

    dtypes = tuple(d for d in ("float16", "bfloat16", "float32", "float64") if has(d))
    offered = plan_conv2d((1, 8, 8, 8), (8, 8, 3, 3), backend=library, device=device).candidates
    engines = tuple(c.engine for c in offered if c.why_not is None)
    results = tuple(d for d in OUT_DTYPES if has(d))
    products, elements = _SLOW.get(name, (2**27, 2**23))
    return Scope(
        dtypes,
        tuple(d for d in ("uint8", "int8", "uint16", "int32", "int64", "bool") if has(d)),
        results,
        engines,
        ORDERS if name == "numpy" else ORDERS_ELSEWHERE,
        CALLS if name in DIFFERENTIATE else CALLS[:2],
        True,
        49 if name == "jax" else 2**20,  # XLA compiles hundreds of taps for minutes
        products,
        elements,
    )


def verify(problem: Problem, library: Backend | str = "numpy", device: str | None = None) -> Outcome:
    """Compute a problem, and compare the result with the exact one and with all else that portconv promises.

    The result must be within the bound; of the right library, dtype, shape and device; share no memory with what was
    given; and leave that as it was. No warning may come, and no exception but a `TypeError` or `ValueError` that names
    an argument; a problem without a mistake must not be refused by ``engine="auto"``.

    Parameters
    ----------
    problem
        What to compute.
    library
        A backend, or its name.
    device
        In the library's own words; its default device where there is none.

    Raises
    ------
    AssertionError
        If anything is wrong. The message says what.

    Examples
    --------
    >>> from portconv.testing import Problem, verify
    >>> verify(Problem((1, 3, 9, 9), (4, 3, 3, 3), {"padding": 1}, orders=("F", "C", "C"))).share < 1
    True
    """
    return guarded(problem, registry.get_backend(library), device, _verified)


def guarded(problem: Problem, backend: Backend, device: str | None, check: Callable[..., Outcome]) -> Outcome:
    """What becomes of a problem by ``check(problem, backend, device, arrays, residual)``: see `verify`."""
    try:
        arrays, residual = _arrays(problem, backend, device)
    except (TypeError, ValueError) as error:  # a dtype that the library, or this device, does not have
        return Outcome(None, reason=_one_line(error))
    with warnings.catch_warnings(), _threads(problem.threads):
        warnings.simplefilter("error")
        # PyTorch's, of the thread in which it differentiates, the first time that this one calls a GPU
        warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current CUDA context")
        # PyTorch's own, the first time that it differentiates forward
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        try:
            return check(problem, backend, device, arrays, residual)
        except UnsupportedError as error:
            text = str(error)
            if problem.engine == "auto":
                raise AssertionError(f"refused: {_one_line(error)}") from error
            if not re.search(r"`\w+`", text):
                raise AssertionError(f"the error names no argument: {text}") from error
            reason = re.search(r"cannot run this with the backend '\w+': (.*)\.$", text)
            return Outcome(None, reason=reason[1] if reason else text)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"raised {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


@contextmanager
def _threads(count: int) -> Any:
    """Within it, so many threads; 0 leaves the number alone."""
    before = get_num_threads()
    if count:
        set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)


def _arrays(p: Problem, backend: Backend, device: str | None) -> tuple[list[Any], Any]:
    """Image, weight and bias (or None), and a residual (or None), in the problem's layout and memory orders."""
    data = make_data(p)
    x = in_layout(p, data.x)
    found: list[Any] = []
    for values, dtype, order in zip((x, data.weight, data.bias), p.dtypes, p.orders, strict=True):
        found.append(None if values is None else arranged(backend, np.ascontiguousarray(values), dtype, device, order))
    if p.data == "list as image":
        found[0] = data.x.tolist()
    if p.data == "list as weight":
        found[1] = data.weight.tolist()
    residual = None
    if data.residual is not None:
        values = in_layout(p, data.residual)
        residual = arranged(backend, np.ascontiguousarray(values), p.dtype, device, p.residual)
    return found, residual


def in_layout(p: Problem, a: Array) -> Array:
    """An array whose channels are its second axis, in the problem's layout."""
    return np.moveaxis(a, 1, -1) if p.channels_last else a


def _verified(p: Problem, backend: Backend, device: str | None, arrays: list[Any], residual: Any) -> Outcome:
    x, weight, bias = arrays
    options = p.keywords() | ({} if residual is None else {"residual": residual})
    if p.mistake:
        return _mistaken(p, arrays)
    seen = [None if a is None else np.array(backend.to_numpy(a)) for a in arrays]  # as the library rounded them
    added = None if residual is None else np.array(backend.to_numpy(residual))
    key = repr((replace(p, engine="auto", accuracy="normwise", threads=0), backend.name, device))
    plan = plan_conv2d(x, weight, bias, **options, backend=backend)
    where = plan.engine, plan.tier
    if p.gradient:
        return Outcome(_gradient_share(p, backend, device, arrays, seen, key), *where)
    y = CALL[p.call](p, backend, arrays, options)
    values = checked_result(
        p, backend, y, {"x": x, "weight": weight, "bias": bias, "residual": residual}, [*seen, added]
    )
    readings = _readings(p, backend, backend.describe(x).device, seen, plan.engine)
    shares = [partial(_share, p, values, r, key + n, added) for n, r in readings]
    return Outcome(_first_that_passes(shares), *where)


def checked_result(p: Problem, backend: Backend, y: Any, given: dict[str, Any], seen: Sequence[Array | None]) -> Array:
    """The values of a result, after all checks but those of the values; `seen` are the arguments' before the call."""
    x = given["x"]
    info, image = backend.describe(y), backend.describe(x)
    if library_of(y) != library_of(x):
        raise AssertionError(f"the result is an array of {library_of(y)}")
    if (info.dtype, info.device) != (p.result_dtype, image.device):
        raise AssertionError(f"the result is {info.dtype} on {info.device}, not {p.result_dtype} on {image.device}")
    values = np.asarray(backend.to_numpy(y))
    n, channels, *sizes = p.out_shape
    shape = (n, *sizes, channels) if p.channels_last else p.out_shape
    if tuple(info.shape) != shape or values.shape != shape:
        raise AssertionError(f"the result has shape {info.shape} ({values.shape} in NumPy), not {shape}")
    for (name, array), before in zip(given.items(), seen, strict=True):
        if array is not None and before is not None:
            if not np.array_equal(
                np.asarray(backend.to_numpy(array)), before, equal_nan=before.dtype.kind not in "biu"
            ):
                raise AssertionError(f"the call changed `{name}`")
            if overlap(y, array):
                raise AssertionError(f"the result shares memory with `{name}`")
    return values


def _readings(p: Problem, backend: Backend, device: str, seen: list[Any], engine: str) -> list[tuple[str, list[Any]]]:
    """The arrays as a library may read them, each with a word for it: XLA and CuPy take subnormal numbers for zero.

    XLA does wherever it computes, which on a CPU is under a trace, in gradients and in its own convolution. CuPy's own
    kernels do, and what it calls of CUDA's libraries does not.
    """
    zeros = [None if a is None else _without_subnormals(a) for a in seen]
    if backend.name == "jax" and (
        _by_library(p, backend) or p.call in ("traced", "mapped", "forward") or engine == "native"
    ):
        return [("zeros", zeros)]
    if backend.name == "cupy" or (backend.name == "jax" and not device.startswith("cpu")):
        return [("", seen), ("zeros", zeros)]
    return [("", seen)]


def _by_library(p: Problem, backend: Backend) -> bool:
    """Whether the library differentiates by itself, and not `conv2d_vjp`: of those drawn, every other problem."""
    return p.gradient and backend.name in DIFFERENTIATE and p.seed % 2 == 0


def _first_that_passes(shares: Sequence[Callable[[], float]]) -> float:
    for share in shares[:-1]:
        with suppress(AssertionError):
            return share()
    return shares[-1]()


def _without_subnormals(a: Array) -> Array:
    if a.dtype.kind != "f":
        return a
    tiny = np.finfo(np.float64 if a.dtype == np.float64 else np.float32).tiny
    return np.where(np.abs(a) < tiny, 0, a).astype(a.dtype)


def _mistaken(p: Problem, arrays: list[Any]) -> Outcome:
    try:
        y = conv2d(*arrays, **p.keywords())
    except (TypeError, ValueError) as error:
        if isinstance(error, UnsupportedError) or f"`{p.mistake}`" not in str(error):
            raise AssertionError(f"the error should name `{p.mistake}`, but is {_one_line(error)}") from error
        return Outcome(0.0, "none", "none", _one_line(error))
    raise AssertionError(f"an error that names `{p.mistake}` is expected, but the result is {type(y).__name__}")


def _gradient_share(
    p: Problem, backend: Backend, device: str | None, arrays: list[Any], seen: list[Any], key: str
) -> float:
    """The largest error of the gradients of image, weight and bias, as a share of the bound."""
    options = p.keywords()
    values = make_data(p).dy
    assert values is not None
    dy = backend.from_numpy(np.ascontiguousarray(in_layout(p, values)), dtype=p.result_dtype, device=device)

    cotangent = np.array(backend.to_numpy(dy))  # before: it is the caller's

    def convolve(*arrays: Any) -> Any:
        return conv2d(*arrays, **options)

    if _by_library(p, backend):
        found = DIFFERENTIATE[backend.name](convolve, [a for a in arrays if a is not None], dy)
    else:
        found = gradients(backend, arrays, options, dy)
    if not np.array_equal(cotangent, np.asarray(backend.to_numpy(dy)), equal_nan=True):
        raise AssertionError("the gradients changed the cotangent")
    readings = _readings(p, backend, backend.describe(arrays[0]).device, seen, "")
    return _first_that_passes([partial(_worst, p, backend, found, r, cotangent, key + n) for n, r in readings])


def _worst(p: Problem, backend: Backend, found: Sequence[Any], seen: list[Any], cotangent: Array, key: str) -> float:
    """The largest error of gradients, as a share of the bound, where the arrays are read so."""
    exact = _exact(key, lambda: reference_gradients(seen[0], seen[1], cotangent, **p.arguments))
    worst = 0.0
    for name, dtype, array, gradient, reference in zip(
        ("x", "weight", "bias"), p.dtypes, seen, found, exact, strict=False
    ):
        if array is None or array.dtype.kind not in "fV" or "float" not in dtype:
            continue
        reference = reference.each(partial(np.reshape, shape=array.shape))
        try:
            if backend.describe(gradient).dtype != dtype:
                raise AssertionError(f"its dtype is {backend.describe(gradient).dtype}, not {dtype}")
            worst = max(worst, assert_close(np.asarray(backend.to_numpy(gradient)), reference, dtype=dtype))
        except AssertionError as error:
            raise AssertionError(f"gradient of `{name}`: {error}") from None
    return worst


_known: dict[str, Any] = {}  # the last exact result: all engines have their turn at it


def _exact(key: str, compute: Callable[[], Any]) -> Any:
    if key not in _known:
        _known.clear()
        _known[key] = compute()
    return _known[key]


def _share(p: Problem, values: Array, seen: list[Any], key: str, residual: Any) -> float:
    """The largest error as a share of the bound, of all outputs or of a sample."""
    if p.products <= WHOLE:
        reference = _exact(key, lambda: reference_conv2d(*seen, **p.arguments).finished(p.activation, residual))
        return assert_close(values, reference, dtype=p.result_dtype, accuracy=p.accuracy, computed=p.promoted_dtype)
    positions = _sample(p)
    reference = _exact(key, lambda: reference_at(positions, *seen, **p.arguments))

    def nchw(array: Array) -> Array:
        return array if p.argument("layout") == "NCHW" else array.transpose(0, 3, 1, 2)

    some = None if residual is None else nchw(residual)[positions]
    reference = reference.finished(p.activation, some)
    return assert_close(
        nchw(values)[positions], reference, dtype=p.result_dtype, accuracy=p.accuracy, computed=p.promoted_dtype
    )


def _sample(p: Problem) -> tuple[Array, Array, Array, Array]:
    """Outputs to compare: image, channel, row and column of each.

    Lines along all rows and all columns cross every border of strips, tiles and blocks, wherever an engine has them;
    the edges see the padding; the rest lie anywhere.
    """
    rng = np.random.default_rng(p.seed)
    n, o, height, width = p.out_shape
    terms = p.products // (n * o * height * width)

    def anywhere(count: int) -> list[Array]:
        return [rng.integers(0, size, count) for size in (n, o, height, width)]

    lines = []
    for axis, size, across in ((2, height, width), (3, width, height)):
        for place in (0, across - 1, int(rng.integers(across))):
            line = [np.full(size, int(rng.integers(count))) for count in (n, o)]
            crossing = np.full(size, place)
            lines.append([*line, *((np.arange(size), crossing) if axis == 2 else (crossing, np.arange(size)))])
    corners = np.array(np.meshgrid([0, n - 1], [0, o - 1], [0, height - 1], [0, width - 1])).reshape(4, -1)
    room = max(SAMPLED // terms, 400)
    some = [list(corners), anywhere(DRAWN)]
    for line in (lines[index] for index in rng.permutation(len(lines))):
        if room > 0:
            some.append(line if len(line[0]) <= 2 * room else [part[:: -(-len(line[0]) // room)] for part in line])
            room -= len(line[0])
    image, channel, row, col = (np.concatenate(parts) for parts in zip(*some, strict=True))
    return image, channel, row, col
