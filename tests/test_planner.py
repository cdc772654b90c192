"""The planner sees sizes only, chooses, explains, remembers; and no plan reads another's packed weight."""

from __future__ import annotations

import gc
import itertools
import re
import time
import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest

import portconv
from portconv import UnsupportedError
from portconv.core.backend import Candidate
from portconv.cpu import busy
from portconv.dispatch import measurement, path, planner, wisdom
from portconv.engines.steps import Block, Steps

MEBIBYTE = 2**20
REAL_DISTURBED = busy.disturbed  # which no other test asks


def ones(*shape):
    return np.ones(shape, np.float32)


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


def test_a_plan_is_remembered():
    plan = portconv.plan_conv2d((1, 3, 20, 21), (4, 3, 3, 3))
    assert portconv.plan_conv2d((1, 3, 20, 21), (4, 3, 3, 3)) is plan
    assert portconv.plan_conv2d(ones(1, 3, 20, 21), ones(4, 3, 3, 3)) is plan
    assert portconv.plan_conv2d((1, 3, 20, 22), (4, 3, 3, 3)) is not plan


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
        return all(map(plain, value)) if isinstance(value, tuple) else isinstance(value, (int, str, bool))

    assert all(plain(getattr(problem, name)) for name in problem.__dataclass_fields__)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_plans_hold_no_arrays(engine, tier, packs, unchangeable):
    """Neither plans nor caches keep the images and weights that they have seen alive."""
    x, weight = ones(1, 2, 8, 8), unchangeable(ones(3, 2, 3, 3))
    seen = {"x": weakref.ref(x), "weight": weakref.ref(weight), "its memory": weakref.ref(weight.base)}
    portconv.conv2d(x, weight, engine=engine)
    assert [identity for identity, _ in packs._entries] == [id(weight)]
    del x, weight
    gc.collect()
    assert [name for name, reference in seen.items() if reference() is not None] == []


# --- measurement ------------------------------------------------------------------------------------------------------


def count_measurements(monkeypatch):
    measured = []
    measure = measurement._measured

    def counted(backend, problem, able):
        measured.append(problem)
        return measure(backend, problem, able)

    monkeypatch.setattr(measurement, "_measured", counted)
    path.forget_plans()
    return measured


def test_measure_runs_once(backend, monkeypatch):
    measured = count_measurements(monkeypatch)
    x, weight, bias = backend.array(ones(1, 2, 12, 13)), backend.array(ones(3, 2, 3, 3)), backend.array(ones(3))
    results = [portconv.conv2d(x, weight, bias, strategy="measure") for _ in range(3)]
    assert len(measured) == 1
    for y in results:
        np.testing.assert_allclose(backend.numpy(y), 19)
    plan = portconv.plan_conv2d(x, weight, bias, strategy="measure")
    assert len(measured) == 1
    assert plan.chosen_by == "measurement"
    timed = [c for c in plan.candidates if c.why_not is None and "not measured" not in c.note]
    assert plan.engine == min(timed, key=lambda c: c.seconds).engine
    module = portconv.Conv2d(2, 3, 3, strategy="measure")
    for _ in range(3):
        module(x)
    assert len(measured) == 1


def test_measure_chooses_what_was_fastest(monkeypatch, tier):
    """The clock decides, not the estimate."""
    library = portconv.get_backend("numpy")
    ticks = {"gemm": 3.0, "winograd": 4.0, "direct": 1.0, "fft": 2.0}
    now, execute = [0.0], {}
    for engine in ticks:
        kind = type(portconv.plan_conv2d((1, 2, 12, 14), (3, 2, 3, 3), engine=engine))
        execute[engine] = kind.execute

        def slow(self, *args, engine=engine):
            now[0] += ticks[engine]
            return execute[engine](self, *args)

        monkeypatch.setattr(kind, "execute", slow)
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measurement, "WORTH_MEASURING", 1e9)
    path.forget_plans()
    plan = portconv.plan_conv2d((1, 2, 12, 14), (3, 2, 3, 3), strategy="measure", backend=library)
    assert plan.engine == "direct"
    assert {c.engine: c.seconds for c in plan.candidates if c.why_not is None} == ticks
    path.forget_plans()


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int32", "float16", "bfloat16", "float64"])
def test_measure_with_every_dtype(backend, dtype):
    if dtype in ("float16", "bfloat16", "float64") and dtype not in backend.dtypes:
        dtype = "float32"
    weight_dtype = dtype if dtype in backend.dtypes else "float32"
    x, weight = backend.array(ones(1, 2, 9, 9), dtype), backend.array(ones(3, 2, 3, 3), weight_dtype)
    y = portconv.conv2d(x, weight, strategy="measure", padding=1, padding_mode="reflect")
    np.testing.assert_allclose(backend.numpy(y).astype(float), 18)


