"""What an activation or a residual costs where results are stored, and as a pass of its own: ratios to a plain call.

python benchmarks/epilogue.py                   # 40 rounds
python benchmarks/epilogue.py --rounds 100

All calls of a layer take turns in one process, so that what else the machine does hits them alike; the best time of
each counts.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import checkout  # noqa: F401  before portconv
import numpy as np

import portconv

LAYERS = {
    "1x1 64 to 256 at 56x56": ((1, 64, 56, 56), (256, 64, 1, 1), {}),
    "1x1 256 to 64 at 56x56": ((1, 256, 56, 56), (64, 256, 1, 1), {}),
    "3x3 64 at 56x56": ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "3x3 stride 2 128 at 56x56": ((1, 128, 56, 56), (128, 128, 3, 3), {"padding": 1, "stride": 2}),
    "3x3 512 at 7x7": ((1, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}),
    "depthwise 3x3 96 at 56x56": ((1, 96, 56, 56), (96, 1, 3, 3), {"padding": 1, "groups": 96}),
    "3x3 64 at 112x112, 8 images": ((8, 64, 112, 112), (64, 64, 3, 3), {"padding": 1}),
}
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "hard_swish", "silu", "gelu", "sigmoid", "tanh")


def best_of(calls, rounds):
    """The least seconds of each call; they take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    print(f"{portconv.environment()['cpu']}, {portconv.get_num_threads()} threads")
    for name in LAYERS:
        measure(name, rounds)


def measure(name, rounds):
    """Time a layer with each activation, and print it."""
    x_shape, weight_shape, options = LAYERS[name]
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, weight_shape))
    # of memory that cannot change, so that all calls share what the weight is packed to, which may fill a cache
    weight = np.frombuffer(weight.tobytes(), weight.dtype).reshape(weight.shape)
    convolve = partial(portconv.conv2d, x, weight, **options)
    y = convolve()
    residual = np.zeros_like(y)
    calls = {activation: partial(convolve, activation=activation) for activation in (None, *ACTIVATIONS)}
    calls["residual"] = partial(convolve, residual=residual)
    for call in calls.values():
        call()
    best = best_of(calls, rounds)
    apart = best_of({"relu": partial(np.maximum, y, 0), "residual": partial(np.add, y, residual)}, rounds)
    plain = best[None]
    print(f"{name}: {plain * 1e3:.3f} ms by {portconv.plan_conv2d(x, weight, **options).engine}")
    print("  stored with it  ", "  ".join(f"{a} {best[a] / plain:.2f}" for a in (*ACTIVATIONS, "residual")))
    print("  NumPy's own pass", "  ".join(f"{a} {1 + apart[a] / plain:.2f}" for a in apart), flush=True)


if __name__ == "__main__":
    main()
