"""Any library that follows the array API standard, by portconv's own engines.

PyTorch, JAX, CuPy and Dask do some things in ways of their own. `array_api_compat` gives the namespaces of those that
follow the standard nearly.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from .. import engines
from ..backend import ArrayInfo, Candidate, PackedWeight, Plan
from ..cpu.bridge import host_candidates, host_plan
from ..cpu.host import host_environment, processor, version
from ..engines.costs import GENERIC
from ..registry import library_of
from ..shapes import AxisSource, met_taps
from ..spec import Problem
from ..steps import Block, Steps

__all__ = ["ArrayApiBackend", "backend"]


class _QuietSteps(Steps):
    """Libraries that NumPy computes for warn as NumPy does."""

    def quiet(self) -> AbstractContextManager[object]:
        return np.errstate(all="ignore")


class ArrayApiBackend:
    """See `portconv.backend.Backend`. `name` is the library's top-level package."""

    namespace: str | None = None  # the module to import, if it is not the package itself
    writable = True  # whether blocks of a result can be assigned
    steps_type: type[Steps] = _QuietSteps

    def __init__(self, name: str, namespace: ModuleType | None = None) -> None:
        self.name = name
        self._xp: ModuleType = namespace or importlib.import_module(self.namespace or name)
        self._steps: dict[str, Steps] = {}  # by device
        self._devices: dict[str, Any] = {}  # the library's objects for the names in `ArrayInfo`

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def describe(self, x: Any, /) -> ArrayInfo:
        self._check(x)
        device = array_api_compat.device(x)
        name = str(device)
        self._devices.setdefault(name, device)
        return ArrayInfo(tuple(x.shape), _name_of(x.dtype), name)

    def _check(self, x: Any) -> None:
        if library_of(x) != self.name:
            raise TypeError(f"expected an array of {self.name}, but got {type(x).__module__}.{type(x).__name__}.")

    def _steps_on(self, device: str) -> Steps:
        if device not in self._steps:
            self._steps[device] = self._new_steps(device)
        return self._steps[device]

    def _new_steps(self, device: str) -> Steps:
        return self.steps_type(self._xp, device=self._device(device), writable=self.writable)

    def _device(self, name: str) -> Any:
        """The library's device object: one seen before, or what the library makes of the name."""
        if name not in self._devices:
            try:
                self._devices[name] = self._new_device(name)
            except RuntimeError as error:
                raise ValueError(f"`device` {name!r} is none of {self.name}'s devices: {error}") from None
        return self._devices[name]

    def _place(self, device: str) -> dict[str, Any]:
        """The keyword that puts a new array on the device."""
        return {"device": self._device(device)}

    def _new_device(self, name: str) -> Any:
        for device in self._xp.__array_namespace_info__().devices():
            if str(device) == name:
                return device
        raise ValueError(f"`device` {name!r} is none of {self.name}'s devices.")

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        native = Candidate("native", why_not=f"portconv does not call a convolution of {self.name}'s own yet")
        return [*engines.candidates(problem, self._steps_on(problem.device), GENERIC), native]

    def build(self, problem: Problem, engine: str, /) -> Plan:
        return engines.build(problem, engine, self._steps_on(problem.device), GENERIC)

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return None

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        xp = self._xp
        wanted = dtype or np.asarray(x).dtype.name
        self._dtype(wanted)
        # a copy: no library may share memory that NumPy's owner can change
        x = np.array(x, dtype="float32" if wanted == "bfloat16" else wanted)
        y = xp.asarray(x, **({} if device is None else self._place(device)))
        if _name_of(y.dtype) != wanted:
            y = xp.astype(y, self._dtype(wanted))
        if _name_of(y.dtype) != wanted:
            raise TypeError(f"{self.name} made {_name_of(y.dtype)} of an array that was to be {wanted}.")
        return y

    def _dtype(self, name: str) -> Any:
        """The library's dtype object of a standard name."""
        return Steps(self._xp).dtype(name)

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        try:
            return np.asarray(x)
        except RuntimeError:  # on a device from which nothing is copied unasked
            return np.from_dlpack(x, device="cpu")

    def synchronize(self, x: Any, /) -> None:
        """Libraries that compute at once have nothing to wait for."""

    def environment(self, problem: Problem, /) -> dict[str, str]:
        # many libraries compute by NumPy
        return {self.name: version(self.name), **host_environment()}


