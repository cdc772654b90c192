"""portconv against MegEngine: golden/megengine.npz holds what MegEngine computed, see golden/generate_megengine.py."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import portconv

ENGINES = ("auto", "gemm", "winograd", "fft", "direct")

with np.load(Path(__file__).parent / "golden" / "megengine.npz", allow_pickle=False) as file:
    ARRAYS = {name: file[name] for name in file.files}
MANIFEST = json.loads(ARRAYS["manifest"].tobytes())

# An emptied or regenerated file must still hold these many cases of each family.
FAMILIES = {
    "stride": 8, "padding": 8, "dilation": 8, "groups": 11, "kernel": 14, "padding_mode": 30, "bias": 3, "channels": 5,
    "batch": 4, "output_size": 8, "empty_batch": 8, "large": 7, "nan_input": 18, "inf_input": 16, "huge_input": 5,
    "nan_weight": 1, "inf_weight": 7, "float16": 22, "mixed_dtype": 4,
}  # fmt: skip


# --- the exact result, by a sum that shares no code with the engines --------------------------------------------------


def two(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def border(shape, padding, padding_mode):
    """Which pixel of the image (height, width) each of the padded image is, counted row by row; -1 for zeros."""
    mode = {"zeros": {"mode": "constant", "constant_values": -1}, "replicate": {"mode": "edge"}}
    every = np.arange(shape[0] * shape[1]).reshape(shape)
    return np.pad(every, [(p, p) for p in two(padding)], **mode.get(padding_mode, {"mode": "reflect"}))


def direct_gradients(x, weight, dy, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros"):
    """Gradients of `sum(dy * y)` in float64, tap by tap: of the image, of the weight and of the bias."""
    (sh, sw), (dh, dw) = two(stride), two(dilation)
    n, channels, height, width = x.shape
    sources = border((height, width), padding, padding_mode)
    flat = np.concatenate([x.reshape(n, channels, -1), np.zeros((n, channels, 1))], axis=2)  # -1 reads the zero
    padded = flat.astype(np.float64)[:, :, sources]
    d_padded = np.zeros_like(padded)
    dy, oh, ow = dy.astype(np.float64), *dy.shape[2:]
    kernels = weight.astype(np.float64).reshape(-1, *weight.shape[-3:])
    d_kernels = np.zeros_like(kernels)
    out, group_inputs = kernels.shape[:2]
    for o, i, row, column in np.ndindex(kernels.shape):
        channel = o // (out // groups) * group_inputs + i
        rows, columns = slice(row * dh, row * dh + sh * oh, sh), slice(column * dw, column * dw + sw * ow, sw)
        window = padded[:, channel, rows, columns][:, :oh, :ow]
        d_kernels[o, i, row, column] = (window * dy[:, o]).sum()
        d_padded[:, channel, rows, columns][:, :oh, :ow] += kernels[o, i, row, column] * dy[:, o]
    d_flat = np.zeros_like(flat, dtype=np.float64)
    np.add.at(d_flat, (slice(None), slice(None), sources), d_padded)
    d_x = d_flat[:, :, :-1].reshape(x.shape)
    return d_x, d_kernels.reshape(weight.shape), dy.sum(axis=(0, 2, 3)).reshape(1, -1, 1, 1)


def direct_sum(x, weight, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", compute_mode=None):
    """Convolution without bias in float64, tap by tap; `compute_mode` is of no interest here."""
    (sh, sw), (ph, pw), (dh, dw) = two(stride), two(padding), two(dilation)
    mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}[padding_mode]
    n, channels, height, width = x.shape
    padded = np.zeros((n, channels, height + 2 * ph, width + 2 * pw))
    if n:
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (ph, ph), (pw, pw)), mode=mode)
    weight = weight.astype(np.float64).reshape(-1, *weight.shape[-3:])
    out, group_inputs, kh, kw = weight.shape
    oh = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    ow = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((n, out, oh, ow))
    for o in range(out):
        first = o // (out // groups) * group_inputs
        for i in range(group_inputs):
            for row in range(kh):
                for column in range(kw):
                    top, left = row * dh, column * dw
                    window = padded[:, first + i, top : top + sh * oh : sh, left : left + sw * ow : sw]
                    y[:, o] += weight[o, i, row, column] * window[:, :oh, :ow]
    return y


GRADIENTS = ("dy", "dx", "dweight", "dbias")


class Case:
    """One convolution: inputs, MegEngine's result, the exact result and the error that each side may make."""

    def __init__(self, entry):
        self.name = entry["name"]
        self.kernel_size = two(entry["kernel_size"])
        self.args = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["args"].items()}
        arrays = {key: None if entry[key] is None else ARRAYS[entry[key]].copy() for key in ("x", "weight", "bias")}
        for key, index, value in entry["changes"]:
            arrays[key][tuple(index)] = float(value)
        self.x, self.weight, self.bias = arrays["x"], arrays["weight"], arrays["bias"]
        self.expected = ARRAYS[entry["y"]]
        self.dy, *gradients = (ARRAYS[entry[key]] if key in entry else None for key in GRADIENTS)
        self.gradients = [gradient for gradient in gradients if gradient is not None]

    def bounds(self):
        """The exact result, and the allowed errors of portconv and of MegEngine."""
        with np.errstate(all="ignore"):
            products = direct_sum(self.x, self.weight, **self.args)
            exact = products if self.bias is None else products + self.bias.astype(np.float64)
        finite = [np.where(np.isfinite(array), np.abs(array), 0) for array in (self.x, self.weight)]
        c = direct_sum(*finite, **self.args)
        eps = np.finfo(np.float32).eps
        largest = c.max(axis=(1, 2, 3), keepdims=True, initial=0)  # of each image
        ours = theirs = 8 * eps * c + 24 * eps * largest
        if self.expected.dtype == np.float16:
            half, tiny = np.finfo(np.float16).eps / 2 * 1.01, 2.0**-24
            ours = ours + half * np.abs(exact) + tiny
            # MegEngine rounds before it adds the bias and after, and by default it keeps its sums in float16.
            theirs = theirs + half * (np.abs(exact) + np.abs(products)) + 2 * tiny
            if self.args.get("compute_mode", "default") == "default":
                theirs = theirs + 8 * np.finfo(np.float16).eps * c
        return exact, ours, theirs

    def gradient_bounds(self):
        """The exact gradients and the allowed errors, of portconv and of MegEngine alike."""
        arrays = (self.x, self.weight, self.dy)
        exact = direct_gradients(*arrays, **self.args)
        c = direct_gradients(*map(np.abs, arrays), **self.args)
        eps = np.finfo(np.float32).eps
        return [(g, 8 * eps * s + 24 * eps * s.max()) for g, s in zip(exact, c, strict=True)]

    def module(self, **kwargs):
        module = portconv.Conv2d(
            self.x.shape[1], self.expected.shape[1], self.kernel_size, bias=self.bias is not None,
            dtype=str(self.weight.dtype), **self.args, **kwargs,
        )  # fmt: skip
        state = {"weight": self.weight} if self.bias is None else {"bias": self.bias, "weight": self.weight}
        module.load_state_dict(state)
        return module


