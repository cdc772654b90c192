"""Compiled depthwise convolutions with columns in the lanes."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.core.problem import Problem
from portconv.cpu.compiled.stencil import kernels
from portconv.cpu.compiled.stencil.plan import CompiledStencilPlan
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

pytestmark = pytest.mark.usefixtures("jit")


def stencil(x, weight, bias=None, out_dtype=None, **options):
    """The result by this form, whichever the planner would take, and the plan."""
    problem = portconv.plan_conv2d(x, weight, bias, groups=x.shape[1], out_dtype=out_dtype, **options).problem
    assert isinstance(problem, Problem)
    plan = CompiledStencilPlan.make(problem)
    return plan.execute(x, plan.pack(weight), bias), plan


def check(x, weight, bias=None, **options):
    y, plan = stencil(x, weight, bias, **options)
    assert_close(y, reference_conv2d(x, weight, bias, groups=x.shape[1], **options))
    return plan


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_every_tile_and_width(dtype):
    found = set()
    for seed, (size, kernel, options) in enumerate(
        [
            *(((4 + n % 11, n), (3, 3), {"padding": 1}) for n in range(1, 40)),
            *(((9, n), (3, 5), {"padding": (1, 2), "stride": 2}) for n in range(3, 40)),
            *(((n, 21), (7, 7), {"padding": 3}) for n in range(4, 23)),
            *(((n, 70), (5, 4), {"padding": ((0, 3), (2, 1))}) for n in range(5, 23)),
            ((16, 30), (5, 5), {"padding": 2, "stride": 2}),
            ((16, 33), (3, 3), {"padding": 1, "stride": (2, 1)}),
            ((16, 33), (7, 2), {"padding": (3, 0), "stride": (1, 2)}),
            ((6, 5), (3, 3), {"padding": 20}),
            ((300, 400), (3, 3), {"padding": 1}),
        ]
    ):
        x, weight = numbers((2, 3, *size), seed, dtype), numbers((3, 1, *kernel), 1, dtype)
        plan = check(x, weight, numbers((3,), 2, dtype), **options)
        found.add(plan.geometry.tile)
    assert found == {2 * n for n in range(len(kernels.TILES))}


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding(padding_mode, stride):
    x, weight = numbers((2, 5, 19, 23)), numbers((10, 1, 5, 5), 1)
    for padding in (0, 2, ((4, 0), (1, 3))):
        check(x, weight, padding=padding, padding_mode=padding_mode, stride=stride)


@pytest.mark.parametrize("dtype", ["f2", "u1", ">f4", "i2"])
def test_other_numbers_in_any_order_of_memory(dtype):
    x = (100 * numbers((2, 20, 17, 24))).astype(dtype)
    weight = numbers((20, 1, 3, 3), 1, "f2" if dtype == "f2" else "f4")
    for view in (x, x[:, :, ::-1, ::2], x.transpose(0, 1, 3, 2), np.asfortranarray(x), x[:, ::-1, 1:, 3:]):
        for stride in (1, 2):
            check(view, weight, padding=1, stride=stride)


def test_results_of_other_dtypes_and_in_memory_of_the_callers():
    x, weight = numbers((1, 6, 15, 18)), numbers((6, 1, 3, 3), 1)
    expected, plan = stencil(x, weight, padding=1)
    for memory in (np.zeros((1, 15, 18, 6), "f4").transpose(0, 3, 1, 2), np.zeros((1, 6, 15, 40), "f4")[..., 1:37:2]):
        assert plan.execute(x, plan.pack(weight), out=memory) is memory
        np.testing.assert_array_equal(memory, expected)
    rounded, _ = stencil(100 * x, weight, padding=1, out_dtype="int8")
    np.testing.assert_array_equal(rounded, np.rint(stencil(100 * x, weight, padding=1)[0]).clip(-128, 127))


def test_what_other_forms_do_better():
    """Channels that lie side by side, and separable kernels."""
    x, weight = numbers((1, 30, 30, 32)).transpose(0, 3, 1, 2), numbers((32, 1, 3, 3), 1)
    check(x, weight, padding=1)
    box = np.ones((32, 1, 7, 7), np.float32)
    _, plan = stencil(x, box, padding=3)
    assert plan.pack(box).separable
    check(x, box, padding=3)
    check(x[:, :3], box[:3], padding=3)


def test_what_is_left_to_others():
    for x_shape, weight_shape, options in [
        ((1, 4, 20, 20), (4, 2, 3, 3), {"groups": 2}),
        ((1, 4, 20, 20), (4, 1, 3, 3), {"groups": 4, "dilation": 2}),
        ((1, 4, 20, 20), (4, 1, 4, 3), {"groups": 4}),
        ((1, 4, 3, 20), (4, 1, 3, 3), {"groups": 4, "padding": (0, 1)}),
        ((1, 4, 20, 20), (4, 1, 3, 3), {"groups": 4, "stride": 3}),
        ((1, 4, 20, 20), (4, 1, 7, 7), {"groups": 4, "accuracy": "elementwise"}),
        ((1, 20, 20, 4), (4, 1, 3, 3), {"groups": 4, "layout": "NHWC"}),
    ]:
        assert CompiledStencilPlan.make(portconv.plan_conv2d(x_shape, weight_shape, **options).problem) is None