def _name_of(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


def _apart(p: Problem) -> bool:
    """Whether the result is empty, or every output lies in padding with zeros."""
    axes = zip(p.out_size, (p.height, p.width), p.kernel, p.stride, p.dilation, p.padding[::2], strict=True)
    return 0 in p.out_shape or (p.padding_mode == "zeros" and not all(any(met_taps(*axis)) for axis in axes))


class _TorchWeight(NamedTuple):
    packed: PackedWeight
    weight: Any  # the user's, if its gradient is recorded


@dataclass(frozen=True)
class _TorchPlan(Plan):
    """An engine whose gradients are summed in the dtype of the computation, and reach every argument.

    Autograd adds in the dtype that an array has where it is used: an image of bfloat16 whose windows overlap, or whose
    edge is copied, would collect one rounding error after the other. So what is differentiated is cast first, as a
    whole; of all other images only the block at hand becomes float32.
    """

    inner: Plan = None  # type: ignore[assignment]
    apart: bool = False  # whether the engine may leave an argument out of the arithmetic

    @property
    def stamp(self) -> Hashable:
        return self.inner.stamp

    def pack(self, weight: Any, /) -> PackedWeight:
        recorded = _records(weight)
        packed = self.inner.pack(self._wide(weight))
        return replace(packed, data=_TorchWeight(packed, weight if recorded else None))

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        data: _TorchWeight = weight.data
        y = self.inner.execute(self._wide(x), data.packed, bias)
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


class TorchBackend(ArrayApiBackend):
    """PyTorch."""

    namespace = "array_api_compat.torch"

    def build(self, problem: Problem, engine: str, /) -> Plan:
        inner = super().build(problem, engine)
        return _TorchPlan(problem, engine, inner.workspace_bytes, inner=inner, apart=_apart(problem))

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
        return np.asarray(x.float() if _name_of(x.dtype) == "bfloat16" else x)

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


@dataclass(frozen=True)
class _JaxPlan(Plan):
    """An engine whose products of float32 are products of float32.

    On GPUs and TPUs JAX rounds their factors to TF32 or bfloat16 unless it is asked for more; whoever has set
    `jax_default_matmul_precision` gets what it says. Derivatives of a product have the product's precision.

    Traced images of 16 bits are cast as a whole: what JAX differentiates it adds in the dtype of the image where it is
    used. Under `jax.jit` the cast costs nothing.

    Arrays that have values give arrays that have values, also while a function around the call is traced: their packed
    weight is kept for other calls, and some engines look at values.
    """

    inner: Plan = None  # type: ignore[assignment]

    @property
    def stamp(self) -> Hashable:
        return self.inner.stamp

    def cut(self, array: Any, index: tuple[Any, ...]) -> Any:
        with self._values():
            return array[index]

    def pack(self, weight: Any, /) -> PackedWeight:
        with _full_precision(), self._values():
            return self.inner.pack(weight)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        p = self.problem
        if p.traced and p.x_dtype in ("float16", "bfloat16"):
            x = x.astype(p.compute_dtype)
        with _full_precision(), self._values():
            return self.inner.execute(x, weight, bias)

    def _values(self) -> AbstractContextManager[object]:
        return nullcontext() if self.problem.traced else _with_values()


def _with_values() -> AbstractContextManager[object]:
    """JAX computes what it can at once, instead of leaving it to the function that it is tracing."""
    at_once: AbstractContextManager[object] = importlib.import_module("jax").ensure_compile_time_eval()
    return at_once


def _full_precision() -> AbstractContextManager[object]:
    jax = importlib.import_module("jax")
    if jax.config.jax_default_matmul_precision is not None:
        return nullcontext()
    precise: AbstractContextManager[object] = jax.default_matmul_precision("highest")
    return precise


class JaxBackend(ArrayApiBackend):
    """JAX: NumPy's engines for eager arrays on a CPU, seen without a copy; `jax.numpy` for all others.

    Operations that are not compiled together are compiled one by one in JAX, for every shape; a first call would take
    seconds.
    """

    namespace = "jax.numpy"
    writable = False

    def describe(self, x: Any, /) -> ArrayInfo:
        self._check(x)
        if _is_tracer(x):
            return ArrayInfo(tuple(x.shape), _name_of(x.dtype), "", traced=True)
        return super().describe(x)

    def _new_device(self, name: str) -> Any:
        if not name:  # traced: wherever the compiled function will run
            return None
        kind, _, index = name.partition(":")
        return importlib.import_module("jax").devices(kind)[int(index or 0)]

    def _on_host(self, problem: Problem) -> bool:
        return not problem.traced and getattr(self._device(problem.device), "platform", "") == "cpu"

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        if self._on_host(problem):
            native = Candidate("native", why_not="portconv does not call a convolution of jax's own yet")
            return [*host_candidates(problem), native]
        return super().candidates(problem)

    def build(self, problem: Problem, engine: str, /) -> Plan:
        if not self._on_host(problem):
            inner = super().build(problem, engine)
            return _JaxPlan(problem, engine, inner.workspace_bytes, inner=inner)
        return host_plan(problem, engine, view=self.to_numpy, take=self._take)

    def _take(self, y: np.ndarray[Any, Any], problem: Problem) -> Any:
        # not `jnp.asarray(y, device=...)`: that is compiled for every new shape
        taken = importlib.import_module("jax").device_put(y, self._device(problem.device))
        if _is_tracer(taken):  # a function is being traced around the call; the context costs a tenth of small calls
            with _with_values():
                return self._take(y, problem)
        return taken if y.dtype.name == problem.dtype else taken.astype(problem.dtype)

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return None if _is_tracer(weight) else 0  # JAX arrays cannot change

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        wide = {"float64", "int64", "uint64"}
        if (dtype or np.asarray(x).dtype.name) in wide and not importlib.import_module("jax").config.jax_enable_x64:
            raise TypeError(
                f"JAX makes 32-bit numbers of {dtype or np.asarray(x).dtype.name}. "
                f"Set `jax_enable_x64` for 64-bit ones."
            )
        with _with_values():  # a layer keeps the converted weight beyond a trace
            return super().from_numpy(x, dtype=dtype, device=device)

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        y = np.asarray(x)
        return y.astype(np.float32) if y.dtype.name == "bfloat16" else y

    def synchronize(self, x: Any, /) -> None:
        x.block_until_ready()

    def environment(self, problem: Problem, /) -> dict[str, str]:
        kind = str(getattr(self._device(problem.device), "device_kind", ""))
        return {"jax": version("jax"), "device kind": kind, **host_environment()}


def _is_tracer(x: Any) -> bool:
    """Whether `x` stands for values that are being traced (`jax.jit`, `jax.grad`, `jax.vmap`)."""
    return "Tracer" in type(x).__name__


class _CupySteps(_QuietSteps):
    """CuPy's own kernels take subnormal numbers for zero, and the libraries that it calls do not."""

    def is_zero(self, x: Any) -> Any:
        bits = x.view(f"i{x.dtype.itemsize}")
        return bits << 1 == 0  # all but the sign


class CupyBackend(ArrayApiBackend):
    """CuPy."""

    namespace = "array_api_compat.cupy"
    steps_type = _CupySteps

    def _new_device(self, name: str) -> Any:
        digits = "".join(ch for ch in name if ch.isdigit())
        return self._xp.cuda.Device(int(digits or 0))

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        return np.asarray(x.get())

    def synchronize(self, x: Any, /) -> None:
        x.device.synchronize()

    def environment(self, problem: Problem, /) -> dict[str, str]:
        properties = self._xp.cuda.runtime.getDeviceProperties(self._device(problem.device).id)
        return {"cupy": version("cupy"), "gpu": properties["name"].decode()}


# --- Dask: graphs of NumPy's operations, which warn of nothing when they run ------------------------------------------
#
# Dask runs its tasks later and in threads of its own, where no setting of the caller's holds. So each array enters an
# engine by a layer of its own, and whatever the engine has put between those layers and its result is made quiet: each
# task sets `numpy.errstate` for itself. The user's own tasks stay as they are.

MAX_TERMS = 1000  # of `direct`, which makes a few tasks of each; Dask's time grows faster than their number
ENTRY = "portconv-entry-"  # begins the names of the layers by which arrays enter an engine


@dataclass(frozen=True)
class _Quiet:
    """A task's function without NumPy's warnings."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return self.function(*args, **kwargs)


def _unchanged(x: Any) -> Any:
    return x


def _entered(x: Any) -> Any:
    """The array, behind a layer at which `_quietened` stops."""
    return x.map_blocks(_unchanged, name=ENTRY + x.name, dtype=x.dtype, meta=x._meta)


def _quietened(y: Any) -> Any:
    """The array, with every task quiet that was put between it and what entered."""
    graph = y.dask
    layers, names, seen = dict(graph.layers), list(y.__dask_layers__()), set()
    while names:
        name = names.pop()
        if name not in seen and not name.startswith(ENTRY):
            seen.add(name)
            layers[name] = _quiet_layer(layers[name])
            names.extend(graph.dependencies[name])
    return type(y)(type(graph)(layers, graph.dependencies), y.name, y.chunks, meta=y._meta)


def _quiet_layer(layer: Any) -> Any:
    if hasattr(layer, "task"):  # Blockwise, whose tasks are all made of this one
        quiet = copy.copy(layer)
        quiet.task = _quiet_task(layer.task)
        quiet.__dict__.pop("_cached_dict", None)  # tasks that it may have made already
        return quiet
    if not hasattr(layer, "mapping"):  # it only moves data: those that are not written down as tasks
        return layer
    return type(layer)({key: _quiet_task(task) for key, task in layer.mapping.items()}, layer.annotations)


def _quiet_task(task: Any) -> Any:
    if isinstance(task, tuple) and task and callable(task[0]):  # the older form of a task
        return _Quiet(task[0]), *task[1:]
    if not callable(getattr(task, "func", None)):
        return task  # the name of another one, or data
    quiet = task.copy()
    quiet.func = _Quiet(task.func)
    return quiet


class _DaskSteps(_QuietSteps):
    """Windows of one chunk: Dask transforms no axis that is cut into several."""

    def _pad(self, x: Any, block: Block, rows: AxisSource, cols: AxisSource, mode: str, dtype: str) -> Any:
        return self.contiguous(super()._pad(x, block, rows, cols, mode, dtype))

    def contiguous(self, x: Any) -> Any:
        return x.rechunk(-1)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        # in one chunk: to choose the sizes of several Dask may divide by that of an empty array
        return self.xp.zeros(shape, dtype=dtype, chunks=shape)

    def dtype(self, name: str) -> Any:
        return np.dtype(name)

    def all_finite(self, x: Any) -> bool:
        return bool(_quietened(self.xp.isfinite(self.xp.sum(x))))


@dataclass(frozen=True)
class _DaskPlan(Plan):
    """An engine whose tasks are quiet."""

    inner: Plan = None  # type: ignore[assignment]

    @property
    def stamp(self) -> Hashable:
        return self.inner.stamp

    def pack(self, weight: Any, /) -> PackedWeight:
        return self.inner.pack(_entered(weight))

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        return _quietened(self.inner.execute(_entered(x), weight, None if bias is None else _entered(bias)))


class DaskBackend(ArrayApiBackend):
    """Dask. Its arrays could be assigned to, but every assignment rewrites the graph of the whole array."""

    namespace = "array_api_compat.dask.array"
    writable = False

    def build(self, problem: Problem, engine: str, /) -> Plan:
        inner = super().build(problem, engine)
        return _DaskPlan(problem, engine, inner.workspace_bytes, inner=inner)

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        terms = problem.kernel[0] * problem.kernel[1] * (problem.in_channels // problem.groups)
        reason = f"Dask would take minutes to order the tasks of its {terms} terms"
        return [
            Candidate(c.engine, why_not=reason) if c.engine == "direct" and not c.why_not and terms > MAX_TERMS else c
            for c in super().candidates(problem)
        ]

    def _dtype(self, name: str) -> Any:
        return np.dtype(name)

    def _new_steps(self, device: str) -> Steps:
        return _DaskSteps(self._xp)  # Dask's creation functions know no device

    def _place(self, device: str) -> dict[str, Any]:
        return {}

    def describe(self, x: Any, /) -> ArrayInfo:
        info = super().describe(x)._replace(device="cpu")
        if not all(isinstance(size, int) for size in info.shape):
            raise ValueError(f"its shape {info.shape} is not known yet. Call `compute_chunk_sizes()` on it first.")
        return info

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return str(weight.name)

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        x = np.asarray(x)
        if x.size == 0:  # Dask divides by the size where it chooses chunks
            empty = importlib.import_module("dask.array").from_array(
                np.zeros(x.shape, dtype or x.dtype), chunks=x.shape
            )
            self._check(empty)
            return empty
        return super().from_numpy(x, dtype=dtype, device=device)

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        return np.asarray(x.compute())

    def synchronize(self, x: Any, /) -> None:
        x.compute()


_OWN_WAYS = {"torch": TorchBackend, "jax": JaxBackend, "cupy": CupyBackend, "dask": DaskBackend}


def backend(name: str) -> ArrayApiBackend:
    """The adapter of one library."""
    return _OWN_WAYS.get(name, ArrayApiBackend)(name)
