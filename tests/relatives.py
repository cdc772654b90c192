"""Random problems of the operations beside `conv2d`: drawn, verified and made smaller, as `portconv.testing` has them.

A problem has the same fields, and the name of its operation. Exact results come from exact_windows.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np

import portconv
from portconv.core.array_types import library_of
from portconv.dispatch import registry
from portconv.testing import Outcome, Problem, assert_close, make_data
from portconv.testing.calls import DIFFERENTIATE, traced
from portconv.testing.problems import ACTIVATIONS, MODES, _Chance, _default, _order
from portconv.testing.values import KERNELS, VALUES
from portconv.testing.verification import _without_subnormals, checked_result, guarded, in_layout
from tests import exact_windows as exact

__all__ = ["OPERATIONS", "Relative", "draw", "fits", "shrink", "verify"]

# Those with a weight, and their axes.
CONVOLUTIONS = {"conv_transpose2d": 2, "conv1d": 1, "conv_transpose1d": 1, "conv3d": 3, "conv_transpose3d": 3}
WINDOWS = ("max_pool2d", "avg_pool2d", "global_avg_pool2d", "interpolate2d")
OPERATIONS = (*CONVOLUTIONS, *WINDOWS)
LAYOUTS = {1: "NWC", 2: "NHWC", 3: "NCDHW"}
PRODUCTS = 2**20  # of one problem: all of its outputs are compared


@dataclass(frozen=True, repr=False)
class Relative(Problem):
    """A call of `operation`, whose `x_shape` is (N, C, *sizes) and whose `weight_shape` is empty where it has none."""

    operation: str = ""

    @property
    def axes(self):
        return CONVOLUTIONS.get(self.operation, 2)

    @property
    def is_transposed(self):
        return "transpose" in self.operation

    @property
    def parts(self):
        """The weight's sizes: groups, outputs and inputs of each, and the kernel."""
        groups = self.arguments.get("groups", 1)
        *rest, second = self.weight_shape[: -self.axes]
        first = math.prod(rest) // groups
        return (groups, *((second, first) if self.is_transposed else (first, second)), *self.weight_shape[-self.axes :])

    @property
    def promoted_dtype(self):
        return super().promoted_dtype if self.weight_shape else self.dtypes[0]

    @property
    def out_shape(self):
        tables = tables_of(self)
        channels = math.prod(self.parts[:2]) if self.weight_shape else self.x_shape[1]
        reads = [table[0] if self.operation == "interpolate2d" else table for table in tables]
        return (self.x_shape[0], channels, *(table.shape[1] for table in reads))


def of_axis(value, axis):
    return value if np.ndim(value) == 0 else value[axis]


def sides_of(p, axis, kernel, stride, dilation):
    """The padding of an axis, before and after."""
    padding, size = p.arguments.get("padding", 0), p.x_shape[2 + axis]
    if padding == "valid":
        return 0, 0
    if padding == "same":
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        return total // 2, total - total // 2
    if p.axes == 1 and np.ndim(padding) == 1:
        return tuple(padding)
    side = of_axis(padding, axis)
    return (side, side) if np.ndim(side) == 0 else tuple(side)


def kernel_of(p, axis):
    """Kernel, stride, dilation and padding of an axis."""
    if p.operation == "global_avg_pool2d":
        return p.x_shape[2 + axis], 1, 1, (0, 0)
    kernel = p.weight_shape[axis - p.axes] if p.weight_shape else of_axis(p.arguments["kernel_size"], axis)
    default = 1 if p.weight_shape else kernel
    stride = of_axis(p.arguments.get("stride", default), axis)
    dilation = of_axis(p.arguments.get("dilation", 1), axis)
    return kernel, stride, dilation, sides_of(p, axis, kernel, stride, dilation)


