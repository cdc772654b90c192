"""Plans and packed weights: packing and executing by hand, and no plan reads another's packed weight."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import portconv


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


def test_a_plan_says_its_tier(backend, engine):
    shapes = (1, 8, 12, 12), (8, 8, 3, 3)
    plan = portconv.plan_conv2d(*[backend.array(np.zeros(shape, "f4")) for shape in shapes], engine=engine)
    note = next(c.note for c in plan.candidates if c.engine == plan.engine)
    expected = {"compiled", "plain", "array API"} if plan.engine != "native" else {"native"}
    assert plan.tier in expected and (plan.tier == "compiled") == note.startswith("compiled")
    if backend.name == "array_api_strict":
        assert plan.tier == "array API"
    if backend.name == "numpy":
        assert plan.tier != "array API"


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
