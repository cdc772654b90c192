"""The numbers that the kernels of transposed convolutions work by, in the order in which they unpack them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Geometry"]


class Geometry(NamedTuple):
    """All sizes and strides are in elements. The kernels get it as a plain tuple, from `CompiledPlan.numbers`."""

    batch: int
    groups: int
    inputs: int  # of a group
    outputs: int  # of a group
    tile_rows: int  # outputs in a register tile
    widest: int  # vectors of a tile at most
    output_parts: int  # parts that the outputs of a group are computed in
    halo_rows: int
    line: int  # columns of the window
    plane: int  # elements from channel to channel of the window
    left: int
    width: int
    cols: int  # of a phase
    row_step: int  # rows of the result from one to the next of a phase
    col_step: int
    out_cols: int
    chunk: int  # terms that are added one after the other
    block: int  # vectors of a block
    part_size: int  # elements of a thread's scratch memory
    window_size: int  # elements of the window
    sums_size: int  # elements of the partial sums
