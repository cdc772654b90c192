"""Pooling and interpolation of NumPy's arrays, beside PyTorch's own: the sizes of ResNet, VGG and MobileNet.

python benchmarks/pooling.py
python benchmarks/pooling.py --seconds 1 --channels-last

Both take turns, a call each that is not timed and one that is. The best of each counts. A ratio is PyTorch's time over
portconv's: above 1, portconv wins. `--channels-last` has layout NHWC, and PyTorch's memory format channels_last.
"""

from __future__ import annotations

import argparse
import time

import checkout  # noqa: F401  before portconv
import numpy as np
import torch
from tables import aligned
from torch.nn import functional

import portconv

CASES = {
    "ResNet, max 3x3, stride 2": (
        (1, 64, 112, 112),
        lambda x, layout: portconv.max_pool2d(x, 3, 2, 1, layout=layout),
        lambda x: functional.max_pool2d(x, 3, 2, 1),
    ),
    "VGG, max 2x2": (
        (1, 64, 224, 224),
        lambda x, layout: portconv.max_pool2d(x, 2, layout=layout),
        lambda x: functional.max_pool2d(x, 2),
    ),
    "Inception, average 3x3": (
        (1, 64, 56, 56),
        lambda x, layout: portconv.avg_pool2d(x, 3, 1, 1, layout=layout),
        lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    "ResNet, global average": (
        (1, 2048, 7, 7),
        lambda x, layout: portconv.global_avg_pool2d(x, layout=layout),
        lambda x: functional.adaptive_avg_pool2d(x, 1),
    ),
    "MobileNet, global average": (
        (1, 960, 7, 7),
        lambda x, layout: portconv.global_avg_pool2d(x, layout=layout),
        lambda x: functional.adaptive_avg_pool2d(x, 1),
    ),
    "MobileNet, squeeze": (
        (1, 120, 28, 28),
        lambda x, layout: portconv.global_avg_pool2d(x, layout=layout),
        lambda x: functional.adaptive_avg_pool2d(x, 1),
    ),
    "nearest, twice": (
        (1, 64, 56, 56),
        lambda x, layout: portconv.interpolate2d(x, scale_factor=2, mode="nearest", layout=layout),
        lambda x: functional.interpolate(x, scale_factor=2, mode="nearest"),
    ),
    "bilinear, twice": (
        (1, 64, 56, 56),
        lambda x, layout: portconv.interpolate2d(x, scale_factor=2, layout=layout),
        lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    ),
}


def best(calls, seconds):
    """The shortest time of each call, which take turns."""
    found = [float("inf")] * len(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i, call in enumerate(calls):
            call()
            before = time.perf_counter()
            call()
            found[i] = min(found[i], time.perf_counter() - before)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(portconv.get_num_threads())
    layout = "NHWC" if options.channels_last else "NCHW"
    rows = [["case", "image", "portconv us", "PyTorch us", "ratio"]]
    for name, (shape, ours, theirs) in CASES.items():
        tensor = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        x = tensor.numpy()
        if options.channels_last:
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
            tensor = tensor.to(memory_format=torch.channels_last)
        found, expected = ours(x, layout), theirs(tensor).numpy()
        np.testing.assert_allclose(
            found, expected.transpose(0, 2, 3, 1) if options.channels_last else expected, 1e-4, 1e-5
        )
        mine, other = best([lambda: ours(x, layout), lambda: theirs(tensor)], options.seconds)  # noqa: B023
        rows.append([name, "x".join(map(str, shape)), f"{mine * 1e6:.1f}", f"{other * 1e6:.1f}", f"{other / mine:.2f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
