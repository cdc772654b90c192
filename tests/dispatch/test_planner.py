"""The planner sees sizes only, and chooses; a plan takes little memory and no time."""

from __future__ import annotations

import time
from dataclasses import astuple, is_dataclass

import numpy as np
import pytest

import portconv
from portconv import UnsupportedError
from portconv.core.backend import Candidate
from portconv.dispatch import path, planner
from tests.helpers import ones

MEBIBYTE = 2**20


# --- choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options", "engines"),
    [
        ((1, 64, 56, 56), (256, 64, 1, 1), {}, {"gemm"}),
        ((8, 512, 7, 7), (512, 512, 1, 1), {}, {"gemm"}),
        ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, {"winograd"}),
        ((1, 512, 28, 28), (512, 512, 3, 3), {"padding": 1}, {"winograd"}),
        ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1, "stride": 2}, {"gemm"}),
        ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 2, "dilation": 2}, {"gemm"}),
        ((1, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}, {"gemm"}),
        ((1, 1, 2048, 2048), (1, 1, 31, 31), {"padding": 15}, {"fft"}),
        ((1, 3, 1024, 1024), (3, 1, 63, 63), {"padding": 31, "groups": 3}, {"fft"}),
        ((1, 144, 56, 56), (144, 1, 3, 3), {"padding": 1, "groups": 144}, {"direct", "gemm"}),
        ((1, 1, 512, 512), (1, 1, 3, 3), {"padding": 1}, {"direct", "gemm"}),
    ],
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_heuristic(x_shape, weight_shape, options, engines, layout, tier):
    if layout == "NHWC":
        x_shape = tuple(x_shape[axis] for axis in (0, 2, 3, 1))
    plan = portconv.plan_conv2d(x_shape, weight_shape, layout=layout, **options)
    assert plan.engine in engines
    assert plan.chosen_by == "heuristic"
    best = min((c for c in plan.candidates if c.why_not is None), key=lambda c: c.seconds)
    assert plan.engine == best.engine
    strict = portconv.plan_conv2d(x_shape, weight_shape, layout=layout, accuracy="elementwise", **options)
    assert strict.engine in ("gemm", "direct")


def test_estimates_grow_with_the_problem(tier):
    for engine in ("gemm", "winograd", "fft", "direct"):
        seconds = []
        for size in (32, 64, 128, 256):
            candidates = portconv.plan_conv2d((1, 8, size, size), (8, 8, 5, 5)).candidates
            seconds += [c.seconds for c in candidates if c.engine == engine]
        assert seconds == sorted(seconds)
        assert 0 < seconds[0] < seconds[-1] < 60


def test_the_planner_sees_sizes_only(monkeypatch):
    seen = []
    plan = planner.plan

    def watched(backend, problem, *rest):
        seen.append(problem)
        return plan(backend, problem, *rest)

    monkeypatch.setattr(planner, "plan", watched)
    x = np.full((1, 3, 9, 9), np.nan, np.float32)
    portconv.conv2d(x, ones(4, 3, 3, 3), ones(4), stride=2)
    (problem,) = seen
    hash(problem)

    def plain(value):
        parts = astuple(value) if is_dataclass(value) else value
        return all(map(plain, parts)) if isinstance(parts, tuple) else isinstance(parts, (int, str, bool, type(None)))

    assert plain(problem)


# --- explanations -----------------------------------------------------------------------------------------------------


def test_every_engine_refused_gives_every_reason():
    class Unable:
        name = "unable"

        def candidates(self, problem, /):
            return [Candidate("gemm", why_not="no matrices"), Candidate("fft", why_not="no transforms")]

        def __getattr__(self, name):
            return getattr(portconv.get_backend("numpy"), name)

    with pytest.raises(UnsupportedError, match=r"unable.*gemm: no matrices.*fft: no transforms"):
        portconv.conv2d(ones(1, 1, 4, 4), ones(1, 1, 3, 3), backend=Unable())
    with pytest.raises(UnsupportedError, match=r"`engine` 'gemm'.*no matrices"):
        portconv.conv2d(ones(1, 1, 4, 4), ones(1, 1, 3, 3), backend=Unable(), engine="gemm")
    with pytest.raises(UnsupportedError, match=r"`engine` must be .*'unable' has, 'gemm', 'fft', but got 'direct'"):
        portconv.conv2d(ones(1, 1, 4, 4), ones(1, 1, 3, 3), backend=Unable(), engine="direct")


