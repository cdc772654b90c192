"""Compiled squeeze and excitation, beside the same in operations of NumPy."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import portconv
from portconv.core.epilogue import Activation
from portconv.cpu.compiled import team
from portconv.engines.activations import activated
from tests.cpu.compiled.helpers import GUARDED
from tests.helpers import numbers

plan = pytest.importorskip("portconv.cpu.compiled.excitation.plan")

pytestmark = pytest.mark.usefixtures("jit")

SHAPES = [(1, 8, 3, 5), (2, 33, 4, 4), (1, 200, 2, 96), (3, 5, 1, 1), (1, 3, 70, 61), (2, 160, 30, 40)]


def dense(outputs, inputs, activation, affine=(1.0, 0.0), bias=True):
    matrix = numbers((outputs, inputs), inputs) / np.sqrt(inputs, dtype=np.float32)
    return plan.Dense(matrix, numbers((outputs,), 1) if bias else None, activation, affine)


def expected(x, *products):
    with np.errstate(all="ignore"):
        x = x.astype(np.float64)
        values = x.mean((2, 3))
        for matrix, bias, activation, (factor, term) in products:
            values = values @ matrix.T.astype(np.float64) + (0 if bias is None else bias)
            values = values if activation is None else activated(np, values, activation)
            values = values * factor + term
        return x * values[:, :, None, None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["relu6", "sigmoid", "leaky_relu", None])
def test_results(shape, name):
    channels = shape[1]
    activation = None if name is None else Activation(name, 0.3)
    for hidden in (1, 17, 50):
        first = dense(hidden, channels, Activation("relu"), bias=hidden > 1)
        second = dense(channels, hidden, activation, (0.2, 0.5))
        excitation, x = plan.CompiledExcitation(first, second), numbers(shape)
        wanted = expected(x, first, second)
        before = x.copy()
        for _ in range(2):
            y = excitation(x, portconv.global_avg_pool2d)
            np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(x, before)
        assert excitation(x, portconv.global_avg_pool2d, x) is x
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_usual_number(value):
    """It reaches its own image alone, and there what the usual arithmetic says."""
    first, second = dense(6, 20, Activation("relu")), dense(20, 6, Activation("sigmoid"))
    x = numbers((2, 20, 3, 6))
    x[1, 7, 2, 3] = value
    y = plan.CompiledExcitation(first, second)(x, portconv.global_avg_pool2d)
    np.testing.assert_allclose(y, expected(x, first, second), rtol=1e-4, atol=1e-5)


def test_threads_share_large_images_alone(monkeypatch):
    launched = []
    monkeypatch.setattr(team, "launch", lambda _job, parts, *arguments: launched.append(parts))
    monkeypatch.setattr(plan.threads, "usable_cores", lambda: 2)
    excitation = plan.CompiledExcitation(dense(4, 64, None), dense(64, 4, None))
    for shape in ((1, 64, 8, 8), (1, 64, 50, 50), (4, 64, 50, 50), (1, 64, 100, 100), (1, 64, 1, 5000)):
        excitation(np.empty(shape, np.float32), lambda x: x[:, :, 0, 0])
    assert launched == [1, 1, 2, 2, 1, 2, 1, 2]


def test_few_shapes_are_remembered(monkeypatch):
    monkeypatch.setattr(plan, "MAX_SHAPES", 2)
    excitation = plan.CompiledExcitation(dense(4, 5, None), dense(5, 4, None))
    for size in (3, 4, 5, 3):
        excitation(numbers((1, 5, size, size)), portconv.global_avg_pool2d)
    assert len(excitation._known) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected by Linux's mprotect here")
def test_no_byte_beyond_the_arrays_is_touched(run_python):
    run_python(f"""{GUARDED}
    numpy = guard_pages.install()
    from portconv.cpu.compiled.excitation import plan
    for shape in ((2, 7, 3, 5), (1, 16, 4, 4), (1, 33, 1, 1), (1, 40, 80, 61)):
        for hidden in (1, 16, 21):
            for numpy.at_the_end in (True, False):
                dense = [plan.Dense(numbers(o, i), numbers(o), None, (1.0, 0.0))
                         for o, i in ((hidden, shape[1]), (shape[1], hidden))]
                excitation, before = plan.CompiledExcitation(*dense), numpy.made
                excitation._weights = copy(excitation._weights, numpy.at_the_end)
                excitation._weights.setflags(False)
                x = copy(numbers(*shape), numpy.at_the_end)
                assert np.isfinite(excitation(x, portconv.global_avg_pool2d)).all()
                assert numpy.made > before
    """)
