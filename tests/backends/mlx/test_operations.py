"""MLX as on a GPU, as far as a CPU can tell: engines in MLX's operations, chains, what is split or refused."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close as within_bound
from portconv.testing import reference_conv2d
from tests.helpers import numbers

OPERATIONS = ("gemm", "winograd", "direct", "fft")


def assert_close(y, expected):
    """As in `portconv.testing`, of an MLX array."""
    name = str(y.dtype).rpartition(".")[2]
    within_bound(portconv.get_backend("mlx").to_numpy(y), expected, dtype=name)


@pytest.fixture
def adapter(mx):
    return portconv.get_backend("mlx")


def on_gpu(plan):
    """The plan's problem as it would be on a GPU; plans made for it run on any device."""
    return replace(plan.problem, device="gpu")


# x shape, weight shape, arguments
PROBLEMS = {
    "3x3": ((2, 16, 20, 21), (9, 16, 3, 3), {"padding": 1}),
    "1x1": ((1, 40, 9, 9), (12, 40, 1, 1), {}),
    "groups": ((1, 6, 11, 12), (4, 3, 3, 3), {"groups": 2, "stride": 2}),
    "depthwise": ((2, 8, 14, 14), (16, 1, 5, 5), {"groups": 8, "padding": 2}),
    "dilation, reflect": ((1, 4, 20, 20), (3, 4, 3, 3), {"dilation": 3, "padding": 3, "padding_mode": "reflect"}),
    "far over the edge": ((1, 200, 33, 30), (4, 200, 3, 3), {"padding": 12, "dilation": 12}),
    "large kernel": ((1, 1, 40, 50), (2, 1, 15, 13), {"padding": 7}),
    "larger than 182x182": ((1, 1, 190, 200), (1, 1, 185, 183), {"padding": 1}),
    "NHWC": ((2, 13, 15, 8), (8, 8, 3, 3), {"padding": 1, "layout": "NHWC"}),
    "no images": ((0, 4, 9, 9), (4, 4, 3, 3), {}),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("own", OPERATIONS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_engines_in_mlx_operations(mx, adapter, name, own, dtype):
    x_shape, weight_shape, options = PROBLEMS[name]
    if np.prod(weight_shape[1:]) > 1500 and own != "fft" and (own, name) != ("gemm", "far over the edge"):
        pytest.skip("thousands of operations take MLX too long to build")
    x, weight, bias = numbers(x_shape), numbers(weight_shape, 1), numbers(weight_shape[:1], 2)
    arrays = [mx.array(a).astype(getattr(mx, dtype)) for a in (x, weight, bias)]
    problem = on_gpu(portconv.plan_conv2d(*arrays, **options))
    offer = next(c for c in adapter.candidates(problem) if c.engine == own)
    if offer.why_not is not None:
        assert own == "winograd", offer
        pytest.skip(offer.why_not)
    plan = adapter.build(problem, own)
    x, weight, bias = (adapter.to_numpy(a) for a in arrays)
    expected = reference_conv2d(x, weight, bias, **options)
    packed = plan.pack(arrays[1])
    y = plan.execute(arrays[0], packed, arrays[2])
    assert y.dtype == arrays[0].dtype
    assert y.shape == expected[0].shape
    assert_close(y, expected)
    if np.prod(weight_shape[2:]) > 4096:
        with pytest.raises(portconv.UnsupportedError, match="taps"):
            mx.compile(lambda a: plan.execute(a, packed, arrays[2]))(arrays[0])
        return
    # without values: inside a compiled function, and with a weight that is traced, too
    assert_close(mx.compile(lambda a: plan.execute(a, packed, arrays[2]))(arrays[0]), expected)
    whole = mx.compile(lambda a, w, b: plan.execute(a, plan.pack(w), b))
    assert_close(whole(*arrays), expected)


@pytest.mark.parametrize("own", ["gemm", "direct"])
def test_gradients_of_mlx_operations(mx, torch, adapter, own):
    x, weight = numbers((2, 6, 11, 12)), numbers((4, 3, 3, 3), 1)
    problem = on_gpu(portconv.plan_conv2d(mx.array(x), mx.array(weight), groups=2, stride=2, padding=1))
    plan = adapter.build(problem, own)
    got = mx.grad(lambda a, w: (plan.execute(a, plan.pack(w)) ** 2).sum(), argnums=(0, 1))(
        mx.array(x), mx.array(weight)
    )
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, weight)]
    (torch.nn.functional.conv2d(*theirs, groups=2, stride=2, padding=1) ** 2).sum().backward()
    for ours, expected in zip(got, theirs, strict=True):
        np.testing.assert_allclose(np.array(ours), expected.grad.numpy(), rtol=1e-4, atol=1e-4)


