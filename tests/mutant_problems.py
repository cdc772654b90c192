"""Random problems as tests of `make mutants`, which cannot see what `tests/fuzz.py` runs in processes of its own."""

import pytest

from portconv.testing import draw, scope_of, verify

PRODUCTS, ELEMENTS = 2**20, 2**16  # of a problem, so that many are soon done
# How many problems are one test: those of one test take about a second.
COUNTS = {"numpy": 100, "mlx": 40, "torch": 40, "jax": 4, "array_api_strict": 40, "dask": 40}
DEVICES = {"array_api_strict": "array_api_strict.Device('device1')"}


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("name", COUNTS)
def test_problems(name, seed, library):
    library(name)  # or the test is skipped
    scope = scope_of(name, DEVICES.get(name))
    scope = scope._replace(products=min(scope.products, PRODUCTS), elements=min(scope.elements, ELEMENTS))
    for number in range(COUNTS[name]):
        verify(draw(seed, number, scope), name, DEVICES.get(name))
