"""Random data for a layer, and a check of a library's result against a float64 direct sum.

The sum is taken at a sample of output positions, all channels each, so that it stays cheap on large images. It is plain
indexing and `einsum`, which starts no threads of a BLAS library that would disturb the timing after it.
"""

from __future__ import annotations

import zlib

import numpy as np
from suites import Layer

SAMPLES = 48


def make_data(layer: Layer):
    """Input, weight (O, I/groups, kh, kw) and bias (O,) or None, the same in every process."""
    rng = np.random.default_rng(zlib.crc32(layer.id.encode()))
    x = rng.standard_normal(layer.x_shape, dtype=np.float32)
    weight = rng.standard_normal(layer.weight_shape, dtype=np.float32)
    weight *= np.float32(np.prod(layer.weight_shape[1:]) ** -0.5)
    bias = rng.standard_normal(layer.out_channels, dtype=np.float32) if layer.bias else None
    return x, weight, bias


def _source(index, size: int, mode: str):
    """Where padded positions come from, and whether they lie in the image at all."""
    inside = (index >= 0) & (index < size)
    if mode == "zeros":
        return np.clip(index, 0, size - 1), inside
    if mode == "replicate":
        return np.clip(index, 0, size - 1), np.ones_like(inside)
    if mode == "circular":
        return index % size, np.ones_like(inside)
    if mode == "reflect":
        index = np.abs(index)
        return np.where(index >= size, 2 * (size - 1) - index, index), np.ones_like(inside)
    raise ValueError(f"unknown padding mode {mode!r}")


def _positions(layer: Layer):
    """Some output positions: the four corners, which see the padding, and random ones."""
    batch, _, height, width = layer.y_shape
    rng = np.random.default_rng(len(layer.id))
    corners = [(0, 0, 0), (0, 0, width - 1), (batch - 1, height - 1, 0), (batch - 1, height - 1, width - 1)]
    return np.concatenate([corners, rng.integers(0, (batch, height, width), size=(SAMPLES - len(corners), 3))])


def _patch(layer: Layer, x, position):
    """The receptive field of one output position: (groups, channels * kh * kw), float64."""
    image, *output = position
    axes = []
    for axis in range(2):
        start = output[axis] * layer.stride[axis] - layer.padding[axis]
        taps = start + layer.dilation[axis] * np.arange(layer.kernel[axis])
        axes.append(_source(taps, layer.size[axis], layer.padding_mode))
    (rows, row_inside), (columns, column_inside) = axes
    values = x[image][:, rows[:, None], columns].astype(np.float64)
    return np.where(row_inside[:, None] & column_inside, values, 0.0).reshape(layer.groups, -1)


def check(layer: Layer, x, weight, bias, y) -> str | None:
    """None if `y` (NCHW) is right, else what is wrong with it.

    With c = sum |x||w| the bound is 8 eps c + 24 eps max(c), for all libraries alike.
    """
    if tuple(y.shape) != layer.y_shape or y.dtype != np.float32:
        return f"result is {y.shape} {y.dtype}, expected {layer.y_shape} float32"
    positions = _positions(layer)
    patches = np.stack([_patch(layer, x, position) for position in positions])
    taps = weight.astype(np.float64).reshape(layer.groups, layer.out_channels // layer.groups, -1)
    exact = np.einsum("pgk,gok->pgo", patches, taps).reshape(len(positions), -1)
    size = np.einsum("pgk,gok->pgo", np.abs(patches), np.abs(taps)).reshape(len(positions), -1)
    if bias is not None:
        exact += bias
        size += np.abs(bias)
    image, row, column = positions.T
    error = np.abs(y[image, :, row, column].astype(np.float64) - exact)
    bound = np.finfo(np.float32).eps * (8 * size + 24 * size.max())
    if not np.all(error <= bound):  # written so that NaN fails
        return f"error is {np.nanmax(error / bound):.3g} times the bound"
    return None