# --- workspace --------------------------------------------------------------------------------------------------------

LARGE = {
    "12 megapixels, 3x3": ((1, 3, 3000, 4000), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    "12 megapixels, blur": ((1, 3, 3000, 4000), (3, 1, 63, 63), {"groups": 3, "padding": 31}),
    "12 megapixels, blur, reflect": ((1, 1, 3000, 4000), (1, 1, 255, 255), {"padding": 127, "padding_mode": "reflect"}),
    "12 megapixels, 64 channels": ((1, 3, 3000, 4000), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "one long row": ((1, 1, 1, 10_000_000), (1, 1, 1, 101), {}),
    "one long column": ((1, 1, 10_000_000, 1), (1, 1, 101, 1), {}),
    "VGG, batch": ((64, 64, 224, 224), (64, 64, 3, 3), {"padding": 1}),
    "ResNet, batch": ((256, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}),
    "1x1, many channels": ((32, 2048, 14, 14), (2048, 2048, 1, 1), {}),
    "wide 5x5": ((1, 512, 128, 128), (512, 512, 5, 5), {"padding": 2}),
    "large kernels, many channels": ((1, 256, 64, 64), (256, 256, 31, 31), {"padding": 15}),
    "depthwise, many channels": ((16, 1024, 64, 64), (1024, 1, 7, 7), {"groups": 1024, "padding": 3}),
    "kernel is image": ((1, 16, 1024, 1024), (16, 16, 1024, 1024), {}),
    "strided": ((1, 64, 1024, 1024), (64, 64, 8, 8), {"stride": 8}),
    "dilated": ((1, 16, 1024, 1024), (16, 16, 5, 5), {"dilation": 64, "padding": 128}),
}


@pytest.mark.parametrize("case", LARGE)
def test_workspace_is_bounded(case, tier):
    x_shape, weight_shape, options = LARGE[case]
    for layout in ("NCHW", "NHWC"):
        shape = x_shape if layout == "NCHW" else tuple(x_shape[axis] for axis in (0, 2, 3, 1))
        for dtype in ("float32", "float64"):
            plan = portconv.plan_conv2d(shape, weight_shape, layout=layout, dtype=dtype, **options)
            assert 0 < plan.workspace_bytes <= 64 * MEBIBYTE


def test_planning_takes_no_time(tier):
    """A plan depends on a few sizes; not even for millions of rows may it take longer than a convolution would."""
    for x_shape, weight_shape, options in LARGE.values():
        path.forget_plans()
        start = time.process_time()
        portconv.plan_conv2d(x_shape, weight_shape, **options)
        assert time.process_time() - start < 2


@pytest.mark.parametrize("jit", ["0", "1"])
@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_workspace_is_what_is_used(run_python, engine, jit):
    """Beyond the result, a call takes no more memory than the plan says, and some for the threads."""
    kernel, padding = (9, 4) if engine != "winograd" else (3, 1)
    run_python(
        f"""
        import tracemalloc
        import numpy as np, portconv
        x = np.ones((1, 3, 1000, 1400), np.float32)
        weight = np.ones((4, 3, {kernel}, {kernel}), np.float32)
        plan = portconv.plan_conv2d(x, weight, padding={padding}, engine={engine!r})
        packed = plan.pack(weight)
        small = portconv.plan_conv2d((1, 3, 40, 40), weight.shape, padding={padding}, engine={engine!r})
        small.execute(x[:, :, :40, :40], small.pack(weight))
        tracemalloc.start()
        y = plan.execute(x, packed)
        _, peak = tracemalloc.get_traced_memory()
        used = peak - y.nbytes
        assert used <= plan.workspace_bytes + 2**20, (used, plan.workspace_bytes)
        """,
        PORTCONV_JIT=jit,
    )
