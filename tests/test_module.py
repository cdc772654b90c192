"""`Conv2d`: what it is, its parameters, and that no copy of them outlives a change."""

from __future__ import annotations

import copy
import pickle
import re
import sys
import threading

import numpy as np
import pytest

from portconv import Conv2d, get_backend
from portconv.dispatch import planner
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

LIBRARIES = ("numpy", "array_api_strict", "mlx", "torch", "jax")

IMAGE = numbers((2, 4, 9, 8))


def expected_of(module, x=IMAGE):
    options = {
        name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode", "layout")
    }
    state = module.state_dict()
    return reference_conv2d(x, state["weight"], state.get("bias"), **options)


def assert_right(module, backend, x=IMAGE):
    y = module(backend.array(x))
    assert_close(backend.numpy(y), expected_of(module, x), dtype=backend.dtype_name(y))
    return y


# --- attributes -------------------------------------------------------------------------------------------------------


def test_attributes():
    module = Conv2d(
        4, 6, (3, 5), 2, (1, 2), [2, 1], 2, False, padding_mode="replicate",
        name="layer", layout="NHWC", engine="gemm", accuracy="elementwise", strategy="measure",
    )  # fmt: skip
    expected = {
        "in_channels": 4, "out_channels": 6, "kernel_size": (3, 5), "stride": (2, 2), "padding": (1, 2),
        "dilation": (2, 1), "groups": 2, "bias": None, "conv_mode": "cross_correlation", "compute_mode": "default",
        "padding_mode": "replicate",
        "name": "layer", "layout": "NHWC", "engine": "gemm", "accuracy": "elementwise", "strategy": "measure",
    }  # fmt: skip
    for name, value in expected.items():
        assert getattr(module, name) == value, name
        assert type(getattr(module, name)) is type(value), name
    assert module.weight.shape == (2, 3, 2, 3, 5)
    assert Conv2d(4, 6, 3).weight.shape == (6, 4, 3, 3)
    assert Conv2d(4, 6, 3).bias.shape == (1, 6, 1, 1)
    assert Conv2d(4, 6, 3).name is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("same", "same"),
        ("valid", (0, 0)),
        (((1, 1), (2, 2)), (1, 2)),
        ([[1, 2], [0, 3]], ((1, 2), (0, 3))),
        (np.array([1, 2]), (1, 2)),
    ],
)
def test_normal_forms_of_padding(given, kept):
    assert Conv2d(1, 1, 3, padding=given).padding == kept


@pytest.mark.parametrize(
    "name", ["in_channels", "kernel_size", "stride", "padding", "groups", "layout", "engine", "padding_mode"]
)
def test_what_was_checked_cannot_be_changed(name):
    module = Conv2d(4, 6, 3)
    with pytest.raises(AttributeError):
        setattr(module, name, getattr(module, name))


def test_repr():
    assert repr(Conv2d(3, 8, 3)) == "Conv2d(3, 8, kernel_size=(3, 3))"
    module = Conv2d(4, 8, 3, stride=2, padding=1, dilation=2, groups=2, bias=False)
    expected = "Conv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), groups=2, bias=False)"
    assert repr(module) == expected
    quiet = Conv2d(
        3, 8, 3, padding_mode="reflect", layout="NHWC", compute_mode="float32", engine="fft", name="a", dtype="float64"
    )
    assert repr(quiet) == "Conv2d(3, 8, kernel_size=(3, 3))"
    assert repr(Conv2d(3, 8, (1, 2), padding="same")) == "Conv2d(3, 8, kernel_size=(1, 2), padding='same')"


@pytest.mark.parametrize(
    "arguments", [(64, 64, 3), (64, 64, (5, 2)), (64, 128, 3, 1, 0, 1, 8), (256, 256, 3, 1, 0, 1, 256)]
)
def test_initial_parameters(arguments):
    module = Conv2d(*arguments, rng=0)
    kh, kw = module.kernel_size
    std = (kh * kw * arguments[0]) ** -0.5  # of all input channels, also when grouped
    values = module.weight.astype(np.float64)
    assert abs(values.mean()) < 5 * std / values.size**0.5
    assert abs(values.std() / std - 1) < 5 / (2 * values.size) ** 0.5
    tails = np.mean(np.abs(values) > 2 * std)  # 4.55 % of a normal distribution
    assert abs(tails - 0.0455) < 5 * (0.0455 / values.size) ** 0.5
    assert not np.any(module.bias)
    assert module.weight.dtype == module.bias.dtype == np.float32


