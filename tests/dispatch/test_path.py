"""The path of a call: the problem that the arguments make, and plans that are remembered."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from tests.helpers import ones


def test_a_plan_is_remembered():
    plan = portconv.plan_conv2d((1, 3, 20, 21), (4, 3, 3, 3))
    assert portconv.plan_conv2d((1, 3, 20, 21), (4, 3, 3, 3)) is plan
    assert portconv.plan_conv2d(ones(1, 3, 20, 21), ones(4, 3, 3, 3)) is plan
    assert portconv.plan_conv2d((1, 3, 20, 22), (4, 3, 3, 3)) is not plan


def test_the_dtype_of_the_image_is_the_problems():
    for dtypes in (
        ("uint8", "float32", "float32"),
        ("float16", "float32", "float64"),
        ("float64", "float16", "float32"),
    ):
        x, weight, bias = (np.ones(s, d) for s, d in zip(((1, 2, 8, 8), (3, 2, 3, 3), (3,)), dtypes, strict=True))
        assert portconv.plan_conv2d(x, weight, bias).problem.x_dtype == dtypes[0]


# --- how long the path is ---------------------------------------------------------------------------------------------

COUNTED = """
    import sys
    from pathlib import Path
    import numpy as np, portconv
    root = str(Path(portconv.__file__).parent)

    def counted(call):
        # calls of Python functions of the package, and how often the file changes from one to the next
        calls = []
        def note(frame, event, argument):
            if event == "call" and frame.f_code.co_filename.startswith(root):
                calls.append(frame.f_code.co_filename)
        sys.setprofile(note)
        call()
        sys.setprofile(None)
        return len(calls), sum(a != b for a, b in zip([None, *calls], calls))

    x, weight = np.ones((1, 16, 32, 32), np.float32), np.ones((16, 16, 3, 3), np.float32)
    module = portconv.Conv2d(16, 16, 3)
    for _ in range(2):
        portconv.conv2d(x, weight)
        module(x)
    print(*counted(lambda: portconv.conv2d(x, weight)), counted(lambda: module(x))[0],
          counted(lambda: portconv.conv2d(np.ones((1, 16, 33, 32), np.float32), weight))[0])
"""


def test_a_call_is_short_to_tell(run_python):
    calls, changes, of_a_layer, first = map(int, run_python(COUNTED, PORTCONV_JIT="0").split())
    assert 0 < calls < 80
    assert 0 < changes < 25
    assert 0 < of_a_layer < calls
    assert calls < first < 300


@pytest.mark.usefixtures("jit")
def test_a_call_of_a_compiled_layer_is_short_to_tell(run_python):
    assert 0 < int(run_python(COUNTED, PORTCONV_JIT="1").split()[2]) < 20
