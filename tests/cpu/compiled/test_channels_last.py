"""Compiled matrix products for images whose channels lie side by side."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.core.problem import Problem
from portconv.cpu import threads
from portconv.cpu.compiled import plans
from portconv.cpu.compiled.channels_last import kernels
from portconv.cpu.compiled.channels_last.plan import CompiledChannelsLastPlan
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

pytestmark = pytest.mark.usefixtures("jit")


def channels_last(x, weight, bias=None, **options):
    """The result by this form, whichever the planner would take, and the plan."""
    problem = portconv.plan_conv2d(x, weight, bias, layout="NHWC", **options).problem
    assert isinstance(problem, Problem)
    plan = CompiledChannelsLastPlan.make(problem)
    return plan.execute(x, plan.pack(weight), bias), plan


def check(x, weight, bias=None, accuracy="normwise", **options):
    y, plan = channels_last(x, weight, bias, accuracy=accuracy, **options)
    assert_close(y, reference_conv2d(x, weight, bias, layout="NHWC", **options), accuracy=accuracy)
    return plan


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_every_tile(dtype):
    found = set()
    for outputs in (3, 30, 70):
        for width in range(1, 30):
            x = numbers((2, 3, width, 5), width, dtype)
            plan = check(x, numbers((outputs, 5, 3, 3), 1, dtype), numbers((outputs,), 2, dtype), padding=1)
            found.add((plan.geometry.vectors, plan.geometry.widest))
            plan = check(x, numbers((outputs, 5, 1, 1), 1, dtype), numbers((outputs,), 2, dtype))
            found.add((plan.geometry.vectors, plan.geometry.widest))
    assert found == {(vectors, width) for vectors in (1, 2) for width in kernels.WIDTHS}


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_padding_strides_dilations_and_groups(padding_mode, stride, dilation, groups):
    x, weight = numbers((2, 19, 23, 6)), numbers((18, 6 // groups, 3, 4), 1)
    for padding in (0, 2, ((4, 0), (1, 3))):
        check(x, weight, padding=padding, padding_mode=padding_mode, stride=stride, dilation=dilation, groups=groups)


@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
@pytest.mark.parametrize(("channels", "kernel"), [(1000, (1, 1)), (70, (3, 3)), (500, (2, 3)), (40, (5, 5))])
def test_long_sums_keep_the_bound(accuracy, channels, kernel):
    # of numbers that are alike, whose rounding errors add up
    x = np.full((1, 6, 9, channels), 0.1, np.float32)
    weight = np.full((20, channels, *kernel), 0.7, np.float32)
    check(x, weight, accuracy=accuracy)
    check(numbers((1, 6, 9, channels)), numbers((20, channels, *kernel), 1), padding=1, accuracy=accuracy)


@pytest.mark.parametrize("dtype", ["f2", "u1", ">f4", "i2", "f4"])
def test_other_numbers_in_any_order_of_memory(dtype):
    x = (100 * numbers((2, 17, 24, 12))).astype(dtype)
    for kernel, padding in ((3, 1), (1, 0), (2, 0)):
        weight = numbers((20, 12, kernel, kernel), 1, "f2" if dtype == "f2" else "f4")
        for view in (x, x[:, ::-1, ::2], x.transpose(0, 2, 1, 3), np.asfortranarray(x), x[:, 1:, 3:]):
            for stride in (1, 2):
                check(view, weight, padding=padding, stride=stride)
        check(x[..., 2:9], weight[:, 2:9], padding=padding)
        check(x[..., ::-2], weight[:, ::-2], padding=padding)


def test_results_of_other_dtypes_and_in_memory_of_the_callers():
    for kernel, padding in ((3, 1), (1, 0)):
        x, weight = numbers((1, 15, 18, 6)), numbers((40, 6, kernel, kernel), 1)
        expected, plan = channels_last(x, weight, padding=padding)
        for memory in (
            np.zeros((1, 40, 15, 18), "f4").transpose(0, 2, 3, 1),
            np.zeros((1, 15, 40, 40), "f4")[:, :, 1:37:2],
            np.zeros((1, 15, 18, 90), "f4")[..., 3:83:2],
        ):
            whole = memory if memory.base is None else memory.base
            before = whole.copy()
            assert plan.execute(x, plan.pack(weight), out=memory) is memory
            np.testing.assert_array_equal(memory, expected)
            memory[...] = 0
            np.testing.assert_array_equal(whole, before)  # nothing beside it was written
        rounded, _ = channels_last(100 * x, weight, padding=padding, out_dtype="int8")
        np.testing.assert_array_equal(
            rounded, np.rint(channels_last(100 * x, weight, padding=padding)[0]).clip(-128, 127)
        )


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("groups", [1, 4])
def test_long_rows_are_cut(groups, padding_mode):
    x, weight = numbers((2, 9, 500, 64)), numbers((8, 64 // groups, 3, 3), 1)
    for options in ({"padding": 1}, {"stride": (2, 3), "padding": (0, 2)}, {"dilation": 2, "padding": 2}):
        plan = check(x, weight, padding_mode=padding_mode, groups=groups, **options)
        assert plan.geometry.col_strips > 1
    check(x.transpose(0, 2, 1, 3), weight, padding_mode=padding_mode, groups=groups, padding=1)


@pytest.mark.parametrize(("shape", "outputs", "kernel", "options"), [
    ((1, 7, 7, 64), 512, 1, {}),  # few pixels: threads share the outputs
    ((1, 60, 60, 64), 40, 3, {"padding": 1}),
    ((3, 30, 30, 64), 40, 3, {"stride": 2}),
])  # fmt: skip
def test_any_number_of_threads(monkeypatch, shape, outputs, kernel, options):
    x, weight = numbers(shape), numbers((outputs, shape[-1], kernel, kernel), 1)
    for cores in (1, 2, 3, 7):
        monkeypatch.setattr(threads, "usable_cores", lambda cores=cores: cores)
        check(x, weight, **options)


def test_it_is_for_channels_last_alone():
    problem = portconv.plan_conv2d((1, 64, 56, 56), (64, 64, 1, 1)).problem
    assert CompiledChannelsLastPlan.make(problem) is None
    last = portconv.plan_conv2d((1, 56, 56, 64), (64, 64, 1, 1), layout="NHWC").problem
    assert isinstance(plans.build(last, "gemm"), CompiledChannelsLastPlan)
    # a strip of rows that are too long, far apart
    wide = portconv.plan_conv2d((1, 65, 65, 2048), (256, 2048, 3, 3), dilation=36, padding=36, layout="NHWC").problem
    assert CompiledChannelsLastPlan.make(wide) is None
