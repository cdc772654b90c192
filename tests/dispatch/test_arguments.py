"""Every rule about wrong arguments: the type of the error, what its message says, and that nothing ran before it."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import UnsupportedError
from portconv.dispatch.arguments import Conv2dSpec, normalised
from tests.helpers import ones, refused, show

X, WEIGHT, BIAS = ones(1, 4, 8, 9), ones(6, 4, 3, 3), ones(1, 6, 1, 1)


# --- sizes and modes: the same for the function and the module --------------------------------------------------------

WRONG_KINDS = [
    1.0,
    3.7,
    "1",
    True,
    False,
    np.True_,
    None,
    (1.0, 1.0),
    ("1", "1"),
    (True, 1),
    {1: 2},
    object(),
    1j,
    np.float32(1),
    np.array([1.0, 2.0]),
]
WRONG_COUNTS = [(), (1,), (1, 1, 1), [1, 1, 1, 1], np.array([1, 1, 1])]

SIZES = [(name, value, TypeError) for name in ("stride", "padding", "dilation", "kernel_size") for value in WRONG_KINDS]
SIZES.remove(("padding", "1", TypeError))  # a string is the right kind of thing for `padding`, and this the wrong value
SIZES += [
    (name, value, ValueError) for name in ("stride", "padding", "dilation", "kernel_size") for value in WRONG_COUNTS
]
SIZES += [
    (name, value, ValueError)
    for name in ("stride", "dilation", "kernel_size")
    for value in (0, -1, (1, 0), (-2, 1), np.array([0, 1]))
]
SIZES += [
    ("padding", value, ValueError)
    for value in (-1, (0, -1), ((0, 0), (0, -1)), ((1, 2), (3,)), ((1, 1), (1, 1), (1, 1)))
]
SIZES += [("padding", value, ValueError) for value in ("SAME", "full", "", "1")]
SIZES += [("padding", value, TypeError) for value in (((1.0, 1), (1, 1)), ((True, 1), (1, 1)), (("1", 1), (1, 1)))]
SIZES += [(name, 2**70, ValueError) for name in ("stride", "padding", "dilation", "kernel_size")]
SIZES += [("groups", value, TypeError) for value in (1.0, "1", True, None, (1, 1), np.array([1, 1]))]
SIZES += [("groups", value, ValueError) for value in (0, -1)]
SIZES += [
    (name, value, TypeError) for name in ("in_channels", "out_channels") for value in (4.0, "4", True, None, (4,))
]
SIZES += [(name, value, ValueError) for name in ("in_channels", "out_channels") for value in (0, -4)]

MODES = {
    "conv_mode": ("convolution", "cross_correlation"),
    "compute_mode": ("float16", "float32"),
    "padding_mode": ("constant", "replicate"),
    "layout": ("HWCN", "NHWC"),
    "accuracy": ("high", "elementwise"),
    "strategy": ("fastest", "measure"),
}
CHOICES = [(name, wrong, ValueError, allowed) for name, (wrong, allowed) in MODES.items()]
CHOICES += [
    (name, value, TypeError, allowed) for name, (_, allowed) in MODES.items() for value in (None, 1, ("zeros",))
]
CHOICES += [("engine", value, TypeError, "gemm") for value in (None, 1, ("gemm",))]
CHOICES += [("padding_mode", "ZEROS", ValueError, "zeros"), ("layout", "nchw", ValueError, "NCHW")]


@pytest.mark.parametrize(("name", "value", "error"), SIZES, ids=show)
def test_sizes(nothing_runs, name, value, error):
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    refused(error, [f"`{name}"], lambda: portconv.Conv2d(**{**arguments, name: value}))
    if name not in arguments:
        refused(error, [f"`{name}"], portconv.conv2d, X, WEIGHT, **{name: value})
        refused(error, [f"`{name}"], portconv.conv2d_output_shape, X.shape, WEIGHT.shape, **{name: value})
        refused(error, [f"`{name}"], portconv.plan_conv2d, X.shape, WEIGHT.shape, **{name: value})


@pytest.mark.parametrize(("name", "value", "error", "allowed"), CHOICES, ids=show)
def test_modes(nothing_runs, name, value, error, allowed):
    fragments = [f"`{name}`", repr(allowed), repr(value)]
    refused(error, fragments, portconv.conv2d, X, WEIGHT, **{name: value})
    refused(error, fragments, portconv.plan_conv2d, X.shape, WEIGHT.shape, **{name: value})
    refused(error, fragments, portconv.Conv2d, 4, 6, 3, **{name: value})


def test_modes_are_checked_before_the_arrays(nothing_runs):
    refused(ValueError, ["`stride`"], portconv.conv2d, [1, 2], "weight", stride=0)


@pytest.mark.parametrize(
    ("value", "pair"),
    [
        (np.int64(2), (2, 2)), (np.uint8(2), (2, 2)), (np.array(2), (2, 2)), ([2, 3], (2, 3)),
        (np.array([2, 3]), (2, 3)),
        ((np.int32(2), 3), (2, 3)),
    ],
    ids=show,
)  # fmt: skip
def test_integers_of_every_kind_are_sizes(value, pair):
    module = portconv.Conv2d(4, 6, value, stride=value, padding=value, dilation=value, groups=np.int64(2))
    for attribute in (module.kernel_size, module.stride, module.padding, module.dilation):
        assert attribute == pair
        assert [type(item) for item in attribute] == [int, int]
    assert module.groups == 2
    assert type(module.groups) is int
    weight = ones(6, 4, 3, 3)
    expected = portconv.conv2d_output_shape((1, 4, 20, 20), weight.shape, pair, pair, pair)
    assert portconv.conv2d(ones(1, 4, 20, 20), weight, None, value, value, value).shape == expected


@pytest.mark.parametrize("dtype", ["int32", "float8", "float", 32, np.int64, np.complex64, ""])
def test_dtype(dtype):
    refused(TypeError, ["`dtype`", "float32"], portconv.Conv2d, 4, 6, 3, dtype=dtype)
    refused(TypeError, ["`dtype`", "float32"], portconv.plan_conv2d, X.shape, WEIGHT.shape, dtype=dtype)


# --- arrays -----------------------------------------------------------------------------------------------------------

NO_ARRAYS = [
    [[[[1.0]]]],
    ((((1.0,),),),),
    1,
    1.5,
    "x",
    b"x",
    None,
    {},
    object(),
    range(4),
    memoryview(b"abcd"),
    np.ndarray,
    np.float32(1),
]


@pytest.mark.parametrize("value", NO_ARRAYS, ids=show)
def test_what_is_no_array(nothing_runs, value):
    refused(TypeError, ["`x`", type(value).__name__], portconv.conv2d, value, WEIGHT)
    refused(TypeError, ["`weight`", type(value).__name__], portconv.conv2d, X, value)
    if value is not None:
        refused(TypeError, ["`bias`", type(value).__name__], portconv.conv2d, X, WEIGHT, value)
    refused(TypeError, ["`x`", type(value).__name__], portconv.Conv2d(4, 6, 3), value)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("kind", ["masked", "matrix"])
def test_numpy_arrays_with_another_meaning(nothing_runs, kind):
    def convert(value):
        return np.ma.masked_array(value) if kind == "masked" else np.asmatrix(value.reshape(value.shape[0], -1))

    name = "MaskedArray" if kind == "masked" else "matrix"
    refused(TypeError, ["`x`", name], portconv.conv2d, convert(X), WEIGHT)
    refused(TypeError, ["`weight`", name], portconv.conv2d, X, convert(WEIGHT))
    refused(TypeError, ["`bias`", name], portconv.conv2d, X, WEIGHT, convert(BIAS))
    refused(TypeError, ["`x`", name], portconv.Conv2d(4, 6, 3), convert(X))
    module = portconv.Conv2d(4, 6, 3)
    refused(TypeError, ["`weight`", name], lambda: setattr(module, "weight", convert(WEIGHT)))


@pytest.mark.parametrize("dtype", [np.complex64, object, "datetime64[s]", "U4", np.longdouble, [("a", "f4")]], ids=str)
def test_dtypes_without_a_meaning(nothing_runs, dtype):
    if dtype is np.longdouble and np.dtype(np.longdouble) == np.float64:
        pytest.skip("long double is double on this platform")
    refused(TypeError, ["`x`"], portconv.conv2d, np.zeros(X.shape, dtype), WEIGHT)
    refused(TypeError, ["`weight`"], portconv.conv2d, X, np.zeros(WEIGHT.shape, dtype))
    refused(TypeError, ["`bias`"], portconv.conv2d, X, WEIGHT, np.zeros(BIAS.shape, dtype))
    refused(TypeError, ["`x`"], portconv.Conv2d(4, 6, 3), np.zeros(X.shape, dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.bool_])
def test_parameters_are_floating(nothing_runs, dtype):
    refused(TypeError, ["`weight`", np.dtype(dtype).name], portconv.conv2d, X, WEIGHT.astype(dtype))
    refused(TypeError, ["`bias`", np.dtype(dtype).name], portconv.conv2d, X, WEIGHT, BIAS.astype(dtype))


def test_a_mix_of_libraries_names_both(nothing_runs, library):
    made = {name: library(name).array for name in ("numpy", "array_api_strict", "mlx", "torch", "jax")}
    for mine, make in made.items():
        for other, convert in made.items():
            if mine == other:
                continue
            refused(TypeError, ["`x`", "`weight`", mine, other], portconv.conv2d, make(X), convert(WEIGHT))
            refused(TypeError, ["`x`", "`bias`", mine, other], portconv.conv2d, make(X), make(WEIGHT), convert(BIAS))
            refused(TypeError, [mine, other], portconv.plan_conv2d, make(X), convert(WEIGHT))
            refused(TypeError, [mine, other], portconv.plan_conv2d, make(X), make(WEIGHT), convert(BIAS))


def test_another_backend_must_know_the_arrays(backend):
    x, weight = backend.array(X), backend.array(WEIGHT)
    for name in {"numpy", "array_api_strict", "mlx", "torch", "jax"} - {backend.package}:
        with pytest.raises(TypeError, match=name):
            portconv.conv2d(x, weight, backend=name)
        with portconv.use_backend(name), pytest.raises(TypeError, match=name):
            portconv.conv2d(x, weight)
        with portconv.use_backend(name), pytest.raises(TypeError, match=name):
            portconv.Conv2d(4, 6, 3)(x)


# --- sizes that do not fit --------------------------------------------------------------------------------------------

# x shape, weight shape, arguments, what the message says besides both shapes
MISFITS = {
    "channels": (
        (1, 8, 32, 32),
        (16, 6, 3, 3),
        {"groups": 2},
        ["`weight` has 6 input channels per group", "`x` has 8 channels", "`groups` is 2", "4"],
    ),
    "channels, one group": ((1, 4, 8, 8), (6, 3, 3, 3), {}, ["`weight`", "3", "4"]),
    "groups and x": ((1, 4, 8, 8), (6, 2, 3, 3), {"groups": 3}, ["`groups`", "4", "3"]),
    "groups and outputs": ((1, 4, 8, 8), (5, 2, 3, 3), {"groups": 2}, ["`groups`", "5", "2"]),
    "groups of a 5-D weight": ((1, 4, 8, 8), (2, 3, 2, 3, 3), {}, ["`groups`", "`weight`", "2", "1"]),
    "groups of a 5-D weight, too many": ((1, 4, 8, 8), (2, 3, 2, 3, 3), {"groups": 4}, ["`groups`", "`weight`"]),
    "3-D weight": ((1, 4, 8, 8), (4, 3, 3), {}, ["`weight`", "4 axes"]),
    "6-D weight": ((1, 4, 8, 8), (1, 1, 1, 4, 3, 3), {}, ["`weight`", "4 axes"]),
    "kernel above image": ((1, 4, 8, 8), (6, 4, 9, 3), {}, ["`padding`", "9", "8"]),
    "kernel above padded image": ((1, 4, 8, 8), (6, 4, 3, 13), {"padding": 2}, ["`padding`", "13", "12"]),
    "dilated kernel above image": ((1, 4, 8, 8), (6, 4, 3, 3), {"dilation": (4, 1)}, ["`dilation`", "9", "8"]),
    "kernel above image by less than the stride, rows": (
        (1, 1, 4, 9),
        (1, 1, 5, 5),
        {"stride": 3},
        ["`padding`", "5", "4"],
    ),
    "kernel above image by less than the stride, columns": (
        (1, 1, 9, 4),
        (1, 1, 5, 5),
        {"stride": 3},
        ["`padding`", "5", "4"],
    ),
    "kernel above image by less than the stride": ((1, 1, 4, 4), (1, 1, 5, 5), {"stride": 3}, ["`padding`", "5", "4"]),
    "no rows": ((1, 4, 0, 8), (6, 4, 3, 3), {"padding": 2}, ["`x`", "0"]),
    "no columns": ((1, 4, 8, 0), (6, 4, 3, 3), {"padding": 2}, ["`x`", "0"]),
    "no channels": ((1, 0, 8, 8), (6, 0, 3, 3), {}, ["`x`", "0"]),
    "no outputs": ((1, 4, 8, 8), (0, 4, 3, 3), {}, ["`weight`", "0"]),
    "no kernel": ((1, 4, 8, 8), (6, 4, 0, 3), {}, ["`weight`", "0"]),
    "reflect": (
        (1, 4, 8, 9),
        (6, 4, 3, 3),
        {"padding": (8, 0), "padding_mode": "reflect"},
        ["`padding`", "`padding_mode`", "reflect"],
    ),
    "reflect, as many columns as there are": (
        (1, 4, 9, 8),
        (6, 4, 3, 3),
        {"padding": (0, 8), "padding_mode": "reflect"},
        ["`padding`", "reflect"],
    ),
    "reflect, one side": (
        (1, 4, 8, 9),
        (6, 4, 3, 3),
        {"padding": ((0, 0), (0, 9)), "padding_mode": "reflect"},
        ["`padding`", "reflect"],
    ),
    "reflect, below alone": (
        (1, 4, 8, 9),
        (6, 4, 3, 3),
        {"padding": ((0, 9), (0, 0)), "padding_mode": "reflect"},
        ["`padding`", "reflect"],
    ),
    "circular, above alone": (
        (1, 4, 8, 9),
        (6, 4, 3, 3),
        {"padding": ((9, 0), (0, 0)), "padding_mode": "circular"},
        ["`padding`", "circular"],
    ),
    "reflect of one pixel": (
        (1, 4, 1, 9),
        (6, 4, 1, 3),
        {"padding": (1, 0), "padding_mode": "reflect"},
        ["`padding`", "reflect"],
    ),
    "circular": (
        (1, 4, 8, 9),
        (6, 4, 3, 3),
        {"padding": (9, 0), "padding_mode": "circular"},
        ["`padding`", "circular"],
    ),
    "result too large": ((1, 4, 8, 8), (6, 4, 3, 3), {"padding": 10**9}, ["`padding`"]),
    "padded image too large": ((1, 4, 8, 8), (6, 4, 3, 3), {"padding": 2**31 - 1, "stride": 2**31 - 1}, ["`padding`"]),
    "replicated image too large": (
        (1, 4, 8, 8),
        (6, 4, 3, 3),
        {"padding": 10**8, "padding_mode": "replicate"},
        ["`padding`"],
    ),
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", MISFITS)
def test_sizes_that_do_not_fit(nothing_runs, case, layout):
    x_shape, weight_shape, options, fragments = MISFITS[case]
    if layout == "NHWC":
        x_shape = tuple(x_shape[axis] for axis in (0, 2, 3, 1))
    fragments = [*fragments, f"x.shape = {x_shape} {layout}", f"weight.shape = {weight_shape} "]
    options = {**options, "layout": layout}
    refused(
        ValueError,
        fragments,
        portconv.conv2d,
        np.zeros(x_shape, np.float32),
        np.zeros(weight_shape, np.float32),
        **options,
    )
    refused(ValueError, fragments, portconv.plan_conv2d, x_shape, weight_shape, **options)
    refused(ValueError, fragments, portconv.conv2d_output_shape, x_shape, weight_shape, **options)


@pytest.mark.parametrize(
    "case", ["channels", "kernel above image by less than the stride", "result too large", "no rows", "no channels"]
)
def test_sizes_that_do_not_fit_in_every_library(backend, nothing_runs, case):
    x_shape, weight_shape, options, fragments = MISFITS[case]
    x, weight = backend.array(np.zeros(x_shape, np.float32)), backend.array(np.zeros(weight_shape, np.float32))
    refused(ValueError, [*fragments, f"x.shape = {x_shape} NCHW"], portconv.conv2d, x, weight, **options)


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 8), (), (1, 1, 4, 8, 8)])
def test_x_has_four_axes(nothing_runs, shape):
    fragments = ["`x`", "4 axes", f"{shape}", "NCHW"]
    refused(ValueError, fragments, portconv.conv2d, np.zeros(shape, np.float32), WEIGHT)
    refused(ValueError, fragments, portconv.Conv2d(4, 6, 3), np.zeros(shape, np.float32))
    refused(ValueError, fragments, portconv.conv2d_output_shape, shape, WEIGHT.shape)


@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (7,), (6, 1), (1, 6), (1, 5, 1, 1), (6, 1, 1), (1, 1, 1, 6), (1, 1, 6, 1)]
)
def test_shapes_of_bias(nothing_runs, shape):
    refused(ValueError, ["`bias`", f"{shape}", "(1, 6, 1, 1)"], portconv.conv2d, X, WEIGHT, np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [4, "1448", None, (1.0, 4, 8, 8), (True, 4, 8, 8), ("1", 4, 8, 8)], ids=show)
def test_shapes_are_tuples_of_ints(shape):
    refused(TypeError, ["`x_shape"], portconv.conv2d_output_shape, shape, WEIGHT.shape)
    refused(TypeError, ["`weight_shape"], portconv.conv2d_output_shape, X.shape, shape)
    refused(TypeError, ["`x_or_shape"], portconv.plan_conv2d, shape, WEIGHT.shape)
    refused(TypeError, ["`weight_or_shape"], portconv.plan_conv2d, X.shape, shape)
    with pytest.raises(TypeError):
        portconv.Conv2d(4, 6, 3).output_shape(shape)


def test_shapes_are_not_negative():
    refused(ValueError, ["`x_shape[2]`"], portconv.conv2d_output_shape, (1, 4, -8, 8), WEIGHT.shape)


@pytest.mark.parametrize("make", ["tuple", "list", "numpy integers", "torch", "mlx", "jax"])
def test_shapes_of_every_library_are_shapes(library, make):
    if make in ("torch", "mlx", "jax"):
        shape = library(make).array(X).shape
    else:
        shape = {"tuple": (1, 4, 8, 9), "list": [1, 4, 8, 9], "numpy integers": tuple(np.array(X.shape))}[make]
    assert portconv.conv2d_output_shape(shape, WEIGHT.shape) == (1, 6, 6, 7)
    assert portconv.plan_conv2d(shape, WEIGHT.shape).output_shape == (1, 6, 6, 7)
    assert portconv.Conv2d(4, 6, 3).output_shape(shape) == (1, 6, 6, 7)


def test_a_huge_result_is_refused_before_memory_is_asked_for(run_python):
    """Within a limit of memory in which only the error fits."""
    run_python("""
        import resource
        import numpy as np, portconv
        x, weight = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
        portconv.conv2d(x, weight)
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
        for padding in (2**31 - 1, 10**9, 10**7, (2**30, 2**10), ((0, 2**31 - 1), (0, 2**31 - 1))):
            for mode in ("zeros", "replicate"):
                for engine in ("auto", "gemm", "winograd", "fft", "direct"):
                    try:
                        portconv.conv2d(x, weight, padding=padding, padding_mode=mode, engine=engine)
                    except ValueError as error:
                        assert "`padding`" in str(error), error
                    else:
                        raise AssertionError(padding)
    """)


# --- engines and backends ---------------------------------------------------------------------------------------------


def test_an_engine_that_no_backend_has(backend):
    x, weight = (backend.array(np.ones(shape, "f4")) for shape in ((1, 4, 8, 8), (6, 4, 3, 3)))
    fragments = ["`engine`", "'cudnn'", "'gemm'", repr(backend.package)]
    refused(UnsupportedError, fragments, portconv.conv2d, x, weight, engine="cudnn")
    refused(UnsupportedError, fragments, portconv.plan_conv2d, x, weight, engine="cudnn")
    refused(UnsupportedError, fragments, portconv.Conv2d(4, 6, 3, engine="cudnn"), x)


def test_an_engine_that_cannot_run_says_why(backend):
    x, weight = backend.array(X), backend.array(WEIGHT)
    for engine in {"native", "fft"} - (set(backend.engines) - {"fft"}):
        accuracy = "elementwise" if engine == "fft" else "normwise"
        plans = portconv.plan_conv2d(x, weight, accuracy=accuracy).candidates
        (why_not,) = [candidate.why_not for candidate in plans if candidate.engine == engine]
        assert why_not
        refused(
            UnsupportedError,
            [f"`engine` '{engine}'", why_not],
            portconv.conv2d,
            x,
            weight,
            engine=engine,
            accuracy=accuracy,
        )
        module = portconv.Conv2d(4, 6, 3, engine=engine, accuracy=accuracy)
        refused(UnsupportedError, [f"`engine` '{engine}'", why_not], module, x)


@pytest.mark.parametrize("name", ["tensorflow_", "not a name", "", "os"])
def test_an_unknown_backend(name):
    fragments = ["`backend`", repr(name), "numpy", "mlx", "torch"]
    refused(ValueError, fragments, portconv.get_backend, name)
    refused(ValueError, fragments, portconv.conv2d, X, WEIGHT, backend=name)
    refused(ValueError, fragments, portconv.Conv2d, 4, 6, 3, backend=name)


@pytest.mark.parametrize("value", [3, [1.0], object(), 2.5])
def test_what_is_no_backend(value):
    for call in (
        lambda: portconv.get_backend(value),
        lambda: portconv.conv2d(X, WEIGHT, backend=value),
        lambda: portconv.Conv2d(4, 6, 3, backend=value),
    ):
        with pytest.raises(TypeError, match=type(value).__name__):
            call()


@pytest.mark.parametrize(
    ("device", "error"), [("gpu", ValueError), ("cuda:7", ValueError), ("nowhere", ValueError), (3, TypeError)]
)
def test_an_unknown_device(device, error):
    with pytest.raises(error, match="`device`"):
        portconv.Conv2d(4, 6, 3, device=device)
    with pytest.raises(error, match="`device`"):
        portconv.plan_conv2d(X.shape, WEIGHT.shape, device=device)


def test_messages_name_what_the_user_wrote():
    """No error of the package is an empty one."""
    for call in (
        lambda: portconv.conv2d(X, WEIGHT, stride=0),
        lambda: portconv.Conv2d(4, 6, 0),
        lambda: portconv.conv2d(X, WEIGHT[:, :1]),
    ):
        with pytest.raises(ValueError, match=r"`\w+`.*\d"):
            call()


@pytest.mark.parametrize(("x", "weight"), [((1, 2, -8, 8), (3, 2, 3, 3)), ((-1, 2, 8, 8), (3, 2, 3, 3)),
                                       ((1, 2, 8, 8), (-3, 2, 3, 3)), ((1, 2, 8, 8), (3, 2, 3, -1))])  # fmt: skip
def test_negative_sizes_are_refused(x, weight):
    with pytest.raises(ValueError, match=r"`(x|weight)_or_shape\[\d\]`"):
        portconv.plan_conv2d(x, weight)


def test_what_is_remembered_is_no_less_checked():
    assert normalised(1, 2, 1, 1, padding_mode="reflect") is normalised(1, 2, 1, 1, padding_mode="reflect")
    assert normalised((1, 2), 2, 1) == Conv2dSpec.normalise((1, 2), 2, 1)
    for wrong in ((True, 2, 1), (1, 2.0, 1), (1, 2, True), (1, 2, 1, True), ((1, True), 2, 1)):
        normalised(1, 2, 1, 1)
        normalised((1, 1), 2, 1)
        with pytest.raises(TypeError):
            normalised(*wrong)
    with pytest.raises(ValueError, match="stride"):
        normalised(0, 2, 1)
