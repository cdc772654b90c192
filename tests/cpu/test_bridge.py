"""NumPy's engines between two conversions: for a library that is NumPy with everything noted, for MLX and for JAX."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.extending import host_plan
from portconv.testing import assert_close, reference_conv2d, reference_gradients
from tests.helpers import numbers

SHAPES = (2, 3, 20, 18), (5, 3, 3, 3)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype("f4") for shape in (*SHAPES, (5,))]


def make(engine, **options):
    problem = portconv.plan_conv2d(*SHAPES, (5,)).problem
    return host_plan(problem, engine, **{"view": lambda x: x, "take": lambda y, p: y} | options)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_arguments_are_viewed_and_the_result_is_taken(arrays, engine, tier):
    seen, taken = [], []
    plan = make(engine, view=lambda x: seen.append(x) or x, take=lambda y, p: taken.append((y, p)) or "taken")
    x, weight, bias = arrays
    assert plan.execute(x, plan.pack(weight), bias) == "taken"
    assert [id(a) for a in seen] == [id(a) for a in (weight, x, bias)]
    ((y, problem),) = taken
    assert problem is plan.problem
    np.testing.assert_array_equal(y, portconv.conv2d(*arrays, engine=engine))


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_the_result_is_written_into_new_memory(arrays, engine, tier):
    memory = np.full((2, 5, 18, 16), np.nan, np.float32)
    x, weight, bias = arrays
    plan = make(engine, take=None, new=lambda p: ("new", memory))
    assert plan.execute(x, plan.pack(weight), bias) == "new"
    np.testing.assert_array_equal(memory, portconv.conv2d(*arrays, engine=engine))


def test_no_new_memory_for_this_problem(arrays, tier):
    x, weight, bias = arrays
    plan = make("gemm", new=lambda p: None)
    np.testing.assert_array_equal(plan.execute(x, plan.pack(weight), bias), portconv.conv2d(*arrays, engine="gemm"))


def test_the_packed_weight_of_the_plan_inside_is_refused(arrays):
    x, weight, _ = arrays
    plan = make("gemm")
    with pytest.raises(ValueError, match="`weight`"):
        plan.execute(x, plan.inner.pack(weight))


def separable(size, seed=0):
    """An image, a kernel that two passes compute, and one that they do not."""
    rng = np.random.default_rng(seed)
    column, row = rng.integers(1, 9, (1, 1, 21, 1)), rng.integers(1, 9, (1, 1, 1, 23))
    return [a.astype("f4") for a in (rng.standard_normal((1, 1, *size)), column * row, rng.random((1, 1, 21, 23)))]


@pytest.mark.parametrize("name", ["numpy", "mlx", "jax"])
def test_every_library_knows_what_the_weight_turned_out_to_be(library, name, tier):
    """So that a separable kernel runs as two passes where another engine was planned for it."""
    found = library(name)
    x, weight, other = (found.array(a) for a in separable((300, 320)))
    plan = portconv.plan_conv2d(x, weight)
    assert "a separable kernel runs as two passes" in plan.explain()
    assert plan.pack(weight).separable
    assert not plan.pack(other).separable


def test_derivatives_of_two_passes_on_mlx(mx, tier):
    x, weight, _ = separable((300, 320))
    dy = np.random.default_rng(1).standard_normal((1, 1, 280, 298)).astype("f4")
    arrays = [mx.array(a) for a in (x, weight)]
    assert portconv.plan_conv2d(*arrays).pack(arrays[1]).separable
    exact = reference_conv2d(x, weight), *reference_gradients(x, weight, dy)[:2]
    for how in (lambda f: f, mx.compile):
        (y,), found = how(lambda *a: mx.vjp(portconv.conv2d, list(a[:2]), [a[2]]))(*arrays, mx.array(dy))
        for got, value in zip((y, *found), exact, strict=True):
            assert_close(np.array(got), value)
    for got in mx.vmap(lambda x: portconv.conv2d(x, arrays[1]))(mx.stack([arrays[0]] * 2)):
        assert_close(np.array(got), exact[0])


# --- the switch between the tiers: the environment, and whether Numba is there ----------------------------------------


@pytest.mark.usefixtures("jit")
def test_the_environment_switches_it_off(run_python):
    code = """
        import sys
        import numpy as np, portconv
        x, weight = np.ones((1, 8, 20, 20), np.float32), np.ones((8, 8, 3, 3), np.float32)
        for engine in ("auto", "gemm", "winograd", "direct", "fft"):
            assert float(portconv.conv2d(x, weight, engine=engine)[0, 0, 0, 0].round(3)) == 72.0
        print("numba" in sys.modules, "portconv.cpu.compiled.gemm.kernels" in sys.modules)
    """
    assert run_python(code, PORTCONV_JIT="0") == "False False\n"
    assert run_python(code, PORTCONV_JIT="1") == "True True\n"
    assert run_python(code, PORTCONV_JIT="") == "True True\n"


@pytest.mark.usefixtures("jit")
def test_without_numba_the_plain_tier_does_all(run_python):
    """As where the extra `jit` is not installed."""
    out = run_python("""
        import importlib.util, sys
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find_spec(name, *rest)
        sys.modules["numba"] = sys.modules["llvmlite"] = None
        import numpy as np, portconv
        for engine in ("auto", "gemm", "winograd", "direct", "fft"):
            y = portconv.conv2d(np.ones((1, 8, 20, 20), "f4"), np.ones((8, 8, 3, 3), "f4"), engine=engine)
            assert float(y[0, 0, 0, 0].round(3)) == 72.0
        print("done")
    """)
    assert out == "done\n"


@pytest.mark.usefixtures("jit")
@pytest.mark.parametrize("engine", ["gemm", "winograd", "direct"])
@pytest.mark.parametrize("name", ["torch", "mlx", "jax"])
def test_images_of_bfloat16_are_not_cast_as_a_whole(library, name, engine, monkeypatch):
    """The compiled engines read their bits, and write those of results."""
    backend = library(name)
    image, weight = numbers((2, 4, 17, 20)), numbers((6, 4, 3, 3), 1)
    x, w = backend.array(image, "bfloat16"), backend.array(weight, "bfloat16")
    base = pytest.importorskip("portconv.cpu.compiled.base")
    seen, memory_of = [], base.memory_of
    monkeypatch.setattr(base, "memory_of", lambda a, *rest: seen.append(a) or memory_of(a, *rest))
    y = portconv.conv2d(x, w, padding=1, engine=engine)
    assert [(a.dtype.itemsize, a.shape) for a in seen] == [(2, (2, 4, 17, 20)), (2, (2, 6, 17, 20))]
    exact = [backend.numpy(a).astype("f8") for a in (x, w)]
    assert_close(backend.numpy(y), reference_conv2d(*exact, padding=1), dtype="bfloat16")
