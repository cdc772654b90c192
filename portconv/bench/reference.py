"""Data for a layer, and a check of a library's result against a float64 direct sum.

The sum is taken at a sample of output positions, all channels each, so that it stays cheap on large images. It is plain
indexing and `einsum`, which starts no threads of a BLAS library that would disturb the timing after it.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from ..testing import Reference, error_bound
from .layers import Layer

__all__ = ["check", "make_data", "rounded", "separable_taps"]

Array = np.ndarray[Any, Any]

SAMPLES = 48
# What rounding a result to 16 bits adds: half the distance between neighbours, relative, and half the smallest number.
_HALF = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}


def separable_taps(layer: Layer) -> tuple[Array, Array] | None:
    """The column and the row of taps whose outer product is the kernel, or None for random taps."""
    if layer.taps == "sobel":
        return np.array([1.0, 2.0, 1.0]), np.array([-1.0, 0.0, 1.0])
    if layer.taps == "box":
        height, width = layer.kernel
        return np.full(height, 1 / height), np.full(width, 1 / width)
    if layer.taps == "gaussian":
        height, width = layer.kernel
        return _gaussian(height), _gaussian(width)
    return None


def _gaussian(size: int) -> Array:
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8  # what OpenCV takes for a kernel of this size
    taps = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / sigma) ** 2)
    return np.asarray(taps / taps.sum())


def make_data(layer: Layer) -> tuple[Array, Array, Array | None]:
    """Input, weight (O, I/groups, kh, kw) and bias (O,) or None, the same in every process.

    They are float32, with values that the layer's dtype has.
    """
    rng = np.random.default_rng(zlib.crc32(layer.id.encode()))
    x = rng.standard_normal(layer.x_shape, dtype=np.float32)
    factors = separable_taps(layer)
    if factors is None:
        weight = rng.standard_normal(layer.weight_shape, dtype=np.float32)
        weight *= np.float32(np.prod(layer.weight_shape[1:]) ** -0.5)
    else:
        weight = np.empty(layer.weight_shape, np.float32)
        weight[...] = np.outer(*factors)
    bias = rng.standard_normal(layer.out_channels, dtype=np.float32) if layer.bias else None
    if layer.dtype in _HALF:
        return (
            rounded(x, layer.dtype),
            rounded(weight, layer.dtype),
            None if bias is None else rounded(bias, layer.dtype),
        )
    return x, weight, bias


def rounded(values: Array, dtype: str) -> Array:
    """Float32 values rounded to a dtype of 16 bits, of which NumPy has but one."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.asarray(bits.view(np.float32))


def _source(index: Array, size: int, mode: str) -> tuple[Array, Array]:
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


def _positions(layer: Layer) -> Array:
    """Some output positions: the four corners, which see the padding, and random ones."""
    batch, _, height, width = layer.y_shape
    rng = np.random.default_rng(len(layer.id))
    corners = [(0, 0, 0), (0, 0, width - 1), (batch - 1, height - 1, 0), (batch - 1, height - 1, width - 1)]
    return np.concatenate([corners, rng.integers(0, (batch, height, width), size=(SAMPLES - len(corners), 3))])


def _patch(layer: Layer, x: Array, position: Array) -> Array:
    """The receptive field of one output position: (groups, channels * kh * kw), float64."""
    image, *output = position
    axes = []
    for axis in range(2):
        start = output[axis] * layer.stride[axis] - layer.sides[axis][0]
        taps = start + layer.dilation[axis] * np.arange(layer.kernel[axis])
        axes.append(_source(taps, layer.size[axis], layer.padding_mode))
    (rows, row_inside), (columns, column_inside) = axes
    values = x[image][:, rows[:, None], columns].astype(np.float64)
    return np.where(row_inside[:, None] & column_inside, values, 0.0).reshape(layer.groups, -1)


def check(layer: Layer, x: Array, weight: Array, bias: Array | None, y: Array) -> float:
    """The largest error at the sample as a share of portconv's bound, for all libraries alike; above 1 is wrong.

    Raises
    ------
    ValueError
        If `y` (NCHW) has the wrong shape or dtype.
    """
    dtype = "float32" if layer.dtype == "bfloat16" else layer.dtype  # as which libraries hand it to NumPy
    if tuple(y.shape) != layer.y_shape or y.dtype.name != dtype:
        raise ValueError(f"the result is {tuple(y.shape)} {y.dtype}, expected {layer.y_shape} {dtype}")
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
    # what the sums would be if every weight met its channel's largest pixel: over the sample it is no larger
    pixels = np.abs(patches).reshape(len(patches), layer.groups, -1, layer.kernel[0] * layer.kernel[1]).max(axis=(0, 3))
    sums = np.abs(taps).reshape(*taps.shape[:2], pixels.shape[1], -1).sum(axis=3)
    largest = np.einsum("gi,goi->go", pixels, sums).reshape(1, -1)
    if bias is not None:
        largest = largest + np.abs(bias)
    bound = error_bound(Reference(exact, size, largest, taps.shape[2]), layer.dtype, layer.accuracy)
    if layer.dtype in _HALF:
        relative, absolute = _HALF[layer.dtype]
        bound = bound + relative * np.abs(exact) + absolute
    share = error / bound
    return float(np.max(share)) if np.all(np.isfinite(share)) else np.inf
