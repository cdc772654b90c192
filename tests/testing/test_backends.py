"""`check_backend` passes what is right, and finds what is broken."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import testing
from portconv.extending import ArrayInfo
from tests.helpers import Wrapper


def test_check_backend(backend):
    results = testing.check_backend(backend.package, dtypes=tuple(backend.dtypes))
    assert {result.engine for result in results} == set(backend.engines) - {"auto"}
    assert all(0 <= result.worst <= 1 for result in results)
    for dtype in backend.dtypes:
        for layout in ("NCHW", "NHWC"):
            assert sum(dtype in result.problem and layout in result.problem for result in results) > 20


class Broken(Wrapper):
    """Results that something was done to."""

    def __init__(self, spoil, engine="gemm"):
        super().__init__("broken")
        self.spoil, self.engine = spoil, engine

    def build(self, problem, engine, /):
        plan = self.inner.build(problem, engine)
        if engine != self.engine:
            return plan
        spoil, execute = self.spoil, type(plan).execute

        def spoiled(this, x, weight, bias=None, /):
            return spoil(execute(this, x, weight, bias), problem)

        fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
        return type("Spoiled", (type(plan),), {"execute": spoiled})(**fields)


def beyond_the_bound(y, problem):
    y = y.copy()
    y[..., -1:] *= np.float32(1.001)
    return y


SPOILERS = {
    "one value": beyond_the_bound,
    "sign": lambda y, problem: -y,
    "shape": lambda y, problem: y[..., :-1],
    "extra axis": lambda y, problem: y[None],
    "layout": lambda y, problem: y.transpose(0, 2, 3, 1) if problem.layout == "NCHW" else y,
    "dtype": lambda y, problem: y.astype(np.float64),
    "bias twice": lambda y, problem: y + np.float32(problem.epilogue.bias),
    "padding mode": lambda y, problem: y * np.float32(problem.padding_mode != "circular"),
    "NaN": lambda y, problem: np.full_like(y, np.nan),
}


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("spoiler", SPOILERS)
def test_check_backend_finds_what_is_broken(spoiler, engine):
    with pytest.raises(AssertionError, match=engine):
        testing.check_backend(Broken(SPOILERS[spoiler], engine))


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_check_backend_passes_what_is_not_broken(engine):
    assert testing.check_backend(Broken(lambda y, problem: y, engine))


def test_check_backend_finds_a_broken_protocol():
    class Silent(Wrapper):
        def describe(self, x, /):
            return self.inner.describe(np.asarray(x))

    class Careless(Wrapper):
        def describe(self, x, /):
            return ArrayInfo(x.shape, x.dtype.name, "cpu")

    class Rounding(Wrapper):
        def to_numpy(self, x, /):
            return super().to_numpy(x) + 1

    class Idle(Wrapper):
        def candidates(self, problem, /):
            return [candidate for candidate in super().candidates(problem) if candidate.why_not]

    class Misnamed(Wrapper):
        def describe(self, x, /):
            return super().describe(x)._replace(dtype="f4")

    for kind, error, message in (
        (Silent, AssertionError, "describe.. of a string raised no TypeError"),
        (Careless, AssertionError, "describe.. of a string raised no TypeError, but AttributeError"),
        (Rounding, AssertionError, "to_numpy.from_numpy.x.. changed the values"),
        (Idle, portconv.UnsupportedError, "No engine of the backend 'wrapper' can run this"),
        (Misnamed, AssertionError, "gave ArrayInfo.*dtype='f4'"),
    ):
        with pytest.raises(error, match=message):
            testing.check_backend(kind())
