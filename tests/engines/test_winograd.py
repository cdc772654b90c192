"""Winograd's tiles: exact matrices, errors within the bound for every tile and kind of data, tails, NaN, overflow."""

from __future__ import annotations

import itertools
import re
import sys
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

import portconv
from portconv import UnsupportedError
from portconv.dispatch import planner
from portconv.engines import winograd
from portconv.engines.winograd import TILES
from portconv.testing import assert_close, error_bound, reference_conv2d
from tests.helpers import numbers

KERNELS = list(dict.fromkeys(tile.kernel for tile in TILES))
every_tile = pytest.mark.parametrize(
    "tile", TILES, ids=lambda tile: "{}x{} of {}x{}".format(*tile.outputs, *tile.kernel)
)
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: "{}x{}".format(*kernel))


def convolve(*arrays, **options):
    return portconv.conv2d(*arrays, engine="winograd", **options)


def forget():
    """Forget what was planned and chosen."""
    for module in (planner, winograd, sys.modules.get("portconv.cpu.compiled.plans")):
        for value in vars(module).values() if module else ():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@pytest.fixture
def only(monkeypatch, tier):
    """A function after which there is one tile only."""
    every = winograd.tiles_for

    def choose(tile):
        # what is left of a kernel over an image smaller than it is has tiles of its own
        monkeypatch.setattr(winograd, "tiles_for", lambda p: [tile] if p.kernel == tile.kernel else every(p))
        forget()

    yield choose
    monkeypatch.undo()
    forget()


# --- the matrices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "r"), sorted({axis for tile in TILES for axis in zip(*tile[:2], strict=True)}))
def test_matrices_are_exact(m, r):
    """The sum of `A[i, n] G[n, k] B[n, at]` over n is 1 where input `at` is output i's tap k, and 0 elsewhere."""
    a, g, b = winograd.matrices(m, r)
    n = m + r - 1
    assert (len(a), len(g), len(b)) == (m, n, n)
    for i, k, at in itertools.product(range(m), range(r), range(n)):
        total = sum(a[i][j] * g[j][k] * b[j][at] for j in range(n))
        assert isinstance(total, (int, Fraction))
        assert total == (at == i + k)
    taps, inputs = [Fraction(3 * k + 1, 7) for k in range(r)], [Fraction(5 - 2 * at, 3) for at in range(n)]
    products = [
        sum(x * t for x, t in zip(g[j], taps, strict=True)) * sum(x * d for x, d in zip(b[j], inputs, strict=True))
        for j in range(n)
    ]
    for i in range(m):
        filtered = sum(taps[k] * inputs[i + k] for k in range(r))
        assert sum(x * p for x, p in zip(a[i], products, strict=True)) == filtered


@every_tile
def test_transformed_weights(tile):
    (mh, mw), (kh, kw) = tile.outputs, tile.kernel
    weight = numbers((3, 2, kh, kw), dtype="f8")
    products = winograd.transformed(weight, tile, np, np.float64)
    assert products.shape == (tile.size[0] * tile.size[1], 3, 2)
    g, h = winograd.matrices(mh, kh)[1], winograd.matrices(mw, kw)[1]
    for o, i in itertools.product(range(3), range(2)):
        exact = [[Fraction(float(v)) for v in row] for row in weight[o, i]]
        for u, v in itertools.product(range(tile.size[0]), range(tile.size[1])):
            value = sum(g[u][k] * exact[k][q] * h[v][q] for k in range(kh) for q in range(kw))
            np.testing.assert_allclose(products[u * tile.size[1] + v, o, i], float(value), rtol=1e-13, atol=1e-14)


# --- the bound --------------------------------------------------------------------------------------------------------


def kind_of_data(kind, shape, rng):
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "positive":
        return rng.random(shape)
    if kind == "constant":
        return np.full(shape, 0.1)
    if kind == "near constant":
        return 1 + 1e-3 * rng.standard_normal(shape)
    if kind == "range":  # a few channels outweigh all others, so that no errors average out
        return rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 7, (1, shape[1], 1, 1))
    rows, columns = np.indices(shape[2:])
    return (0.5 + rng.random(shape)) * (-1.0) ** (rows + columns)  # "alternating"


KINDS = ("normal", "positive", "constant", "near constant", "range", "alternating")


def problem_of_kinds(x_kind, weight_kind, channels, tile, dtype):
    rng = np.random.default_rng([channels, x_kind, weight_kind])
    size = [2 * m + k for m, k in zip(tile.outputs, tile.kernel, strict=True)]  # two tiles, and one output more
    x = kind_of_data(KINDS[x_kind], (1 if channels > 64 else 2, channels, *size), rng).astype(dtype)
    return x, kind_of_data(KINDS[weight_kind], (3, channels, *tile.kernel), rng).astype(dtype)


