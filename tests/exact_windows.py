"""Exact convolutions, pooling and interpolation in any number of dimensions, by tables of what each output reads.

Nothing here is shared with the engines. A table of an axis says which element each tap of each output reads, or -1
where it reads none. Images are (N, C, *sizes), weights (G, O/G, I/G, *kernel). Data up to float32 are summed in
float64, and with `exact` float64 data to two units of rounding.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from portconv.testing import Reference
from portconv.testing.sums import dot

PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


# --- tables (taps, outputs) -------------------------------------------------------------------------------------------


def convolution_table(size, kernel, stride, dilation, sides, mode="zeros", outputs=None):
    """Of a convolution, or of a pooling with so many outputs."""
    before, after = sides
    if outputs is None:
        outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    fill = {"constant_values": -1} if mode == "zeros" else {}
    elements = np.pad(np.arange(size), (before, after), mode=PAD[mode], **fill)
    places = stride * np.arange(outputs) + dilation * np.arange(kernel)[:, None]
    # the last window of a pooling may reach beyond the padding
    elements = np.pad(elements, (0, max(int(places.max()) + 1 - elements.size, 0)), constant_values=-1)
    return elements[places]


def transposed_table(size, kernel, stride, dilation, sides, extra):
    """Of a transposed convolution: an output reads the elements whose taps fall on it."""
    outputs = (size - 1) * stride + dilation * (kernel - 1) + 1 + extra - sum(sides)
    places = np.arange(outputs) + sides[0] - dilation * np.arange(kernel)[:, None]
    met = (places % stride == 0) & (places >= 0) & (places // stride < size)
    return np.where(met, places // stride, -1)


def readers(table, size):
    """Two tables (readers, elements): the tap and the output of everyone who reads an element."""
    pairs = [np.argwhere(table == element) for element in range(size)]
    taps, outputs = np.full((2, max(1, *map(len, pairs)), size), -1)
    for element, found in enumerate(pairs):
        taps[: len(found), element], outputs[: len(found), element] = found.T
    return taps, outputs


def windows(x, tables, fill=0.0):
    """(..., *sizes) as (..., *taps, *outputs); `fill` is where nothing is read."""
    lead = x.ndim - len(tables)
    for n, table in enumerate(tables):
        place = lead + 2 * n
        ends = [(0, int(axis == place)) for axis in range(x.ndim)]
        x = np.take(np.pad(x, ends, constant_values=fill), table, axis=place)  # -1 is the last one
    taps, outputs = (range(lead + first, x.ndim, 2) for first in (0, 1))
    return x.transpose(*range(lead), *taps, *outputs)


# --- convolutions -----------------------------------------------------------------------------------------------------


def _sums(a, b, exact):
    """The sums of products along the last axis, and those of magnitudes."""
    with np.errstate(all="ignore"):
        return dot(a, b, exact), dot(np.abs(a), np.abs(b), False)


def _magnitudes(a):
    return np.where(np.isfinite(a), np.abs(a), 0)


def _grouped(x, groups):
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def convolution(x, weight, bias, tables):
    """The result for these tables, with the sums of magnitudes that its bound is made of."""
    exact = "d" in (x.dtype.char, weight.dtype.char)
    x, weight = _grouped(x.astype("f8"), len(weight)), weight.astype("f8")
    g, outputs, inputs, *kernel = weight.shape
    read = windows(x, tables)
    sizes, terms = read.shape[-len(tables) :], inputs * math.prod(kernel)
    flat = read.reshape(len(x), g, 1, terms, math.prod(sizes)).swapaxes(-1, -2)
    y, c = _sums(flat, weight.reshape(g, outputs, 1, terms), exact)
    met = np.ones(kernel, bool)
    for axis, table in enumerate(tables):
        met &= (table >= 0).any(axis=1).reshape([-1 if a == axis else 1 for a in range(len(tables))])
    every = math.prod(read.shape[3:])
    biggest = _magnitudes(read).reshape(len(x), g, inputs, every).max(axis=-1, initial=0.0)
    weights = (_magnitudes(weight) * met).reshape(g, outputs, inputs, -1).sum(axis=-1)
    largest = np.einsum("ngi,goi->ngo", biggest, weights)[..., None]
    shape = (len(x), g * outputs, *sizes)
    found = [np.broadcast_to(a, y.shape).reshape(shape) for a in (y, c, largest)]
    if bias is not None:
        wide = bias.astype("f8").reshape(1, -1, *[1] * len(tables))
        with np.errstate(all="ignore"):
            found = [found[0] + wide, found[1] + abs(wide), found[2] + abs(wide)]
    return Reference(*found, terms + 1)


def convolution_gradients(x, weight, dy, tables):
    """Of image, weight and bias, the last as (O,)."""
    exact = "d" in (x.dtype.char, weight.dtype.char, dy.dtype.char)
    g, outputs, inputs, *kernel = weight.shape
    n, sizes = len(x), x.shape[2:]
    x, weight, dy = (a.astype("f8") for a in (_grouped(x, g), weight, _grouped(dy, g)))
    pairs = [readers(table, size) for table, size in zip(tables, sizes, strict=True)]
    of_dy = windows(dy, [where for _, where in pairs])  # (N, G, O, *readers, *elements)
    of_w = windows(weight, [taps for taps, _ in pairs])  # (G, O, I, *readers, *elements)
    each, elements = math.prod(of_dy.shape[3 : 3 + len(sizes)]), math.prod(sizes)
    a = np.moveaxis(of_dy.reshape(n, g, 1, outputs * each, elements), -1, -2)
    b = of_w.swapaxes(1, 2).reshape(g, inputs, outputs * each, elements)
    value, c = _sums(a, b.swapaxes(-1, -2), exact)
    whole = np.abs(weight).reshape(g, outputs, inputs, -1).sum(axis=-1)
    there = np.abs(of_w).reshape(g, outputs, inputs, each, elements).sum(axis=3)
    positions = math.prod(dy.shape[3:])
    flat = dy.reshape(n, g, outputs, positions)
    biggest = np.abs(flat).max(axis=-1, initial=0.0)
    largest = np.einsum("ngo,goie->ngie", biggest, np.maximum(there, whole[..., None]))
    of_x = Reference(*(a.reshape(n, g * inputs, *sizes) for a in (value, c, largest)), outputs * each)

    terms, count = inputs * math.prod(kernel), n * positions
    read = windows(x, tables).reshape(n, g, terms, positions)
    a = np.moveaxis(read, 0, -2).reshape(g, 1, terms, count)
    b = np.moveaxis(flat, 0, -2).reshape(g, outputs, 1, count)
    value, c = _sums(a, b, exact)
    pixels = np.abs(x).reshape(n, g, inputs, elements).max(axis=-1, initial=0.0)
    totals = np.abs(flat).sum(axis=-1)
    largest = np.einsum("ngi,ngo->goi", pixels, totals).reshape(g, outputs, inputs, *[1] * len(kernel))
    of_weight = Reference(
        value.reshape(weight.shape), c.reshape(weight.shape), np.broadcast_to(largest, weight.shape), max(count, 1)
    )
    value, c = _sums(b.reshape(g * outputs, count), np.ones(1), exact)
    return of_x, of_weight, Reference(value, c, c, max(count, 1))


# --- pooling ----------------------------------------------------------------------------------------------------------


def _read(x, tables, fill):
    """(N, C, taps, outputs), both in the order of memory, and the sizes of the result."""
    found = windows(x, tables, fill)
    sizes = found.shape[-len(tables) :]
    return found.reshape(*x.shape[:2], math.prod(found.shape[2 : 2 + len(tables)]), math.prod(sizes)), sizes


def _exactly(y):
    y = y.astype("f8")
    return Reference(y, np.zeros_like(y), np.zeros_like(y), 1)


def largest(x, tables):
    lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    read, sizes = _read(x, tables, lowest)
    return _exactly(read.max(axis=2).reshape(*x.shape[:2], *sizes))


def largest_gradient(x, dy, tables):
    """The first of equal numbers has it."""
    read, _ = _read(x, tables, -np.inf)
    places, _ = _read(np.arange(math.prod(x.shape[2:])).reshape(1, 1, *x.shape[2:]), tables, -1)
    chosen = np.take_along_axis(np.broadcast_to(places, read.shape), read.argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    y, c = np.zeros((2, *x.shape[:2], math.prod(x.shape[2:]) + 1))  # the last is for windows of padding alone
    n, channels = np.ogrid[: x.shape[0], : x.shape[1]]
    for found, values in ((y, dy), (c, abs(dy))):
        np.add.at(found, (n[..., None], channels[..., None], chosen), values.reshape(chosen.shape).astype("f8"))
    y, c = y[..., :-1], c[..., :-1]
    return Reference(y.reshape(x.shape), c.reshape(x.shape), np.zeros(x.shape), read.shape[2])


def average(x, tables, counts):
    """`counts` are those of each axis, by which sums are divided."""
    read, sizes = _read(x.astype("f8"), tables, 0.0)
    ones = np.ones((1, 1, 1, read.shape[2]))
    y, c = _sums(read.swapaxes(-1, -2), ones, x.dtype.char == "d")
    divisor = math.prod(np.ix_(*map(np.asarray, counts)))
    with np.errstate(all="ignore"):
        y, c = (a.reshape(*x.shape[:2], *sizes) / divisor for a in (y, c))
    return Reference(y, c, np.zeros_like(c), read.shape[2])


def average_gradient(shape, dy, tables, counts):
    pairs = [readers(table, size) for table, size in zip(tables, shape[2:], strict=True)]
    shares = dy.astype("f8") / math.prod(np.ix_(*map(np.asarray, counts)))
    read, _ = _read(shares, [where for _, where in pairs], 0.0)
    y, c = _sums(read.swapaxes(-1, -2), np.ones((1, 1, 1, read.shape[2])), dy.dtype.char == "d")
    return Reference(y.reshape(shape), c.reshape(shape), np.zeros(shape), read.shape[2])


# --- interpolation ----------------------------------------------------------------------------------------------------


def positions(size, outputs, factor, mode, corners):
    """Where each output lies in an axis, as fractions; `factor` is None where the sizes alone say it."""
    step = Fraction(size, outputs) if factor is None else 1 / Fraction(factor)
    if mode == "nearest":
        return [Fraction(min(math.floor(i * step), size - 1)) for i in range(outputs)]
    if corners:
        step = Fraction(size - 1, max(outputs - 1, 1))
        return [i * step for i in range(outputs)]
    half = Fraction(1, 2)
    return [min(max((i + half) * step - half, Fraction(0)), Fraction(size - 1)) for i in range(outputs)]


def interpolation_table(size, where):
    """Two tables (2, outputs): what is read, and the shares."""
    reads, shares = np.full((2, len(where)), -1), np.zeros((2, len(where)))
    for n, place in enumerate(where):
        low = math.floor(place)
        reads[0, n], shares[0, n] = low, float(1 - (place - low))
        if place != low:
            reads[1, n], shares[1, n] = low + 1, float(place - low)
    return reads, shares


def _matrix(size, table):
    reads, shares = table
    found = np.zeros((reads.shape[1], size))
    for read, share in zip(reads, shares, strict=True):
        np.add.at(found, (np.nonzero(read >= 0)[0], read[read >= 0]), share[read >= 0])
    return found


def nearest(x, tables):
    found, sizes = _read(x, [reads[:1] for reads, _ in tables], 0)
    return _exactly(found[:, :, 0].reshape(*x.shape[:2], *sizes))


def interpolation(x, tables):
    """Between elements that are finite."""
    rows, cols = (_matrix(size, table) for size, table in zip(x.shape[2:], tables, strict=True))
    wide = x.astype("f8")
    largest, sizes = _read(abs(wide), [reads for reads, _ in tables], 0.0)
    return Reference(
        rows @ wide @ cols.T, rows @ abs(wide) @ cols.T, largest.max(axis=2).reshape(*x.shape[:2], *sizes), 4
    )


def interpolation_gradient(shape, dy, tables):
    rows, cols = (_matrix(size, table) for size, table in zip(shape[2:], tables, strict=True))
    dy = dy.astype("f8")
    # the rounding of a share is one of the larger share, too
    all_of = (rows > 0).T.astype("f8") @ abs(dy) @ (cols > 0)
    return Reference(rows.T @ dy @ cols, rows.T @ abs(dy) @ cols, all_of, max(dy[0, 0].size, 1) if dy.size else 1)
