"""`portconv.warmup`: afterwards nothing is left to compile, and nothing was computed."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from tests.helpers import refused

# Each is a problem, and images and weights that take another way through its plan.
CODE = """
    import tracemalloc
    import numpy as np, portconv
    from portconv.cpu.compiled import team
    from portconv.testing import assert_close, reference_conv2d

    def kernels():
        from portconv.cpu.compiled.depthwise import kernels as depthwise
        from portconv.cpu.compiled.direct import kernels as direct
        from portconv.cpu.compiled.gemm import kernels as gemm
        from portconv.cpu.compiled.winograd import kernels as winograd
        return gemm.gemm, winograd.winograd, direct.direct, depthwise.depthwise

    def ready():
        return sum(len(kernel.overloads) for kernel in kernels())

    def fail(*arguments):
        raise AssertionError("it was run")

    rng = np.random.default_rng(0)
    def warmed(x_shape, weight_shape, expected, *, dtype="float32", change=None, **options):
        before, launch = ready(), team.launch
        team.launch = fail
        big = (*x_shape[:2], 2048, 2048) if options.get("layout") != "NHWC" else (x_shape[0], 2048, 2048, x_shape[3])
        portconv.warmup(big, weight_shape, True, dtype=dtype, **options)
        tracemalloc.start()  # not before: compiling would take several times as long
        plan = portconv.warmup(big, weight_shape, True, dtype=dtype, **options)
        assert tracemalloc.get_traced_memory()[1] < 100e6
        tracemalloc.stop()
        team.launch = launch
        assert ready() - before == expected, (ready(), before, expected)
        assert plan.output_shape == portconv.conv2d_output_shape(
            big, weight_shape, **{key: value for key, value in options.items() if key != "engine"})
        before = ready()
        x = rng.standard_normal(x_shape).astype(dtype)
        weight = rng.standard_normal(weight_shape).astype(dtype)
        bias = rng.standard_normal(weight_shape[0]).astype(dtype)
        if change is not None:
            change(x, weight)
        exact = {key: value for key, value in options.items() if key != "engine"}
        for count in (1, 2):
            portconv.set_num_threads(count)
            for image in (x, x[:, :, ::-1]):
                y = portconv.conv2d(image, weight, bias, **options)
                assert_close(y, reference_conv2d(image, weight, bias, **exact))
        assert ready() == before, "something was compiled, or loaded"