CASES = {entry["name"]: Case(entry) for entry in MANIFEST["cases"]}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_engine = pytest.mark.parametrize("engine", ENGINES)


def assert_same(actual, expected, bound):
    """NaN and Inf at the same places and of the same sign, all else within `bound`."""
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), err_msg="positions of NaN")
    np.testing.assert_array_equal(np.isposinf(actual), np.isposinf(expected), err_msg="positions of Inf")
    np.testing.assert_array_equal(np.isneginf(actual), np.isneginf(expected), err_msg="positions of -Inf")
    finite = np.isfinite(expected)
    error = np.abs(actual[finite].astype(np.float64) - expected[finite].astype(np.float64))
    ratio = error / np.maximum(bound[finite], np.finfo(np.float64).tiny)
    assert ratio.max(initial=0) <= 1, f"error {error[ratio.argmax()]:.3g} is {ratio.max():.3g} times the bound"


def check(case, y):
    assert type(y) is np.ndarray and y.dtype == case.expected.dtype
    exact, ours, theirs = case.bounds()
    assert_same(y, case.expected, ours + theirs)
    assert_same(y, exact, ours)


# --- the file itself --------------------------------------------------------------------------------------------------


def test_file_is_complete():
    assert MANIFEST["megengine"] == "1.13.0"
    counts = Counter(name.split("/")[0] for name in CASES)
    assert not {family: counts[family] for family, least in FAMILIES.items() if counts[family] < least}
    assert len(CASES) == len(MANIFEST["cases"]) >= 180
    assert len(MANIFEST["modules"]) >= 20 and len(MANIFEST["initial"]) >= 4 and len(MANIFEST["refused"]) >= 19


