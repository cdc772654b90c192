"""The check of a back end, for its authors."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .. import plan_conv2d
from ..core.backend import Backend, lacking
from ..dispatch import registry
from .designed import PROTOCOL_PROBLEMS
from .problems import Problem
from .verification import _arrays, verify

__all__ = ["CheckResult", "check_backend"]


class CheckResult(NamedTuple):
    """One problem that `check_backend` ran: the largest share of the bound used.

    Examples
    --------
    >>> from portconv.testing import CheckResult
    >>> CheckResult("gemm", "3x3", 0.02).worst
    0.02
    """

    engine: str
    problem: str
    worst: float


def check_backend(backend: Backend | str, *, dtypes: tuple[str, ...] = ("float32",)) -> list[CheckResult]:
    """Verify a backend: every engine that it offers, on problems that cover every rule, against the float64 oracle.

    Parameters
    ----------
    backend
        The backend, or its name.
    dtypes
        Dtypes to try, of those that the library has.

    Returns
    -------
    list of CheckResult
        One for every engine, problem, layout and dtype that ran.

    Raises
    ------
    AssertionError
        At the first result that is wrong, and for a backend that breaks the protocol.

    Examples
    --------
    >>> import portconv.testing
    >>> results = portconv.testing.check_backend("numpy")
    >>> sorted({r.engine for r in results})
    ['direct', 'fft', 'gemm', 'winograd']
    """
    library = registry.get_backend(backend)
    _check_protocol(library)
    results = []
    for dtype in dtypes:
        for some in PROTOCOL_PROBLEMS:
            for layout in ("NCHW", "NHWC"):
                p = replace(some, dtype=dtype, arguments={**some.arguments, "layout": layout})
                results += _check_problem(library, p)
    if not results:
        raise AssertionError(f"the backend {library.name!r} offers no engine for any problem")
    return results


def _check_protocol(library: Backend) -> None:
    if not isinstance(library, Backend):
        raise AssertionError(f"{type(library).__name__} lacks {', '.join(lacking(library))}")
    values = np.arange(6, dtype="float32").reshape(2, 3)
    array = library.from_numpy(values, dtype="float32")
    info = library.describe(array)
    if (info.shape, info.dtype) != ((2, 3), "float32"):
        raise AssertionError(f"describe() of a (2, 3) float32 array gave {info}")
    if not np.array_equal(library.to_numpy(array), values):
        raise AssertionError("to_numpy(from_numpy(x)) changed the values")
    try:
        library.describe("not an array")
    except TypeError:
        return
    except Exception as error:
        raise AssertionError(f"describe() of a string raised no TypeError, but {error!r}") from error
    raise AssertionError("describe() of a string raised no TypeError")


def _check_problem(library: Backend, p: Problem) -> list[CheckResult]:
    arrays, _ = _arrays(p, library, None)
    plan = plan_conv2d(*arrays, **p.keywords(), backend=library)
    environment = library.environment(plan.problem)
    if not all(isinstance(word, str) for item in environment.items() for word in item):
        raise AssertionError(f"environment() must give strings by strings, but gave {environment!r}")
    if not environment.get("threads", "1").isdecimal():
        raise AssertionError(f"environment() must give `threads` in digits, but gave {environment['threads']!r}")
    results = []
    for candidate in plan.candidates:
        if candidate.why_not is None:
            one = replace(p, engine=candidate.engine)
            try:
                worst = verify(one, library).share
            except AssertionError as error:
                raise AssertionError(f"{one}: {error}") from None
            if worst is None:
                raise AssertionError(f"{one}: a candidate refused what it had offered")
            results.append(CheckResult(candidate.engine, f"{one!r} in {p.dtype}", worst))
    return results
