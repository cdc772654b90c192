"""MLX's own convolution: offered where it is right, in bounded memory, without copies."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d, reference_gradients
from tests.helpers import numbers


def test_results_above_int32_are_not_given_to_mlx(mx):
    plan = portconv.plan_conv2d((1, 1, 50_000, 50_000), (1, 1, 3, 3), backend="mlx")
    (native,) = [c for c in plan.candidates if c.engine == "native"]
    assert "2**31" in native.why_not
    with pytest.raises(portconv.UnsupportedError, match="2\\*\\*31"):
        portconv.plan_conv2d((1, 1, 50_000, 50_000), (1, 1, 3, 3), backend="mlx", engine="native")


@pytest.mark.parametrize(
    ("shape", "outputs", "padding", "reason"),
    [
        ((1, 1, 10, 10_000), 30_000, 0, "2**31"),  # a small image of few rows, and many results
        ((1, 1, 16_000, 16_000), 1, 500, None),  # most of the padded image is the image
        ((1, 1, 100, 100), 1, 9000, "would pad the image"),
    ],
    ids=str,
)
def test_sizes_that_native_is_offered_for(mx, shape, outputs, padding, reason):
    plan = portconv.plan_conv2d(shape, (outputs, 1, 3, 3), padding=padding, backend="mlx")
    (native,) = [c for c in plan.candidates if c.engine == "native"]
    assert (native.why_not is None) if reason is None else (reason in native.why_not)


def test_native_keeps_its_bound_or_is_not_offered(mx):
    """MLX adds the terms of long sums one after the other."""
    for shape, kernel, value in (
        ((1, 512, 6, 6), (4, 512, 3, 3), 0.7),
        ((1, 2048, 4, 4), (4, 2048, 1, 1), 0.7),
        ((1, 64, 20, 20), (2, 64, 3, 3), 0.7),
        ((1, 1, 33, 33), (1, 1, 31, 31), 0.3),
    ):
        x, weight = np.full(shape, 0.1, "f4"), np.full(kernel, value, "f4")
        plan = portconv.plan_conv2d(mx.array(x), mx.array(weight))
        (native,) = [c for c in plan.candidates if c.engine == "native"]
        if native.why_not is None:
            y = portconv.conv2d(mx.array(x), mx.array(weight), engine="native")
            assert_close(np.array(y), reference_conv2d(x, weight))


def _problems_of_gradients(count):
    """Random shapes, strides, dilations and groups, with padding that differs from side to side or is on one alone."""
    rng = np.random.default_rng(7)
    for _ in range(count):
        groups = int(rng.integers(1, 5))
        inputs, outputs = (groups * int(n) for n in rng.integers(1, 4, 2))
        kernel = [(1, rng.integers(1, 6)), (rng.integers(1, 6), 1), (3, 3), rng.integers(1, 5, 2)][rng.integers(4)]
        kernel, stride, dilation = (
            tuple(int(n) for n in two) for two in (kernel, rng.integers(1, 7, 2), rng.integers(1, 3, 2))
        )
        rows, cols = (tuple(int(n) for n in two) for two in rng.integers(0, 8, (2, 2)))
        padding = [(rows, cols), ((rows[0], 0), (0, cols[1])), ((0, rows[1]), (cols[0], 0)), ((0, 0), (0, 0))][
            rng.integers(4)
        ]
        size = [
            max(1, d * (k - 1) + 1 - sum(pad)) + int(more)
            for k, d, pad, more in zip(kernel, dilation, padding, rng.integers(0, 9, 2), strict=True)
        ]
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        yield (int(rng.integers(1, 3)), inputs, *size), (outputs, inputs // groups, *kernel), options


def test_the_gradients_of_native(mx):
    """They are MLX's own. Where they were seen to be wrong, the engine is not offered."""
    refused = 0
    for x_shape, weight_shape, options in _problems_of_gradients(300):
        plan = portconv.plan_conv2d(x_shape, weight_shape, **options, backend="mlx")
        (native,) = [c for c in plan.candidates if c.engine == "native"]
        if native.why_not is not None:
            assert "ends before the image begins" in native.why_not
            refused += 1
            continue
        values = numbers(x_shape), numbers(weight_shape, 1), numbers(plan.output_shape, 2)
        x, weight, dy = (mx.array(value) for value in values)
        _, found = mx.vjp(lambda *a, o=options: portconv.conv2d(*a, **o, engine="native"), [x, weight], [dy])
        for gradient, exact in zip(found, reference_gradients(*values, **options)[:2], strict=True):
            assert_close(np.array(gradient), exact)
    assert 1 <= refused <= 15