def test_rng():
    weight = Conv2d(4, 6, 3, rng=7).weight
    np.testing.assert_array_equal(weight, Conv2d(4, 6, 3, rng=7).weight)
    np.testing.assert_array_equal(weight, Conv2d(4, 6, 3, rng=np.random.default_rng(7)).weight)
    assert not np.array_equal(weight, Conv2d(4, 6, 3, rng=8).weight)
    assert not np.array_equal(Conv2d(4, 6, 3).weight, Conv2d(4, 6, 3).weight)
    one = np.random.default_rng(7)  # goes on: two modules of one generator differ
    assert not np.array_equal(Conv2d(4, 6, 3, rng=one).weight, Conv2d(4, 6, 3, rng=one).weight)
    module = Conv2d(4, 6, 3)
    module.reset_parameters(rng=7)
    np.testing.assert_array_equal(weight, module.weight)


@pytest.mark.every_device
def test_reset_parameters(backend):
    module = Conv2d(4, 6, 3, rng=1)
    module.bias = np.ones((1, 6, 1, 1))
    before = backend.numpy(assert_right(module, backend))
    module.reset_parameters()
    assert not np.any(module.bias)
    assert not np.allclose(backend.numpy(assert_right(module, backend)), before)


def test_every_library_can_hold_the_parameters(backend):
    for dtype in backend.dtypes:
        module = Conv2d(4, 6, 3, dtype=dtype, backend=backend.package, rng=3)
        for array in (module.weight, module.bias):
            backend.check(array)
            assert backend.dtype_name(array) == dtype
        y = module(backend.array(IMAGE, dtype))
        assert backend.dtype_name(y) == dtype
        assert_close(backend.numpy(y), expected_of(module, backend.numpy(backend.array(IMAGE, dtype))), dtype=dtype)
        assert all(
            array.dtype == ("float32" if dtype == "bfloat16" else dtype) for array in module.state_dict().values()
        )


# --- reading and writing parameters -----------------------------------------------------------------------------------


def test_numpy_parameters_are_readonly():
    module = Conv2d(4, 6, 3)
    for _ in range(2):
        for array in (module.weight, module.bias, *module.parameters(), *dict(module.named_parameters()).values()):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        module.weight, module.bias = np.ones((6, 4, 3, 3), np.float32), np.ones(6)
    module.load_state_dict(module.state_dict())
    assert not module.weight.flags.writeable
    assert not module.astype("float64").weight.flags.writeable
    assert not pickle.loads(pickle.dumps(module)).weight.flags.writeable
    assert not copy.deepcopy(module).bias.flags.writeable


def test_parameters_are_copies():
    """An array that was assigned is the user's own to change."""
    weight, bias = np.ones((6, 4, 3, 3), np.float32), np.ones((1, 6, 1, 1), np.float32)
    module = Conv2d(4, 6, 3)
    module.weight, module.bias = weight, bias
    before = module(IMAGE)
    weight[...] = bias[...] = 0
    np.testing.assert_array_equal(module(IMAGE), before)
    np.testing.assert_array_equal(module.weight, 1)
    np.testing.assert_array_equal(module.bias, 1)
    assert weight.flags.writeable
    state = module.state_dict()
    state["weight"][...] = 0
    np.testing.assert_array_equal(module.weight, 1)


def test_named_parameters():
    module = Conv2d(4, 6, 3)
    assert [name for name, _ in module.named_parameters()] == ["bias", "weight"]
    assert [array is module.weight for array in module.parameters()] == [False, True]
    assert list(dict(Conv2d(4, 6, 3, bias=False).named_parameters())) == ["weight"]
    assert list(module.state_dict()) == ["bias", "weight"]
    assert list(Conv2d(4, 6, 3, bias=False).state_dict()) == ["weight"]


