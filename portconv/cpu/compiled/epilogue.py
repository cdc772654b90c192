"""The epilogue in the compiled tier: what is applied to a sum where a kernel stores it.

A kernel gets an array of records, one for each output channel and some neutral ones behind them, and hands a record's
address to what stores its sums. So the kernels know neither what a record holds nor what is done with it. A record is
the channel's bias, and the address of what is the same for all channels of a call, or 0 where there is no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .activations import RESIDUAL, activated
from .kernel import address, inner
from .vectors import I64, OUTPUT_VECTORS, ROWS, VECTOR_BYTES, Vectors, joined, lanes

__all__ = [
    "RECORD",
    "RECORD_BYTES",
    "Finish",
    "gather_phases",
    "gather_records",
    "neutral_records",
    "prefetch_residual",
    "record",
    "with_call",
]

RECORD_BYTES = 16  # the bias in front, and from the middle on the address
RECORD = 2  # vectors of a gathered record: the biases of its lanes, and in front of the other the address
MAX_TILE = max(ROWS, OUTPUT_VECTORS * lanes("float32"))  # outputs of a register tile

Array = np.ndarray[Any, Any]


def neutral_records(channels: int, dtype: np.dtype[Any]) -> Array:
    """The records of a call with nothing to apply.

    Behind the last channel's follow some more, as many as a register tile has outputs. They change nothing, and are
    for sums that are not complete yet.
    """
    return np.zeros((channels + MAX_TILE) * RECORD_BYTES // dtype.itemsize, dtype)


def with_call(neutral: Array, channels: int, bias: Array | None, call: Array | None) -> Array:
    """The records of a call, made of neutral ones; its words, `call`, must live as long as they do."""
    found = np.array(neutral)
    if bias is not None:
        found.reshape(-1, RECORD_BYTES // found.itemsize)[: bias.size, 0] = bias.ravel()
    if call is not None:
        found.view(np.int64).reshape(-1, 2)[:channels, 1] = call.ctypes.data
    return found


class Finish:
    """For intrinsics: vectors of sums with their epilogue.

    Parameters
    ----------
    v
        The vector operations.
    records
        Addresses of records, or of gathered ones: one for each vector, or one for all. One call has made all of them.
    splat
        Whether all lanes of a vector are of one channel, whose record it is.
    """

    def __init__(self, v: Vectors, records: Sequence[Any], *, splat: bool) -> None:
        self._v = v
        loaded = {id(record): v.load_splat(record) if splat else v.load(record) for record in records}
        self._biases = [loaded[id(record)] for record in records]
        place = v.at(records[0], RECORD_BYTES // 2 if splat else VECTOR_BYTES)
        self._call = v.b.load(v.b.inttoptr(place, I64.as_pointer()))

    def __call__(self, sums: Sequence[Any], places: Sequence[Any] = (), inside: Any = None) -> list[Any]:
        """The vectors that are to be stored.

        `places` are where, if there may be a residual; of vectors that are not whole, the lanes `inside` are read.
        """
        v, b, biases = self._v, self._v.b, self._biases
        values = [b.fadd(total, biases[i % len(biases)]) for i, total in enumerate(sums)]
        before = b.block
        with b.if_then(b.icmp_signed("!=", self._call, I64(0)), likely=False):
            more = self._with_residual(values, places, inside) if places else values
            found = activated(v, more, self._call)
            after = b.block
        return joined(b, (values, before), (found, after))

    def _with_residual(self, values: list[Any], places: Sequence[Any], inside: Any) -> list[Any]:
        v, b = self._v, self._v.b
        difference = b.load(b.inttoptr(v.at(self._call, RESIDUAL * 8), I64.as_pointer()))
        before = b.block
        with b.if_then(b.icmp_signed("!=", difference, I64(0))):
            found = []
            for i, (value, place) in enumerate(zip(values, places, strict=True)):
                place = v.at(place, difference)
                mask = inside[i % len(inside)] if inside else None  # of vectors that lie side by side
                found.append(b.fadd(value, v.load(place) if mask is None else v.masked_load(place, mask)))
            after = b.block
        return joined(b, (values, before), (found, after))


def prefetch_residual(v: Vectors, record: Any, places: Sequence[Any]) -> None:
    """Ask for the residual of vectors that are stored soon at these places, if the call of their record has one."""
    b, word = v.b, I64.as_pointer()
    call = b.load(b.inttoptr(v.at(record, RECORD_BYTES // 2), word))
    with b.if_then(b.icmp_signed("!=", call, I64(0))):
        difference = b.load(b.inttoptr(v.at(call, RESIDUAL * 8), word))
        with b.if_then(b.icmp_signed("!=", difference, I64(0))):
            for place in places:
                v.prefetch(v.at(place, difference))


@inner
def record(epilogue, channel):
    """The address of a channel's record."""
    return address(epilogue) + channel * RECORD_BYTES


@inner
def gather_records(epilogue, first, step, lanes, out):
    """The records of every `step`-th channel from the first, as `Finish` reads them from vectors."""
    elements = RECORD_BYTES // epilogue.itemsize
    for lane in range(lanes):
        out[lane] = epilogue[(first + lane * step) * elements]
    for i in range(elements // 2):
        out[lanes + i] = epilogue[first * elements + elements // 2 + i]


@inner
def gather_phases(epilogue, channels, lanes, out):
    """The records of vectors of pixels, whose channels lie side by side: for each channel that one may begin with."""
    elements = RECORD_BYTES // epilogue.itemsize
    for first in range(channels):
        for lane in range(lanes):
            out[first * RECORD * lanes + lane] = epilogue[(first + lane) % channels * elements]
        for i in range(elements // 2):
            out[(first * RECORD + 1) * lanes + i] = epilogue[elements // 2 + i]
