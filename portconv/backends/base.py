"""What the adapters of array libraries share: portconv's own engines, in the operations of the array API standard.

PyTorch, JAX and CuPy do some things in ways of their own. `array_api_compat` gives the namespaces of those that
follow the standard nearly.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from .. import engines
from ..core.array_types import library_of
from ..core.backend import ArrayInfo, Candidate, PackedWeight, Plan, Pullback, Wanted
from ..core.problem import Problem
from ..core.windows import WindowOperation
from ..cpu.machine import host_environment, version
from ..engines import gradients, windows
from ..engines.costs import GENERIC
from ..engines.cropped import planned
from ..engines.finished import Finisher
from ..engines.steps import Steps

__all__ = ["ArrayApiBackend", "OuterPlan", "QuietSteps", "by_argument", "function_of", "name_of", "replaced"]


class QuietSteps(Steps):
    """Libraries that NumPy computes for warn as NumPy does."""

    def quiet(self) -> AbstractContextManager[object]:
        return np.errstate(all="ignore")


@dataclass(frozen=True, kw_only=True)
class OuterPlan(Plan):
    """A plan around another one, which packs and computes as that one does, with what a library needs besides."""

    inner: Plan

    @classmethod
    def of(cls, inner: Plan, **own: Any) -> OuterPlan:
        """The plan around `inner`; `own` are the fields that a library adds."""
        return cls(inner.problem, inner.engine, inner.workspace_bytes, inner=inner, **own)

    @property
    def stamp(self) -> Hashable:
        return self.inner.stamp

    def warmup(self) -> tuple[str, ...]:
        return self.inner.warmup()


class ArrayApiBackend:
    """See `portconv.extending.Backend`. `name` is the library's top-level package."""

    namespace: str | None = None  # the module to import, if it is not the package itself
    writable = True  # whether blocks of a result can be assigned
    steps_type: type[Steps] = QuietSteps

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
        return ArrayInfo(tuple(x.shape), name_of(x.dtype), name)

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
        return [*self._engines(problem), native]

    def _engines(self, problem: Problem) -> list[Candidate]:
        return engines.candidates(problem, self._steps_on(problem.device), GENERIC)

    def build(self, problem: Problem, engine: str, /) -> Plan:
        return engines.build(problem, engine, self._steps_on(problem.device), GENERIC)

    def vjp(
        self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight], /
    ) -> tuple[Any, Pullback]:
        """See `portconv.extending.Differentiable`: by convolutions and products, of libraries without derivatives."""
        return plan.execute(x, pack(), bias), self.pullback(plan, x, weight, bias, wanted)

    def pullback(self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted) -> Pullback:
        """The function of the cotangent alone, for those who have the result or need none."""
        p, steps = plan.problem, self._steps_on(plan.problem.device)

        def pullback(dy: Any) -> tuple[Any, Any, Any]:
            dx = gradients.image_gradient(p, weight, dy, steps, self._planned) if wanted[0] else None
            dweight = gradients.weight_gradient(p, x, dy, steps) if wanted[1] else None
            dbias = gradients.bias_gradient(p, dy, steps) if wanted[2] else None
            return self._like(x, dx), self._like(weight, dweight), self._like(bias, dbias)

        return pullback

    def _planned(self, problem: Problem) -> Plan:
        return planned(problem, self.candidates, self.build)

    def _like(self, argument: Any, gradient: Any) -> Any:
        """A gradient, None where there is none, in the shape and dtype of its argument."""
        if gradient is None:
            return None
        shaped = self._xp.reshape(gradient, tuple(argument.shape))
        return shaped if shaped.dtype == argument.dtype else self._xp.astype(shaped, argument.dtype)

    def steps(self, problem: Problem, /) -> Steps:
        """See `portconv.extending.Assembling`."""
        return self._steps_on(problem.device)

    def finisher(self, problem: Problem, /) -> Finisher:
        """See `portconv.extending.Finishing`."""
        return self._steps_on(problem.device)

    def windowed(self, x: Any, info: ArrayInfo, operation: WindowOperation, /) -> Any:
        """See `portconv.extending.Windowing`."""
        return windows.applied(self._steps_on(info.device), x, operation, info.dtype)

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return None

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        xp = self._xp
        wanted = dtype or np.asarray(x).dtype.name
        self._dtype(wanted)
        # a copy: no library may share memory that NumPy's owner can change
        x = np.array(x, dtype="float32" if wanted == "bfloat16" else wanted)
        y = xp.asarray(x, **({} if device is None else self._place(device)))
        if name_of(y.dtype) != wanted:
            y = xp.astype(y, self._dtype(wanted))
        if name_of(y.dtype) != wanted:
            raise TypeError(f"{self.name} made {name_of(y.dtype)} of an array that was to be {wanted}.")
        return y

    def _dtype(self, name: str) -> Any:
        """The library's dtype object of a standard name."""
        return Steps(self._xp).dtype(name)

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        try:
            y = np.asarray(x)
        except RuntimeError:  # on a device from which nothing is copied unasked
            y = np.from_dlpack(x, device="cpu")
        return y.astype(np.float32) if y.dtype.name == "bfloat16" else y

    def synchronize(self, x: Any, /) -> None:
        """Libraries that compute at once have nothing to wait for."""

    def environment(self, problem: Problem, /) -> dict[str, str]:
        # many libraries compute by NumPy
        return {self.name: version(self.name), **host_environment()}


def name_of(dtype: Any) -> str:
    """The standard name of a dtype object of any library."""
    return str(dtype).rpartition(".")[2]


def replaced(arrays: Sequence[Any], wanted: Wanted, values: Iterable[Any]) -> list[Any]:
    """Image, weight and bias with other values for those whose gradients are wanted."""
    given = iter(values)
    return [next(given) if want else array for array, want in zip(arrays, wanted, strict=True)]


def function_of(plan: Plan, arrays: Sequence[Any], wanted: Wanted) -> Callable[..., Any]:
    """The plan's result as a function of those arguments whose gradients are wanted, for a library to differentiate."""

    def function(*values: Any) -> Any:
        x, weight, bias = replaced(arrays, wanted, values)
        return plan.execute(x, plan.pack(weight), bias)

    return function


def by_argument(found: Iterable[Any], wanted: Wanted) -> tuple[Any, Any, Any]:
    """The gradients that are wanted, each in the place of its argument, None for the others."""
    dx, dweight, dbias = replaced((None, None, None), wanted, found)
    return dx, dweight, dbias