def test_native_is_not_offered_where_its_gradient_has_another_shape(mx):
    x_shape, weight_shape = (1, 4, 1, 4), (4, 2, 1, 2)
    options = {"stride": (4, 2), "padding": ((3, 0), (3, 0)), "groups": 2}
    with pytest.raises(portconv.UnsupportedError, match="the kernel ends before the image begins"):
        portconv.plan_conv2d(x_shape, weight_shape, **options, backend="mlx", engine="native")
    values = numbers(x_shape), numbers(weight_shape, 1), numbers((1, 4, 1, 3), 2)
    x, weight, dy = (mx.array(value) for value in values)
    _, found = mx.vjp(lambda *a: portconv.conv2d(*a, **options), [x, weight], [dy])
    for gradient, exact in zip(found, reference_gradients(*values, **options)[:2], strict=True):
        assert_close(np.array(gradient), exact)


def test_native_unfolds_large_images_in_strips(mx, monkeypatch):
    """MLX's CPU build unfolds an image as a whole, and dies where there is no memory for it."""
    native = pytest.importorskip("portconv.backends.mlx.native")
    problems = (
        ((3, 2, 23, 20), (4, 2, 3, 3), {"padding": 1}),
        ((2, 4, 23, 20), (4, 2, 3, 5), {"groups": 2, "stride": 2, "padding": 3}),
        ((2, 3, 29, 20), (4, 3, 9, 9), {"dilation": (2, 1), "padding": ((1, 4), (2, 0)), "stride": (3, 1)}),
        ((1, 2, 29, 20), (2, 2, 5, 3), {"padding": 2, "padding_mode": "reflect", "layout": "NHWC"}),
    )
    for limit in (1, 3000, 20000):
        monkeypatch.setattr(native, "CPU_MAX_UNFOLDED", limit)
        for x_shape, weight_shape, options in problems:
            x, weight = numbers(x_shape), numbers(weight_shape)
            if options.get("layout") == "NHWC":
                x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
            y = portconv.conv2d(mx.array(x), mx.array(weight), engine="native", **options)
            assert_close(np.array(y), reference_conv2d(x, weight, **options))


def test_native_needs_bounded_memory(mx, run_python):
    """Of 3.4 gigabytes, unfolded."""
    out = run_python("""
        import resource, sys
        import mlx.core as mx, portconv

        x = mx.zeros((1, 1, 2000, 1900)).at[0, 0, ::100, ::100].add(1)
        y = portconv.conv2d(x, mx.ones((1, 1, 15, 15)), padding=7, engine="native")
        assert y.sum().item() == (19 * 15 + 8) * (18 * 15 + 8), y.sum()
        if sys.platform == "darwin":
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        else:  # where that may be the most of the process that started this one
            (peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
            print(int(peak.split()[1]) * 1024)
    """)
    assert int(out) < 1 << 30


def test_a_native_result_is_a_view_of_nhwc_memory(mx):
    x, weight = mx.array(numbers((2, 3, 8, 9))), mx.array(numbers((4, 3, 3, 3)))
    y = portconv.conv2d(x, weight, padding=1, engine="native")
    mx.eval(y)
    assert memoryview(y).strides == (8 * 9 * 4 * 4, 4, 9 * 4 * 4, 4 * 4)  # (N, C, H, W) with channels side by side
    z = portconv.conv2d(y, mx.array(numbers((5, 4, 3, 3))), engine="native")
    mx.eval(z)
    assert memoryview(z).strides == (6 * 7 * 5 * 4, 4, 7 * 5 * 4, 5 * 4)
    nhwc = portconv.conv2d(mx.array(numbers((2, 8, 9, 3))), weight, padding=1, layout="NHWC", engine="native")
    mx.eval(nhwc)
    assert memoryview(nhwc).strides == (8 * 9 * 4 * 4, 9 * 4 * 4, 4 * 4, 4)
