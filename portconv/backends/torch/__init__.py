"""PyTorch: its own convolution, portconv's engines in its operations, and on a CPU NumPy's over its tensors' memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...core.backend import ArrayInfo, Candidate, PackedWeight, Plan, Pullback, Wanted, check_result
from ...core.problem import Problem, TransposedProblem
from ...core.windows import WindowOperation
from ...cpu.bridge import host_candidates
from ...cpu.machine import host_environment, processor
from ...engines.finished import sums_of
from ..base import ArrayApiBackend, name_of
from .derivatives import value_and_pullback
from .host import TorchHostSteps, torch_host_plan, torch_phases, windowed_on_host
from .native import NativePlan, in_parts, native_candidate
from .operations import OpsPlan, leaves_out, records, transformed

__all__ = ["backend"]


def _extent(x: Any) -> tuple[int, int]:
    """The addresses of a tensor's first byte, and after its last one."""
    steps = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (steps + 1) * x.element_size() * (x.numel() > 0)


class TorchBackend(ArrayApiBackend):
    """PyTorch."""

    namespace = "array_api_compat.torch"
    steps_type = TorchHostSteps

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._dtype_names: dict[Any, str] = {}
        self._device_names: dict[Any, str] = {}

    def describe(self, x: Any, /) -> ArrayInfo:
        try:  # without a call of Python's: every call describes two tensors or three
            if x.layout is torch.strided:
                return ArrayInfo(tuple(x.shape), self._dtype_names[x.dtype], self._device_names[x.device])
        except (AttributeError, KeyError):
            pass
        self._check(x)
        if x.layout is not torch.strided:
            raise TypeError(f"expected a dense tensor, but got one of layout {x.layout}. `to_dense()` makes one of it.")
        if x.is_quantized:
            raise TypeError("expected plain numbers, but got a quantised tensor. `dequantize()` makes them of it.")
        info = super().describe(x)
        self._dtype_names[x.dtype], self._device_names[x.device] = info.dtype, info.device
        return info

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        native = native_candidate(problem)
        return [native, *(host_candidates(problem) if problem.device == "cpu" else self._engines(problem))]

    def build(self, problem: Problem, engine: str, /) -> Plan:
        if problem.result_dtype in ("uint32", "uint64"):
            raise TypeError(f"`out_dtype`: PyTorch has next to no operations for {problem.result_dtype}. Use int64.")
        native = NativePlan(problem, "native", steps=self._steps_on(problem.device))
        if engine == "native":
            return native
        if problem.device == "cpu":
            return torch_host_plan(problem, engine, native, *self._channels_last(problem, engine, native))
        return OpsPlan.of(super().build(problem, engine), apart=leaves_out(problem))

    def _channels_last(self, p: Problem, engine: str, native: NativePlan) -> tuple[Plan | None, Plan | None]:
        """Plans for the same image channels last in memory: by this engine, and by the one that costs least there."""
        if p.layout == "NHWC":
            return None, None
        last = replace(p, layout="NHWC")
        # what follows the sums has no part in the choice: weights are packed for plans without it
        offers = {c.engine: c.seconds for c in self.candidates(sums_of(last) or last) if c.why_not is None}
        # PyTorch's own is best at depthwise layers, if not in parts
        its_own = "native" in offers and not in_parts(p) and p.in_channels == p.groups > 1
        best = "native" if its_own else min(offers, key=lambda name: offers[name], default=engine)
        same = self.build(last, engine) if engine in offers else None
        if best == "native" and not in_parts(p):
            return same, native  # which takes images in both formats as they are
        return same, same if best == engine else self.build(last, best)

    def fuses(self, problem: Problem, engine: str, /) -> bool:
        """See `portconv.extending.Finishing`."""
        return problem.device == "cpu" and engine != "native"

    def at_once(self, problem: TransposedProblem, engine: str, /) -> Plan | None:
        """See `portconv.extending.Assembling`."""
        return torch_phases(problem, engine) if problem.device == "cpu" else None

    def vjp(
        self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight], /
    ) -> tuple[Any, Pullback]:
        return value_and_pullback(plan, (x, weight, bias), wanted, pack)

    def windowed(self, x: Any, info: ArrayInfo, operation: WindowOperation, /) -> Any:
        """See `portconv.extending.Windowing`."""
        on_host = windowed_on_host(x, operation) if info.device == "cpu" and not records(x) else None
        return super().windowed(x, info, operation) if on_host is None else on_host

    def check_out(self, out: Any, problem: Problem, arguments: Mapping[str, Any], /) -> None:
        """Whether a tensor can become a problem's result; `arguments` are the others of the call, or None."""
        check_result(self.describe(out), problem)
        given = {name: array for name, array in arguments.items() if array is not None}
        for name, array in {"out": out, **given}.items():
            if records(array):
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
        # not see what is assigned to `.data`, which has another address, nor what is written through `.data` or memory
        # that the tensor shares with another library.
        if records(weight) or weight.is_inference() or transformed():
            return None
        # what was made in inference mode cannot be used outside of it
        return weight._version, weight.data_ptr(), torch.is_inference_mode_enabled()

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        with torch.inference_mode(False):  # else the array could be changed unseen
            try:
                return super().from_numpy(x, dtype=dtype, device=device)
            except (RuntimeError, AssertionError) as error:
                raise ValueError(f"`device` {device!r}: {error}") from error

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        x = x.detach().cpu()
        return np.asarray(x.float() if name_of(x.dtype) == "bfloat16" else x)

    def synchronize(self, x: Any, /) -> None:
        if x.device.type in ("cuda", "xpu"):  # of several, the current one need not be that of the tensor
            getattr(torch, x.device.type).synchronize(x.device)
        elif x.device.type == "mps":
            torch.mps.synchronize()

    def environment(self, problem: Problem, /) -> dict[str, str]:
        if problem.device.startswith("cuda"):
            here = {"gpu": str(torch.cuda.get_device_name(problem.device))}
        else:  # PyTorch names no GPU of Apple's, which the processor stands for
            own = host_environment() if problem.device == "cpu" else {"cpu": processor()}
            here = {**own, "threads": str(torch.get_num_threads())}
        return {"torch": str(torch.__version__), **here}


def backend(name: str) -> TorchBackend:
    """The adapter of PyTorch."""
    return TorchBackend(name)
