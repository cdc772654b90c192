"""How long a new process takes until its first convolution is done: the best of several processes.

`import_and_call` is what the process itself measures from its first statement on: `import portconv, numpy` and one call
of `conv2d`. `process` is measured from outside, and has the start and the end of the interpreter in it, too. With the
compiled tier a first process fills the cache of compiled code, and does not count. `--tier torch` is PyTorch, to
compare with: `import torch` and the same convolution.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import checkout  # noqa: F401  before portconv
from libraries import TIERS, missing

from portconv.bench.layers import LayerError, parse_sizes
from portconv.processes.files import write_json
from portconv.processes.machine import machine
from portconv.processes.session import environment

PROCESSES = 5
X, WEIGHT, PADDING = (1, 64, 56, 56), (64, 64, 3, 3), 1

# Nothing but this runs in the process that is timed; it sees the checkout as its first place to look.
CODE = """
import time
start = time.perf_counter()
import sys
sys.path.insert(0, {root!r})
import portconv, numpy
x, weight = numpy.ones({x}, "float32"), numpy.ones({weight}, "float32")
portconv.conv2d(x, weight, padding={padding})
print(time.perf_counter() - start)
"""

TORCH_CODE = """
import time
start = time.perf_counter()
import torch
x, weight = torch.ones({x}), torch.ones({weight})
torch.nn.functional.conv2d(x, weight, padding={padding})
print(time.perf_counter() - start)
"""


def measure(
    threads: int, tier: str, x: tuple[int, ...] = X, weight: tuple[int, ...] = WEIGHT, padding: int = PADDING
) -> dict:
    root = str(Path(__file__).resolve().parent.parent)
    code = (TORCH_CODE if tier == "torch" else CODE).format(root=root, x=x, weight=weight, padding=padding)
    inside, outside = [], []
    for _ in range(PROCESSES + 1):  # the first one fills caches: of compiled code, and of files
        start = time.perf_counter()
        command = [sys.executable, "-c", code]
        env = environment(threads, dict(TIERS.get(tier, ())))
        done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True, env=env)
        outside.append(time.perf_counter() - start)
        inside.append(float(done.stdout))
    return {"tier": tier, "import_and_call_s": min(inside[1:]), "process_s": min(outside[1:]), "cold_s": inside[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=[*TIERS, "torch"], default="portconv-numpy", help="default: portconv-numpy")
    parser.add_argument("--x", default="x".join(map(str, X)), help="shape of the image (default: %(default)s)")
    parser.add_argument("--weight", default="x".join(map(str, WEIGHT)), help="and of the weight (%(default)s)")
    parser.add_argument("--padding", type=int, default=PADDING)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    options = parser.parse_args()
    if reason := missing(options.tier):
        parser.error(reason)
    try:
        shapes = parse_sizes(options.x), parse_sizes(options.weight)
    except LayerError as error:
        parser.error(str(error))
    figures = measure(options.threads, options.tier, *shapes, options.padding)
    if options.json:
        write_json(options.json, {"machine": machine(), **figures})
    if options.json != "-":
        print(
            f"{options.tier}, the best of {PROCESSES} processes: {figures['import_and_call_s']:.3f} s to import and "
            f"call, {figures['process_s']:.3f} s the whole process; {figures['cold_s']:.3f} s the first of all"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