"""


@pytest.mark.usefixtures("jit")
def test_nothing_is_left_to_compile(run_python):
    """For one thread and for several, for finite images and others, for all kernels and for separable ones."""
    code = """
    def spoiled(x, weight):
        x[0, 0, 3, 4] = np.nan

    def separable(x, weight):
        weight[:] = 1

    warmed((2, 3, 12, 40), (8, 3, 3, 3), 1, engine="gemm")
    warmed((2, 3, 12, 40), (8, 3, 3, 3), 0, engine="gemm", stride=2, padding=1, dtype="float16")
    warmed((2, 12, 40, 3), (8, 3, 3, 3), 0, engine="gemm", layout="NHWC")
    warmed((2, 16, 12, 40), (8, 16, 3, 3), 1, engine="winograd", padding=1)
    warmed((2, 16, 12, 40), (8, 16, 3, 3), 0, engine="winograd", padding=1, change=spoiled)
    warmed((2, 32, 30, 40), (32, 1, 3, 3), 1, engine="direct", groups=32, padding=1)
    warmed((2, 32, 30, 40), (32, 1, 7, 7), 1, engine="direct", groups=32, padding=1, change=separable)
    warmed((2, 2, 30, 40), (3, 2, 3, 3), 0, engine="direct")
    print("done")
    """
    assert run_python(CODE + code, timeout=600, PORTCONV_JIT="1") == "done\n"


@pytest.mark.usefixtures("jit")
def test_nothing_of_gradients_is_left_to_compile(run_python):
    """For dense layers and depthwise ones, strides, borders that are folded, and activations."""
    code = """
    seen = []
    from numba.core.dispatcher import Dispatcher
    compile = Dispatcher.compile
    def noting(self, given):
        before = len(self.overloads)
        found = compile(self, given)
        seen.extend([self.__name__] * (len(self.overloads) - before))
        return found
    Dispatcher.compile = noting

    def trained(x_shape, weight_shape, **options):
        launch, team.launch = team.launch, fail
        portconv.warmup((x_shape[0], x_shape[1], 2048, 2048), weight_shape, gradients=True, dtype="float32", **options)
        team.launch = launch
        seen.clear()
        x, weight = rng.standard_normal(x_shape).astype("f4"), rng.standard_normal(weight_shape).astype("f4")
        y, vjp = portconv.conv2d_vjp(x, weight, **options)
        vjp(y)
        assert not seen, seen

    trained((2, 16, 12, 40), (8, 16, 3, 3), engine="gemm", padding=1, activation="relu")
    trained((2, 16, 12, 40), (8, 16, 3, 3), engine="gemm", padding=1, stride=2)
    trained((2, 16, 12, 40), (8, 16, 3, 3), engine="gemm", padding=1, padding_mode="reflect")
    trained((2, 16, 30, 40), (16, 1, 3, 3), engine="direct", groups=16, padding=1)
    print("done")
    """
    assert run_python(CODE + code, timeout=600, PORTCONV_JIT="1") == "done\n"


@pytest.mark.usefixtures("jit")
def test_the_team_has_nothing_left_to_compile_either(run_python):
    code = """
    from portconv.cpu.compiled import jobs
    own = jobs.serve, jobs.pauses, jobs.active, jobs.is_open, jobs.current_core
    portconv.warmup((1, 2, 20, 30), (3, 2, 3, 3), engine="direct")
    assert [len(kernel.overloads) for kernel in own] == [1] * len(own)
    x, weight = rng.standard_normal((1, 2, 300, 300)), rng.standard_normal((3, 2, 3, 3))
    for _ in range(3):
        portconv.conv2d(x.astype("f4"), weight.astype("f4"), engine="direct")
    assert [len(kernel.overloads) for kernel in own] == [1] * len(own)
    print("done")
    """
    assert run_python(CODE + code, PORTCONV_JIT="1") == "done\n"


@pytest.mark.usefixtures("jit")
@pytest.mark.parametrize("name", ["mlx", "jax"])
def test_of_other_libraries_on_a_cpu(run_python, library, name):
    library(name)
    make = {"mlx": "mx.set_default_device(mx.cpu); make = mx.array", "jax": "make = jnp.asarray"}[name]
    code = f"""
    import {"mlx.core as mx" if name == "mlx" else "jax.numpy as jnp"}
    {make}
    conv = portconv.Conv2d(2, 3, 3, engine="direct", backend={name!r})
    portconv.warmup(conv, (1, 2, 20, 30))
    before = ready()
    assert before == 1
    conv(make(np.ones((1, 2, 20, 30), np.float32)))
    assert ready() == before
    print("done")
    """
    assert run_python(CODE + code, PORTCONV_JIT="1") == "done\n"


def test_a_layer_or_the_arguments_of_planning(tier):
    conv = portconv.Conv2d(3, 4, 3, padding=1, engine="direct")
    x = np.ones((1, 3, 8, 9), np.float32)
    plans = [
        portconv.warmup(conv, x),
        portconv.warmup(conv, x.shape),
        portconv.warmup(x, conv.weight, True, padding=1, engine="direct"),
        portconv.warmup(x.shape, (4, 3, 3, 3), True, padding=1, engine="direct"),
    ]
    assert all(plan == conv.plan(x) for plan in plans)
    assert plans[0].warmup() == ()  # nothing was left


def test_plans_without_anything_to_compile(in_plain_tier):
    for engine in ("gemm", "winograd", "fft", "direct"):
        assert portconv.warmup((1, 8, 20, 20), (8, 8, 3, 3), engine=engine, gradients=True).warmup() == ()
    assert portconv.warmup((1, 1, 1, 9), (1, 1, 3, 3), padding=1).warmup() == ()  # cropped


def test_errors_are_those_of_planning():
    refused(TypeError, ["x_or_shape"], portconv.warmup, "image", (4, 3, 3, 3))
    refused(ValueError, ["channels"], portconv.warmup, portconv.Conv2d(3, 4, 3), (1, 2, 8, 9))
