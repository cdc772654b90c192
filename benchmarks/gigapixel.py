"""What a pixel costs from a megapixel to a gigapixel: portconv on Dask arrays beside what else filters such images.

    python benchmarks/gigapixel.py
    python benchmarks/gigapixel.py --libraries portconv --megapixels 1 1024 --kernel 31 --json results.json

A filter of kernel x kernel weights, a disc, which is not separable, over one channel of float32 with zeros around it.
`portconv` and `dask-image` (`dask_image.ndfilters.convolve`) have Dask arrays in chunks, with the threaded scheduler;
chunks of the image are copies of one, and those of the result are dropped when they are there, so that what is timed
is the filter, and memory holds what Dask keeps of a real image. `scipy` (`scipy.signal.oaconvolve`) has image and
result in memory.

Each size runs in a process of its own: what was compiled is loaded and a small image is filtered, then the image once
or, where that takes less than a second, several times, of which the best counts. The result of the first chunk is
compared with a sum in float64 before anything is timed. Peak memory is the process's, its libraries included. A size
is skipped where the size before says that it would take longer than `--limit` seconds, or the arrays of `scipy` more
than half of the memory. With `--json`, a file that exists keeps its other figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import checkout  # noqa: F401  before portconv
import numpy as np
from libraries import run_child

from portconv.machine import memory_bytes
from portconv.processes.files import write_json
from portconv.processes.machine import machine
from portconv.processes.memory import peak_resident

LIBRARIES = {"portconv": ("portconv", "dask"), "dask-image": ("dask-image", "dask"), "scipy": ("scipy",)}
MEGAPIXELS = (1, 4, 16, 64, 256, 1024)  # of 2**20 pixels: sides of 1024 to 32768
ENOUGH = 1.0  # seconds, from which on an image is filtered once


def disc(kernel: int) -> np.ndarray:
    line = np.arange(kernel) - kernel // 2
    inside = line[:, None] ** 2 + line[None, :] ** 2 <= (kernel // 2) ** 2
    return (inside / inside.sum()).astype(np.float32)


class Nowhere:
    """Takes chunks of a result and drops them; keeps the first."""

    def __init__(self) -> None:
        self.first = np.zeros(0)

    def __setitem__(self, where: tuple[slice, ...], chunk: np.ndarray) -> None:
        if not any(part.start for part in where):
            self.first = chunk


def in_chunks(tile: np.ndarray, side: int):
    """A Dask array (side, side) of copies of a chunk."""
    import dask.array as da

    chunk = min(len(tile), side)
    chunks = ((chunk,) * (side // chunk),) * 2
    return da.map_blocks(lambda: tile[:chunk, :chunk].copy(), chunks=chunks, dtype=tile.dtype, meta=tile[:0, :0])


def filtering(library: str, tile: np.ndarray, weight: np.ndarray, threads: int):
    """A function that filters an image of a size, and gives the result's first chunk."""
    if library == "scipy":
        from scipy.signal import oaconvolve

        def in_memory(side: int):
            part = tile[:side, :side]
            image = np.tile(part, (side // len(part),) * 2)
            return lambda: oaconvolve(image, weight, mode="same")

        return in_memory

    import dask.array as da

    def lazy(side: int):
        image = in_chunks(tile, side)
        if library == "portconv":
            import portconv

            found = portconv.conv2d(image[None, None], da.from_array(weight[None, None]), padding="same")[0, 0]
        else:
            from dask_image.ndfilters import convolve

            found = convolve(image, weight, mode="constant")

        def compute() -> np.ndarray:
            nowhere = Nowhere()
            # what returns where chunks are stored has no task that waits for all: Dask's order is the better for it
            kind = dict(lock=False, return_stored=True, load_stored=False)
            da.store(found, nowhere, **kind, scheduler="threads", num_workers=threads)
            return nowhere.first

        return compute

    return lazy


def check(found: np.ndarray, tile: np.ndarray, weight: np.ndarray) -> None:
    """Compare some results of the first chunk with sums in float64; the image's edge is among them."""
    reach = len(weight) // 2
    padded = np.pad(tile[:300, :300].astype(np.float64), reach)
    for row, col in ((0, 0), (0, 131), (77, 0), (200, 250)):
        exact = (padded[row : row + len(weight), col : col + len(weight)] * weight).sum()
        if not abs(found[row, col] - exact) < 1e-5:
            raise ValueError(f"at {row}, {col} the result is {found[row, col]}, and not {exact}")


def measure(library: str, megapixels: int, kernel: int, chunk: int, threads: int) -> dict:
    side, weight = round((megapixels * 2**20) ** 0.5), disc(kernel)
    tile = np.random.default_rng(0).random((chunk, chunk), np.float32)
    prepare = filtering(library, tile, weight, threads)
    check(prepare(min(side, 1024))(), tile, weight)
    compute, best, spent = prepare(side), float("inf"), 0.0
    while spent < ENOUGH:
        before = time.perf_counter()
        compute()
        seconds = time.perf_counter() - before
        best, spent = min(best, seconds), spent + seconds
    return {
        "seconds": best,
        "nanoseconds_per_pixel": best / side**2 * 1e9,
        "peak_mib": peak_resident() / 2**20,
        "versions": {name: version(name) for name in LIBRARIES[library]},
    }


def reason_against(library: str, megapixels: int, before: dict | None, limit: float) -> str | None:
    """Why a size is skipped, or None."""
    if before is not None:
        seconds = before["nanoseconds_per_pixel"] * megapixels * 2**20 / 1e9
        if seconds > limit:
            return f"it would take {seconds:.0f} s"
    needed = 5 * 4 * megapixels * 2**20  # image, result, and transforms of about three times the image
    if library == "scipy" and needed > (memory_bytes() or needed):
        return f"it would take {needed >> 30} GiB"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--megapixels", nargs="+", type=int, choices=MEGAPIXELS, default=list(MEGAPIXELS))
    parser.add_argument("--kernel", type=int, default=31, help="side of the filter, odd; default: 31")
    parser.add_argument("--chunk", type=int, default=1024, help="side of a chunk; default: 1024")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120, help="seconds; default: 120")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, beside those that it has")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(**json.loads(options.child))))
        return 0
    document = {"settings": {}, "results": []}
    if options.json and Path(options.json).exists():
        document = json.loads(Path(options.json).read_text("utf-8"))
    settings = {name: getattr(options, name) for name in ("kernel", "chunk", "threads")}
    if document["settings"] not in ({}, settings):
        parser.error(f"{options.json} has figures with other settings: {document['settings']}")
    figures = {(row["library"], row["megapixels"]): row for row in document["results"]}
    for library in options.libraries:
        for megapixels in sorted(options.megapixels):
            smaller = [row for (name, size), row in figures.items() if name == library and size < megapixels]
            reason = reason_against(library, megapixels, smaller[-1] if smaller else None, options.limit)
            print(f"{library:11} {megapixels:5} megapixels: ", end="", flush=True)
            if reason is not None:
                print(f"skipped, {reason}")
                continue
            row = {"library": library, "megapixels": megapixels}
            row |= run_child("gigapixel.py", row | settings, options.threads, "portconv-jit")
            figures[library, megapixels] = row
            print(f"{row['nanoseconds_per_pixel']:8.2f} ns a pixel, {row['peak_mib']:6.0f} MiB", flush=True)
            if options.json:
                rows = sorted(figures.values(), key=lambda r: (list(LIBRARIES).index(r["library"]), r["megapixels"]))
                write_json(options.json, {"machine": machine(), "settings": settings, "results": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
