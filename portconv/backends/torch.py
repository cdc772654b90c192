"""PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..core.backend import PackedWeight, Plan, check_result
from ..core.problem import Problem
from ..core.shapes import met_taps
from ..cpu.machine import processor
from .base import ArrayApiBackend, OuterPlan, name_of

__all__ = ["backend"]


def _apart(p: Problem) -> bool:
    """Whether the result is empty, or every output lies in padding with zeros."""
    axes = zip(p.out_size, (p.height, p.width), p.kernel, p.stride, p.dilation, p.padding[::2], strict=True)
    return 0 in p.out_shape or (p.padding_mode == "zeros" and not all(any(met_taps(*axis)) for axis in axes))


class _TorchWeight(NamedTuple):
    packed: PackedWeight
    weight: Any  # the user's, if its gradient is recorded


@dataclass(frozen=True, kw_only=True)
class _TorchPlan(OuterPlan):
    """An engine whose gradients are summed in the dtype of the computation, and reach every argument.

    Autograd adds in the dtype that an array has where it is used: an image of bfloat16 whose windows overlap, or whose
    edge is copied, would collect one rounding error after the other. So what is differentiated is cast first, as a
    whole; of all other images only the block at hand becomes float32.
    """

    apart: bool = False  # whether the engine may leave an argument out of the arithmetic

    def pack(self, weight: Any, /) -> PackedWeight:
        recorded = _records(weight)
        packed = self.inner.pack(self._wide(weight))
        return replace(packed, data=_TorchWeight(packed, weight if recorded else None))

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /, **options: Any) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        data: _TorchWeight = weight.data
        y = self.inner.execute(self._wide(x), data.packed, bias, **options)
        if self.apart:
            for argument in (x, data.weight, bias):
                if argument is not None and _records(argument):
                    y = y + argument[:0].sum().to(y.dtype)  # zero, whose gradient is zero everywhere
        return y

    def _wide(self, array: Any) -> Any:
        known = array.is_floating_point() and _records(array)
        return array.to(getattr(importlib.import_module("torch"), self.problem.compute_dtype)) if known else array


def _records(x: Any) -> bool:
    """Whether a gradient of the array may be recorded: by autograd, or somewhere in a nest of `torch.func`."""
    torch = importlib.import_module("torch")
    recorded = x.requires_grad and torch.is_grad_enabled()
    return bool(recorded or torch._C._functorch.is_functorch_wrapped_tensor(x))


def _extent(x: Any) -> tuple[int, int]:
    """The addresses of a tensor's first byte, and after its last one."""
    steps = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (steps + 1) * x.element_size() * (x.numel() > 0)


class TorchBackend(ArrayApiBackend):
    """PyTorch."""

    namespace = "array_api_compat.torch"

    def build(self, problem: Problem, engine: str, /) -> Plan:
        if problem.result_dtype in ("uint32", "uint64"):
            raise TypeError(f"`out_dtype`: PyTorch has next to no operations for {problem.result_dtype}. Use int64.")
        return _TorchPlan.of(super().build(problem, engine), apart=_apart(problem))

    def check_out(self, out: Any, problem: Problem, arguments: Mapping[str, Any], /) -> None:
        """Whether a tensor can become a problem's result; `arguments` are the others of the call, or None."""
        check_result(self.describe(out), problem)
        given = {name: array for name, array in arguments.items() if array is not None}
        for name, array in {"out": out, **given}.items():
            if _records(array):
                raise ValueError(f"`out` cannot be had where gradients are recorded, but `{name}` records them.")
        if any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.stride(), strict=True)):
            raise ValueError("`out` must have memory for each of its elements, but an axis of it has stride 0.")
        first, last = _extent(out)
        for name, array in given.items():
            low, high = _extent(array)
            if first < high and low < last:
                raise ValueError(f"`out` must not share memory with `{name}`, which is read while `out` is written.")

    def _new_device(self, name: str) -> Any:
        return self._xp.device(name)

    def cache_token(self, weight: Any, /) -> Hashable | None:
        # A weight that records gradients must be packed anew, so that the packing is part of the graph. `_version` does
        # not see changes through `.data`, or through memory that the tensor shares with another library.
        if weight.requires_grad or weight.is_inference():
            return None
        # what was made in inference mode cannot be used outside of it
        return weight._version, self._torch.is_inference_mode_enabled()

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        with self._torch.inference_mode(False):  # else the array could be changed unseen
            try:
                return super().from_numpy(x, dtype=dtype, device=device)
            except (RuntimeError, AssertionError) as error:
                raise ValueError(f"`device` {device!r}: {error}") from error

    @property
    def _torch(self) -> Any:
        return importlib.import_module("torch")

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        x = x.detach().cpu()
        return np.asarray(x.float() if name_of(x.dtype) == "bfloat16" else x)

    def synchronize(self, x: Any, /) -> None:
        if x.device.type in ("cuda", "mps", "xpu"):
            getattr(self._torch, x.device.type).synchronize()

    def environment(self, problem: Problem, /) -> dict[str, str]:
        torch = self._torch
        if problem.device.startswith("cuda"):
            here = {"gpu": str(torch.cuda.get_device_name(problem.device))}
        else:  # PyTorch names no GPU of Apple's, which the processor stands for
            here = {"cpu": processor(), "threads": str(torch.get_num_threads())}
        return {"torch": str(torch.__version__), **here}


def backend(name: str) -> TorchBackend:
    """The adapter of PyTorch."""
    return TorchBackend(name)