@cache  # for both tiers
def reference_of_kinds(*which):
    return reference_conv2d(*problem_of_kinds(*which))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_tile
def test_errors_keep_the_bound(tile, tier, only, dtype):
    only(tile)
    shares = {}
    for channels in sorted({tile.channels, 64, 512}):
        for (n, x_kind), (m, weight_kind) in itertools.product(enumerate(KINDS), enumerate(KINDS)):
            if dtype == "float64" and n and m and n != m:
                continue  # the exact sums take a minute
            x, weight = problem_of_kinds(n, m, channels, tile, dtype)
            expected = reference_of_kinds(n, m, channels, tile, dtype)
            plan = portconv.plan_conv2d(x, weight, engine="winograd")
            (candidate,) = [c for c in plan.candidates if c.engine == "winograd"]
            assert winograd.note(tile) in candidate.note
            share = np.abs(plan.execute(x, plan.pack(weight)) - expected.y) / error_bound(expected, dtype)
            shares[channels, x_kind, weight_kind] = float(share.max())
    worst = max(shares, key=shares.__getitem__)
    print(f"{winograd.note(tile)} {tier} {dtype}: {shares[worst]:.3f} of the bound, at {worst}")  # noqa: T201
    assert shares[worst] < 1, f"{shares[worst]:.3f} times the bound at {worst}"


@every_kernel
def test_the_planner_chooses_a_tile_that_fits(kernel, tier):
    for channels in (1, 3, 4, 15, 16, 17, 47, 48, 100):
        x_shape, weight_shape = (1, channels, 40, 40), (8, channels, *kernel)
        plan = portconv.plan_conv2d(x_shape, weight_shape)
        (candidate,) = [c for c in plan.candidates if c.engine == "winograd"]
        fitting = [tile for tile in TILES if tile.kernel == kernel and tile.channels <= channels]
        if fitting:
            assert any(winograd.note(tile) in candidate.note for tile in fitting)
        else:
            assert candidate.why_not == f"with {channels} input channels its error would be too large"
            with pytest.raises(UnsupportedError, match="input channels"):
                portconv.plan_conv2d(x_shape, weight_shape, engine="winograd")


def test_integers_have_exact_results_where_the_tile_has_no_fractions_to_round(tier, only):
    """F(2x2, 3x3) halves and quarters only: small integers lose nothing."""
    only(next(tile for tile in TILES if (tile.outputs, tile.kernel) == ((2, 2), (3, 3))))
    rng = np.random.default_rng(0)
    x, weight = rng.integers(-9, 10, (2, 20, 11, 12)).astype("f4"), rng.integers(-9, 10, (7, 20, 3, 3)).astype("f4")
    np.testing.assert_array_equal(convolve(x, weight, padding=1), reference_conv2d(x, weight, padding=1)[0])


# --- every size, every rule -------------------------------------------------------------------------------------------


@every_tile
def test_tails(tile, tier, only):
    """Tiles that reach over the edge: every size of the result from 1 on, along both axes."""
    only(tile)
    channels, (kh, kw) = tile.channels, tile.kernel
    image, weight = numbers((1, channels, 12 + kh, 12 + kw)), numbers((3, channels, kh, kw), 1)
    expected = reference_conv2d(image, weight)
    rows, columns = (range(1, 14) if m > 1 else (1, 2, 13) for m in tile.outputs)
    for oh, ow in itertools.product(rows, columns):
        y = convolve(image[:, :, : oh + kh - 1, : ow + kw - 1], weight)
        part = (slice(None), slice(None), slice(oh), slice(ow))
        assert_close(y, expected.at(part))
        if (oh + ow) % 3 == 0:  # with a frame of zeros, the same size needs a smaller image
            small = image[:, :, : max(oh - 2, 1), : max(ow - 2, 1)]
            options = {"padding": ((kh - 1, 1), (kw - 1, 2))}
            assert_close(convolve(small, weight, **options), reference_conv2d(small, weight, **options))


