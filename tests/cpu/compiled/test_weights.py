"""Weights as register tiles read them, from any order of memory; and what counts where they are packed for one call."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

pytestmark = pytest.mark.usefixtures("jit")

ORDERS = {
    "as it is": lambda w: w,
    "channels exchanged": lambda w: np.ascontiguousarray(w.swapaxes(1, 2)).swapaxes(1, 2),
    "turned around": lambda w: np.ascontiguousarray(w[..., ::-1, ::-1])[..., ::-1, ::-1],
    "both": lambda w: np.ascontiguousarray(w.swapaxes(1, 2)[..., ::-1, ::-1])[..., ::-1, ::-1].swapaxes(1, 2),
    "rows turned around": lambda w: np.ascontiguousarray(w[..., ::-1, :])[..., ::-1, :],
    "every second row": lambda w: np.repeat(w, 2, axis=3)[..., ::2, :],
    "every second column": lambda w: np.repeat(w, 2, axis=4)[..., ::2],
    "taps first": lambda w: np.ascontiguousarray(w.transpose(3, 4, 0, 1, 2)).transpose(2, 3, 4, 0, 1),
    "unaligned": lambda w: _unaligned(w),
    "half precision": lambda w: w.astype("f2"),
}
LAYERS = {  # image, weight (G, O/G, I/G, kh, kw), padding
    "a register tile and more": ((1, 20, 9, 9), (1, 33, 20, 3, 3), 1),
    "1x1": ((1, 40, 7, 7), (1, 70, 40, 1, 1), 0),
    "groups": ((1, 24, 30, 30), (4, 10, 6, 3, 3), 1),
    "tap by tap": ((1, 64, 5, 5), (1, 64, 64, 3, 3), 4),
    "few outputs": ((1, 6, 9, 9), (1, 3, 6, 3, 3), 1),
}


def _unaligned(w):
    memory = np.empty(w.nbytes + 1, np.uint8)
    out = memory[1:].view(w.dtype).reshape(w.shape)
    out[...] = w
    return out


def plan_of(shape, weight, padding, engine, **options):
    spec = {"padding": padding, "groups": weight.shape[0] if weight.ndim == 5 else 1, "engine": engine, **options}
    return portconv.plan_conv2d(shape, weight.shape, **spec, dtype="float32")


@pytest.mark.parametrize("engine", ["gemm", "winograd"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_memory_orders(layer, order, engine):
    shape, weight_shape, padding = LAYERS[layer]
    if engine == "winograd" and (weight_shape[0] > 1 or weight_shape[-1] == 1):
        pytest.skip("no tiles")
    weight = numbers(weight_shape, 1).astype("f2").astype("f4")
    x = numbers(shape)
    plan = plan_of(shape, weight, padding, engine)
    y = plan.execute(x, plan.pack(ORDERS[order](weight)))
    np.testing.assert_array_equal(y, plan.execute(x, plan.pack(weight)))
    assert_close(y, reference_conv2d(x, weight, padding=padding, groups=weight_shape[0]))


@pytest.mark.parametrize("engine", ["gemm", "winograd"])
def test_a_turned_weight_is_packed_from_where_it_lies(engine):
    """As gradients pack it, in each step of a training."""
    plan = plan_of((1, 64, 7, 7), numbers((64, 64, 3, 3)), 1, engine)
    plan = type(plan).make(replace(plan.problem, packed_once=True))
    weight = numbers((64, 64, 3, 3)).swapaxes(0, 1)[..., ::-1, ::-1]
    plan.pack(weight)
    packed, peak = pack_and_count(plan, weight)
    assert packed.nbytes <= peak < packed.nbytes + weight.nbytes / 2


def test_some_taps_of_a_turned_weight_are_packed_from_where_they_lie():
    """Those of a phase of a stride."""
    weight = numbers((64, 64, 5, 5)).swapaxes(0, 1)[..., ::-2, ::-2]
    x = numbers((1, 64, 7, 7))
    plan = plan_of(x.shape, weight, 1, "gemm")
    plan.pack(weight)
    packed, peak = pack_and_count(plan, weight)
    assert packed.nbytes <= peak < packed.nbytes + weight.nbytes / 2
    assert_close(plan.execute(x, packed), reference_conv2d(x, weight, padding=1))


def pack_and_count(plan, weight):
    """The packed weight, and the most bytes that were allocated at once for it."""
    tracemalloc.start()
    try:
        return plan.pack(weight), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_weight_for_one_call(monkeypatch):
    """It is packed for gemm only where a value is not finite."""
    from portconv.cpu.bridge import numpy_plan
    from portconv.cpu.compiled.gemm.plan import CompiledGemmPlan

    x, weight = numbers((1, 8, 12, 12)), numbers((8, 8, 3, 3), 1)
    problem = replace(portconv.plan_conv2d(x, weight, engine="winograd", padding=1).problem, packed_once=True)
    plan, packed_for_gemm, pack = numpy_plan(problem, "winograd"), [], CompiledGemmPlan.pack
    monkeypatch.setattr(CompiledGemmPlan, "pack", lambda self, w: packed_for_gemm.append(w) or pack(self, w))
    packed = plan.pack(weight)
    assert_close(plan.execute(x, packed), reference_conv2d(x, weight, padding=1))
    assert not packed_for_gemm
    x[0, 0, 0, 0] = np.inf
    assert_close(plan.execute(x, packed), reference_conv2d(x, weight, padding=1))
    assert len(packed_for_gemm) == 1


def test_many_weights_for_few_outputs_cost_their_packing():
    """A transform that multiplies less is not worth it where it makes many more weights, for one call."""
    from portconv.cpu.bridge import host_candidates

    problem = portconv.plan_conv2d((8, 512, 7, 7), (512, 512, 3, 3), padding=1, dtype="float32").problem
    kept, once = ({c.engine: c for c in host_candidates(p)} for p in (problem, replace(problem, packed_once=True)))
    assert "4x4" in kept["winograd"].note
    assert "2x2" in once["winograd"].note
    assert all(once[engine].seconds > kept[engine].seconds for engine in ("gemm", "winograd", "direct"))