def test_measure_of_an_empty_batch_and_a_named_engine(monkeypatch):
    measured = count_measurements(monkeypatch)
    assert portconv.conv2d(ones(0, 2, 9, 9), ones(3, 2, 3, 3), strategy="measure").shape == (0, 3, 7, 7)
    assert portconv.plan_conv2d((1, 2, 9, 9), (3, 2, 3, 3), strategy="measure", engine="fft").engine == "fft"
    assert measured == []


# --- explanations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"accuracy": "elementwise"}, {"engine": "direct"}, {"strategy": "measure"}])
def test_explain(options):
    plan = portconv.plan_conv2d((2, 8, 30, 31), (4, 8, 5, 5), True, padding=2, **options)
    text = plan.explain()
    assert {c.engine for c in plan.candidates} == {"native", "gemm", "winograd", "fft", "direct"}
    for candidate in plan.candidates:
        assert text.count(f" {candidate.engine} ") == 1
        assert (candidate.why_not or "") in text
    for word in ("(2, 8, 30, 31)", "(2, 4, 30, 31)", "5x5", "float32", plan.chosen_by):
        assert word in text
    assert text.splitlines()[-len(plan.candidates)].startswith(f"* {plan.engine} ")  # the chosen one first


LINES = [
    (
        ((1, 16, 32, 32), (16, 16, 3, 3)),
        {"padding": 1, "engine": "gemm"},
        r"<\w+Plan gemm( \(.+\))?: float32 1x16x32x32 by 16x16x3x3, padding 1, on cpu, chosen by the caller>",
    ),
    (
        ((2, 30, 31, 4), (8, 1, 3, 5), True, (2, 1), ((0, 1), (2, 3)), 2, 4),
        {"padding_mode": "reflect", "layout": "NHWC", "accuracy": "elementwise", "dtype": "float64"},
        r"<\w+Plan \w+( \(.+\))?: float64 2x30x31x4 by 8x1x3x5, stride 2x1, "
        r"padding \(\(0, 1\), \(2, 3\)\), reflect, dilation 2, groups 4, bias, NHWC, elementwise, on cpu, "
        r"chosen by heuristic>",
    ),
    (
        (np.ones((1, 3, 40, 40), np.uint8), np.ones((3, 1, 31, 31), np.float32), None, 1, (15, 14), 1, 3),
        {},
        r"<\w+Plan \w+( \(.+\))?: uint8 1x3x40x40 by float32 3x1x31x31, padding 15x14, groups 3, on cpu, chosen by .*>",
    ),
    (
        ((1, 1, 2, 2), (1, 1, 5, 5), None, 1, 2),
        {},
        r"<CroppedPlan \w+( \(.+\))?: float32 1x1x2x2 by 1x1x5x5, padding 2, on cpu, chosen by heuristic>",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "pattern"), LINES, ids=["engine", "options", "photograph", "cropped"])
def test_a_plan_shows_as_one_line(tier, arguments, options, pattern):
    plan = portconv.plan_conv2d(*arguments, **options)
    assert re.fullmatch(pattern, repr(plan)), repr(plan)
    if tier == "compiled" and plan.engine == "gemm":
        assert "(compiled" in repr(plan)


