"""What the tests of `portconv bench` share: layers, an exact result, what workers have answered."""

from __future__ import annotations

import numpy as np

from portconv.bench import reference
from portconv.bench.layers import Layer
from portconv.bench.runner import Task, Timed
from portconv.processes.session import Settings
from portconv.testing import reference_conv2d

TINY = Layer("given", "tiny", 1, 2, (8, 9), 3, (3, 3), padding=(1, 1))
SETTINGS = Settings(threads=1, budget=0.01, limit=30)


def other(name, **changes):
    return Layer(**{**TINY.__dict__, "name": name, **changes})


SECOND = other("second")
GOOD = {"engine": "gemm", "tier": "compiled", "error_share": 0.25, "workspace_bytes": 3 << 20}
RESULTS = {
    "numpy": Timed(
        {"versions": {}},
        {
            Task(TINY, "auto", "cpu"): {"best_ms": 2.0, **GOOD},
            Task(TINY, "fft", "cpu"): {"error": "wrong result"},
            Task(SECOND, "auto", "cpu"): {"best_ms": 5.0, **GOOD},
        },
    ),
    "torch": Timed(
        {"versions": {}},
        {
            Task(TINY, "auto", "cuda:0"): {"best_ms": 0.001, **GOOD},
            Task(TINY, "native", "cuda:0"): {"best_ms": 0.0025, **GOOD, "engine": "native", "tier": "native"},
        },
    ),
}


def exact(layer):
    x, weight, bias = data = reference.make_data(layer)
    options = {"padding_mode": layer.padding_mode}
    y, *_ = reference_conv2d(x, weight, bias, layer.stride, layer.sides, layer.dilation, layer.groups, **options)
    if layer.dtype == "bfloat16":  # which NumPy has not: it comes in float32
        return data, reference.rounded(y.astype(np.float32), "bfloat16")
    return data, y.astype(layer.dtype)
