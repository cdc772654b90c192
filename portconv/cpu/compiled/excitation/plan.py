"""The compiled squeeze and excitation, with its weights packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ....core.epilogue import Activation
from ... import threads
from .. import team
from ..activations import call_words
from ..base import Array, Ints, read_only, round_up
from ..vectors import lanes
from . import kernels
from .geometry import Geometry

__all__ = ["CompiledExcitation", "Dense"]

SHARED_BYTES = 512 << 10  # of an image that is worth a second thread
TASK_BYTES = 32 << 10  # of the planes that are multiplied at a time
MOST_PIXELS = 4096  # of a plane whose numbers are added here; sums of more are made in pairs elsewhere
MAX_SHAPES = 64  # that are remembered


class Dense(NamedTuple):
    """A product with a matrix ``(outputs, inputs)``, and what follows: ``activation(sum + bias) * factor + term``."""

    matrix: Array
    bias: Array | None
    activation: Activation | None
    affine: tuple[float, float]


class CompiledExcitation:
    """Images in float32, in C order of NCHW, times the gates that two products make of the channels' averages."""

    def __init__(self, first: Dense, second: Dense) -> None:
        self._hidden, self._channels = first.matrix.shape
        self._lane = lanes("float32")
        packed = [part for dense in (first, second) for part in self._packed(dense)]
        self._weights = read_only(np.concatenate([*packed, [*first.affine, *second.affine]]).astype(np.float32))
        self._calls = [int(word) for dense in (first, second) for word in call_words(dense.activation, "float32")]
        self._known: dict[Ints, tuple[int, Array, list[tuple[int, Array]]]] = {}

    def _packed(self, dense: Dense) -> tuple[Array, Array]:
        """The matrix, term by term all outputs in whole vectors, and the bias."""
        outputs, inputs = dense.matrix.shape
        more = round_up(outputs, self._lane) - outputs
        bias = np.zeros(outputs) if dense.bias is None else dense.bias.reshape(-1)
        return np.pad(dense.matrix.T, ((0, 0), (0, more))).reshape(-1), np.pad(bias, (0, more))

    def __call__(self, x: Array, averages: Callable[[Array], Array], out: Array | None = None) -> Array:
        """The result, in `out` if it is given, which may be the image itself; `averages` are those of large images."""
        size, divisor, jobs = self._known.get(x.shape) or self._prepared(x.shape)
        y = np.empty(x.shape, x.dtype) if out is None else out
        scratch = threads.scratch(size, x.dtype, "excitation")
        if len(jobs) > 1:
            means = averages(x).reshape(x.shape[0], -1)
            scratch[:size].reshape(x.shape[0], -1)[:, : means.shape[1]] = means
        memory, result = read_only(x.ravel()), y.ravel()
        for parts, numbers in jobs:
            team.launch(kernels.excite, parts, memory, result, self._weights, divisor, scratch, numbers)
        return y

    def _prepared(self, shape: Ints) -> tuple[int, Array, list[tuple[int, Array]]]:
        """How much scratch memory there must be, the number that sums are divided by, and the jobs with their parts."""
        n, channels, height, width = shape
        pixels = height * width
        padded, hidden = (round_up(count, self._lane) for count in (channels, self._hidden))
        cores, some = threads.usable_cores(), max(1, TASK_BYTES // (pixels * 4))
        small = pixels <= MOST_PIXELS and (channels * pixels * 4 < SHARED_BYTES or n >= cores)
        tasks = n * -(-channels // some)
        phases = [(kernels.ALL, n)] if small else [(kernels.GATES, n), (kernels.PRODUCTS, tasks)]
        jobs = []
        for phase, count in phases:
            geometry = Geometry(
                phase, count, some, channels, self._hidden, pixels, padded // self._lane, hidden // self._lane
            )
            alone = phase == kernels.GATES or n * channels * pixels * 4 < SHARED_BYTES
            numbers = read_only(np.array((*geometry, *self._calls), np.int64))
            jobs.append((1 if alone else min(cores, count), numbers))
        if len(self._known) >= MAX_SHAPES:
            self._known.clear()
        found = n * (2 * padded + hidden), read_only(np.array([pixels], np.float32)), jobs
        self._known[shape] = found
        return found
