"""What the tests of the compiled engines share: a convolution that must be compiled, compared with the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import portconv
from portconv.engines.cropped import CroppedPlan
from portconv.testing import assert_close, reference_at, reference_conv2d

# A module: a kernel, and one that calls it.
SOURCE = """
from portconv.cpu.compiled.kernel import kernel

@kernel
def double(x):
    for i in range(x.size):
        x[i] *= 2

@kernel
def double_rows(x):
    for i in range(x.shape[0]):
        double(x[i])
"""

# What a process begins with that has its memory beside pages that nobody may touch.
GUARDED = f"""
    import ctypes, faulthandler, sys
    import numpy as np, portconv
    from portconv.testing import assert_close, reference_conv2d
    sys.path.insert(0, {str(Path(__file__).parents[2])!r})
    import guard_pages
    from guard_pages import copy, guarded

    faulthandler.enable()
    rng = np.random.default_rng(0)

    def numbers(*shape, dtype="f4"):
        return rng.standard_normal(shape).astype(dtype)
"""

ENGINES = ("gemm", "winograd", "direct")


def is_compiled(plan):
    plan = plan.inner if isinstance(plan, CroppedPlan) else plan
    return type(plan).__module__.startswith("portconv.cpu.compiled.")


def check(x, weight, bias=None, *, engine, accuracies=("normwise",), **options):
    """Convolve by a compiled plan, and compare with the oracle: everywhere, or at some outputs if there are many."""
    expected = None
    for accuracy in accuracies:
        plan = portconv.plan_conv2d(x, weight, bias, engine=engine, accuracy=accuracy, **options)
        assert is_compiled(plan)
        y = portconv.conv2d(x, weight, bias, engine=engine, accuracy=accuracy, **options)
        terms = weight[0].size if weight.ndim == 4 else weight[0, 0].size
        if y.size * terms <= 1 << 22:
            at = ...
            expected = expected or reference_conv2d(x, weight, bias, **options)
        else:
            at = some_outputs(y.shape, (1 << 21) // terms)
            outputs = at if options.get("layout") != "NHWC" else [at[axis] for axis in (0, 3, 1, 2)]
            expected = expected or reference_at(outputs, x, weight, bias, **options)
        assert_close(y[at], expected, accuracy=accuracy)
    return y


def some_outputs(shape, count):
    """The last five along each axis with the first of the others, and so many others; an index of an array."""
    rng = np.random.default_rng(shape)
    edges = np.stack(np.meshgrid(*[sorted({0, *range(max(0, n - 5), n)}) for n in shape], indexing="ij"))
    edges = edges.reshape(4, -1)[:, rng.permutation(edges[0].size)[: count // 2]]
    return tuple(np.concatenate([edges, [rng.integers(0, n, count // 2) for n in shape]], axis=1))
