"""What a call of `portconv.Conv2d` on a 1x1x8x8 image costs beyond the engine's own work, in microseconds.

With `--library torch` what the whole call of `torch.nn.Conv2d` takes there, to compare with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import checkout  # noqa: F401  before portconv
from libraries import TIERS, missing, run_child

from portconv.processes.files import write_json

CALLS = 500
ROUNDS = 60


def clock(call) -> float:
    """Microseconds a call, over many calls."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return 1e6 * (time.perf_counter() - start) / CALLS


def measure_torch(kernel: int) -> dict:
    import torch

    torch.set_grad_enabled(False)
    conv, x = torch.nn.Conv2d(1, 1, kernel, padding=kernel // 2).eval(), torch.randn(1, 1, 8, 8)

    def call():
        return conv(x)

    clock(call)
    return {"library": "torch", "kernel": kernel, "call_us": min(clock(call) for _ in range(ROUNDS))}


def measure(library: str, kernel: int) -> dict:
    if library == "torch":
        return measure_torch(kernel)
    import numpy as np

    import portconv

    conv = portconv.Conv2d(1, 1, kernel, padding=kernel // 2, backend=library)
    x = np.random.default_rng(0).standard_normal((1, 1, 8, 8), dtype=np.float32)
    finish = None
    if library == "mlx":
        import mlx.core as mx

        mx.set_default_device(mx.cpu)
        conv = conv.to("mlx")
        x, finish = mx.array(x), mx.eval
    plan = conv.plan(x)
    packed, bias = plan.pack(conv.weight), conv.bias

    def call():
        return conv(x)

    def engine():
        return plan.execute(x, packed, bias)

    if finish is not None:  # lazy arrays: both sides are evaluated
        lazy_call, lazy_engine = call, engine

        def call():
            finish(lazy_call())

        def engine():
            finish(lazy_engine())

    clock(call), clock(engine)
    # In turns, so that a change of the clock rate meets both; each difference is of neighbours in time.
    rounds = [(clock(call), clock(engine)) for _ in range(ROUNDS)]
    calls, engines = zip(*rounds, strict=True)
    return {
        "library": library,
        "engine": plan.engine,
        "kernel": kernel,
        "call_us": min(calls),
        "engine_us": min(engines),
        "overhead_us": statistics.median(c - e for c, e in rounds),
    }


def in_new_process(library: str, kernel: int, threads: int, tier: str) -> dict:
    return run_child("overhead.py", {"library": library, "kernel": kernel}, threads, tier)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=("numpy", "mlx", "torch"), default="numpy")
    parser.add_argument("--kernel", type=int, default=3, help="kernel size (default: 3)")
    parser.add_argument("--tier", choices=TIERS, default="portconv-numpy", help="default: portconv-numpy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(**json.loads(options.child))))
        return 0
    if reason := missing(options.tier):
        parser.error(reason)
    figures = in_new_process(options.library, options.kernel, options.threads, options.tier)
    if options.json:
        write_json(options.json, figures)
    if options.json != "-" and options.library == "torch":
        print(f"torch, 1x1x8x8, {figures['kernel']}x{figures['kernel']}: a call {figures['call_us']:.1f} us")
    elif options.json != "-":
        print(
            f"{figures['library']}, 1x1x8x8, {options.kernel}x{options.kernel}, engine {figures['engine']}: "
            f"a call {figures['call_us']:.1f} us, the engine alone {figures['engine_us']:.1f} us, "
            f"beyond it {figures['overhead_us']:.1f} us"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
