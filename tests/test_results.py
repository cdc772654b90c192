"""Results in a dtype of the caller's (`out_dtype`), and in memory of the caller's (`out`)."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from tests.helpers import numbers, refused

INTEGERS = ("uint8", "int8", "uint16", "int16", "int32", "int64")
# Half to even, saturation on both sides, and what no integer is.
VALUES = [0.5, 1.5, 2.5, -0.5, -1.5, 254.5, 255.5, 300, -129, 70_000, -70_000, 1e30, -1e30, np.inf, -np.inf, np.nan]
ONE = np.ones((1, 1, 1, 1), "f4")


def rounded(values, dtype):
    """In Python's integers, one by one."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    found = []
    for value in np.asarray(values, "f8").ravel():
        if np.isnan(value):
            found.append(0)
        elif np.isinf(value):
            found.append(high if value > 0 else low)
        else:
            found.append(min(max(round(float(value)), low), high))
    return np.array(found, dtype).reshape(np.shape(values))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_rounded_half_to_even_and_saturate(backend, engine, dtype):
    x = np.array(VALUES, "f4").reshape(1, 1, 4, 4)
    if (reason := backend.why_not(engine, x, ONE)) is not None:
        pytest.skip(reason)
    options = {"engine": engine, "out_dtype": dtype}
    if dtype == "int64" and backend.name == "jax":  # without its 64-bit numbers
        refused(TypeError, ["`out_dtype`"], portconv.conv2d, backend.array(x), backend.array(ONE), **options)
        return
    y = portconv.conv2d(backend.array(x), backend.array(ONE), **options)
    backend.check(y)
    assert backend.dtype_name(y) == dtype
    np.testing.assert_array_equal(backend.numpy(y), rounded(x, dtype))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16"])
def test_what_is_rounded_is_the_sum_with_its_bias(backend, engine, dtype):
    if dtype not in (*INTEGERS, *backend.dtypes):
        pytest.skip("it has no such dtype")
    x, weight = np.round(8 * numbers((2, 4, 9, 11))), np.round(8 * numbers((5, 4, 3, 3), 1))
    bias = np.round(numbers((5,), 2)) + np.float32(0.5)
    if (reason := backend.why_not(engine, x, weight, bias, padding=1)) is not None:
        pytest.skip(reason)
    arrays = [backend.array(a) for a in (x, weight, bias)]
    exact = portconv.testing.reference_conv2d(x, weight, bias, padding=1).y
    y = backend.numpy(portconv.conv2d(*arrays, padding=1, engine=engine, out_dtype=dtype))
    if engine in ("winograd", "fft"):  # whose sums of integers are not exact
        assert np.abs(y.astype("f8") - np.clip(exact, *limits(dtype))).max() <= 1
    else:
        expected = exact.astype(dtype) if dtype == "float16" else rounded(exact, dtype)
        np.testing.assert_array_equal(y, expected)


def limits(dtype):
    return (-np.inf, np.inf) if dtype == "float16" else (np.iinfo(dtype).min, np.iinfo(dtype).max)


def test_a_result_of_more_digits_and_of_fewer(tier):
    x, weight = numbers((1, 3, 9, 9), dtype="f8"), numbers((4, 3, 3, 3), 1, "f8")
    wide = portconv.conv2d(x, weight)
    np.testing.assert_array_equal(portconv.conv2d(x, weight, out_dtype="float32"), wide.astype("f4"))
    narrow = x.astype("f4"), weight.astype("f4")
    np.testing.assert_array_equal(portconv.conv2d(*narrow, out_dtype="float64"), portconv.conv2d(*narrow).astype("f8"))
    half = portconv.conv2d(x.astype("f2"), weight.astype("f2"), out_dtype="float32")
    np.testing.assert_array_equal(half, portconv.conv2d(x.astype("f2").astype("f4"), weight.astype("f2").astype("f4")))


