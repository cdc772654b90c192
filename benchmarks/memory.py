"""Scratch memory of portconv on NumPy: what a call needs beyond its input, its output and the packed weight.

Each layer runs in a process of its own. `tracemalloc`, to which NumPy reports its buffers, gives the peak of a call in
steady state. The growth of the process's resident memory in the first call is the cross-check: it sees what NumPy does
not report, such as the buffers of the BLAS library, and it has the packing of the weight in it too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import suites
from runner import machine, write_json
from suites import Layer
from workers import THREAD_VARIABLES

MIB = 2**20


def peak_resident() -> int:
    """The most memory that this process has had resident, in bytes."""
    import resource  # not on Windows, where the rest works

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_resident() -> None:
    """Make the peak what is resident now. Linux only; elsewhere the peak of setting up stays in, and hides as much."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(layer: Layer) -> dict:
    import tracemalloc

    import numpy as np
    import reference
    from workers import make_conv

    x, weight, bias = reference.make_data(layer)
    conv = make_conv(layer, weight, bias)
    small = np.ones((256, 256), np.float32)
    small @ small  # BLAS libraries allocate buffers once, at their first product
    conv.plan(x)  # imports what it needs

    reset_peak_resident()
    resident = peak_resident()
    tracemalloc.start()
    y = conv(x)
    growth = peak_resident() - resident
    first_peak = tracemalloc.get_traced_memory()[1]
    output = y.nbytes
    del y

    tracemalloc.reset_peak()
    y = conv(x)
    peak = tracemalloc.get_traced_memory()[1]
    del y

    # Whatever else the module keeps between calls counts as scratch.
    plan = conv.plan(x)
    before = tracemalloc.get_traced_memory()[0]
    packed_weight = plan.pack(conv.weight)
    packed = tracemalloc.get_traced_memory()[0] - before
    del packed_weight
    return {
        "id": layer.id,
        "engine": plan.engine,
        "input_mib": x.nbytes / MIB,
        "output_mib": output / MIB,
        "packed_mib": packed / MIB,
        "scratch_mib": (peak - output - packed) / MIB,
        "first_call_mib": (first_peak - output - packed) / MIB,
        "resident_mib": (growth - output - packed) / MIB,
        "planned_mib": plan.workspace_bytes / MIB,
    }


def in_new_process(layer: Layer) -> dict:
    command = [sys.executable, __file__, "--child", json.dumps(layer.to_json())]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", choices=[*suites.SUITES, "all"], default=["all"])
    parser.add_argument("--layers", metavar="FILE", help="layers from a JSON file instead")
    parser.add_argument("--select", metavar="REGEX", default="", help="only layers whose suite/name has a match")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(Layer.from_json(json.loads(options.child)))))
        return 0

    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(options.threads)))
    layers = suites.choose(options.suite, options.layers, options.select)
    table = sys.stderr if options.json == "-" else sys.stdout
    columns = ("input", "output", "packed", "scratch", "first_call", "resident", "planned")
    print("MiB".ljust(36), "engine".ljust(9), *(f"{column:>10}" for column in columns), file=table)
    figures = []
    for layer in layers:
        figures.append(in_new_process(layer))
        cells = [f"{figures[-1][column + '_mib']:10.1f}" for column in columns]
        print(layer.id.ljust(36), figures[-1]["engine"].ljust(9), *cells, file=table, flush=True)
    worst = max(figures, key=lambda figure: figure["scratch_mib"])
    print(f"the most scratch memory: {worst['scratch_mib']:.1f} MiB, {worst['id']}", file=table)
    if options.json:
        write_json(options.json, {"machine": machine(), "threads": options.threads, "layers": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
