"""The numbers that the kernels of `depthwise` work by, in the order in which they unpack them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Geometry"]


class Geometry(NamedTuple):
    """All sizes and strides are in elements. The kernels get it as a plain tuple, from `CompiledPlan.numbers`."""

    batch: int
    channels: int
    multiplier: int  # outputs of a channel
    blocks: int  # of as many channels as a vector has lanes
    strips: int  # of rows
    height: int
    width: int
    out_rows: int
    out_cols: int
    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    dw: int
    top: int
    left: int
    line: int  # pixels from row to row of the staged strip
    lead: int  # pixels before the first of a row
    exchanged: int  # whether the kernel slides over the image's pixels, and not they over the kernel
    run: int  # outputs side by side in registers
    chunk: int  # terms that are added one after the other
    least_rows: int  # of a staged strip
    part_size: int  # elements of a thread's scratch memory
    stage_size: int  # elements of the staged strip
    out_size: int  # elements of its results