def test_the_plans_of_every_library_show_as_one_line(backend, engine):
    x, weight = (backend.array(ones(*shape)) for shape in ((1, 2, 9, 8), (3, 2, 3, 3)))
    plan = portconv.plan_conv2d(x, weight, stride=1, engine=engine)
    text = repr(plan)
    assert text.startswith(f"<{type(plan).__name__} {plan.engine}") and text.endswith(f", chosen by {plan.chosen_by}>")
    assert ": float32 1x2x9x8 by 3x2x3x3, on " in text and "\n" not in text and len(text) < 160


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


# --- packed weights ---------------------------------------------------------------------------------------------------


def test_plan_pack_execute(backend, engine):
    x, weight, bias = (
        np.random.default_rng(n).standard_normal(s).astype("f4")
        for n, s in enumerate([(2, 4, 9, 8), (6, 4, 3, 3), (6,)])
    )
    arrays = [backend.array(a) for a in (x, weight, bias)]
    plan = portconv.plan_conv2d(*arrays, padding=1, engine=engine)
    packed = plan.pack(arrays[1])
    assert packed.stamp == plan.stamp
    assert packed.nbytes >= weight.nbytes
    for _ in range(2):  # packing and executing change nothing
        y = plan.execute(arrays[0], packed, arrays[2])
        np.testing.assert_array_equal(
            backend.numpy(y), backend.numpy(portconv.conv2d(*arrays, padding=1, engine=engine))
        )


def test_the_dtype_of_the_image_is_the_problems():
    for dtypes in (
        ("uint8", "float32", "float32"),
        ("float16", "float32", "float64"),
        ("float64", "float16", "float32"),
    ):
        x, weight, bias = (np.ones(s, d) for s, d in zip(((1, 2, 8, 8), (3, 2, 3, 3), (3,)), dtypes, strict=True))
        assert portconv.plan_conv2d(x, weight, bias).problem.x_dtype == dtypes[0]


@pytest.mark.parametrize(("x", "weight"), [((1, 2, -8, 8), (3, 2, 3, 3)), ((-1, 2, 8, 8), (3, 2, 3, 3)),
                                       ((1, 2, 8, 8), (-3, 2, 3, 3)), ((1, 2, 8, 8), (3, 2, 3, -1))])  # fmt: skip
def test_negative_sizes_are_refused(x, weight):
    with pytest.raises(ValueError, match=r"`(x|weight)_or_shape\[\d\]`"):
        portconv.plan_conv2d(x, weight)


def test_a_pack_belongs_to_its_device(library):
    xp = library("array_api_strict").module
    weight = xp.ones((3, 2, 3, 3), dtype=xp.float32)
    plans = [
        portconv.plan_conv2d((1, 2, 8, 8), (3, 2, 3, 3), backend="array_api_strict", device=device, engine="gemm")
        for device in (str(xp.Device("CPU_DEVICE")), str(xp.Device("device1")))
    ]
    assert plans[0].stamp != plans[1].stamp
    packed = plans[0].pack(weight)
    with pytest.raises(ValueError, match="`weight` was packed for"):
        plans[1].execute(xp.ones((1, 2, 8, 8), dtype=xp.float32), packed)


def test_an_image_of_another_size_takes_the_same_pack(backend):
    for options in ({}, {"groups": 4}, {"stride": 2, "padding": 1}):
        inputs = 4 // options.get("groups", 1)
        weight = backend.array(np.random.default_rng(0).standard_normal((8, inputs, 3, 3)).astype("f4"))
        plans = [
            portconv.plan_conv2d(shape, (8, inputs, 3, 3), engine="gemm", backend=backend.package, **options)
            for shape in ((1, 4, 20, 20), (2, 4, 31, 17))
        ]
        x = backend.array(np.random.default_rng(1).standard_normal((2, 4, 31, 17)).astype("f4"))
        y = plans[1].execute(x, plans[0].pack(weight))
        expected = portconv.conv2d(x, weight, engine="gemm", **options)
        np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected))