def test_assignment_of_arrays_of_every_library(backend):
    weight, bias = numbers((2, 3, 2, 3, 3), 1), numbers((1, 6, 1, 1), 2)
    for home in LIBRARIES:
        for dtype in {"float32", "float64", "bfloat16", "float16"} & set(backend.dtypes):
            module = Conv2d(4, 6, 3, groups=2, backend=home)
            module.weight, module.bias = backend.array(weight, dtype), backend.array(bias.ravel(), dtype)
            kept = {"bfloat16": 2**-8, "float16": 2**-10}.get(dtype, 0)
            np.testing.assert_allclose(module.state_dict()["weight"], weight, rtol=kept)
            np.testing.assert_allclose(module.state_dict()["bias"], bias, rtol=kept)
            assert str(module.weight.dtype).rpartition(".")[2] == "float32"  # the module's own


@pytest.mark.parametrize("form", ["big endian", "negative strides", "Fortran order", "read-only"])
@pytest.mark.parametrize("home", LIBRARIES)
def test_assignment_of_numpy_views(library, home, form):
    weight = numbers((6, 4, 3, 3), 1)
    view = {
        "big endian": weight.astype(">f4"), "negative strides": weight[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1],
        "Fortran order": np.asfortranarray(weight), "read-only": np.broadcast_to(weight, weight.shape),
    }[form]  # fmt: skip
    module = Conv2d(4, 6, 3, backend=home)
    module.weight = view
    np.testing.assert_array_equal(module.state_dict()["weight"], weight)
    assert_right(module, library(home))
    module.load_state_dict({"weight": view[::-1], "bias": np.ones(6, view.dtype)})
    np.testing.assert_array_equal(module.state_dict()["weight"], weight[::-1])
    np.testing.assert_array_equal(module.state_dict()["bias"], 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("channels", "groups"), [((4, 6), 2), ((6, 6), 6), ((4, 8), 4)])
def test_grouped_weights_of_pytorch(backend, channels, groups, dtype):
    inputs, outputs = channels
    weight, bias = numbers((outputs, inputs // groups, 3, 2), 1), numbers((outputs,), 2)
    x = numbers((2, inputs, 7, 8), 3)
    module = Conv2d(inputs, outputs, (3, 2), groups=groups, dtype=dtype, padding=1)
    own = module.weight.shape
    module.weight = backend.array(weight)
    expected = reference_conv2d(x, module.state_dict()["weight"], padding=1, groups=groups)
    np.testing.assert_array_equal(module.state_dict()["weight"].reshape(weight.shape), weight.astype(dtype))
    assert (module.weight.shape, module.weight.dtype.name) == (own, dtype)
    assert_close(module(x), expected, dtype="float32")
    module.weight = np.zeros(own)
    module.load_state_dict({"weight": backend.array(weight), "bias": backend.array(bias)})
    np.testing.assert_array_equal(module.state_dict()["weight"].reshape(weight.shape), weight.astype(dtype))
    assert (module.weight.shape, module.weight.dtype.name, module.bias.dtype.name) == (own, dtype, dtype)


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (6, 4, 3, 3), (6, 2, 3, 2), (2, 6, 3, 3), (6, 2, 9), (1, 6, 2, 3, 3)])
def test_grouped_weights_of_other_shapes_leave_the_module_untouched(shape):
    module = Conv2d(4, 6, 3, groups=2, rng=1)
    before = module(IMAGE)
    message = r"`weight` must have shape \(2, 3, 2, 3, 3\) or \(6, 2, 3, 3\), but got " + re.escape(str(shape))
    with pytest.raises(ValueError, match=message):
        module.weight = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        module.load_state_dict({"weight": np.ones(shape, np.float32), "bias": np.ones(6, np.float32)})
    np.testing.assert_array_equal(module(IMAGE), before)