# --- chains of layers -------------------------------------------------------------------------------------------------


def operations(mx, y, path):
    """How many operations of each kind MLX would run for a lazy result."""
    mx.export_to_dot(str(path), y)
    return Counter(re.findall(r'label ?= ?"([A-Za-z]+)"', path.read_text()))


def in_nhwc_memory(y, layout):
    """Whether a lazy or evaluated array of this layout lies in memory as NHWC without gaps."""
    view = memoryview(y)
    strides, shape = (view.strides, view.shape)
    if layout == "NCHW":
        strides, shape = ([values[i] for i in (0, 2, 3, 1)] for values in (strides, shape))
    expected = [y.itemsize * int(np.prod(shape[i + 1 :])) for i in range(4)]
    return all(s == e or n == 1 for s, e, n in zip(strides, expected, shape, strict=True))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_chain_copies_nothing_and_packs_once(mx, monkeypatch, tmp_path, layout):
    """Convolutions by MLX's own routine, with ReLU, sums and pooling by functions of the namespace between them."""
    packs = []
    native = type(
        portconv.get_backend("mlx").build(portconv.plan_conv2d(mx.ones((1, 1, 4, 4)), (1, 1, 3, 3)).problem, "native")
    )
    original = native.pack
    monkeypatch.setattr(native, "pack", lambda plan, weight: packs.append(1) or original(plan, weight))
    layers = [
        portconv.Conv2d(16, 16, 3, 1, 1, rng=seed, backend="mlx", layout=layout, engine="native") for seed in range(5)
    ]
    seen = []

    xp = portconv.array_namespace(mx.array(0))

    def pool(y):
        """The mean of squares of 2x2."""
        n, *rest = y.shape
        row, col = (1, 2) if layout == "NHWC" else (2, 3)
        shape = [n, *rest]
        shape[col : col + 1] = [shape[col] // 2, 2]
        shape[row : row + 1] = [shape[row] // 2, 2]
        return xp.mean(xp.reshape(y, shape), axis=(row + 1, col + 2))

    def network(x):
        for number, layer in enumerate(layers):
            y = xp.maximum(layer(x), 0)
            seen.append(y)
            x = xp.add(x, y) if number % 2 else y
            if number == 2:
                x = pool(x)
            seen.append(x)
        return x

    image = numbers((2, 24, 20, 16))
    x = mx.array(image)
    x = mx.transpose(x, (0, 3, 1, 2)) if layout == "NCHW" else x
    mx.eval(network(x))
    assert len(packs) == len(layers)
    seen.clear()
    y = network(x)
    count = operations(mx, y, tmp_path / "graph.dot")
    assert count["Convolution"] == len(layers)
    assert not set(count) & {"Contiguous", "Copy", "AsType", "Pad", "Concatenate", "Gather", "AsStrided"}, count
    assert (count["Transpose"] > 0) == (layout == "NCHW")  # views, as the strides show
    mx.eval(y, *seen)
    assert all(in_nhwc_memory(array, layout) for array in [y, *seen])
    assert len(packs) == len(layers)
    with mx.stream(mx.cpu):
        again = network(x)
    np.testing.assert_array_equal(np.array(again), np.array(y))


# --- what is split, refused or reported -------------------------------------------------------------------------------


def test_large_batches_go_in_parts_on_a_gpu(mx, adapter, monkeypatch, tmp_path):
    from portconv.backends.mlx import native

    x, weight = numbers((7, 4, 9, 10)), numbers((5, 4, 3, 3), 1)
    problem = on_gpu(portconv.plan_conv2d(mx.array(x), mx.array(weight), padding=1))
    plan = adapter.build(problem, "native")
    for limit, convolutions in ((2**28, 1), (3 * (4 * 11 * 12 + 5 * 9 * 10), 3), (1, 7)):
        monkeypatch.setattr(native, "MAX_GPU_PART", limit)
        y = plan.execute(mx.array(x), plan.pack(mx.array(weight)))
        assert operations(mx, y, tmp_path / "graph.dot")["Convolution"] == convolutions
        assert_close(y, reference_conv2d(x, weight, padding=1))


def refused(adapter, *shapes, **options):
    problem = on_gpu(portconv.plan_conv2d(*shapes, backend="mlx", **options))
    return {c.engine: c.why_not for c in adapter.candidates(problem)}


def test_sizes_that_mlx_gets_wrong_are_refused(adapter):
    reasons = refused(adapter, (70, 64, 800, 800), (32, 64, 1, 1))
    assert all("2**31" in reason for engine, reason in reasons.items() if engine != "winograd")
    reasons = refused(adapter, (1, 1, 400, 400), (1, 1, 182, 182))
    assert "taps" in reasons["native"]
    assert reasons["fft"] is None
    reasons = refused(adapter, (1, 1, 400, 400), (1, 1, 181, 181))
    assert reasons["native"] is None
    reasons = refused(adapter, (1, 4, 40, 40), (4, 4, 3, 3), dtype="float64")
    assert all("float64" in reason for reason in reasons.values())


def test_native_is_refused_where_its_gradients_were_wrong(adapter, monkeypatch):
    from portconv.backends.mlx import native

    sizes = (1, 8, 40, 40), (8, 4, 3, 3)
    for version, wrong in (("0.31.2", True), ("0.32.0", False), ("0.32.1.dev20260801", False)):
        monkeypatch.setattr(native, "version", {"mlx": version}.get)
        native._version.cache_clear()
        reason = refused(adapter, *sizes, groups=2, stride=2)["native"]
        assert ("gradients" in reason) if wrong else reason is None
        assert refused(adapter, *sizes, groups=2)["native"] is None
        assert refused(adapter, (1, 8, 40, 40), (8, 8, 3, 3), stride=2)["native"] is None
    monkeypatch.undo()
    native._version.cache_clear()


def test_large_kernels_are_for_fft_on_a_gpu(adapter):
    def cheapest(*shapes, **options):
        problem = on_gpu(portconv.plan_conv2d(*shapes, backend="mlx", **options))
        return min(adapter.candidates(problem), key=lambda c: (c.why_not is not None, c.seconds)).engine

    assert cheapest((1, 1, 2048, 2048), (1, 1, 127, 127)) == "fft"
    assert cheapest((1, 64, 56, 56), (64, 64, 3, 3)) == "native"


def test_reduced_precision_is_reported(adapter, monkeypatch):
    def notes(setting, dtype="float32"):
        monkeypatch.setenv("MLX_ENABLE_TF32", setting)
        problem = on_gpu(portconv.plan_conv2d((1, 4, 40, 40), (4, 4, 3, 3), backend="mlx", dtype=dtype))
        return {c.engine: c.note for c in adapter.candidates(problem)}

    assert all("TF32" in notes("1")[engine] for engine in ("native", "gemm", "winograd"))
    assert not any("TF32" in note for note in notes("0").values())
    assert "TF32" not in notes("1", "float16")["native"]


def test_the_default_device_and_stream_may_change_between_calls(mx):
    module = portconv.Conv2d(3, 4, 3, padding=1, rng=0, backend="mlx")
    x = numbers((1, 3, 12, 13))
    expected = reference_conv2d(x, *(module.state_dict()[name] for name in ("weight", "bias")), padding=1)
    for _ in range(2):
        assert_close(module(mx.array(x)), expected)
        with mx.stream(mx.new_stream(mx.cpu)):
            assert_close(module(mx.array(x)), expected)
            lazy = module(mx.array(x)) + 0
        assert_close(lazy, expected)