VARIANTS = {
    "engine": {"engine": "direct"},
    "kernel": {"weight": (4, 4, 1, 5)},
    "outputs": {"weight": (2, 4, 3, 3)},
    "groups": {"weight": (4, 2, 3, 3), "groups": 2},
    "dtype": {"dtype": "float64"},
}


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_packed_weight_of_another_plan_is_refused(variant, engine, tier):
    options = {"weight": (4, 4, 3, 3), "engine": engine, "dtype": "float32"}
    other = {**options, **VARIANTS[variant]}
    if other["engine"] == engine == "direct" and variant == "engine":
        other["engine"] = "gemm"
    if engine == "winograd" and variant == "groups":
        other["engine"] = "gemm"
    weight_shape = options.pop("weight")
    plan = portconv.plan_conv2d((1, 4, 20, 20), weight_shape, **options)
    shape = other.pop("weight")
    packed = portconv.plan_conv2d((1, 4, 20, 20), shape, **other).pack(np.ones(shape, other["dtype"]))
    with pytest.raises(ValueError, match=r"`weight`.*pack"):
        plan.execute(np.ones((1, 4, 20, 20), options["dtype"]), packed)


def test_a_transform_of_another_size_is_refused():
    small = portconv.plan_conv2d((1, 1, 20, 20), (1, 1, 9, 9), engine="fft")
    for large in (
        portconv.plan_conv2d((1, 1, 400, 400), (1, 1, 9, 9), engine="fft"),
        portconv.plan_conv2d((1, 1, 20, 20), (1, 1, 9, 9), engine="fft", stride=2),
        portconv.plan_conv2d((1, 1, 20, 20), (1, 1, 9, 9), engine="fft", dilation=2),
    ):
        with pytest.raises(ValueError, match="`weight`"):
            large.execute(np.ones(large.problem.x_shape, np.float32), small.pack(ones(1, 1, 9, 9)))


def test_the_packed_weight_of_another_library_is_refused(library):
    shapes = (1, 2, 8, 8), (3, 2, 3, 3)
    made = {}
    for name in ("numpy", "array_api_strict", "mlx", "torch", "jax"):
        x, weight = (library(name).array(np.ones(shape, np.float32)) for shape in shapes)
        plan = portconv.plan_conv2d(x, weight, engine="gemm")
        made[name] = plan, x, plan.pack(weight)
    for mine, other in itertools.permutations(made, 2):
        plan, x, _ = made[mine]
        with pytest.raises(ValueError, match="`weight`"):
            plan.execute(x, made[other][2])


@pytest.mark.parametrize(
    "sizes", [((1, 2, 20, 20), (1, 2, 31, 17)), ((1, 2, 8, 9), (5, 2, 9, 8)), ((1, 2, 60, 60), (3, 2, 8, 8))]
)
def test_equal_stamps_mean_equal_packs(backend, engine, sizes):
    """A pack that another plan accepts, of a problem with another image, gives the right result there."""
    weight = backend.array(np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype("f4"))
    images = [
        backend.array(np.random.default_rng(n).standard_normal(size).astype("f4")) for n, size in enumerate(sizes)
    ]
    plans = [portconv.plan_conv2d(x, weight, engine=engine, padding=1) for x in images]
    packed = plans[0].pack(weight)
    if plans[0].stamp != plans[1].stamp:
        with pytest.raises(ValueError, match="`weight`"):
            plans[1].execute(images[1], packed)
        return
    y, expected = plans[1].execute(images[1], packed), portconv.conv2d(images[1], weight, engine=engine, padding=1)
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected))


def test_the_cache_of_packs_is_bounded(packs, unchangeable, tier):
    """The least recently used leave first."""
    x = ones(1, 2, 20, 20)
    weights, kept = [unchangeable(np.full((3, 2, 15, 15), n, np.float32)) for n in range(60)], []
    for n, weight in enumerate(weights):
        for one, value in ((weights[0], 0), (weight, n)):  # the first stays in use
            np.testing.assert_allclose(portconv.conv2d(x, one, engine="fft"), 450 * value, rtol=1e-5)
        kept = {identity for identity, _ in packs._entries}
        assert {id(weights[0]), id(weight)} <= kept
        assert 0 < packs.nbytes == sum(packed.nbytes for *_, packed in packs._entries.values()) <= packs.limit_bytes
    assert 2 < len(kept) < 60
    assert kept == {id(weight) for weight in [weights[0], *weights[61 - len(kept) :]]}


