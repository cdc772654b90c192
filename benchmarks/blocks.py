"""Whether other sizes of blocks than those that the compiled tier takes are faster on this machine, layer by layer.

Plans with other shares of the caches and with other register tiles take turns with the usual plan in one process. A
figure is the time of the usual plan over that of the other, the best calls of both; "=" is the same plan. The usual
plan comes twice, so the last column says how much of it all is noise.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from unittest.mock import patch

import checkout  # noqa: F401  before portconv
import numpy as np

import portconv
from portconv.cpu.compiled import plans
from portconv.cpu.compiled.direct import plan as direct
from portconv.cpu.compiled.gemm import plan as gemm
from portconv.cpu.compiled.stencil import plan as stencil

# name: engine, image, weight, options
LAYERS = {
    "1x1 56": ("gemm", (1, 64, 56, 56), (256, 64, 1, 1), {}),
    "1x1 28": ("gemm", (1, 512, 28, 28), (128, 512, 1, 1), {}),
    "1x1 14": ("gemm", (1, 256, 14, 14), (1024, 256, 1, 1), {}),
    "1x1 7": ("gemm", (1, 2048, 7, 7), (512, 2048, 1, 1), {}),
    "3x3 stride 2, 56": ("gemm", (1, 128, 56, 56), (128, 128, 3, 3), {"stride": 2, "padding": 1}),
    "3x3 stride 2, 14": ("gemm", (1, 512, 14, 14), (512, 512, 3, 3), {"stride": 2, "padding": 1}),
    "3x3 56": ("gemm", (1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "5x5 28": ("gemm", (1, 32, 28, 28), (64, 32, 5, 5), {"padding": 2}),
    "7x7 stride 2, 224": ("gemm", (1, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "3x3 56, 32 groups": ("gemm", (1, 128, 56, 56), (128, 4, 3, 3), {"padding": 1, "groups": 32}),
    "3x3 56, depthwise": ("direct", (1, 128, 56, 56), (128, 1, 3, 3), {"padding": 1, "groups": 128}),
}
# name: bytes of the second cache, bytes of the first one, and the register tile; None for the usual
CHOICES = {
    "usual": (None, None, None),
    **{f"second {kib}": (kib << 10, None, None) for kib in (128, 512, 1024)},
    **{f"first {kib}": (None, kib << 10, None) for kib in (16, 32, 40)},
    "wide tiles": (None, None, (gemm.kernels.FEW, 6)),
    "usual again": (None, None, None),
}
AT_ONCE = 4  # calls in a turn


def made(problem, engine, second, first, tile):
    """The plan of a problem for such caches and register tiles."""
    with ExitStack() as changes:
        for module in (gemm, direct, stencil) if second else ():
            changes.enter_context(patch.object(module, "CACHE_BYTES", second))
        if first:
            changes.enter_context(patch.object(gemm, "FIRST_CACHE_BYTES", first))
        if tile:
            changes.enter_context(patch.object(gemm.kernels, "tile_shape", lambda _outputs: tile))
        return plans._made(problem, engine)


def compared(engine, x_shape, weight_shape, options, seconds):
    """Milliseconds of the usual plan, and its time over that of the other ones, None where they are the same."""
    rng = np.random.default_rng(0)
    problem = portconv.plan_conv2d(x_shape, weight_shape, dtype="float32", engine=engine, **options).problem
    x, weight = (rng.standard_normal(shape, np.float32) for shape in (x_shape, problem.weight_shape))
    found = [made(problem, engine, *choice) for choice in CHOICES.values()]
    packed = [plan.pack(weight) for plan in found]
    others = [n for n, plan in enumerate(found) if plan.geometry != found[0].geometry]
    best = {n: float("inf") for n in (0, *others, len(found) - 1)}
    for n in best:
        found[n].execute(x, packed[n])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for n in best:
            for _ in range(AT_ONCE):
                start = time.perf_counter()
                found[n].execute(x, packed[n])
                best[n] = min(best[n], time.perf_counter() - start)
    return 1e3 * best[0], [best[0] / best[n] if n in best else None for n in range(1, len(found))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each layer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    portconv.set_num_threads(options.threads)
    print(f"{'layer':18} {'ms':>7} " + " ".join(f"{name:>11}" for name in list(CHOICES)[1:]))
    for name, layer in LAYERS.items():
        milliseconds, ratios = compared(*layer, options.seconds)
        cells = ("=" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        print(f"{name:18} {milliseconds:7.3f} " + " ".join(f"{cell:>11}" for cell in cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
