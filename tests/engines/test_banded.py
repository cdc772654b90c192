"""Depthwise layers as products of small matrices with bands: a form of `gemm` in the plain tier."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.core.problem import Problem
from portconv.cpu.bridge import numpy_steps
from portconv.engines import banded
from portconv.engines.accuracy import TERMS
from portconv.engines.banded import BandedPlan
from portconv.engines.costs import CPU
from portconv.engines.gemm import GemmPlan
from portconv.engines.steps import Block, Steps
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import PAD_MODES

WIDE, NARROW = (1, 4, 70, 90), (1, 48, 14, 12)  # one for each form
MANY = (1, 90, 70, 80)  # channels, which are cut into several strips


@pytest.fixture
def plain_only(plain_tier):
    with plain_tier():
        yield


def arrays(x_shape, kernel, dtype="float32"):
    rng = np.random.default_rng(5)
    x = rng.standard_normal(x_shape)
    return x.astype(dtype), rng.standard_normal((x_shape[1], 1, *kernel)).astype(dtype)


def convolved(x, weight, bias=None, **options):
    return portconv.conv2d(x, weight, bias, groups=x.shape[1], engine="gemm", **options)


def form_of(x, weight, **options):
    plan = portconv.plan_conv2d(x, weight, groups=x.shape[1], engine="gemm", **options)
    return plan.tiling.form


@pytest.mark.parametrize(("x_shape", "form"), [(WIDE, "down"), (NARROW, "across")])
def test_the_form_follows_the_width(plain_only, x_shape, form):
    x, weight = arrays(x_shape, (3, 3))
    assert form_of(x, weight, padding=1) == form
    plan = portconv.plan_conv2d(x, weight, groups=x.shape[1], padding=1, engine="gemm")
    assert "banded" in plan.explain()


@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
@pytest.mark.parametrize("padding", [0, (1, 2), (6, 4)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), ((1, 2), (2, 1)), ((3, 1), (1, 2)), (3, 1)])
@pytest.mark.parametrize("x_shape", [WIDE, NARROW, (3, 20, 9, 9), (2, 3, 6, 300)])
def test_results(tier, x_shape, stride, dilation, padding, accuracy):
    x, weight = arrays(x_shape, (3, 5))
    bias = np.arange(x_shape[1], dtype=np.float32)
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    expected = reference_conv2d(x, weight, bias, groups=x_shape[1], **options)
    assert_close(convolved(x, weight, bias, accuracy=accuracy, **options), expected, accuracy=accuracy)


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8"])
@pytest.mark.parametrize("mode", PAD_MODES)
@pytest.mark.parametrize("x_shape", [WIDE, NARROW])
def test_padding_modes_and_dtypes(tier, x_shape, mode, dtype):
    x, weight = arrays(x_shape, (5, 3))
    x = (100 * x).astype(np.uint8) if dtype == "uint8" else x.astype(dtype)
    weight = weight if dtype == "uint8" else weight.astype(dtype)
    options = {"padding": (2, 1), "padding_mode": mode}
    expected = reference_conv2d(x, weight, groups=x_shape[1], **options)
    assert_close(convolved(x, weight, **options), expected)


@pytest.mark.parametrize("x_shape", [WIDE, NARROW])
def test_large_kernels(tier, x_shape):
    """More terms than one sum may have; taps that reach beyond the image on both sides."""
    x, weight = arrays(x_shape, (27, 25))
    x += 3  # constant data are the worst for long sums
    options = {"padding": (13, 12)}
    expected = reference_conv2d(x, abs(weight), groups=x_shape[1], **options)
    for accuracy in ("normwise", "elementwise"):
        assert_close(convolved(x, abs(weight), accuracy=accuracy, **options), expected, accuracy=accuracy)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("x_shape", [WIDE, NARROW, MANY])
def test_values_that_are_not_finite_stay_in_place(tier, x_shape, value):
    """The bands multiply them by zero for outputs that do not meet them."""
    x, weight = arrays(x_shape, (3, 3))
    x[0, 1, 5, 6] = value
    expected = reference_conv2d(x, weight, groups=x_shape[1], padding=1)
    assert_close(convolved(x, weight, padding=1), expected)
    x, weight = arrays(x_shape, (3, 3))
    weight[2, 0, 1, 2] = value
    expected = reference_conv2d(x, weight, groups=x_shape[1], padding=1)
    assert_close(convolved(x, weight, padding=1), expected)


def test_only_the_strip_that_is_not_finite_is_computed_anew(plain_only, monkeypatch):
    seen = []

    def values(self, x, weight, block):
        seen.append(block.channels)
        return compute(self, x, weight, block)

    x, weight = arrays(MANY, (3, 3))
    x[0, 89, 3, 4] = np.inf
    plan = portconv.plan_conv2d(x, weight, groups=90, padding=1, engine="gemm")
    compute = GemmPlan.values
    monkeypatch.setattr(GemmPlan, "values", values)
    y = convolved(x, weight, padding=1)
    assert seen == [slice(90 - plan.tiling.channels, 90)] != [slice(0, 90)]
    assert_close(y, reference_conv2d(x, weight, groups=90, padding=1))


@pytest.mark.parametrize("x_shape", [WIDE, NARROW])
def test_memory_orders(tier, x_shape):
    x, weight = arrays(x_shape, (3, 3))
    expected = convolved(x, weight, padding=1)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    flipped = np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1]
    for view in (last.transpose(0, 3, 1, 2), flipped):
        np.testing.assert_array_equal(convolved(view, weight, padding=1), expected)
    y = convolved(last.transpose(0, 3, 1, 2), weight, padding=1)
    np.testing.assert_array_equal(y, expected)


def test_nothing_is_left_of_the_call_before(plain_only):
    """Scratch memory is kept between calls: what a smaller image leaves in it, NaN among it, must not be read."""
    for x_shape in (WIDE, NARROW):
        x, weight = arrays(x_shape, (5, 5))
        expected = convolved(x, weight, padding=2)
        convolved(np.full_like(x, np.nan), weight, padding=2)
        np.testing.assert_array_equal(convolved(x, weight, padding=2), expected)


def test_one_packed_weight_for_every_size(plain_only):
    """Bands that move down depend on the rows of a product, those that move across on the width alone."""
    weight = np.ones((48, 1, 3, 3), np.float32)
    for shapes in (((1, 48, 64, 80), (3, 48, 128, 90)), ((1, 48, 14, 14), (2, 48, 23, 14))):
        plans = [portconv.plan_conv2d(s, weight.shape, groups=48, padding=1, engine="gemm") for s in shapes]
        assert plans[0].stamp == plans[1].stamp
        packed = plans[0].pack(weight)
        assert packed.nbytes >= packed.data.bands.nbytes
        y = plans[1].execute(np.ones(shapes[1], np.float32), packed)
        assert y.min() == 4 and y.max() == 9


class _Generic(Steps):
    banded = True


def problem_of(x_shape, kernel, **options) -> Problem:
    weight = (x_shape[1], 1, *kernel)
    return portconv.plan_conv2d(x_shape, weight, groups=x_shape[1], **options).problem


@pytest.mark.parametrize("x_shape", [WIDE, NARROW])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_same_on_the_array_api(library, plain_only, x_shape, stride):
    """The steps in standard operations: other libraries may have fast products of small matrices, too."""
    xp = library("array_api_strict").module
    p = problem_of(x_shape, (3, 5), padding=2, dilation=(1, 2), stride=stride)
    x, weight = arrays(x_shape, (3, 5))
    plans = []
    for steps in (numpy_steps(), _Generic(xp)):
        t = banded.tiling(p, steps, CPU)
        plans.append(BandedPlan(p, "gemm", steps=steps, tiling=t, exact=_NoOther()))
    for plan, namespace in zip(plans, (np, xp), strict=True):
        packed = plan.pack(namespace.asarray(weight))
        y = plan.execute(namespace.asarray(x), packed)
        assert_close(
            np.asarray(y), reference_conv2d(x, weight, groups=x_shape[1], padding=2, dilation=(1, 2), stride=stride)
        )


class _NoOther:
    """In the place of the plan for what is not finite, where all is."""

    def pack(self, weight):
        return portconv.core.backend.PackedWeight("none", None, 0)

    def values(self, x, weight, block: Block):
        raise AssertionError("all values are finite")


@pytest.mark.parametrize(
    ("x_shape", "kernel"),
    [((1, 128, 56, 56), 3), ((1, 512, 14, 14), 3), ((1, 1024, 7, 7), 3), ((1, 96, 56, 56), 7), ((1, 384, 14, 14), 7)],
)
def test_depthwise_layers_choose_it(plain_only, x_shape, kernel):
    weight = (x_shape[1], 1, kernel, kernel)
    plan = portconv.plan_conv2d(x_shape, weight, groups=x_shape[1], padding=kernel // 2)
    (offer,) = [c for c in plan.candidates if c.engine == "gemm"]
    assert plan.engine == "gemm" and offer.note == "banded"


@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
@pytest.mark.parametrize(
    ("x_shape", "kernel"), [(WIDE, (13, 5)), (WIDE, (5, 31)), (NARROW, (11, 11)), (NARROW, (5, 25))]
)
def test_no_sum_is_longer_than_it_may_be(plain_only, x_shape, kernel, accuracy):
    p = problem_of(x_shape, kernel, padding=(kernel[0] // 2, kernel[1] // 2), accuracy=accuracy)
    t = banded.tiling(p, numpy_steps(), CPU)
    assert t.terms * kernel[0 if t.form == "down" else 1] <= TERMS[accuracy]


def test_a_weight_packed_for_other_bands_is_refused(plain_only):
    """The bands of a stride, a dilation, a height and a width are their own."""
    weight = np.ones((48, 1, 3, 3), np.float32)
    others = [((1, 48, 70, 90), {"stride": s, "dilation": d}) for s, d in ((1, 1), (2, 1), (1, 2))]
    others += [((1, 48, 14, w), {"stride": s, "dilation": d}) for w in (12, 14) for s, d in ((1, 1), (2, 1), (1, 2))]
    others += [((1, 48, 11, 90), {}), ((1, 48, 12, 90), {}), ((1, 48, 14, 12), {"padding": (1, 0)})]
    plans = []
    for shape, options in others:
        plan = portconv.plan_conv2d(shape, weight.shape, groups=48, engine="gemm", **({"padding": 1} | options))
        assert isinstance(plan, BandedPlan)
        plans.append(plan)
    assert len({plan.stamp for plan in plans}) == len(plans)
    with pytest.raises(ValueError, match="was packed for"):
        plans[1].execute(np.ones(others[1][0], np.float32), plans[0].pack(weight))
