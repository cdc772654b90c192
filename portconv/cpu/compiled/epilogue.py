"""The epilogue in the compiled tier: what is applied to a sum where a kernel stores it.

A kernel gets an array of records, one for each output channel and some neutral ones behind them, and hands a record's
address to what stores its sums. So the kernels know neither what a record holds nor what is done with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernel import address, kernel
from .vectors import OUTPUT_VECTORS, ROWS, Vectors, lanes

__all__ = ["RECORD", "Finish", "gather_phases", "gather_records", "neutral_records", "record", "with_bias"]

RECORD = 1  # elements of a record: the bias
MAX_TILE = max(ROWS, OUTPUT_VECTORS * lanes("float32"))  # outputs of a register tile


def neutral_records(channels: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The records of a call without a bias.

    Behind the last channel's follow zeros, for as many more as a register tile has outputs. They change nothing, and
    are for sums that are not complete yet.
    """
    return np.zeros((channels + MAX_TILE) * RECORD, dtype)


def with_bias(neutral: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The records of a call with a bias, made of those without."""
    found = np.array(neutral)
    found[: bias.size] = bias.ravel()
    return found


class Finish:
    """For intrinsics: `finish(sums)` is a vector of sums with its epilogue.

    Parameters
    ----------
    v
        The vector operations.
    record
        Address of a record, or of vectors that have the record of a channel in each lane.
    splat
        Whether all lanes are of one channel, whose record it is.
    """

    def __init__(self, v: Vectors, record: Any, *, splat: bool) -> None:
        self._v = v
        self._bias = v.load_splat(record) if splat else v.load(record)

    def __call__(self, sums: Any) -> Any:
        return self._v.b.fadd(sums, self._bias)


@kernel
def record(epilogue, channel):
    """The address of a channel's record."""
    return address(epilogue) + channel * RECORD * epilogue.itemsize


@kernel
def gather_records(epilogue, first, step, lanes, out):
    """The records of every `step`-th channel from the first, as `Finish` reads them from vectors."""
    for part in range(RECORD):
        for lane in range(lanes):
            out[part * lanes + lane] = epilogue[(first + lane * step) * RECORD + part]


@kernel
def gather_phases(epilogue, channels, lanes, out):
    """The records of vectors of pixels, whose channels lie side by side: for each channel that one may begin with."""
    for first in range(channels):
        for part in range(RECORD):
            for lane in range(lanes):
                out[(first * RECORD + part) * lanes + lane] = epilogue[(first + lane) % channels * RECORD + part]
