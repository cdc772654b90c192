"""What follows the sums of a convolution, for any back end: its own operations, or NumPy's between two conversions."""

from __future__ import annotations

from typing import Any

from ..core.backend import Backend
from ..core.problem import Problem
from ..engines.finished import Finisher
from .bridge import bridged, numpy_steps

__all__ = ["HostFinisher", "finisher_of"]


def finisher_of(backend: Backend, problem: Problem) -> Finisher:
    """What a back end has for it; see `portconv.extending.Backend`."""
    own: Any = getattr(backend, "finisher", None)
    found: Finisher = HostFinisher(backend) if own is None else own(problem)
    return found


class HostFinisher:
    """NumPy's steps, for arrays that come and go by a back end's `to_numpy` and `from_numpy`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def finished(self, sums: Any, problem: Problem, residual: Any = None) -> Any:
        """See `Finisher`."""
        seen, added = self._seen(sums), None if residual is None else self._seen(residual)
        y = numpy_steps().finished(seen, bridged(problem), added)
        return self._taken(y, problem.result_dtype, problem)

    def pulled_back(self, dy: Any, sums: Any, problem: Problem, residual: Any = None) -> Any:
        """See `Finisher`."""
        seen, added = self._seen(sums), None if residual is None else self._seen(residual)
        dz = numpy_steps().pulled_back(self._seen(dy), seen, bridged(problem), added)
        return self._taken(dz, problem.compute_dtype, problem)

    def _seen(self, array: Any) -> Any:
        return self._backend.to_numpy(array)

    def _taken(self, y: Any, dtype: str, problem: Problem) -> Any:
        return self._backend.from_numpy(y, dtype=dtype, device=problem.device or None)