def test_a_pack_that_is_no_longer_needed_leaves_the_cache(packs, unchangeable):
    weights = [unchangeable(np.full((3, 2, 15, 15), n, np.float32)) for n in range(3)]
    for weight in weights:
        portconv.conv2d(ones(1, 2, 20, 20), weight, engine="fft")
    assert len(packs._entries) == 3
    del weights[:2], weight
    portconv.conv2d(ones(1, 2, 20, 20), unchangeable(ones(3, 2, 15, 15)), engine="fft")
    assert len(packs._entries) == 2


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("first", [-3, 2000, 4035], ids=["left", "middle", "right"])
def test_a_window_copies_only_what_it_needs(library, mode, dtype, first):
    """Where nothing but whole arrays can be joined, rows are padded for the columns of the window alone."""
    xp = library("array_api_strict").module
    values = np.random.default_rng(0).integers(0, 200, (2, 1, 100, 4096)).astype(dtype)
    weight, options = (1, 2, 7, 7), {"padding": 3, "padding_mode": mode}
    problem = replace(portconv.plan_conv2d((1, 2, 100, 4096), weight, **options).problem, x_dtype=dtype)
    block = Block(slice(0, 2), slice(0, 1), slice(-3, 61), slice(first, first + 64))
    image, steps = xp.asarray(values), Steps(xp)
    steps.window(image, block, problem)
    tracemalloc.start()
    window = steps.window(image, block, problem)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}
    whole = np.pad(values, ((0, 0), (0, 0), (3, 3), (3, 3)), modes[mode])
    np.testing.assert_array_equal(np.asarray(window), whole[:, :, :64, first + 3 : first + 67])
    assert peak < 4 * 2 * 64 * 64 * 4  # four windows in float32; whole rows of uint8 alone are more


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


# --- a machine that is busy -------------------------------------------------------------------------------------------


@pytest.fixture
def probes(monkeypatch, cache):
    """What the probes will say, one after the other, the last one for ever; and the problems that were measured."""
    answers = []
    monkeypatch.setattr(
        measurement.busy, "disturbed", lambda threads: answers.pop(0) if len(answers) > 1 else answers[0]
    )
    monkeypatch.setattr(measurement, "PAUSE", 0.0)
    return answers, count_measurements(monkeypatch)


@pytest.mark.parametrize(
    ("said", "measured", "kept"),
    [
        ([False], 1, True),
        ([True], 0, False),
        ([True, False], 1, True),  # one program has just ended
        ([False, True, False], 2, True),  # one came and went
        ([False, True, False, True, False, True], 3, False),
        ([False, True], 1, False),
    ],
)
def test_disturbed_times_are_not_kept(probes, said, measured, kept):
    answers, problems = probes
    answers += said
    shapes = (1, 2, 9, 9), (3, 2, 3, 3)
    plan = portconv.plan_conv2d(*shapes, strategy="measure")
    assert len(problems) == measured
    assert len(wisdom.load()) == kept
    if kept:
        assert plan.chosen_by == "measurement"
    else:
        estimated = portconv.plan_conv2d(*shapes)
        assert plan.engine == estimated.engine and plan.candidates == estimated.candidates
        assert "heuristic, since something else used a core" in plan.explain() and "estimated ms" in plan.explain()
    assert portconv.plan_conv2d(*shapes, strategy="measure") is plan  # a layer does not wait in every call


def test_a_core_that_another_program_takes(monkeypatch):
    """By a clock that gives each thread the share that it is told."""

    class Clock:
        now, share = 0.0, 1.0

        def perf_counter(self):
            self.now += 1e-4
            return self.now

        def thread_time(self):
            return self.share * self.now

    clock = Clock()
    monkeypatch.setattr(busy, "time", clock)
    for clock.share, verdict in ((1.0, False), (0.95, False), (0.66, True), (0.5, True)):
        assert REAL_DISTURBED(1) is verdict


def test_threads_that_wake_on_one_core_get_a_second_try(monkeypatch):
    shares = [0.5, 1.0]
    monkeypatch.setattr(busy, "least_share", lambda threads: shares.pop(0))
    assert not REAL_DISTURBED(2)
    shares += [0.5, 0.6]
    assert REAL_DISTURBED(2)