@pytest.mark.parametrize("wrong", ["bool", "complex64", "int4", 3, np.dtype("c8")])
def test_a_dtype_that_no_result_has_is_refused(wrong):
    refused(TypeError, ["`out_dtype`", repr(wrong)], portconv.conv2d, numbers((1, 1, 3, 3)), ONE, out_dtype=wrong)
    refused(TypeError, ["`out_dtype`"], portconv.Conv2d(1, 1, 1), numbers((1, 1, 3, 3)), out_dtype=wrong)


def test_dtype_objects_name_a_dtype():
    x = numbers((1, 1, 3, 3))
    for dtype in (np.uint8, np.dtype("u1"), "uint8"):
        assert portconv.conv2d(x, ONE, out_dtype=dtype).dtype == np.uint8
    assert portconv.plan_conv2d(x, ONE, out_dtype="uint8").problem.result_dtype == "uint8"
    assert "uint8" in portconv.plan_conv2d(x, ONE, out_dtype="uint8").explain()


# --- out --------------------------------------------------------------------------------------------------------------

MEMORIES = {
    "C": lambda shape, dtype: np.full(shape, 7, dtype),
    "F": lambda shape, dtype: np.full(shape[::-1], 7, dtype).T,
    "every second": lambda shape, dtype: np.full((*shape[:-1], 2 * shape[-1]), 7, dtype)[..., ::2],
    "flipped": lambda shape, dtype: np.full(shape, 7, dtype)[..., ::-1, ::-1],
    "unaligned": lambda shape, dtype: np.full(
        np.prod(shape) * np.dtype(dtype).itemsize + 1, 7, np.uint8
    )[1:].view(dtype).reshape(shape),
    "swapped bytes": lambda shape, dtype: np.full(shape, 7, np.dtype(dtype).newbyteorder()),
}  # fmt: skip


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "float16"])
def test_out_in_every_order_of_memory(tier, dtype, layout, memory):
    for engine, x_shape, weight_shape, groups in (
        ("gemm", (2, 5, 9, 20), (7, 5, 3, 3), 1),
        ("gemm", (1, 5, 9, 16), (70, 5, 1, 1), 1),
        ("gemm", (1, 2100, 30, 33), (9, 2100, 3, 3), 1),  # channels in parts
        ("winograd", (2, 5, 9, 20), (7, 5, 3, 3), 1),
        ("fft", (2, 5, 9, 20), (7, 5, 3, 3), 1),
        ("direct", (2, 5, 9, 20), (7, 5, 3, 3), 1),
        ("direct", (2, 20, 9, 20), (20, 1, 3, 3), 20),
        ("direct", (2, 3, 9, 20), (3, 1, 3, 3), 3),
    ):
        x = 30 * numbers(x_shape)
        if layout == "NHWC":
            x = x.transpose(0, 2, 3, 1).copy()
        options = {"groups": groups, "layout": layout, "engine": engine, "out_dtype": dtype}
        weight = numbers(weight_shape, 1)
        expected = portconv.conv2d(x, weight, **options)
        out = MEMORIES[memory](expected.shape, dtype)
        whole = out if out.base is None else out.base
        assert portconv.conv2d(x, weight, **options, out=out) is out
        np.testing.assert_array_equal(out, expected, err_msg=f"{engine} {x_shape}")
        if memory == "every second":
            assert (whole[..., 1::2] == 7).all()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_layer_and_a_function_fill_out_in(library):
    pytest.importorskip(library)
    there = portconv.get_backend(library)
    conv = portconv.Conv2d(3, 4, 3, padding=1, rng=0)
    x, weight = there.from_numpy(10 * numbers((1, 3, 8, 9))), there.from_numpy(np.asarray(conv.weight))
    for dtype in ("int16", "float32"):
        expected = there.to_numpy(conv(x, out_dtype=dtype))
        assert expected.any()
        out = there.from_numpy(np.zeros((1, 4, 8, 9), dtype))
        assert conv(x, out_dtype=dtype, out=out) is out
        np.testing.assert_array_equal(there.to_numpy(out), expected)
        out = there.from_numpy(np.zeros((1, 4, 8, 9), dtype))
        assert portconv.conv2d(x, weight, padding=1, out_dtype=dtype, out=out) is out
        np.testing.assert_array_equal(there.to_numpy(out), expected)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_an_out_that_cannot_be_the_result_is_refused_and_left_as_it_is(library):
    pytest.importorskip(library)
    there = portconv.get_backend(library)
    make = there.from_numpy
    memory = make(numbers((4, 3, 10, 10)))
    x, weight, bias = make(numbers((1, 3, 9, 9))), make(numbers((4, 3, 3, 3), 1)), make(numbers((4,), 2))
    for error, out, fragments in (
        (ValueError, make(np.full((1, 4, 7, 8), 5, "f4")), ["`out`", "(1, 4, 7, 7)", "(1, 4, 7, 8)"]),
        (TypeError, make(np.full((1, 4, 7, 7), 5, "i2")), ["`out`", "float32", "int16", "`out_dtype`"]),
    ):
        before = np.array(there.to_numpy(out))
        refused(error, fragments, portconv.conv2d, x, weight, bias, out=out)
        np.testing.assert_array_equal(there.to_numpy(out), before)
    refused(TypeError, ["`out`", "list"], portconv.conv2d, x, weight, bias, out=[1.0])
    image, out = memory[:1], memory.reshape(-1)[: 4 * 8 * 8].reshape(1, 4, 8, 8)
    refused(ValueError, ["`out`", "`x`"], portconv.conv2d, image, weight, out=out)
    taps = memory.reshape(-1)[: 4 * 3 * 3 * 3].reshape(4, 3, 3, 3)
    refused(ValueError, ["`out`", "`weight`"], portconv.conv2d, make(numbers((1, 3, 10, 10))), taps, out=out)


