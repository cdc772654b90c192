"""What tests of convolutions need, portconv's own and others': a float64 oracle, the bound, the check of a backend.

The oracle shares no code with the engines: it is a sum over the taps of a padded copy of the image, in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import registry
from .backend import Backend
from .functional import conv2d, plan_conv2d
from .spec import Conv2dSpec

__all__ = ["CheckResult", "assert_close", "check_backend", "error_bound", "reference_conv2d", "reference_gradients"]

Array = np.ndarray[Any, Any]

_NUMPY_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_EPS = {"float64": float(np.finfo(np.float64).eps)}
_EPS32 = float(np.finfo(np.float32).eps)
# Half the distance between neighbours, relative: what rounding the result to its dtype adds.
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float16": 2.0**-25, "bfloat16": 2.0**-134}  # half the smallest subnormal number


def reference_conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> tuple[Array, Array]:
    """The convolution as a direct sum in float64, and ``c = sum |x| |w|`` (plus ``|bias|``) for every output.

    The arguments are those of `portconv.conv2d`, as NumPy arrays. Both results are in `layout`.

    Examples
    --------
    >>> import numpy as np
    >>> y, c = reference_conv2d(-np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)))
    >>> float(y[0, 0, 0, 0]), float(c[0, 0, 0, 0])
    (-9.0, 9.0)
    """
    spec = Conv2dSpec.normalise(stride, padding, dilation, groups, padding_mode=padding_mode, layout=layout)
    x64, w64 = _in_float64(x, weight, spec)
    padded = _padded(x64, w64, spec)
    y, c = _direct_sum(padded, w64, spec), _direct_sum(np.abs(padded), np.abs(w64), spec)
    if bias is not None:
        b64 = np.asarray(bias, np.float64).reshape(1, -1, 1, 1)
        y, c = y + b64, c + np.abs(b64)
    return (y, c) if layout == "NCHW" else (y.transpose(0, 2, 3, 1), c.transpose(0, 2, 3, 1))


def _in_float64(x: Any, weight: Any, spec: Conv2dSpec) -> tuple[Array, Array]:
    """The image in NCHW and the weight in (G, O/G, I/G, kh, kw)."""
    x64, w64 = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    x64 = x64.transpose(0, 3, 1, 2) if spec.layout == "NHWC" else x64
    return x64, w64.reshape(spec.groups, -1, *w64.shape[-3:])


def _padded(x: Array, weight: Array, spec: Conv2dSpec) -> Array:
    top, bottom, left, right = spec.sides(x.shape[2], x.shape[3], weight.shape[-2:])
    sides = ((0, 0), (0, 0), (top, bottom), (left, right))
    return np.pad(x, sides, mode=_NUMPY_PAD[spec.padding_mode])  # type: ignore[call-overload, no-any-return]


def _direct_sum(x: Array, weight: Array, spec: Conv2dSpec) -> Array:
    (sh, sw), (dh, dw) = spec.stride, spec.dilation
    groups, group_outputs, group_inputs, kh, kw = weight.shape
    n, _, height, width = x.shape
    oh, ow = (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
    x = x.reshape(n, groups, group_inputs, height, width)
    y = np.zeros((n, groups, group_outputs, oh, ow))
    with np.errstate(all="ignore"):
        for i in range(kh):
            for j in range(kw):
                part = x[:, :, :, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
                y += np.einsum("ngihw,goi->ngohw", part, weight[..., i, j], optimize=False)
    return y.reshape(n, groups * group_outputs, oh, ow)


def reference_gradients(
    x: Any,
    weight: Any,
    dy: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> tuple[tuple[Array, Array], tuple[Array, Array], tuple[Array, Array]]:
    """Gradients of ``sum(dy * conv2d(x, weight, bias, ...))`` in float64: of the image, the weight and the bias.

    Each comes with the sum of its terms' magnitudes, as `reference_conv2d` gives it. `dy` and the gradient of the image
    are in `layout`; the gradient of the weight has its shape, and that of the bias is (O,).

    Examples
    --------
    >>> import numpy as np
    >>> (dx, _), (dweight, _), (dbias, _) = reference_gradients(
    ...     np.ones((1, 1, 3, 3)), -np.ones((1, 1, 3, 3)), np.full((1, 1, 1, 1), 2.0)
    ... )
    >>> float(dx[0, 0, 0, 0]), float(dweight[0, 0, 0, 0]), float(dbias[0])
    (-2.0, 2.0, 2.0)
    """
    spec = Conv2dSpec.normalise(stride, padding, dilation, groups, padding_mode=padding_mode, layout=layout)
    x64, w64 = _in_float64(x, weight, spec)
    dy64 = np.asarray(dy, np.float64)
    dy64 = dy64.transpose(0, 3, 1, 2) if layout == "NHWC" else dy64
    # which pixel each of the padded image is, counted from 1; 0 in the padding with zeros
    height, width = x64.shape[2:]
    pixels = np.arange(1, height * width + 1, dtype=np.float64).reshape(1, 1, height, width)
    sources = _padded(pixels, w64, spec).astype(np.int64)[0, 0]
    found = []
    for image, factors, weights in ((x64, w64, dy64), (np.abs(x64), np.abs(w64), np.abs(dy64))):
        d_padded, d_weight = _direct_gradients(_padded(image, factors, spec), factors, weights, spec)
        d_x = np.zeros((1 + height * width, *x64.shape[:2]))
        np.add.at(d_x, sources, d_padded.transpose(2, 3, 0, 1))
        d_x = d_x[1:].transpose(1, 2, 0).reshape(x64.shape)
        d_x = d_x.transpose(0, 2, 3, 1) if layout == "NHWC" else d_x
        found.append((d_x, d_weight.reshape(np.shape(weight)), weights.sum(axis=(0, 2, 3))))
    of_x, of_weight, of_bias = zip(*found, strict=True)
    return of_x, of_weight, of_bias


def _direct_gradients(x: Array, weight: Array, dy: Array, spec: Conv2dSpec) -> tuple[Array, Array]:
    """Of a padded image and of the weight."""
    (sh, sw), (dh, dw) = spec.stride, spec.dilation
    groups, group_outputs, group_inputs, kh, kw = weight.shape
    n, _, height, width = x.shape
    oh, ow = dy.shape[2:]
    x = x.reshape(n, groups, group_inputs, height, width)
    dy = dy.reshape(n, groups, group_outputs, oh, ow)
    d_x, d_weight = np.zeros_like(x), np.zeros_like(weight)
    for i in range(kh):
        for j in range(kw):
            rows, cols = (slice(i * dh, i * dh + (oh - 1) * sh + 1, sh), slice(j * dw, j * dw + (ow - 1) * sw + 1, sw))
            d_weight[..., i, j] = np.einsum("ngihw,ngohw->goi", x[..., rows, cols], dy, optimize=False)
            d_x[..., rows, cols] += np.einsum("ngohw,goi->ngihw", dy, weight[..., i, j], optimize=False)
    return d_x.reshape(n, groups * group_inputs, height, width), d_weight


def error_bound(c: Array, dtype: str, accuracy: str = "normwise") -> Array:
    """The largest error that portconv allows itself at every output, for `c` of `reference_conv2d`.

    ``8 eps c``, and with ``accuracy="normwise"`` ``24 eps max(c)`` besides, the maximum over each image. `eps` is that
    of float32 for float16 and bfloat16, whose own rounding is not included: see `assert_close`.
    """
    eps = _EPS.get(dtype, _EPS32)
    bound = 8 * eps * c
    if accuracy == "normwise" and c.size:
        bound = bound + 24 * eps * np.max(c, axis=tuple(range(1, c.ndim)), keepdims=True)
    return np.asarray(bound)


def assert_close(
    actual: Array, expected: Array, c: Array, *, dtype: str | None = None, accuracy: str = "normwise"
) -> float:
    """Raise `AssertionError` unless `actual` is within the bound at every output; return the largest share of it used.

    Parameters
    ----------
    actual
        A result as a NumPy array.
    expected, c
        What `reference_conv2d` gives.
    dtype
        Name of the result's dtype, if it is not that of `actual` (bfloat16, which NumPy lacks).
    accuracy
        ``"normwise"`` or ``"elementwise"``.
    """
    name = dtype or actual.dtype.name
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {actual.shape}, expected {expected.shape}")
    finite = np.isfinite(expected)
    got = actual.astype(np.float64)
    if not np.array_equal(finite, np.isfinite(got)) or not np.array_equal(
        got[~finite], expected[~finite], equal_nan=True
    ):
        wrong = int(np.sum(finite != np.isfinite(got)))
        raise AssertionError(
            f"{wrong} outputs are finite in one of the two and not in the other, or infinite values differ"
        )
    bound = error_bound(np.where(np.isfinite(c), c, 0), name, accuracy)
    if name in _ROUNDING:
        bound = bound + np.where(finite, np.abs(expected), 0) * _ROUNDING[name] + _SMALLEST[name]
    error = np.abs(np.where(finite, got, 0) - np.where(finite, expected, 0))
    share = np.divide(error, bound, out=np.where(error > 0, np.inf, 0.0), where=bound > 0)
    worst = float(np.max(share, initial=0.0))
    if worst > 1:
        where = tuple(int(i) for i in np.unravel_index(int(np.argmax(share)), share.shape))
        raise AssertionError(
            f"at {where}: got {float(got[where])!r}, expected {float(expected[where])!r}; the error {error[where]:.3g} "
            f"is {worst:.3g} times the bound {bound[where]:.3g} ({accuracy}, {name})"
        )
    return worst


class CheckResult(NamedTuple):
    """One problem that `check_backend` ran: the largest share of the bound used."""

    engine: str
    problem: str
    worst: float


# (x shape, weight shape, arguments): small, and every rule of the semantics once
_CHECKS: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((2, 3, 7, 9), (4, 3, 3, 3), {"padding": 1}),
    ((1, 4, 8, 8), (6, 4, 1, 1), {}),
    ((1, 3, 11, 10), (5, 3, 4, 3), {"stride": (2, 3), "padding": (2, 1)}),
    ((1, 2, 13, 12), (3, 2, 3, 2), {"dilation": (2, 3), "padding": 2}),
    ((2, 6, 9, 9), (3, 4, 2, 3, 3), {"groups": 3, "padding": 1}),
    ((1, 5, 9, 8), (5, 2, 1, 3, 5), {"groups": 5, "padding": (1, 2), "stride": 2}),
    ((1, 2, 8, 9), (2, 2, 3, 3), {"padding": (2, 3), "padding_mode": "reflect"}),
    ((1, 2, 5, 6), (2, 2, 3, 3), {"padding": (6, 7), "padding_mode": "replicate"}),
    ((1, 2, 6, 5), (2, 2, 3, 3), {"padding": (6, 2), "padding_mode": "circular"}),
    ((1, 3, 10, 7), (2, 3, 3, 3), {"padding": ((0, 2), (1, 0))}),
    ((1, 3, 10, 7), (2, 3, 4, 3), {"padding": "same", "stride": 2}),
    ((1, 2, 40, 36), (2, 2, 15, 17), {"padding": 8}),
    ((1, 40, 14, 14), (16, 40, 3, 3), {"padding": 1}),
    ((0, 2, 6, 6), (3, 2, 3, 3), {}),
)


def check_backend(backend: Backend | str, *, dtypes: tuple[str, ...] = ("float32",)) -> list[CheckResult]:
    """Verify a backend: every engine that it offers, on problems that cover every rule, against the float64 oracle.

    Parameters
    ----------
    backend
        The backend, or its name.
    dtypes
        Dtypes to try, of those that the library has.

    Returns
    -------
    list of CheckResult
        One for every engine, problem, layout and dtype that ran.

    Raises
    ------
    AssertionError
        At the first result that is wrong, and for a backend that breaks the protocol.

    Examples
    --------
    >>> import portconv.testing
    >>> results = portconv.testing.check_backend("numpy")
    >>> sorted({r.engine for r in results})
    ['direct', 'fft', 'gemm', 'winograd']
    """
    library = registry.get_backend(backend)
    _check_protocol(library)
    results = []
    rng = np.random.default_rng(2024)
    for dtype in dtypes:
        for x_shape, weight_shape, options in _CHECKS:
            x, weight = (rng.standard_normal(shape).astype("float32") for shape in (x_shape, weight_shape))
            bias = rng.standard_normal((1, _outputs(weight_shape), 1, 1)).astype("float32")
            for layout in ("NCHW", "NHWC"):
                image = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
                results += _check_problem(library, dtype, image, weight, bias, options | {"layout": layout})
    if not results:
        raise AssertionError(f"the backend {library.name!r} offers no engine for any problem")
    return results


def _outputs(weight_shape: tuple[int, ...]) -> int:
    return weight_shape[0] * weight_shape[1] if len(weight_shape) == 5 else weight_shape[0]


def _check_protocol(library: Backend) -> None:
    if not isinstance(library, Backend):
        raise AssertionError(f"{type(library).__name__} lacks members of portconv.backend.Backend")
    values = np.arange(6, dtype="float32").reshape(2, 3)
    array = library.from_numpy(values, dtype="float32")
    info = library.describe(array)
    if (info.shape, info.dtype) != ((2, 3), "float32"):
        raise AssertionError(f"describe() of a (2, 3) float32 array gave {info}")
    if not np.array_equal(library.to_numpy(array), values):
        raise AssertionError("to_numpy(from_numpy(x)) changed the values")
    try:
        library.describe("not an array")
    except TypeError:
        return
    raise AssertionError("describe() of a string raised no TypeError")


def _check_problem(
    library: Backend, dtype: str, x: Array, weight: Array, bias: Array, options: dict[str, Any]
) -> list[CheckResult]:
    def convert(value: Array) -> Any:
        return library.from_numpy(value, dtype=dtype)

    arrays = [convert(value) for value in (x, weight, bias)]
    device = library.describe(arrays[0]).device
    # what the library holds after rounding to its dtype is what the oracle must see
    seen = [library.to_numpy(array) for array in arrays]
    expected, c = reference_conv2d(*seen, **options)
    plan = plan_conv2d(x.shape, weight.shape, True, **options, dtype=dtype, backend=library, device=device)
    if hasattr(library, "environment"):
        environment = library.environment(plan.problem)
        if not all(isinstance(word, str) for item in environment.items() for word in item):
            raise AssertionError(f"environment() must give strings by strings, but gave {environment!r}")
    results = []
    for candidate in plan.candidates:
        if candidate.why_not is not None:
            continue
        what = f"{candidate.engine} on x {x.shape}, weight {weight.shape}, {options}, {dtype}"
        y = conv2d(*arrays, **options, engine=candidate.engine, backend=library)
        info = library.describe(y)
        if (info.dtype, info.device) != (dtype, device):
            raise AssertionError(f"{what}: the result is {info.dtype} on {info.device}, expected {dtype} on {device}")
        try:
            worst = assert_close(library.to_numpy(y), expected, c, dtype=dtype)
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from None
        results.append(CheckResult(candidate.engine, what, worst))
    return results