def test_families_contain_what_their_names_promise():
    for name, case in CASES.items():
        family = name.split("/")[0]
        assert (case.expected.size == 0) == ("empty" in name), name
        assert np.isnan(case.x).any() == (family == "nan_input" or name.endswith("-nan")), name
        assert np.isinf(case.x).any() == (family == "inf_input"), name
        assert (not np.isfinite(case.weight).all()) == (family in ("nan_weight", "inf_weight")), name
        assert (case.expected.dtype == np.float16) == (family == "float16"), name
        if family in ("nan_input", "inf_input") and name != "nan_input/not-read":
            assert not np.isfinite(case.expected).all() and np.isfinite(case.expected).any(), name
        if case.expected.size:
            finite = case.expected[np.isfinite(case.expected)]
            assert len(np.unique(finite)) > len(finite) / 4, f"{name}: the result is nearly constant"


@every_case
def test_megengine_agrees_with_the_exact_sum(case):
    exact, _, theirs = case.bounds()
    assert_same(case.expected, exact, theirs)


# --- results ----------------------------------------------------------------------------------------------------------


@every_engine
@every_case
def test_conv2d(case, engine, tier, needs):
    needs(engine, case.x, case.weight, case.bias, **case.args)
    check(case, portconv.conv2d(case.x, case.weight, case.bias, engine=engine, **case.args))


@every_engine
@every_case
def test_module(case, engine, tier, needs):
    needs(engine, case.x, case.weight, case.bias, **case.args)
    check(case, case.module(engine=engine)(case.x))


WITH_OTHER_SHAPES = [case for case in CASES.values() if case.weight.ndim == 5 or case.bias is not None]


@pytest.mark.parametrize("case", WITH_OTHER_SHAPES, ids=lambda case: case.name)
def test_other_shapes_of_weight_and_bias(case, tier):
    weight = case.weight.reshape(-1, *case.weight.shape[-3:])
    bias = None if case.bias is None else case.bias.reshape(-1)
    check(case, portconv.conv2d(case.x, weight, bias, **case.args))


@every_case
def test_output_shape(case):
    shape_args = {key: value for key, value in case.args.items() if key in ("stride", "padding", "dilation", "groups")}
    assert portconv.conv2d_output_shape(case.x.shape, case.weight.shape, **shape_args) == case.expected.shape
    assert case.module().output_shape(case.x.shape) == case.expected.shape


def test_modes_in_capitals(tier):
    """MegEngine takes these two modes in any case, `padding_mode` only in lower case (among the refused calls)."""
    assert all(MANIFEST["observed"][mode + " in capitals works"] for mode in ("compute_mode", "conv_mode"))
    case = CASES["bias/3x3"]
    check(case, portconv.conv2d(case.x, case.weight, case.bias, conv_mode="CROSS_CORRELATION", compute_mode="FLOAT32"))


# --- gradients --------------------------------------------------------------------------------------------------------

WITH_GRADIENTS = [case for case in CASES.values() if case.dy is not None]
every_gradient = pytest.mark.parametrize("case", WITH_GRADIENTS, ids=lambda case: case.name)


def check_gradients(case, gradients):
    for ours, theirs, (exact, bound) in zip(gradients, case.gradients, case.gradient_bounds(), strict=False):
        assert_same(ours, theirs, 2 * bound)
        assert_same(ours, exact, bound)


