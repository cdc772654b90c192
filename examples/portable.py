"""An image pipeline that runs unchanged on the arrays of any library: blur, edges, local contrast.

    pip install 'portconv[mlx]'
    python examples/portable.py --library numpy
    python examples/portable.py --library mlx

It prints figures, which are the same for every library but for rounding, and the times of two runs: in the first one
the library, and portconv, may have to compile.
Exit status: 0; 2 if the library is missing.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

import portconv


def synthetic_image(like, size=256):
    """Discs and a slope under uneven light, (1, 1, size, size) float32, in the library and on the device of `like`."""
    xp, place = portconv.array_namespace(like), {"device": portconv.device(like)}
    line = xp.linspace(-1.0, 1.0, size, dtype=xp.float32, **place)
    cols, rows = xp.meshgrid(line, line, indexing="xy")
    image = 0.1 * rows + 0.05 * xp.sin(12 * cols)
    for row, col, radius in ((-0.4, -0.3, 0.35), (0.35, 0.4, 0.25), (0.5, -0.55, 0.15)):
        image = image + xp.where(xp.hypot(rows - row, cols - col) < radius, 0.6, 0.0 * rows)
    light = xp.exp(-(rows**2) - cols**2)
    return xp.reshape(image * light, (1, 1, size, size))


def gaussian(like, sigma):
    """A Gaussian as a convolution weight, (1, 1, k, k), of sum one."""
    xp, place = portconv.array_namespace(like), {"device": portconv.device(like)}
    reach = int(3 * sigma + 0.5)
    line = xp.astype(xp.arange(-reach, reach + 1, **place), like.dtype)
    bell = xp.exp(-(line**2) / (2 * sigma**2))
    weight = bell[:, None] * bell[None, :]
    return xp.reshape(weight / xp.sum(weight), (1, 1, 2 * reach + 1, 2 * reach + 1))


def gradient_magnitude(image):
    """How steep the image is, by Sobel's filters."""
    xp = portconv.array_namespace(image)
    across = xp.asarray([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=image.dtype)
    weight = xp.stack([across, xp.matrix_transpose(across)])[:, None, :, :] / 8
    both = portconv.conv2d(image, weight, padding=1, padding_mode="replicate")
    return xp.hypot(both[:, 0:1, :, :], both[:, 1:2, :, :])


def local_normalisation(image, sigma=8.0):
    """Each pixel less the mean of its surroundings, over their standard deviation."""
    xp = portconv.array_namespace(image)
    weight = gaussian(image, sigma)
    kind = dict(padding="same", padding_mode="reflect")
    mean = portconv.conv2d(image, weight, **kind)
    variance = portconv.conv2d((image - mean) ** 2, weight, **kind)
    return (image - mean) / xp.sqrt(variance + 1e-4)


def pipeline(like):
    """The figures that `main` prints; `like` is any array of the library."""
    xp = portconv.array_namespace(like)
    image = synthetic_image(like)
    edges = gradient_magnitude(portconv.conv2d(image, gaussian(like, 1.0), padding="same", padding_mode="reflect"))
    flat = local_normalisation(image)
    row = int(xp.argmax(xp.sum(edges, axis=(0, 1, 3))))
    return {
        "mean of the image": float(xp.mean(image)),
        "strongest edge": float(xp.max(edges)),
        "row with most edges": row,
        "contrast before": float(xp.std(image)),
        "contrast after": float(xp.std(flat)),
        "bright pixels": int(xp.count_nonzero(flat > 1)),
    }


def main():
    parser = argparse.ArgumentParser(description="The same image pipeline on the arrays of any library.")
    parser.add_argument("--library", default="numpy", metavar="NAME", help="an installed one (default: %(default)s)")
    library = parser.parse_args().library
    try:
        like = portconv.get_backend(library).from_numpy(np.ones(1, np.float32))
        portconv.array_namespace(like)  # a plug-in's arrays may have none
    except Exception as error:  # noqa: BLE001 - each library has its own for a missing GPU
        print(f"portable.py: --library {library}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    figures, seconds = {}, []
    for _ in range(2):
        begin = time.perf_counter()
        figures = pipeline(like)  # they are Python's numbers: what a library puts off is done
        seconds.append(time.perf_counter() - begin)
    for name, value in figures.items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    for name, value in zip(("first run, ms", "second run, ms"), seconds, strict=True):
        print(f"{name:20} {1e3 * value:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