@every_kernel
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_rules(kernel, tier, layout, padding_mode):
    batches, channels, outputs = (1, 2, 5), (5, 16, 49), (1, 3, 17, 40)
    paddings = [0, 1, (2, 3), ((3, 0), (0, 4)), ((1, 4), (3, 2)), "same", "valid"]
    sizes = [(7, 8), (9, 31), (16, 16), (8, 7)]
    for n, padding in enumerate(paddings):
        batch, i, o, size = (options[n % len(options)] for options in (batches, channels, outputs, sizes))
        x, weight = numbers((batch, i, *size)), numbers((o, i, *kernel), 1)
        bias = None if n % 3 == 0 else 10 * numbers((1, o, 1, 1) if n % 2 else (o,), 2)
        if layout == "NHWC":
            x = x.transpose(0, 2, 3, 1) if n % 2 else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        options = {"padding": padding, "padding_mode": padding_mode, "layout": layout}
        y = convolve(x, weight, bias, **options)
        assert_close(y, reference_conv2d(x, weight, bias, **options))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "bool"])
def test_dtypes(tier, dtype):
    x = (
        (3 * numbers((2, 20, 13, 14))).astype(dtype)
        if dtype[0] == "f"
        else np.arange(7280).reshape(2, 20, 13, 14) % 251
    )
    x = x.astype(dtype)
    weight = numbers((6, 20, 3, 3), 1).astype(dtype if dtype[0] == "f" else "float32")
    y = convolve(x, weight, padding=1)
    assert y.dtype == weight.dtype
    assert_close(y, reference_conv2d(x, weight, padding=1))


def test_many_blocks(tier):
    """Images and batches that are cut, weights too many for a cache: neighbouring blocks fit together."""
    for x_shape, outputs, options in (
        ((3, 16, 150, 140), 8, {"padding": 1}),
        ((40, 24, 9, 9), 16, {"padding": 1}),
        ((1, 320, 20, 21), 330, {"padding": 1}),
        ((5, 256, 7, 7), 400, {"padding": 1, "padding_mode": "reflect"}),
        ((1, 4, 5, 3000), 3, {}),
        ((1, 4, 3000, 5), 3, {}),
    ):
        x, weight = numbers(x_shape), numbers((outputs, x_shape[1], 3, 3), 1)
        assert_close(convolve(x, weight, **options), reference_conv2d(x, weight, **options))


# --- values that are not finite, and overflow -------------------------------------------------------------------------

BAD = [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]]


@pytest.mark.parametrize("bad", BAD, ids=str)
@every_kernel
def test_nonfinite_pixels(kernel, tier, bad):
    """NaN and Inf reach the outputs that see them, and no other: neither neighbours in the tile nor the next call."""
    weight = numbers((3, 48, *kernel), 1)
    weight.flat[::7] = 0  # infinity times zero is NaN
    clean = numbers((2, 48, 14, 15))
    for place in ((0, 0, 0, 0), (1, 5, 7, 8), (0, 47, 13, 14), (1, 16, 0, 14)):
        for options in ({}, {"padding": 2}, {"padding": 1, "padding_mode": "reflect"}):
            x = clean.copy()
            for n, value in enumerate(bad):
                x[(*place[:3], place[3] - n)] = value
            assert_close(convolve(x, weight, **options), reference_conv2d(x, weight, **options))
            y = convolve(clean, weight, **options)  # what scratch memory still holds is harmless
            assert np.isfinite(y).all()
            assert_close(y, reference_conv2d(clean, weight, **options))


