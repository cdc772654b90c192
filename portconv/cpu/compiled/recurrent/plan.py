"""The compiled long short-term memory, with its weights packed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ... import threads
from ...caches import cache_bytes
from .. import team
from ..base import Array, read_only, round_up
from ..vectors import lanes
from . import kernels
from .geometry import GATES, Geometry

__all__ = ["CompiledLstm"]

# Of a direction's weights, up to which a thread goes through all steps of it alone: then they stay in its core's cache.
# Otherwise the threads share each step, and the cache of each holds its share.
ALONE_BYTES = (cache_bytes(2) or 1 << 20) // 2


class CompiledLstm:
    """The steps of an LSTM in float32, for what enters them: all but the products of the sequence itself.

    Parameters
    ----------
    recurrences
        ``(D, 4H, H)``, as ONNX has them.
    """

    def __init__(self, recurrences: Array) -> None:
        ways, _, size = recurrences.shape
        lane = lanes("float32")
        self.ways, self.size, self.units = ways, size, round_up(size, lane)
        rows = self.padded(recurrences).reshape(ways, GATES, self.units // lane, lane, size)
        self._weights = read_only(np.ascontiguousarray(rows.transpose(0, 2, 4, 1, 3)).reshape(-1))

    def padded(self, gates: Array) -> Array:
        """An array ``(D, 4H, ...)`` with zeros for the units that fill the last block."""
        ways, _, *rest = gates.shape
        whole = gates.reshape(ways, GATES, self.size, *rest)
        more = [(0, 0), (0, 0), (0, self.units - self.size), *[(0, 0)] * len(rest)]
        return np.pad(whole, more).reshape(ways, GATES * self.units, *rest)

    def __call__(self, entering: Array, h: Any, c: Any, backward: bool) -> tuple[Array, Array, Array]:
        """All outputs ``(T, D, N, H)``, and the last output and cell ``(D, N, H)``.

        Parameters
        ----------
        entering
            What enters the gates, ``(T, N, D * 4 * units)``.
        h, c
            What to begin with, ``(D, N, H)``, or None for zeros.
        backward
            Whether the only direction is the one from the end.
        """
        steps, sequences, _ = entering.shape
        ways, size, units = self.ways, self.size, self.units
        first, cells = np.zeros((2, ways, sequences, units), np.float32)
        for given, own in ((h, first), (c, cells)):
            if given is not None:
                own[..., :size] = given
        states = np.empty((steps, ways, sequences, units), np.float32)
        flat = [read_only(entering.reshape(-1)), read_only(first.reshape(-1)), cells.reshape(-1), states.reshape(-1)]
        alone = self._weights.nbytes // ways * 2 // ways <= ALONE_BYTES
        shares = 0 if alone else threads.allowed_threads()
        for job in _jobs(shares, backward, steps, ways, sequences, size):
            team.launch(kernels.lstm, shares or ways, self._weights, *flat, job)
        last = [states[0 if backward or way else steps - 1, way] for way in range(ways)]
        y = states if units == size else np.ascontiguousarray(states[..., :size])
        return y, np.stack(last)[..., :size], cells[..., :size]


@lru_cache(maxsize=64)
def _jobs(shares: int, backward: bool, steps: int, ways: int, sequences: int, size: int) -> tuple[Array, ...]:
    """The numbers of each job: of a direction and a step, or of all where there are no shares."""
    units = round_up(size, lanes("float32"))
    blocks = units // lanes("float32")
    tasks = shares * -(-blocks // shares) if shares else ways
    one_by_one = [(way, step, 1) for way in range(ways) for step in range(steps)]
    return tuple(
        read_only(
            np.array(
                Geometry(tasks, shares, blocks, way, int(backward), step, length, steps, ways, sequences, units, size),
                np.int64,
            )
        )
        for way, step, length in (one_by_one if shares else [(0, 0, steps)])
    )
