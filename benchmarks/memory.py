"""Scratch memory of portconv on NumPy: what a call needs beyond its input, its output and the packed weight.

Each layer runs in a process of its own. `tracemalloc`, to which NumPy reports its buffers, gives the peak of a call in
steady state. The growth of the process's resident memory in the first call is the cross-check: it sees what NumPy does
not report, such as the buffers of the BLAS library, and it has the packing of the weight in it too, and, with the
compiled tier, the loading of the compiled code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import checkout  # noqa: F401  before portconv
from libraries import TIERS, missing, run_child

from portconv.bench import reference, suites
from portconv.bench.layers import Layer, LayerError, load
from portconv.bench.worker import make_conv
from portconv.processes.files import write_json
from portconv.processes.machine import machine
from portconv.processes.memory import peak_resident, reset_peak_resident

MIB = 2**20
COLUMNS = ("input", "output", "packed", "scratch", "first_call", "resident", "planned")


def python_objects() -> int:
    """Bytes that are alive and traced, and no array's: of a compiler that was loaded, above all."""
    import tracemalloc

    import numpy as np

    arrays = tracemalloc.DomainFilter(False, np.lib.tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)


def measure(layer: Layer) -> dict:
    import tracemalloc

    import numpy as np

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
    peak -= python_objects()

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


def measure_all(layers: list[Layer], threads: int, tier: str, progress: Callable[[dict], object]) -> list[dict]:
    """The figures of every layer, each from a new process."""
    figures = []
    for layer in layers:
        figures.append(run_child("memory.py", layer.to_json(), threads, tier))
        progress(figures[-1])
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", choices=[*suites.SUITES, "all"], default=[], help="default: all")
    parser.add_argument("--layers", metavar="FILE", help="layers from a JSON file")
    parser.add_argument("--select", metavar="REGEX", default="", help="only layers whose suite/name has a match")
    parser.add_argument("--tier", choices=TIERS, default="portconv-numpy", help="default: portconv-numpy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(Layer.from_json(json.loads(options.child)))))
        return 0
    if reason := missing(options.tier):
        parser.error(reason)
    try:
        names = options.suite or ([] if options.layers else ["all"])
        layers = suites.select(names, load(options.layers) if options.layers else [], options.select)
    except LayerError as error:
        parser.error(str(error))

    table = sys.stderr if options.json == "-" else sys.stdout
    print("MiB".ljust(36), "engine".ljust(9), *(f"{column:>10}" for column in COLUMNS), file=table)

    def row(figure: dict) -> None:
        cells = [f"{figure[column + '_mib']:10.1f}" for column in COLUMNS]
        print(figure["id"].ljust(36), figure["engine"].ljust(9), *cells, file=table, flush=True)

    figures = measure_all(layers, options.threads, options.tier, row)
    worst = max(figures, key=lambda figure: figure["scratch_mib"])
    print(f"the most scratch memory: {worst['scratch_mib']:.1f} MiB, {worst['id']}", file=table)
    if options.json:
        document = {"machine": machine(), "tier": options.tier, "threads": options.threads, "layers": figures}
        write_json(options.json, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