def tables_of(p):
    """What each output of each axis reads: see exact_windows.py."""
    found, given = [], p.arguments
    for axis, size in enumerate(p.x_shape[2:]):
        if p.operation == "interpolate2d":
            factor = of_axis(given["scale_factor"], axis) if "scale_factor" in given else None
            outputs = of_axis(given["size"], axis) if factor is None else math.floor(size * factor)
            mode, corners = given.get("mode", "bilinear"), given.get("align_corners", False)
            found.append(exact.interpolation_table(size, exact.positions(size, outputs, factor, mode, corners)))
            continue
        kernel, stride, dilation, sides = kernel_of(p, axis)
        if p.is_transposed:
            extra = of_axis(given.get("output_padding", 0), axis)
            found.append(exact.transposed_table(size, kernel, stride, dilation, sides, extra))
            continue
        outputs = None
        if given.get("ceil_mode"):
            outputs = -((dilation * (kernel - 1) + 1 - size - sum(sides)) // stride) + 1
            outputs -= (outputs - 1) * stride >= size + sides[0]
        mode = given.get("padding_mode", "zeros")
        found.append(exact.convolution_table(size, kernel, stride, dilation, sides, mode, outputs))
    return found


def fits(p):
    """Whether the call is one that must succeed, and is soon done."""
    groups, channels = p.arguments.get("groups", 1), p.x_shape[1]
    if p.weight_shape and (groups * p.parts[2] != channels):
        return False
    for axis, size in enumerate(p.x_shape[2:]):
        if p.operation == "interpolate2d":
            if "scale_factor" in p.arguments and size * of_axis(p.arguments["scale_factor"], axis) < 1:
                return False
            continue
        kernel, stride, dilation, sides = kernel_of(p, axis)
        reach, mode = dilation * (kernel - 1) + 1, p.arguments.get("padding_mode", "zeros")
        if p.is_transposed:
            extra = of_axis(p.arguments.get("output_padding", 0), axis)
            if extra >= stride or (size - 1) * stride + reach + extra - sum(sides) < 1:
                return False
        elif size + sum(sides) < reach:
            return False
        if mode in ("reflect", "circular") and max(sides) > size - (mode == "reflect"):
            return False
        if not p.weight_shape and max(sides) >= reach > 0:
            return False
        if p.operation.endswith("3d") and axis == 0:
            table = exact.transposed_table if p.is_transposed else exact.convolution_table
            if not (table(*kernel_of_table(p), *([extra] if p.is_transposed else [])) >= 0).any():
                return False  # no plane of the kernel meets the volume
    if p.operation == "interpolate2d":
        return math.prod(p.out_shape) <= PRODUCTS
    products = math.prod(p.out_shape) * (
        math.prod(p.parts[2:]) if p.weight_shape else math.prod(kernel_of(p, axis)[0] for axis in range(2))
    )
    return products <= PRODUCTS * (1 if p.weight_shape else 4)


def kernel_of_table(p):
    kernel, stride, dilation, sides = kernel_of(p, 0)
    return p.x_shape[2], kernel, stride, dilation, sides


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(seed, number, scope, operation):
    """The problem of this number, the same wherever it is drawn."""
    chance = _Chance(np.random.default_rng([seed, number, OPERATIONS.index(operation)]))
    while True:
        p = (_convolution if operation in CONVOLUTIONS else _window)(chance, scope, operation)
        taps = math.prod(p.parts[3:]) if p.weight_shape else 1
        if fits(p) and not ((p.gradient or p.call == "traced") and taps > scope.traced_taps):
            return replace(p, seed=number)


def _each(chance, axes, *values):
    """An int, or one for each axis."""
    if axes == 1 or chance.under(0.5):
        return int(chance.one_of(*values))
    return tuple(int(chance.one_of(*values)) for _ in range(axes))


def _sizes(chance, axes, gradient):
    most = chance.one_of(4, 9, 9, 20, 20 if gradient else 40) if axes < 3 else chance.one_of(3, 6, 12)
    if axes == 1 and chance.under(0.3):
        most = 400
    return tuple(chance.between(1, most) for _ in range(axes))


def _padding(chance, p, axes, reach):
    kinds = ["none", "int", "each"]
    if axes < 3:
        kinds += ["sides", "valid", *([] if p else ["same"])]
    kind = chance.one_of(*kinds)
    if kind == "none":
        return 0
    if kind in ("valid", "same"):
        return kind
    if kind == "int":
        return chance.between(0, reach)
    if axes == 1:
        return chance.between(0, reach), chance.between(0, reach)
    if kind == "each":
        return tuple(chance.between(0, reach) for _ in range(axes))
    return tuple((chance.between(0, reach), chance.between(0, reach)) for _ in range(axes))


def _plain(arguments):
    """Without what is the default."""
    return {k: v for k, v in arguments.items() if not (v in (0, 1, False, "zeros") and np.ndim(v) == 0)}


def _common(chance, scope, arguments, axes):
    """What all operations have: dtypes, orders, ways to call."""
    if axes < 3 and chance.under(0.3):
        arguments["layout"] = LAYOUTS[axes]
    dtype = chance.one_of(*["float32"] * 3, *scope.dtypes)
    own = "traced" in scope.calls  # whether the library differentiates
    gradient = scope.gradients and chance.under(0.3)
    return dtype, own, gradient


def _convolution(chance, scope, operation):
    axes, turned, volume = CONVOLUTIONS[operation], "transpose" in operation, operation.endswith("3d")
    arguments = {}
    dtype, own, gradient = _common(chance, scope, arguments, axes)
    groups = 1 if chance.under(0.6) else chance.one_of(2, 3, 8, 17)
    outputs, inputs = (chance.one_of(1, 1, 2, 3, 4, 8, 17) for _ in range(2))
    kernel = tuple(chance.one_of(1, 2, 3, 3, 3, 4, 5, 7) for _ in range(axes))
    if axes == 1 and chance.under(0.2):
        kernel = (chance.between(8, 60),)
    stride = _each(chance, axes, 1, 1, 2, 2, 3, 4, 7)
    dilation = 1 if chance.under(0.6) else _each(chance, axes, 1, 2, 3, 5)
    arguments |= {"stride": stride, "dilation": dilation, "groups": groups}
    arguments["padding"] = _padding(chance, turned, axes, max(kernel))
    if turned:
        steps = [of_axis(stride, axis) for axis in range(axes)]
        extra = tuple(chance.between(0, step - 1) for step in steps)
        arguments["output_padding"] = 0 if chance.under(0.5) else extra[0] if axes == 1 else extra
    elif not volume:
        arguments["padding_mode"] = chance.one_of("zeros", *MODES)
    first, second = (inputs, outputs) if turned else (outputs, inputs)
    weight_shape = (groups, first, second, *kernel) if chance.under(0.5) else (groups * first, second, *kernel)
    if groups == 1 and chance.under(0.8):
        weight_shape = (first, second, *kernel)
    total, ones = groups * outputs, (1,) * axes
    spread = gradient or "padding_mode" not in arguments or arguments["padding_mode"] == "zeros"
    p = Relative(
        (chance.one_of(1, 1, 1, 2, 3) if chance.under(0.97) else 0, groups * inputs, *_sizes(chance, axes, gradient)),
        weight_shape,
        _plain(arguments),
        "auto" if chance.under(0.6) else chance.one_of(*scope.engines),
        dtype=dtype,
        x_dtype=""
        if chance.under(0.8)
        else chance.one_of(*scope.dtypes, *([] if volume or gradient else scope.x_dtypes)),
        bias_shape=chance.one_of(None, (total,), (1, total, *ones)),
        data=_values(chance, VALUES, gradient),
        kernel=_values(chance, KERNELS, spread),
        orders=tuple(_order(chance, scope, share) for share in (0.6, 0.3, 0.2)),
        call="traced" if own and not gradient and chance.under(0.3) else "plain",
        gradient=gradient,
        threads=chance.one_of(0, 1, 2),
        operation=operation,
    )
    if p.engine not in ("winograd", "fft") and chance.under(0.25):
        p = replace(p, accuracy="elementwise")
    if gradient or volume or chance.under(0.6):
        return p
    if p.call == "plain" and scope.out_dtypes and chance.under(0.4):
        p = replace(p, out_dtype=chance.one_of(*scope.out_dtypes))
    residual = str(chance.one_of(*scope.orders)) if chance.under(0.4) else ""
    return replace(p, activation=chance.one_of(None, *ACTIVATIONS, ("leaky_relu", 0.2)), residual=residual)


def _values(chance, kinds, finite):
    some = [kind for kind in kinds if kind != "overflow" and not (finite and kind in ("nan", "inf"))]
    return "normal" if chance.under(0.4) else chance.one_of(*some)


def _window(chance, scope, operation):
    arguments = {}
    dtype, own, gradient = _common(chance, scope, arguments, 2)
    gradient = gradient and own
    size = _sizes(chance, 2, gradient)
    if not gradient and chance.under(0.2):  # strips, and all threads
        size = tuple(chance.between(100, 500) for _ in range(2))
    if "pool2d" in operation and operation != "global_avg_pool2d":
        kernel = _each(chance, 2, 1, 2, 2, 3, 3, 3, 4, 5, 13)
        arguments |= {"padding": _padding(chance, False, 2, 3), "ceil_mode": chance.under(0.3)}
        if chance.under(0.7):
            arguments["stride"] = _each(chance, 2, 1, 2, 2, 3, 5)
        if operation == "max_pool2d" and chance.under(0.3):
            arguments["dilation"] = _each(chance, 2, 1, 2, 3)
        if operation == "avg_pool2d" and chance.under(0.5):
            arguments["mode"] = "average"
        stride = arguments.pop("stride", None)
        arguments = {"kernel_size": kernel, **_plain(arguments), **({} if stride is None else {"stride": stride})}
    nearest = False
    if operation == "interpolate2d":
        nearest = chance.under(0.4)
        if chance.under(0.5):
            most = max(2 * max(size), 4) if max(size) < 100 else 600
            arguments["size"] = _each(chance, 2, *(chance.log_between(1, most) for _ in range(4)))
        else:
            factors = (0.3, 0.5, 0.9, 1, 1.1, 1.7, 2, 2.0, 3, 4.5)
            both = chance.one_of(*factors), chance.one_of(*factors)
            arguments["scale_factor"] = both[0] if chance.under(0.5) else both
        if nearest:
            arguments["mode"] = "nearest"
        elif chance.under(0.5):
            arguments["align_corners"] = True
    exactly = nearest or operation == "max_pool2d"
    kinds = [kind for kind in VALUES if kind not in ("overflow", *([] if exactly else ["nan", "inf"]))]
    if gradient and exactly and dtype not in ("float32", "float64"):
        dtype = "float32"  # others are differentiated in steps that round
    call = "traced" if own and not gradient and chance.under(0.3) else "plain"
    whole = exactly and not gradient and call == "plain" and chance.under(0.2)  # PyTorch traces no integers
    integers = [name for name in scope.x_dtypes if name != "bool"]
    return Relative(
        (chance.one_of(1, 1, 2, 3) if chance.under(0.97) else 0, chance.one_of(1, 2, 3, 8, 17), *size),
        (),
        arguments,
        dtype=dtype,
        x_dtype=chance.one_of(*integers) if whole and integers else "",
        data=_values(chance, kinds, gradient),
        orders=(_order(chance, scope, 0.6), "C", "C"),
        call=call,
        gradient=gradient,
        threads=chance.one_of(0, 1, 2),
        operation=operation,
    )


# --- verifying --------------------------------------------------------------------------------------------------------


def verify(problem, library="numpy", device=None):
    """Compute a problem, and compare: see `portconv.testing.verify`."""
    return guarded(problem, registry.get_backend(library), device, _verified)


def _verified(p, backend, device, arrays, residual):
    function = getattr(portconv, p.operation)
    options = p.keywords() | ({} if residual is None else {"residual": residual})
    if not p.weight_shape:
        arrays = arrays[:1]
    seen = [None if a is None else np.array(backend.to_numpy(a)) for a in (*arrays, residual)]
    if p.gradient:
        return Outcome(_gradient_share(p, backend, device, arrays, seen, function, options), p.engine)

    def call(*arrays):
        return function(*arrays, **options)

    y = traced(backend, call, [a for a in arrays if a is not None]) if p.call == "traced" else call(*arrays)
    names = dict(
        zip(("x", "weight", "bias", "residual"), (*arrays, *[None] * (3 - len(arrays)), residual), strict=True)
    )
    seen = [*seen[:-1], *[None] * (4 - len(seen)), seen[-1]]
    values = checked_result(p, backend, y, names, seen)
    values = np.moveaxis(values, -1, 1) if p.channels_last else values
    return Outcome(_nearest(p, backend, seen, partial(_share, p, values)), p.engine)


def _nearest(p, backend, seen, share):
    """The share of the bound, for the arrays as they are, or as a library reads them that has no subnormal numbers."""
    try:
        return share(seen)
    except AssertionError:
        if backend.name not in ("jax", "cupy") or (backend.name == "jax" and p.call == "plain" and not p.gradient):
            raise
        return share([None if a is None else _without_subnormals(a) for a in seen])


def _arguments(p, seen):
    """Image, weight (G, O/G, I/G, *kernel), bias, with the channels second."""
    x = np.moveaxis(seen[0], -1, 1) if p.channels_last else seen[0]
    x = x.astype("f4") if x.dtype.kind == "V" else x  # bfloat16
    if not p.weight_shape:
        return x, None, None
    weight = seen[1].reshape(p.parts[0], -1, *p.weight_shape[-p.axes - 1 :])
    return x, weight.swapaxes(1, 2) if p.is_transposed else weight, seen[2]


def _counts(p):
    """By what the sums of each axis are divided."""
    found = []
    for axis, table in enumerate(tables_of(p)):
        kernel, stride, _, (before, after) = kernel_of(p, axis)
        if p.arguments.get("mode") == "average":
            starts = stride * np.arange(table.shape[1]) - before
            found.append(np.minimum(starts + kernel, p.x_shape[2 + axis] + after) - starts)
        else:
            found.append((table >= 0).sum(axis=0))
    return found


def _reference(p, seen):
    x, weight, bias = _arguments(p, seen)
    tables = tables_of(p)
    if p.weight_shape:
        residual = None if seen[3] is None else np.moveaxis(seen[3], -1, 1) if p.channels_last else seen[3]
        return exact.convolution(x, weight, bias, tables).finished(p.activation, residual)
    if p.operation == "max_pool2d":
        return exact.largest(x, tables)
    if p.operation != "interpolate2d":
        return exact.average(x, tables, _counts(p))
    return exact.nearest(x, tables) if p.arguments.get("mode") == "nearest" else exact.interpolation(x, tables)


def _share(p, values, seen):
    accuracy, computed = p.accuracy, p.promoted_dtype
    return assert_close(values, _reference(p, seen), dtype=p.result_dtype, accuracy=accuracy, computed=computed)


def _references(p, seen, dy):
    """The exact gradients."""
    x, weight, _ = _arguments(p, seen)
    tables = tables_of(p)
    if p.weight_shape:
        of_x, of_weight, of_bias = exact.convolution_gradients(x, weight, dy, tables)
        if p.is_transposed:
            of_weight = of_weight.each(lambda a: a.swapaxes(1, 2))
        return of_x, of_weight, of_bias
    if p.operation == "max_pool2d":
        return [exact.largest_gradient(x, dy, tables)]
    if p.operation == "interpolate2d":
        return [exact.interpolation_gradient(p.x_shape, dy, tables)]
    return [exact.average_gradient(p.x_shape, dy, tables, _counts(p))]


def _gradient_share(p, backend, device, arrays, seen, function, options):
    cotangent = make_data(p).dy
    dy = backend.from_numpy(np.ascontiguousarray(in_layout(p, cotangent)), dtype=p.result_dtype, device=device)
    pulled = getattr(portconv, f"{p.operation}_vjp", None)
    if backend.name in DIFFERENTIATE and (pulled is None or p.seed % 2 == 0):
        given = [a for a in arrays if a is not None]
        found = DIFFERENTIATE[backend.name](lambda *arrays: function(*arrays, **options), given, dy)
    elif pulled is None:
        return 0.0
    else:
        found = pulled(*arrays, **options)[1](dy)
    return _nearest(p, backend, seen, partial(_worst, p, backend, arrays, list(found), cotangent))


def _worst(p, backend, arrays, found, cotangent, seen):
    worst = 0.0
    references = _references(p, seen, cotangent)
    for name, dtype, array, gradient, reference in zip(
        ("x", "weight", "bias"), p.dtypes, arrays, found, references, strict=False
    ):
        if array is None or "float" not in dtype:
            continue
        assert library_of(gradient) == library_of(array), f"gradient of `{name}`: an array of {library_of(gradient)}"
        values = np.asarray(backend.to_numpy(gradient))
        values = np.moveaxis(values, -1, 1) if name == "x" and p.channels_last else values
        shape = p.x_shape if name == "x" else tuple(array.shape)
        try:
            assert values.shape == shape, f"shape {values.shape}, not {shape}"
            assert backend.describe(gradient).dtype == dtype, f"its dtype is {backend.describe(gradient).dtype}"
            reference = reference.each(partial(np.reshape, shape=shape))
            worst = max(worst, assert_close(values, reference, dtype=dtype))
        except AssertionError as error:
            raise AssertionError(f"gradient of `{name}`: {error}") from None
    return worst


# --- making smaller ---------------------------------------------------------------------------------------------------


def shrink(p, fails, seconds=60.0):
    """A problem that still fails, with as little in it as was found in so many seconds."""
    import time

    end, again = time.monotonic() + seconds, True
    while again:
        again = False
        for simpler in _simpler(p):
            if time.monotonic() > end:
                return p
            if simpler != p and fits(simpler) and fails(simpler):
                p, again = simpler, True
                break
    return p


def _simpler(p):
    names = ("call", "gradient", "threads", "accuracy", "x_dtype", "out_dtype", "activation", "residual", "dtype",
             "data", "kernel", "engine", "orders", "bias_shape")  # fmt: skip
    defaults = {f.name: _default(f) for f in fields(p)[2:]} | {"call": "plain"}
    for name in names:
        yield replace(p, **{name: defaults[name]})
    for name in p.arguments:
        if name not in ("groups", "kernel_size", "size", "scale_factor"):
            yield replace(p, arguments={key: value for key, value in p.arguments.items() if key != name})
    for axis, size in enumerate(p.x_shape):
        for new in (1, size // 2, size - 1):
            if 0 < new < size and (axis != 1 or not p.weight_shape):
                yield replace(p, x_shape=(*p.x_shape[:axis], new, *p.x_shape[axis + 1 :]))
    if not p.weight_shape:
        return
    for place, value in enumerate(p.parts):
        for new in (1, value // 2, value - 1):
            if 0 < new < value:
                yield _with(p, *p.parts[:place], new, *p.parts[place + 1 :])


def _with(p, groups, outputs, inputs, *kernel):
    first, second = (inputs, outputs) if p.is_transposed else (outputs, inputs)
    grouped = len(p.weight_shape) == p.axes + 3
    total = groups * outputs
    arguments = {name: value for name, value in p.arguments.items() if name != "groups"}
    return replace(
        p,
        x_shape=(p.x_shape[0], groups * inputs, *p.x_shape[2:]),
        weight_shape=(groups, first, second, *kernel) if grouped else (groups * first, second, *kernel),
        bias_shape=None if p.bias_shape is None else (total,) if len(p.bias_shape) == 1 else (1, total, *[1] * p.axes),
        arguments=arguments | ({"groups": groups} if groups > 1 else {}),
    )