BAD_WEIGHTS = {
    "shape": (ValueError, lambda: np.ones((6, 4, 3, 2), np.float32)),
    "rank": (ValueError, lambda: np.ones((1, 6, 4, 3, 3), np.float32)),
    "size": (ValueError, lambda: np.ones(216, np.float32)),
    "list": (TypeError, lambda: np.ones((6, 4, 3, 3)).tolist()),
    "number": (TypeError, lambda: 1.0),
    "None": (TypeError, lambda: None),
    "complex": (TypeError, lambda: np.full((6, 4, 3, 3), 1j)),
    "strings": (TypeError, lambda: np.full((6, 4, 3, 3), "1")),
    "masked": (TypeError, lambda: np.ma.ones((6, 4, 3, 3))),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_a_bad_weight_leaves_the_module_untouched(case):
    error, make = BAD_WEIGHTS[case]
    module = Conv2d(4, 6, 3, rng=1)
    before = module(IMAGE)
    with pytest.raises(error, match="`weight`"):
        module.weight = make()
    with pytest.raises(error, match="`weight`"):
        module.load_state_dict({"weight": make(), "bias": np.ones((1, 6, 1, 1))})
    with pytest.raises(error, match="`weight`"):
        module.load_state_dict({"bias": np.ones((1, 6, 1, 1)), "weight": make()}, strict=False)
    np.testing.assert_array_equal(module(IMAGE), before)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (np.ones((1, 5, 1, 1)), ValueError), (np.ones((6, 1)), ValueError), (np.ones(()), ValueError),
        (1.0, TypeError), (None, TypeError), ([0.0] * 6, TypeError),
    ],
)  # fmt: skip
def test_a_bad_bias_leaves_the_module_untouched(value, error):
    module = Conv2d(4, 6, 3, rng=1)
    before = module(IMAGE)
    with pytest.raises(error, match="`bias`"):
        module.bias = value
    with pytest.raises(error, match="`bias`"):
        module.load_state_dict({"weight": np.ones((6, 4, 3, 3)), "bias": value})
    np.testing.assert_array_equal(module(IMAGE), before)


def test_a_module_without_bias_takes_none():
    module = Conv2d(4, 6, 3, bias=False)
    with pytest.raises(ValueError, match="`bias`"):
        module.bias = np.ones((1, 6, 1, 1))
    module.bias = None
    assert module.bias is None


# --- state_dict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", LIBRARIES)
def test_load_state_dict(backend, source):
    theirs = Conv2d(4, 6, 3, backend=source, rng=5)
    theirs.bias = numbers((6,), 3)
    ours = Conv2d(4, 6, 3, backend=backend.package)
    assert_right(ours, backend)
    assert ours.load_state_dict(theirs.state_dict()) is None
    np.testing.assert_array_equal(ours.state_dict()["weight"], theirs.state_dict()["weight"])
    np.testing.assert_array_equal(ours.state_dict()["bias"], theirs.state_dict()["bias"])
    assert_right(ours, backend)
    again = Conv2d(4, 6, 3, backend=backend.package)
    again.load_state_dict(dict(theirs.named_parameters()))  # the library's own arrays
    np.testing.assert_array_equal(again.state_dict()["weight"], theirs.state_dict()["weight"])