@pytest.mark.parametrize("bad", BAD, ids=str)
@every_kernel
def test_nonfinite_weights(kernel, tier, bad):
    x, weight = numbers((2, 48, 14, 15)), numbers((5, 48, *kernel), 1)
    for n, value in enumerate(bad):
        weight[3, 7 + n, kernel[0] // 2, kernel[1] // 2] = value
    y = convolve(x, weight, padding=1)
    assert_close(y, reference_conv2d(x, weight, padding=1))
    assert np.isfinite(y[:, [0, 1, 2, 4]]).all()
    assert not np.isfinite(y[:, 3]).any()


def test_nonfinite_bias(tier):
    x, weight, bias = numbers((1, 8, 9, 9)), numbers((4, 8, 3, 3), 1), np.array([1, np.nan, np.inf, -np.inf], "f4")
    assert_close(convolve(x, weight, bias, padding=1), reference_conv2d(x, weight, bias, padding=1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("large", ["image", "weight"])
@every_tile
def test_overflow_inside_a_transform(tile, tier, only, large, dtype):
    """The sums of any order fit the dtype; what the transforms make of the values does not."""
    only(tile)
    most = float(np.finfo(dtype).max)
    rng = np.random.default_rng(0)
    channels, size = max(tile.channels, 2), [11 + k for k in tile.kernel]
    x = rng.uniform(-0.9, 0.9, (1, channels, *size)).astype(dtype)
    weight = rng.uniform(-1, 1, (3, channels, *tile.kernel)).astype(dtype)
    if large == "image":
        x, weight = (x * most).astype(dtype), weight / np.abs(weight).sum(axis=(1, 2, 3), keepdims=True)
    else:
        x, weight = x / weight[0].size, (weight * most).astype(dtype)
    with np.errstate(all="ignore"):
        expected = reference_conv2d(x.astype(np.longdouble), weight.astype(np.longdouble))
    if dtype == "float64":  # the oracle's own sums are in float64, and the terms may be as large as its range
        factor = 2.0**-10
        expected = reference_conv2d(x * factor, weight).each(lambda value: value / factor)
    assert np.isfinite(expected.y).all()
    y = convolve(x, weight)
    assert np.isfinite(y).all()
    assert_close(y, expected)


def test_results_beyond_the_range_are_infinite(tier):
    x, weight = np.full((1, 16, 8, 8), 1e38, "f4"), np.full((2, 16, 3, 3), 1.0, "f4")
    weight[1] = -1
    y = convolve(x, weight)
    np.testing.assert_array_equal(y[:, 0], np.inf)
    np.testing.assert_array_equal(y[:, 1], -np.inf)


def test_half_precision_beyond_its_range(tier):
    """Partial sums beyond float16 are none of the user's business, and nor is a warning about results beyond it."""
    x, weight = np.full((1, 4, 6, 6), 300, "f2"), np.full((2, 4, 3, 3), 300, "f2")
    weight[0, 2:] = -300
    y = convolve(x, weight)
    np.testing.assert_array_equal(y[:, 0], 0)
    np.testing.assert_array_equal(y[:, 1], np.inf)


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options", "reason"),
    [
        ((1, 8, 9, 9), (4, 8, 3, 3), {"stride": 2}, "stride 1"),
        ((1, 8, 9, 9), (4, 8, 3, 3), {"stride": (1, 2)}, "stride 1"),
        ((1, 8, 9, 9), (4, 8, 3, 3), {"dilation": (2, 1)}, "dilation 1"),
        ((1, 8, 9, 9), (4, 4, 3, 3), {"groups": 2}, "groups"),
        ((1, 8, 9, 9), (8, 1, 3, 3), {"groups": 8}, "groups"),
        ((1, 8, 9, 9), (4, 8, 1, 1), {}, "no tiles for a 1x1 kernel, only for 3x3, 5x5"),
        ((1, 8, 9, 9), (4, 8, 7, 7), {}, "no tiles for a 7x7 kernel"),
        ((1, 8, 9, 9), (4, 8, 3, 5), {}, "no tiles for a 3x5 kernel"),
        ((1, 8, 9, 9), (4, 8, 2, 2), {}, "no tiles for a 2x2 kernel"),
        ((1, 3, 9, 9), (4, 3, 5, 5), {}, "with 3 input channels"),
        ((1, 8, 9, 9), (4, 8, 3, 3), {"accuracy": "elementwise"}, "elementwise"),
    ],
)
def test_unsupported_problems_name_the_reason(x_shape, weight_shape, options, reason, tier):
    x, weight = numbers(x_shape), numbers(weight_shape, 1)
    with pytest.raises(UnsupportedError, match=f"`engine` 'winograd' cannot run this.*{re.escape(reason)}"):
        convolve(x, weight, **options)
    plan = portconv.plan_conv2d(x, weight, **options)
    assert plan.engine != "winograd"
    oracle = {name: value for name, value in options.items() if name != "accuracy"}
    assert reason in plan.explain()
    assert_close(portconv.conv2d(x, weight, **options), reference_conv2d(x, weight, **oracle))


def test_traced_values_are_refused(jax):
    x, weight = jax.numpy.ones((1, 8, 9, 9)), jax.numpy.ones((4, 8, 3, 3))
    with pytest.raises(UnsupportedError, match=r"`engine` 'winograd'.*tracing"):
        jax.jit(convolve)(x, weight)
    assert_close(np.asarray(convolve(x, weight)), reference_conv2d(np.asarray(x), np.asarray(weight)))


@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"padding": (0, 2), "layout": "NHWC"}])
@every_kernel
def test_supported_problems(kernel, options, tier):
    """With 16 channels every kernel of the list runs, whatever else is asked for."""
    shape = (2, 16, 17, 18) if options.get("layout") != "NHWC" else (2, 17, 18, 16)
    plan = portconv.plan_conv2d(shape, (8, 16, *kernel), True, **options)
    assert [c.why_not for c in plan.candidates if c.engine == "winograd"] == [None]


def test_the_kernels_that_have_tiles():
    assert set(KERNELS) == {(3, 3), (5, 5), (1, 3), (3, 1), (1, 5), (5, 1), (1, 7), (7, 1)}
