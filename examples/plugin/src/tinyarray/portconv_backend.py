"""portconv's back end for `tinyarray`: an engine of the library's own, and portconv's engines over the same memory.

Verify a back end like this one with `portconv.testing.check_backend("tinyarray")`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from itertools import product
from typing import Any

import numpy as np

from portconv.extending import (
    ArrayInfo,
    Candidate,
    PackedWeight,
    Plan,
    Problem,
    host_candidates,
    host_environment,
    host_plan,
)

from . import Array

SECONDS_PER_PRODUCT = 3e-7  # a Python loop; the planner compares it with the estimates of the other engines


class TinyBackend:
    """The nine members of `portconv.extending.Backend`."""

    name = "tinyarray"

    def describe(self, x: Any, /) -> ArrayInfo:
        if not isinstance(x, Array):
            raise TypeError(f"expected a tinyarray.Array, but got {type(x).__name__}.")
        return ArrayInfo(x.shape, x.dtype, "cpu")

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        supported = problem.padding_mode == "zeros" and problem.layout == "NCHW" and problem.x_dtype == problem.dtype
        why_not = None if supported else "tinyarray's own loop reads NCHW with zero padding only"
        native = Candidate("native", problem.flops / 2 * SECONDS_PER_PRODUCT, why_not=why_not)
        return [native, *host_candidates(problem)]

    def build(self, problem: Problem, engine: str, /) -> Plan:
        if engine == "native":
            return LoopPlan(problem, engine)
        return host_plan(problem, engine, view=self.to_numpy, take=self._from_result)

    def cache_token(self, weight: Array, /) -> Hashable | None:
        return None  # `weight.data[0] = 1.0` shows nowhere, so a packed weight must not be kept

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Array:
        if device not in (None, "cpu"):
            raise ValueError(f"`device` must be None or 'cpu', but got {device!r}.")
        x = np.asarray(x, dtype=dtype)
        return Array(x.ravel().tolist(), x.shape, x.dtype.name)

    def to_numpy(self, x: Array, /) -> np.ndarray:
        return np.frombuffer(x.data, dtype=x.dtype).reshape(x.shape)  # a view

    def synchronize(self, x: Array, /) -> None:
        """Everything is computed at once."""

    def environment(self, problem: Problem, /) -> dict[str, str]:
        """What times depend on beyond the problem: by this `strategy="measure"` finds what an earlier process kept."""
        return {"tinyarray": "0.1.0", **host_environment()}

    def _from_result(self, y: np.ndarray, problem: Problem) -> Array:
        return self.from_numpy(y, dtype=problem.dtype)


class LoopPlan(Plan):
    """The direct sum in plain Python, without rounding errors but the last one (`math.fsum`)."""

    @property
    def stamp(self) -> Hashable:
        return ("tinyarray loop", self.problem.weight_shape)

    def pack(self, weight: Array, /) -> PackedWeight:
        return PackedWeight(self.stamp, weight.data, len(weight.data) * weight.data.itemsize)

    def execute(self, x: Array, weight: PackedWeight, bias: Array | None = None, /) -> Array:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        values = (self._output(x.data, weight.data, bias, position) for position in np.ndindex(self.problem.out_shape))
        return Array(values, self.problem.out_shape, self.problem.dtype)

    def _output(self, x: Any, weight: Any, bias: Array | None, position: tuple[int, ...]) -> float:
        p = self.problem
        n, o, row, col = position
        inputs, (kh, kw) = p.in_channels // p.groups, p.kernel
        first = o // (p.out_channels // p.groups) * inputs  # the first input channel of the output's group
        terms = []
        for c, i, j in product(range(inputs), range(kh), range(kw)):
            h = row * p.stride[0] + i * p.dilation[0] - p.padding[0]
            w = col * p.stride[1] + j * p.dilation[1] - p.padding[2]
            if 0 <= h < p.height and 0 <= w < p.width:
                pixel = x[((n * p.in_channels + first + c) * p.height + h) * p.width + w]
                terms.append(pixel * weight[((o * inputs + c) * kh + i) * kw + j])
        if bias is not None:
            terms.append(bias.data[o])
        return math.fsum(terms)
