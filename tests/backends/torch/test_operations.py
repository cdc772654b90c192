"""portconv's engines in PyTorch's operations, which tensors without memory that NumPy can see get."""

from __future__ import annotations

import pytest

import portconv
from tests.helpers import numbers


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_other_devices_get_them(torch, engine):
    """The device that has no values stands for GPUs; it knows shapes and dtypes."""
    x, weight = torch.empty(1, 2, 9, 8, device="meta"), torch.empty(3, 2, 3, 3, device="meta")
    plan = portconv.plan_conv2d(x, weight, engine=engine)
    assert type(plan).__name__ == "OpsPlan"


def ops_plan(torch, x, weight, engine, **options):
    """The plan for these sizes as a GPU would get it, here on a CPU."""
    operations = pytest.importorskip("portconv.backends.torch.operations")
    base = pytest.importorskip("portconv.backends.base")
    plan = portconv.plan_conv2d(x, weight, engine=engine, **options)
    inner = base.ArrayApiBackend.build(portconv.get_backend("torch"), plan.problem, engine)
    return operations.OpsPlan.of(inner, apart=operations.leaves_out(plan.problem))


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_gradients(torch, engine):
    x, weight = (torch.tensor(numbers(s).astype("f8"), requires_grad=True) for s in ((1, 2, 5, 6), (3, 2, 3, 3)))
    plan = ops_plan(torch, x, weight, engine, padding=1)
    assert torch.autograd.gradcheck(lambda x, w: plan.execute(x, plan.pack(w)), (x, weight))
    y = plan.execute(x, plan.pack(weight))
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight, padding=1))
    with pytest.raises(ValueError, match="packed for"):
        plan.execute(x, ops_plan(torch, x, weight, "direct" if engine != "direct" else "gemm").pack(weight))


def test_a_photograph_becomes_float_in_blocks(torch, monkeypatch):
    """What is not differentiated is never converted as a whole, however the weight is."""
    plan = ops_plan(torch, torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3), "gemm").inner
    engine, steps = type(plan), type(plan.steps)
    images, blocks, execute, cast = [], [], engine.execute, steps.cast
    monkeypatch.setattr(engine, "execute", lambda self, x, *args: images.append(x.dtype) or execute(self, x, *args))
    monkeypatch.setattr(steps, "cast", lambda self, x, dtype: blocks.append(x.numel()) or cast(self, x, dtype))
    for dtype in (torch.uint8, torch.bfloat16):
        x = torch.ones(1, 1, 1000, 800, dtype=dtype)
        weight = torch.ones(4, 1, 3, 3, dtype=dtype if dtype.is_floating_point else None, requires_grad=True)
        ops = ops_plan(torch, x, weight, "gemm")
        assert ops.execute(x, ops.pack(weight)).requires_grad
        assert max(blocks) < x.numel()
    assert images == [torch.uint8, torch.bfloat16]
