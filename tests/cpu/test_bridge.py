"""The switch between the tiers: the environment, and whether Numba is there."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.usefixtures("jit")


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
