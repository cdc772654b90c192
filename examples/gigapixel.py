"""Blur an image that is larger than memory, from a Zarr array to another one, with Dask.

    pip install 'portconv[zarr,jit]'
    python examples/gigapixel.py blurred.zarr [--source image.zarr] [--size 4096] [--sigma 5] [--chunk 2048]

It is Dask's, and has no --library: the image is a Dask array of NumPy chunks, as Zarr reads and writes them. The source
is an array (height, width) of 8 bits; without one, an image of size x size pixels is made. What is written has the name
that was asked for when it is complete, not before: whatever goes wrong, nothing half-written is left.
Exit status: 0; 2 if an argument is no good, a package is missing, or the disk is full.
"""

import argparse
import contextlib
import math
import shutil
import sys
import time
from pathlib import Path

try:
    import dask.array as da
    import numpy as np
    import zarr
    from dask.diagnostics import ProgressBar
except ImportError as error:
    print(f"gigapixel.py: {error}. It needs Dask and Zarr: pip install 'portconv[zarr]'", file=sys.stderr)
    sys.exit(2)

import portconv

RESERVE = 64 << 20  # bytes that stay free on the disk


class Problem(Exception):
    """What the user has to mend; the message says so."""


def synthetic_image(size, chunk):
    """Rings under noise, (size, size) uint8, which is computed chunk by chunk."""

    def ring(row, col):
        return np.sin(300 * np.float32((row / size - 0.5) ** 2 + (col / size - 0.5) ** 2))

    rings = da.fromfunction(ring, chunks=chunk, shape=(size, size), dtype="float32")
    noise = da.random.default_rng(0).random((size, size), chunks=chunk, dtype="float32")
    return (127 + 60 * rings + 60 * noise).astype("uint8")


def gaussian(sigma):
    """A Gaussian as a convolution weight, (1, 1, k, k), of sum one."""
    reach = max(1, round(3 * sigma))
    bell = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weight = np.outer(bell, bell)
    return (weight / weight.sum()).astype("float32")[None, None]


def blurred(image, sigma):
    """The image (height, width), blurred, in 8 bits; lazy as the image is."""
    weight = da.from_array(gaussian(sigma), chunks=-1)
    same = dict(padding="same", padding_mode="replicate", out_dtype="uint8")
    return portconv.conv2d(image[None, None], weight, **same)[0, 0]


@contextlib.contextmanager
def complete_or_nothing(target):
    """A name to write to, which becomes that of the target at the end; what is there after an error goes."""
    temporary = target.with_name(f"{target.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    try:
        yield temporary
        temporary.rename(target)
    except OSError as error:
        raise Problem(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(array, target, what):
    """Compute the array into a Zarr array of that name, with a progress bar."""
    folder = target.absolute().parent
    if not folder.is_dir():
        raise Problem(f"{folder} is no folder.")
    needed, free = array.nbytes + RESERVE, shutil.disk_usage(folder).free
    if free < needed:
        raise Problem(f"{target} may take {needed >> 20} MiB, but {folder} has {free >> 20} MiB free.")
    begin = time.perf_counter()
    with complete_or_nothing(target) as temporary, ProgressBar():
        print(f"{what}: {array.shape[1]} x {array.shape[0]} pixels, {math.prod(array.numblocks)} chunks", flush=True)
        # Without this Dask adds a task that waits for all others, and orders those so that more chunks are in memory.
        array.to_zarr(str(temporary), return_stored=True)
    seconds = time.perf_counter() - begin
    print(f"{seconds:.2f} s, {1e9 * seconds / array.size:.1f} ns a pixel")


def opened(source):
    """The image in a Zarr array, lazily."""
    try:
        image = da.from_zarr(zarr.open_array(str(source), mode="r"))
    except (OSError, KeyError, ValueError) as error:
        raise Problem(f"{source} is no Zarr array: {error}") from error
    if image.ndim != 2 or image.dtype != np.uint8 or image.size == 0:
        raise Problem(f"{source} must be an array (height, width) of uint8, but is {image.shape} of {image.dtype}.")
    return image


def positive(number):
    def parse(text):
        value = number(text)
        if not (0 < value < math.inf):
            raise argparse.ArgumentTypeError(f"must be positive, but is {text}")
        return value

    return parse


def main():
    parser = argparse.ArgumentParser(
        description="Blur an image that is larger than memory, from Zarr to Zarr, with Dask."
    )
    parser.add_argument("target", type=Path, help="the Zarr array to write")
    parser.add_argument("--source", type=Path, help="the Zarr array to read, (height, width) uint8")
    parser.add_argument("--size", type=positive(int), default=4096, help="pixels of a side of the image that is made")
    parser.add_argument("--chunk", type=positive(int), default=2048, help="pixels of a side of its chunks")
    parser.add_argument("--sigma", type=positive(float), default=5.0, help="width of the blur in pixels")
    options = parser.parse_args()
    try:
        if options.target.exists():
            raise Problem(f"{options.target} exists. Name another file, or remove it.")
        source = options.source
        if source is None:
            source = options.target.with_name(f"{options.target.name}.source")
            if not source.exists():
                write(synthetic_image(options.size, options.chunk), source, "an image")
        write(blurred(opened(source), options.sigma), options.target, f"blurred by {options.sigma} pixels")
    except Problem as problem:
        print(f"gigapixel.py: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
