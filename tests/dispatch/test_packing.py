"""The cache of packed weights: none outlives a change of its weight, and no memory without bound."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import portconv
from portconv import machine
from portconv.core.backend import PackedWeight
from portconv.dispatch import packing
from portconv.dispatch.packing import PackCache
from tests.helpers import ones

# --- weights that change ----------------------------------------------------------------------------------------------


def test_a_weight_changed_in_place_counts(backend):
    if backend.name in ("numpy-readonly", "jax"):
        pytest.skip("its arrays cannot change")
    x, weight = backend.array(np.ones((1, 1, 8, 8), np.float32)), backend.array(np.ones((1, 1, 3, 3), np.float32))
    for engine in backend.engines:
        weight[...] = 1
        assert np.allclose(backend.numpy(portconv.conv2d(x, weight, engine=engine)), 9)
        weight[...] = 2
        assert np.allclose(backend.numpy(portconv.conv2d(x, weight, engine=engine)), 18)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_another_weight_at_the_same_address_counts(engine, tier, packs, unchangeable):
    """Packs are kept by the `id` of the weight, and an array that was collected may be followed by another with it."""
    x = np.ones((1, 1, 8, 8), np.float32)
    seen = set()
    for value in range(50):
        weight = unchangeable(np.full((1, 1, 3, 3), value, np.float32))
        seen.add(id(weight))
        for _ in range(2):
            np.testing.assert_allclose(portconv.conv2d(x, weight, engine=engine), 9 * value, rtol=1e-5)
        assert id(weight) in {identity for identity, _ in packs._entries}
        del weight
    assert len(seen) < 50


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_a_weight_that_was_readonly_for_a_while(engine, tier):
    x, weight = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
    for value in (1, 2):
        weight.flags.writeable = True
        weight[...] = value
        weight.flags.writeable = False
        np.testing.assert_allclose(portconv.conv2d(x, weight, engine=engine), 9 * value, rtol=1e-5)


def test_a_readonly_view_of_a_writable_weight_is_not_cached(tier):
    x, weight = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
    view = weight[...]
    view.flags.writeable = False
    for engine in ("gemm", "winograd", "fft", "direct"):
        weight[...] = 1
        np.testing.assert_allclose(portconv.conv2d(x, view, engine=engine), 9, rtol=1e-5)
        weight[...] = 2
        np.testing.assert_allclose(portconv.conv2d(x, view, engine=engine), 18, rtol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("place", [0, 40_000, -1])
def test_one_element_that_changes_counts(turned, place, tier):
    """Wherever it lies in memory: values are compared part by part."""
    x = np.ones((1, 80, 5, 5), np.float32)
    weight = np.ones((3, 3, 80, 70) if turned else (70, 80, 3, 3), np.float32)
    seen = weight.transpose(3, 2, 0, 1) if turned else weight
    for value in (2, np.nan, -0.0, 0.0):
        weight.reshape(-1)[place] = value
        found, expected = (portconv.conv2d(x, w) for w in (seen, seen.copy()))
        np.testing.assert_array_equal(found, expected)
        assert np.isnan(found).any() == np.isnan(value)


def test_a_writable_weight_is_packed_again_when_it_has_changed(packs, monkeypatch):
    """And not before; that of elements which do not lie together is packed in each call."""
    x, weight = ones(1, 2, 8, 8), ones(3, 2, 3, 3)
    plan, count = type(portconv.plan_conv2d(x, weight, engine="gemm")), []
    pack = plan.pack
    monkeypatch.setattr(plan, "pack", lambda self, weight: count.append(1) or pack(self, weight))
    for value, often in ((1, 3), (np.nan, 2), (1, 1)):
        weight[0, 0, 0, 0] = value
        for _ in range(often):
            portconv.conv2d(x, weight, engine="gemm")
    assert len(count) == 3
    for _ in range(3):
        portconv.conv2d(x, weight[::2], engine="gemm")
    assert len(count) == 6


def test_values_are_equal_in_the_same_form_alone():
    array = np.array([[np.nan, 0.0, 1.0, 2.0]], np.float32)
    values = packing.Values.of(array)
    assert values == values.kept != packing.Values.of(-array)
    for other in (array.reshape(2, 2), array.view(np.int32), array.astype(np.float64)):
        assert packing.Values.of(other) != values
    assert packing.Values.of(array[:, ::2]) is None and values != 0


def test_a_weight_of_another_shape_in_place_counts(packs, tier):
    x, weight = ones(1, 2, 8, 8), np.arange(72, dtype=np.float32).reshape(4, 2, 3, 3)
    first = portconv.conv2d(x, weight, groups=1)
    weight.shape = 4, 2, 9, 1
    found = portconv.conv2d(x[..., :2, :].repeat(5, 2), weight)
    assert found.shape == (1, 4, 2, 8) and first.shape == (1, 4, 6, 6)
    np.testing.assert_allclose(found, weight.sum((1, 2, 3))[None, :, None, None] + np.zeros(found.shape), rtol=1e-6)


def test_the_copies_of_writable_weights_are_bounded_with_their_packs(packs, unchangeable):
    x, weight = ones(1, 2, 20, 20), ones(3, 2, 15, 15)
    for one in (unchangeable(weight), weight):
        portconv.conv2d(x, one, engine="gemm")
    kept = [packed.nbytes for *_, packed in packs._entries.values()]
    assert len(kept) == 2 and packs.nbytes == sum(kept) + weight.nbytes
    packs.limit_bytes = max(kept) + weight.nbytes - 1
    portconv.conv2d(x, weight, engine="direct")
    assert packs.nbytes <= packs.limit_bytes
    del weight, one
    portconv.conv2d(x, ones(1, 2, 3, 3), engine="gemm")
    assert len(packs) == 1


def test_a_weight_that_is_large_for_the_memory_is_not_copied():
    class Watched(packing.Values):
        kept = property(lambda self: pytest.fail("copied"))

    weight, plan = ones(4, 4, 3, 3), CountedPlan(0)
    cache = PackCache(limit_bytes=2 * weight.nbytes - 1)
    for _ in range(2):
        cache.get(weight, Watched.of(weight), plan)
    assert plan.count == 2 and len(cache) == 0


# --- what is kept, and for how long -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_weight_is_not_kept_alive(backend, layout, packs):
    """A network whose filters are made anew for each image would fill the memory with them."""
    try:
        weakref.ref(backend.array(ones(1)))
    except TypeError:  # then the cache keeps nothing of them; so it is with none of the libraries that CI has
        pytest.skip("its arrays cannot be watched")
    for engine in backend.engines:
        x, weight = backend.array(ones(1, 8, 8, 8)), backend.array(ones(8, 8, 3, 3))
        seen = weakref.ref(weight)
        for _ in range(2):
            portconv.conv2d(x, weight, engine=engine, layout=layout)
            portconv.conv_transpose2d(x, weight, stride=2, layout=layout)
        del weight
        gc.collect()
        assert seen() is None, engine


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


# --- a network, pass after pass ---------------------------------------------------------------------------------------


class CountedPlan:
    """Stands for a plan whose packed weights are large; it says how often it packed."""

    def __init__(self, nbytes):
        self.stamp, self.nbytes, self.count = "counted", nbytes, 0

    def pack(self, weight):
        self.count += 1
        return PackedWeight(self.stamp, None, self.nbytes)


@pytest.mark.parametrize("gib", [4, 24])
def test_a_network_of_large_weights_is_packed_once(gib):
    """VGG-19's packed weights exceed 256 MiB: with a bound below what it needs, every pass would pack all of them."""
    cache = PackCache(limit_bytes=packing.bound(gib << 30))
    weights, plan = [np.zeros(1) for _ in range(16)], CountedPlan(40 << 20)
    for _ in range(3):
        for weight in weights:
            cache.get(weight, 0, plan)
    assert plan.count == len(weights) and cache.nbytes == 640 << 20


def test_the_bound_follows_the_memory():
    assert packing.bound(None) == packing.bound(0) == packing.bound(1 << 30) == 256 << 20
    assert packing.bound(24 << 30) == 6 << 30
    assert packing.packs.limit_bytes == packing.bound(machine.memory_bytes()) >= 256 << 20


def test_no_layer_packs_in_its_second_pass(tier, packs, plans, unchangeable):
    """By the functional form with weights that cannot change, and by layers."""
    packs.limit_bytes = 8 << 20
    x = np.ones((1, 16, 14, 14), np.float32)
    weights = [unchangeable(ones(16, 16, kernel, kernel)) for kernel in (1, 3, 3, 5, 9)]
    layers = [portconv.Conv2d(16, 16, kernel, padding=kernel // 2) for kernel in (1, 3, 3, 5, 9)]

    def one_pass():
        for weight in weights:
            portconv.conv2d(x, weight, padding=weight.shape[2] // 2)
        for layer in layers:
            layer(x)

    one_pass()
    assert len(packs) == len(weights)
    with pytest.MonkeyPatch.context() as patch:
        for kind in {type(plan) for plan in plans}:
            patch.setattr(kind, "pack", lambda *_: pytest.fail("a weight was packed anew"))
        one_pass()