def test_there_are_gradients():
    families = Counter(case.name.split("/")[0] for case in WITH_GRADIENTS)
    skipped = {
        "empty_batch",
        "nan_input",
        "inf_input",
        "huge_input",
        "nan_weight",
        "inf_weight",
        "float16",
        "mixed_dtype",
    }
    assert len(WITH_GRADIENTS) >= 95 and set(families) == set(FAMILIES) - skipped
    for case in WITH_GRADIENTS:
        assert [g.shape for g in case.gradients] == [a.shape for a in (case.x, case.weight, case.bias) if a is not None]


@every_gradient
def test_megengines_gradients_agree_with_the_exact_sums(case):
    check_gradients(case, case.gradients)


@every_gradient
def test_gradients(case, backend):
    arrays = [None if a is None else backend.array(a) for a in (case.x, case.weight, case.bias)]
    _, vjp = portconv.conv2d_vjp(*arrays, **case.args)
    check_gradients(case, [backend.numpy(found) for found in vjp(backend.array(case.dy)) if found is not None])


@pytest.mark.parametrize("engine", ["auto", "native"])
@every_gradient
def test_gradients_of_mlx(mx, case, engine, tier):
    arrays = [mx.array(a) for a in (case.x, case.weight, case.bias) if a is not None]

    def convolve(x, weight, bias=None):
        return portconv.conv2d(x, weight, bias, engine=engine, **case.args)

    (y,), gradients = mx.vjp(convolve, arrays, [mx.array(case.dy)])
    check(case, np.array(y))
    check_gradients(case, [np.array(g) for g in gradients])


# --- the module -------------------------------------------------------------------------------------------------------


def arguments(entry):
    convert = lambda value: tuple(value) if isinstance(value, list) else value  # noqa: E731
    return [convert(value) for value in entry["args"]], {key: convert(value) for key, value in entry["kwargs"].items()}


def short(entry):
    return entry["repr"][len("Conv2d") :] if "repr" in entry else str(entry["shape"])


@pytest.mark.parametrize("entry", MANIFEST["modules"], ids=short)
def test_module_looks_like_megengines(entry):
    args, kwargs = arguments(entry)
    module = portconv.Conv2d(*args, **kwargs)
    assert repr(module) == entry["repr"]
    for name, value in entry["attributes"].items():
        expected = tuple(value) if isinstance(value, list) else value
        actual = getattr(module, name)
        assert actual == expected and type(actual) is type(expected), name
    state = module.state_dict()
    assert [[key, list(value.shape), str(value.dtype)] for key, value in state.items()] == entry["state_dict"]
    assert list(dict(module.named_parameters())) == entry["named_parameters"]


@pytest.mark.parametrize("entry", MANIFEST["initial"], ids=short)
def test_initial_weights(entry):
    args, kwargs = arguments(entry)
    module = portconv.Conv2d(*args, **kwargs, rng=np.random.default_rng(7))
    weight = np.asarray(module.weight, dtype=np.float64)
    assert list(weight.shape) == entry["shape"]
    ours = {
        "mean": weight.mean(),
        "std": weight.std(),
        "kurtosis": (weight**4).mean() / (weight**2).mean() ** 2,
        "bias_is_zero": not np.any(module.bias),
    }
    kh, kw = two(args[2])
    std = (1 / (kh * kw * args[0])) ** 0.5  # of all input channels, also when grouped
    for values in (entry, ours):  # each within 5 standard errors of a normal distribution
        assert abs(values["mean"]) < 5 * std / weight.size**0.5
        assert abs(values["std"] / std - 1) < 5 / (2 * weight.size) ** 0.5
        assert abs(values["kurtosis"] - 3) < 5 * (24 / weight.size) ** 0.5
        assert values["bias_is_zero"]


# --- refused calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", MANIFEST["refused"], ids=lambda entry: entry["name"])
def test_what_megengine_refuses_is_refused(entry):
    x, weight = np.ones(entry["x_shape"], np.float32), np.ones(entry["weight_shape"], np.float32)
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["args"].items()}
    with pytest.raises(ValueError):
        portconv.conv2d(x, weight, **args)
    groups = args.get("groups", 1)
    out, channels = int(np.prod(weight.shape[:-3])), weight.shape[-3] * groups
    with pytest.raises(ValueError):
        portconv.Conv2d(channels, out, weight.shape[-2:], bias=False, **args)(x)
