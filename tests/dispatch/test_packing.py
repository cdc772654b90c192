"""The cache of packed weights: none outlives a change of its weight, and no memory without bound."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import portconv
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


# --- what is kept, and for how long -----------------------------------------------------------------------------------


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