def test_numpy_refuses_an_out_without_memory_of_its_own():
    x, weight = numbers((1, 3, 9, 9)), numbers((4, 3, 3, 3), 1)
    read_only = np.zeros((1, 4, 7, 7), "f4")
    read_only.flags.writeable = False
    refused(ValueError, ["`out`", "writeable"], portconv.conv2d, x, weight, out=read_only)
    repeated = np.lib.stride_tricks.as_strided(np.zeros(7, "f4"), (1, 4, 7, 7), (0, 0, 0, 4))  # noqa: TID251
    refused(ValueError, ["`out`", "stride 0"], portconv.conv2d, x, weight, out=repeated)
    apart = np.zeros((1, 4, 7, 14), "f4")  # beside each other, element by element, and not overlapping
    other = np.zeros((1, 1, 7, 7), "f4")
    image, out = apart[:, :1, :, ::2], apart[:, :1, :, 1::2]
    assert portconv.conv2d(image, ONE, out=out) is out
    np.testing.assert_array_equal(out, other)


def test_torch_refuses_an_out_where_gradients_are_recorded():
    torch = pytest.importorskip("torch")
    x, weight = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1, requires_grad=True)
    refused(ValueError, ["`out`", "`weight`"], portconv.conv2d, x, weight, out=torch.zeros(1, 1, 4, 4))
    with torch.no_grad():
        out = torch.zeros(1, 1, 4, 4)
        assert portconv.conv2d(x, weight, out=out) is out


def test_other_libraries_have_no_out(backend):
    x, weight = backend.array(numbers((1, 1, 4, 4))), backend.array(ONE)
    if backend.name.partition("-")[0] in ("numpy", "torch"):
        pytest.skip("it has one")
    out = backend.array(np.zeros((1, 1, 4, 4), "f4"))
    refused(TypeError, ["`out`", "NumPy and PyTorch"], portconv.conv2d, x, weight, out=out)
