"""How a convolution fares among other users of the cores: after products of NumPy's, and beside a busy program.

python benchmarks/neighbours.py                 # ResNet-50's 3x3 with 256 channels at 14x14
python benchmarks/neighbours.py --layer depthwise --json neighbours.json

Median and mean of so many calls, in milliseconds, and over those of the convolution alone. One thread alone is what a
team must not fall behind.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import checkout  # noqa: F401  before portconv
import numpy as np

import portconv
from portconv.processes.files import write_json
from portconv.processes.machine import machine

LAYERS = {
    "3x3": ((1, 256, 14, 14), {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "padding": 1}),
    "1x1": ((1, 256, 56, 56), {"in_channels": 256, "out_channels": 64, "kernel_size": 1}),
    "depthwise": (
        (1, 512, 14, 14),
        {"in_channels": 512, "out_channels": 512, "kernel_size": 3, "padding": 1, "groups": 512},
    ),
}
PRODUCT = 512  # rows and columns of the user's matrices


def timed(call, before=None, calls: int = 200) -> tuple[float, float]:
    """Median and mean milliseconds of calls, each after `before`."""
    found = []
    for _ in range(calls):
        if before is not None:
            before()
        start = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found), statistics.fmean(found)


def measure(name: str, calls: int) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(0)
    shape, arguments = LAYERS[name]
    layer, x = portconv.Conv2d(**arguments), rng.standard_normal(shape, dtype=np.float32)
    a, b = rng.standard_normal((2, PRODUCT, PRODUCT), dtype=np.float32)

    def convolve():
        return layer(x)

    def multiply():
        return a @ b

    def multiply_and_wait():
        multiply()
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass

    threads = portconv.get_num_threads()
    timed(convolve, calls=20)
    found = {"convolution alone": timed(convolve, calls=calls)}
    portconv.set_num_threads(1)
    found["convolution on one thread"] = timed(convolve, calls=calls)
    portconv.set_num_threads(threads)
    found["product alone"] = timed(multiply, calls=calls)
    found["convolution after a product"] = timed(convolve, multiply, calls)
    found["convolution after a product and 2 ms"] = timed(convolve, multiply_and_wait, calls)
    found["product after a convolution"] = timed(multiply, convolve, calls)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        found["convolution beside a busy program"] = timed(convolve, calls=calls)
    finally:
        busy.kill()
        busy.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", choices=LAYERS, default="3x3")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args()
    found = measure(options.layer, options.calls)
    where = machine()
    print(f"{where['cpu']}, {where['usable_cores']} cores, {portconv.get_num_threads()} threads, {options.layer}")
    for what, (median, mean) in found.items():
        alone = found["product alone" if what.startswith("product") else "convolution alone"]
        print(f"{what:38} {median:8.3f} {mean:8.3f} ms   {median / alone[0]:6.2f} {mean / alone[1]:6.2f}")
    if options.json:
        write_json(options.json, {"machine": where, "layer": options.layer, "milliseconds": found})


if __name__ == "__main__":
    main()
