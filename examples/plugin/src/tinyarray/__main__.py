"""What portconv makes of this library: the engines that can convolve its arrays, with their times.

    pip install ./examples/plugin
    python -m tinyarray [--size 32] [--check]

It has no --library: the arrays are tinyarray's.
Exit status: 0; 1 if --check finds an error; 2 if an argument is no good.
"""

import argparse
import sys
import time

import portconv
from portconv.testing import check_backend

from . import Array


def main():
    parser = argparse.ArgumentParser(prog="python -m tinyarray", description="Time portconv's engines on tinyarrays.")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side of the image (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="also verify every engine, which takes some seconds")
    arguments = parser.parse_args()
    if arguments.size < 1:
        parser.error("--size must be at least 1")
    shape = (1, 1, arguments.size, arguments.size)
    x, blur = Array(range(arguments.size**2), shape), Array([1 / 9] * 9, (1, 1, 3, 3))
    for candidate in portconv.plan_conv2d(x, blur, padding=1).candidates:
        if candidate.why_not:
            print(f"{candidate.engine:10} {candidate.why_not}")
            continue
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            portconv.conv2d(x, blur, padding=1, engine=candidate.engine)
            seconds.append(time.perf_counter() - begin)
        print(f"{candidate.engine:10} {1e3 * min(seconds):.2f} ms")
    if arguments.check:
        try:
            print(f"{len(check_backend('tinyarray'))} problems checked")
        except AssertionError as error:
            print(f"tinyarray: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