STATE = {"weight": np.ones((6, 4, 3, 3), np.float32), "bias": np.ones((1, 6, 1, 1), np.float32)}
BAD_STATES = {
    "weight is missing": (ValueError, {"bias": STATE["bias"]}, "weight"),
    "bias is missing": (ValueError, {"weight": STATE["weight"]}, "bias"),
    "empty": (ValueError, {}, "weight"),
    "one too many": (ValueError, {**STATE, "scale": np.ones(1)}, "scale"),
    "prefix": (ValueError, {"conv." + key: value for key, value in STATE.items()}, "conv.weight"),
    "shape of bias": (ValueError, {**STATE, "bias": np.ones((1, 5, 1, 1))}, "`bias`"),
    "no array": (TypeError, {**STATE, "bias": [1.0] * 6}, "`bias`"),
    "no mapping": (TypeError, [("weight", STATE["weight"])], "`state`"),
    "None": (TypeError, None, "`state`"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_bad_state_leaves_the_module_untouched(case):
    error, state, word = BAD_STATES[case]
    module = Conv2d(4, 6, 3, rng=1)
    before = module(IMAGE)
    with pytest.raises(error, match=word):
        module.load_state_dict(state)
    np.testing.assert_array_equal(module(IMAGE), before)
    np.testing.assert_array_equal(module.weight, Conv2d(4, 6, 3, rng=1).weight)


def test_load_state_dict_that_is_not_strict():
    module = Conv2d(4, 6, 3, rng=1)
    bias = module.bias
    module.load_state_dict({"weight": STATE["weight"], "scale": 3}, strict=False)
    np.testing.assert_array_equal(module.weight, 1)
    np.testing.assert_array_equal(module.bias, bias)
    module.load_state_dict({}, strict=False)
    np.testing.assert_array_equal(module.weight, 1)
    with pytest.raises(ValueError, match="`bias`"):
        module.load_state_dict({"weight": 2 * STATE["weight"], "bias": np.ones(5)}, strict=False)
    np.testing.assert_array_equal(module.weight, 1)
    without = Conv2d(4, 6, 3, bias=False)
    without.load_state_dict(STATE, strict=False)
    assert without.bias is None
    with pytest.raises(ValueError, match="bias"):
        without.load_state_dict(STATE)


# --- to, astype -------------------------------------------------------------------------------------------------------


def test_to(backend):
    module = Conv2d(4, 6, 3, rng=1)
    before = module.state_dict()
    assert_right(module, backend)
    assert module.to(backend.package) is module
    for array in (module.weight, module.bias):
        backend.check(array)
    np.testing.assert_array_equal(module.state_dict()["weight"], before["weight"])
    assert_right(module, backend)
    module.to("numpy")
    assert type(module.weight) is np.ndarray
    assert_right(module, backend)


def test_astype(backend):
    module = Conv2d(4, 6, 3, backend=backend.package, rng=1)
    assert_right(module, backend)
    for dtype in backend.dtypes:
        assert module.astype(dtype) is module
        assert backend.dtype_name(module.weight) == backend.dtype_name(module.bias) == dtype
        y = module(backend.array(IMAGE, dtype))
        assert backend.dtype_name(y) == dtype
        assert_close(backend.numpy(y), expected_of(module, backend.numpy(backend.array(IMAGE, dtype))), dtype=dtype)
    assert Conv2d(1, 1, 1).astype(np.float64).weight.dtype == np.float64


FAILURES = {
    "unknown library": lambda module: module.to("nothing"),
    "unknown device": lambda module: module.to("numpy", "gpu"),
    "unknown device of torch": lambda module: module.to("torch", "nowhere"),
    "unknown device of MLX": lambda module: module.to("mlx", "tpu"),
    "unknown device of JAX": lambda module: module.to("jax", "nowhere"),
    "no library": lambda module: module.to(3),
    "float64 in JAX": lambda module: module.astype("float64").to("jax"),
    "float16 in array_api_strict": lambda module: module.astype("float16").to("array_api_strict"),
    "bfloat16 in NumPy": lambda module: module.astype("bfloat16"),
    "no floating dtype": lambda module: module.astype("int32"),
    "no dtype": lambda module: module.astype(4),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_move_that_fails_leaves_the_module_untouched(library, monkeypatch, case):
    for name in ("torch", "mlx", "jax", "array_api_strict"):
        library(name)  # skips or fails where one is missing
    if case == "bfloat16 in NumPy":
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # it cannot be imported: then NumPy has no bfloat16
    module = Conv2d(4, 6, 3, rng=1)
    expected = module(IMAGE)
    with pytest.raises((TypeError, ValueError)) as caught:  # and no library's own error
        FAILURES[case](module)
    assert "`" in str(caught.value) or "JAX" in str(caught.value)
    assert type(module.weight) is np.ndarray
    # in one case the weights became float16 before the move that fails
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if case.startswith("float16") else {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(module(IMAGE), expected, **tolerance)
    module.to("torch").to("numpy")  # and still works in all its parts
    np.testing.assert_allclose(module.astype("float32")(IMAGE), expected, **tolerance)


def test_an_image_of_a_library_without_the_dtype(jax):
    """Parameters in float64 cannot serve JAX as it is by default; nothing is rounded silently."""
    with pytest.raises(TypeError, match="64"):
        Conv2d(4, 6, 3, dtype="float64")(jax.numpy.asarray(IMAGE))


# --- one module, many libraries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", LIBRARIES)
def test_one_module_serves_every_library(library, home):
    backends = [library(name) for name in LIBRARIES]
    module = Conv2d(4, 6, 3, padding=1, stride=2, groups=2, backend=home, rng=2)
    for _ in range(2):  # the second time from the copies
        results = [backend.numpy(assert_right(module, backend)) for backend in backends]
        for result in results:
            np.testing.assert_allclose(result, results[0], rtol=1e-5, atol=1e-5)
    for array in module.parameters():
        library(home).check(array)


CHANGES = {
    "weight": lambda module, other: setattr(module, "weight", other.weight),
    "bias": lambda module, other: setattr(module, "bias", other.bias),
    "load_state_dict": lambda module, other: module.load_state_dict(other.state_dict()),
    "load_state_dict, not strict": lambda module, other: module.load_state_dict({"weight": other.weight}, strict=False),
    "reset_parameters": lambda module, other: module.reset_parameters(9),
    "to and weight": lambda module, other: setattr(module.to("array_api_strict"), "weight", other.weight),
    "astype": lambda module, other: module.astype("float64"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_copy_outlives_a_change(backend, engine, change):
    module, other = Conv2d(4, 6, 3, engine=engine, rng=1), Conv2d(4, 6, 3, rng=2)
    module.weight = numbers((6, 4, 3, 3), 3) / 3
    other.bias = numbers((6,), 4)
    if change == "astype" and (backend.package == "jax" or (backend.package, engine) == ("mlx", "native")):
        CHANGES[change](module, other)
        error, message = (TypeError, "JAX makes 32-bit") if backend.package == "jax" else (ValueError, "`engine`")
        with pytest.raises(error, match=message):
            module(backend.array(IMAGE))
        return
    before = [backend.numpy(module(backend.array(IMAGE))) for _ in range(2)]
    np.testing.assert_array_equal(*before)
    CHANGES[change](module, other)
    after = assert_right(module, backend)
    if change == "astype":
        assert backend.dtype_name(after) == "float64"
    else:
        assert np.abs(backend.numpy(after) - before[0]).max() > 0.1


def test_packed_copies_are_kept(backend, monkeypatch):
    """Calls of known sizes pack nothing anew; a change does."""
    module = Conv2d(4, 6, 3, rng=1)
    packed = []
    kind = type(module.plan(backend.array(IMAGE)))
    pack = kind.pack
    monkeypatch.setattr(kind, "pack", lambda self, weight: packed.append(1) or pack(self, weight))
    x = backend.array(IMAGE)
    for _ in range(3):
        module(x)
    assert len(packed) == 1
    module.weight = numbers((6, 4, 3, 3))
    for _ in range(3):
        module(x)
    assert len(packed) == 2


@pytest.mark.every_device
def test_parameters_are_converted_once(backend, monkeypatch):
    """For images of all sizes, until they change."""
    library = get_backend(backend.array(IMAGE))
    module, converted = Conv2d(4, 6, 3, rng=1), []
    from_numpy = type(library).from_numpy
    monkeypatch.setattr(type(library), "from_numpy", lambda *a, **k: converted.append(1) or from_numpy(*a, **k))
    for size in (20, 21, 22):
        module(backend.array(numbers((1, 4, size, 9))))
    assert len(converted) == (0 if library.name == "numpy" else 2)  # weight and bias
    module.weight = numbers((6, 4, 3, 3))
    before = len(converted)
    for size in (20, 21, 23):
        module(backend.array(numbers((1, 4, size, 9))))
    assert len(converted) - before == (0 if library.name == "numpy" else 2)


@pytest.mark.every_device
def test_many_sizes(backend):
    module = Conv2d(1, 2, 3, padding=1, rng=1)
    for size in range(1, 90):
        x = numbers((1, 1, size, 3))
        assert_right(module, backend, x)


@pytest.mark.every_device
def test_layouts_and_dtypes_of_one_module(backend):
    module = Conv2d(4, 6, 3, padding=1, layout="NHWC", rng=1)
    x = np.ascontiguousarray(IMAGE.transpose(0, 2, 3, 1))
    assert_right(module, backend, x)
    pixels = np.random.default_rng(0).integers(0, 255, x.shape).astype(np.uint8)
    y = assert_right(module, backend, pixels)
    assert backend.dtype_name(y) == "float32"
    assert_right(module, backend, x)


def test_forward_is_call(backend):
    module = Conv2d(4, 6, 3)
    np.testing.assert_array_equal(
        backend.numpy(module.forward(backend.array(IMAGE))), backend.numpy(module(backend.array(IMAGE)))
    )


def test_empty_batch(backend):
    y = Conv2d(4, 6, 3, stride=2)(backend.array(IMAGE[:0]))
    assert backend.numpy(y).shape == (0, 6, 4, 3)


# --- copies of the module ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pickle", "deepcopy", "copy"])
def test_copies(backend, method):
    module = Conv2d(
        4,
        6,
        (3, 2),
        2,
        "same",
        groups=2,
        padding_mode="replicate",
        name="layer",
        backend=backend.package,
        accuracy="elementwise",
        rng=4,
    )
    module.bias = numbers((6,), 2)
    before = backend.numpy(assert_right(module, backend))
    twin = {"pickle": lambda m: pickle.loads(pickle.dumps(m)), "deepcopy": copy.deepcopy, "copy": copy.copy}[method](
        module
    )
    assert type(twin) is Conv2d
    assert repr(twin) == repr(module)
    assert (twin.name, twin.padding_mode, twin.accuracy, twin.padding) == ("layer", "replicate", "elementwise", "same")
    np.testing.assert_array_equal(backend.numpy(assert_right(twin, backend)), before)
    backend.check(twin.weight)
    twin.weight = numbers((2, 3, 2, 3, 2), 9)
    assert_right(twin, backend)
    np.testing.assert_array_equal(backend.numpy(assert_right(module, backend)), before)


def test_pickles_of_every_dtype(backend):
    for dtype in backend.dtypes:
        module = Conv2d(4, 6, 3, backend=backend.package, dtype=dtype, rng=4)
        twin = pickle.loads(pickle.dumps(module))
        assert backend.dtype_name(twin.weight) == dtype
        np.testing.assert_array_equal(twin.state_dict()["weight"], module.state_dict()["weight"])


def test_pickles_hold_no_packs():
    module = Conv2d(8, 8, 15)
    small = len(pickle.dumps(module))
    module(np.ones((1, 8, 64, 64), np.float32))
    assert len(pickle.dumps(module)) == small


# --- sizes and plans --------------------------------------------------------------------------------------------------


def test_output_shape(backend):
    module = Conv2d(4, 6, 3, 2, ((1, 0), (2, 3)), 2)
    assert module.output_shape((2, 4, 9, 8)) == tuple(module(backend.array(IMAGE)).shape) == (2, 6, 3, 5)
    nhwc = Conv2d(4, 6, 3, layout="NHWC")
    assert nhwc.output_shape([2, 9, 8, 4]) == (2, 7, 6, 6)
    assert all(type(size) is int for size in module.output_shape((2, 4, 9, 8)))


def test_plan_is_the_one_that_runs(backend, engine, plans):
    module = Conv2d(4, 6, 3, padding=1, engine=engine)
    x = backend.array(IMAGE)
    plan = module.plan(x)
    plans.clear()
    module(x)
    assert plans == [plan]
    assert engine in ("auto", plan.engine)
    assert plan.output_shape == (2, 6, 9, 8)
    assert Conv2d(4, 6, 3, padding=1).plan(IMAGE.shape).output_shape == (2, 6, 9, 8)


def test_explain(backend):
    module = Conv2d(4, 6, 3, padding=1)
    text = module.explain(backend.array(IMAGE))
    candidates = module.plan(backend.array(IMAGE)).candidates
    assert {candidate.engine for candidate in candidates} == {"native", "gemm", "winograd", "fft", "direct"}
    for candidate in candidates:
        (line,) = [line for line in text.splitlines() if line.strip("* ").startswith(candidate.engine + " ")]
        if candidate.why_not:
            assert candidate.why_not in line
    (chosen,) = [line for line in text.splitlines() if line.startswith("* ")]
    assert chosen.split()[1] == module.plan(backend.array(IMAGE)).engine
    assert str(IMAGE.shape) in text
    assert isinstance(module.explain(IMAGE.shape), str)


# --- threads and processes --------------------------------------------------------------------------------------------


def in_threads(count, task):
    """Run `task(number)` in threads at once; raises what one of them raised."""
    errors, barrier = [], threading.Barrier(count)

    def run(number):
        barrier.wait()
        try:
            task(number)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            errors.append(error)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    if errors:
        raise errors[0]


def test_threads_share_a_module(backend, engine):
    module = Conv2d(4, 6, 3, padding=1, engine=engine, rng=1)
    images = [numbers((1, 4, 8 + number, 9), number) for number in range(4)]
    expected = [expected_of(module, image) for image in images]

    def task(number):
        for turn in range(8):
            which = (number + turn) % 4
            y = backend.numpy(module(backend.array(images[which])))
            assert_close(y, expected[which])

    in_threads(3, task)


def test_a_module_first_called_in_another_thread(backend, engine):
    """What the first thread packed serves the second: with MLX, lazy arrays belong to the thread that made them."""
    module = Conv2d(4, 6, 3, engine=engine, rng=1)
    for home in ("numpy", backend.package):
        module.to(home)
        for _ in range(2):
            in_threads(1, lambda _: assert_right(module, backend))
        assert_right(module, backend)


def test_threads_meet_new_sizes(monkeypatch):
    """The module's memory of sizes is filled, emptied and read by several threads at once."""
    monkeypatch.setattr("portconv.module.MAX_BOUND", 4)
    module = Conv2d(1, 1, 1, rng=1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:

        def task(number):
            for turn in range(300):
                module(np.ones((1, 1, 1 + (turn + 7 * number) % 25, 2), np.float32))

        in_threads(4, task)
    finally:
        sys.setswitchinterval(interval)


def test_a_weight_set_while_another_thread_packs(monkeypatch):
    """The pack of the old weight, ready only after the assignment, must not stay."""
    module = Conv2d(4, 6, 3, bias=False, rng=1)
    module.weight = np.ones((6, 4, 3, 3), np.float32)
    plan = planner.plan

    def meanwhile(*args, **kwargs):
        monkeypatch.setattr(planner, "plan", plan)
        module.weight = np.zeros((6, 4, 3, 3), np.float32)  # as another thread would do now
        return plan(*args, **kwargs)

    monkeypatch.setattr(planner, "plan", meanwhile)
    module(np.ones((1, 4, 5, 5), np.float32))
    np.testing.assert_array_equal(module(np.ones((1, 4, 5, 5), np.float32)), 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a fork is not safe with system libraries")
def test_fork(run_python):
    """A child has none of the parent's threads."""
    out = run_python("""
        import os, warnings
        import numpy as np, portconv
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, about forks of threaded processes
        x = np.random.default_rng(0).standard_normal((2, 16, 80, 80)).astype(np.float32)
        for engine in ("direct", "fft", "gemm"):
            module = portconv.Conv2d(16, 16, 5, groups=16, engine=engine, rng=1)
            expected = module(x)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    twin = portconv.Conv2d(16, 16, 5, groups=16, engine=engine, rng=1)
                    status = 0 if np.array_equal(module(x), expected) and np.array_equal(twin(x), expected) else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, engine
            assert np.array_equal(module(x), expected)
        print("done")
    """)
    assert out == "done\n"
