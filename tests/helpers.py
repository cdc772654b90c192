"""What the tests of several rooms use, beside the fixtures of conftest.py: arrays, problems, comparisons, a backend."""

from __future__ import annotations

import re

import numpy as np
import pytest

import portconv
from portconv.check.problems import problems
from portconv.dispatch import path
from portconv.testing import assert_close, reference_conv2d

# Padding modes, and what NumPy calls them.
PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


# --- arrays -----------------------------------------------------------------------------------------------------------


def numbers(shape, seed=0, dtype="f4"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def ones(*shape):
    return np.ones(shape, np.float32)


X, WEIGHT = ones(1, 2, 6, 6), ones(3, 2, 3, 3)


# --- problems ---------------------------------------------------------------------------------------------------------

# name: (x shape NCHW, weight shape, arguments). A case stands for a rule, not for a size.
CASES = {
    "1x1 image": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "1x1 kernel": ((2, 5, 6, 7), (4, 5, 1, 1), {}),
    "1x1 kernel, stride": ((1, 5, 7, 6), (4, 5, 1, 1), {"stride": (2, 3)}),
    "3x3": ((2, 3, 9, 8), (4, 3, 3, 3), {}),
    "even kernel": ((1, 2, 8, 9), (3, 2, 4, 2), {}),
    "one row": ((1, 3, 1, 12), (2, 3, 1, 5), {}),
    "one column": ((1, 3, 12, 1), (2, 3, 5, 1), {}),
    "kernel is image": ((2, 3, 5, 4), (4, 3, 5, 4), {}),
    "kernel is padded image": ((1, 2, 3, 4), (2, 2, 7, 6), {"padding": (2, 1)}),
    "many channels": ((1, 48, 7, 40), (20, 48, 3, 3), {"padding": 1}),
    "stride int": ((1, 3, 11, 12), (4, 3, 3, 3), {"stride": 2}),
    "stride pair": ((1, 3, 11, 12), (4, 3, 3, 3), {"stride": (3, 1)}),
    "stride above kernel": ((1, 2, 17, 15), (3, 2, 2, 2), {"stride": (5, 4)}),
    "stride, many channels": ((1, 40, 9, 41), (8, 40, 3, 3), {"stride": 2, "padding": 1}),
    "padding int": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": 2}),
    "padding pair": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": (0, 3)}),
    "padding four sides": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": ((2, 0), (1, 3))}),
    "padding list": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": [1, 2]}),
    "padding numpy": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": np.array([[1, 0], [0, 2]])}),
    "padding above kernel": ((1, 1, 3, 3), (2, 1, 2, 2), {"padding": 6}),
    "padding valid": ((1, 3, 6, 7), (4, 3, 3, 2), {"padding": "valid"}),
    "padding same": ((1, 3, 6, 7), (4, 3, 3, 5), {"padding": "same"}),
    "padding same, even kernel": ((1, 3, 6, 7), (4, 3, 4, 2), {"padding": "same"}),
    "padding same, stride": ((1, 3, 10, 7), (4, 3, 4, 3), {"padding": "same", "stride": (3, 2)}),
    "padding same, dilation": ((1, 3, 9, 8), (4, 3, 3, 2), {"padding": "same", "dilation": (2, 3)}),
    "dilation int": ((1, 3, 9, 10), (4, 3, 3, 3), {"dilation": 2}),
    "dilation pair": ((1, 3, 12, 9), (4, 3, 3, 2), {"dilation": (4, 3)}),
    "dilation, stride, padding": (
        (2, 3, 13, 14), (4, 3, 3, 4), {"dilation": (2, 3), "stride": (2, 3), "padding": (3, 4)},
    ),
    "dilation and stride with a common factor": ((1, 2, 15, 16), (3, 2, 3, 3), {"dilation": (4, 6), "stride": (2, 4)}),
    "groups, 4-D weight": ((1, 6, 7, 8), (9, 2, 3, 3), {"groups": 3}),
    "groups, 5-D weight": ((1, 6, 7, 8), (3, 3, 2, 3, 3), {"groups": 3}),
    "one group, 5-D weight": ((1, 3, 7, 8), (1, 4, 3, 3, 3), {}),
    "depthwise": ((2, 5, 9, 8), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise with a multiplier": (
        (1, 4, 9, 8), (4, 3, 1, 3, 3), {"groups": 4, "stride": 2, "dilation": 2, "padding": 2},
    ),
    "groups, many channels": ((1, 72, 5, 40), (2, 6, 36, 3, 3), {"groups": 2, "padding": 1}),
    "reflect": ((1, 2, 6, 7), (3, 2, 3, 3), {"padding": (5, 6), "padding_mode": "reflect"}),
    "reflect, four sides": ((1, 2, 6, 7), (3, 2, 3, 3), {"padding": ((3, 0), (1, 6)), "padding_mode": "reflect"}),
    "reflect, stride": ((1, 2, 9, 8), (3, 2, 3, 3), {"padding": 3, "stride": 2, "padding_mode": "reflect"}),
    "replicate": ((1, 2, 4, 3), (3, 2, 3, 3), {"padding": (9, 7), "padding_mode": "replicate"}),
    "replicate of one pixel": ((1, 2, 1, 1), (3, 2, 3, 3), {"padding": 2, "padding_mode": "replicate"}),
    "circular": ((1, 2, 5, 6), (3, 2, 3, 3), {"padding": (5, 2), "padding_mode": "circular"}),
    "circular, same": ((1, 2, 6, 7), (3, 2, 4, 3), {"padding": "same", "padding_mode": "circular"}),
    "circular, dilation, groups": (
        (2, 4, 7, 9), (2, 2, 2, 3, 3),
        {"padding": ((1, 4), (2, 3)), "dilation": 2, "groups": 2, "padding_mode": "circular"},
    ),
    "large kernel": ((1, 2, 40, 37), (3, 2, 21, 19), {"padding": (10, 9)}),
    "large kernel, stride": ((1, 2, 40, 37), (2, 2, 15, 17), {"padding": (7, 8), "stride": (2, 3)}),
    "large kernel, depthwise, reflect": (
        (1, 3, 33, 34), (3, 1, 17, 17), {"padding": 8, "groups": 3, "padding_mode": "reflect"},
    ),
    "a blur": ((1, 1, 150, 160), (1, 1, 31, 31), {"padding": 15}),
    "batch": ((7, 2, 5, 6), (3, 2, 3, 3), {"padding": 1}),
    "float32 mode": ((1, 3, 6, 7), (4, 3, 3, 3), {"compute_mode": "float32"}),
}  # fmt: skip


def out_channels(weight_shape):
    return int(np.prod(weight_shape[:-3]))


DESIGNED = problems(0, 0)  # those that `portconv check` has whatever the seed
GRADIENTS = [p for p in DESIGNED if p.gradient]


def named(name):
    """The designed problem of this name."""
    (found,) = [p for p in DESIGNED if p.name == name]
    return found


# --- results and errors -----------------------------------------------------------------------------------------------


def oracle_arguments(options):
    return {
        key: value
        for key, value in options.items()
        if key in ("stride", "padding", "dilation", "groups", "padding_mode", "layout")
    }


def check(backend, plans, engine, x, weight, bias=None, *, dtype="float32", accuracy="normwise", **options):
    """Convolve arrays of the backend by the engine, compare with the oracle, and return the result as a NumPy array.

    An engine that cannot run the problem must say so, and the test is skipped.
    """
    reason = backend.why_not(engine, x, weight, bias, accuracy=accuracy, **options)
    if reason is not None and engine == "winograd":  # the others run everything that is asked of them here
        with pytest.raises(portconv.UnsupportedError, match=f"`engine` '{engine}'.*{re.escape(reason)}"):
            portconv.conv2d(x, weight, bias, engine=engine, accuracy=accuracy, **options)
        pytest.skip(f"{engine}: {reason}")
    plans.clear()
    y = portconv.conv2d(x, weight, bias, engine=engine, accuracy=accuracy, **options)
    (plan,) = plans
    assert plan.engine == engine or engine == "auto"
    assert plan.engine in backend.engines
    values = [None if array is None else backend.numpy(array) for array in (x, weight, bias)]
    expected = reference_conv2d(*values, **oracle_arguments(options))
    result = backend.numpy(y)
    assert backend.dtype_name(y) == dtype
    assert tuple(y.shape) == expected.y.shape == plan.output_shape
    assert_close(result, expected, dtype=dtype, accuracy=accuracy)
    return result


def refused(error, fragments, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert type(caught.value) is error, message
    for fragment in fragments:
        assert fragment in message, f"{fragment!r} is not in {message!r}"


def show(value):
    """A short name for a parameter of a test, the same in every run."""
    return re.sub(r" at 0x\w+", "", repr(value))[:40]


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


# --- plans and backends -----------------------------------------------------------------------------------------------

SHAPES = (1, 2, 12, 13), (3, 2, 3, 3)


def plan(*shapes, **options):
    """A plan by measurement, as another process would make it."""
    path.forget_plans()
    return portconv.plan_conv2d(*(shapes or SHAPES), strategy="measure", **options)


class Wrapper:
    """A backend that does what NumPy's does, and counts its plans."""

    def __init__(self, name="wrapper"):
        self.inner, self.name, self.built = portconv.get_backend("numpy"), name, 0

    def describe(self, x, /):
        return self.inner.describe(self.unwrap(x))

    def candidates(self, problem, /):
        return self.inner.candidates(problem)

    def build(self, problem, engine, /):
        self.built += 1
        return self.inner.build(problem, engine)

    def cache_token(self, weight, /):
        return None

    def from_numpy(self, x, /, *, dtype=None, device=None):
        return self.inner.from_numpy(x, dtype=dtype, device=device)

    def to_numpy(self, x, /):
        return self.inner.to_numpy(self.unwrap(x))

    def synchronize(self, x, /):
        pass

    def environment(self, problem, /):
        return self.inner.environment(problem)

    @staticmethod
    def unwrap(x):
        if not isinstance(x, np.ndarray):
            raise TypeError(f"no array: {type(x).__name__}")
        return x
