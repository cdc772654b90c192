"""The numbers that the kernels of `gemm` work by, in the order in which they unpack them."""

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
    wide: int  # whether the outputs lie in the lanes
    widest: int  # columns of a tile at most
    output_parts: int  # parts that the outputs of a group are computed in
    halo_rows: int
    halo_cols: int
    plane: int  # elements from plane to plane of a window
    row_stride: int
    col_stride: int
    left: int
    width: int
    taps: int  # of the kernel
    kernel_cols: int
    beyond: int  # the largest offset in the table of terms
    at_a_time: int  # channels whose terms are summed together
    by_tap: int  # whether the terms come tap by tap
    chunk: int  # terms that are added one after the other
    block: int  # columns of a block
    in_place: int  # whether the image is read where it lies
    row_by_row: int  # whether each row of outputs has tiles of its own
    stores: int  # how results are stored: see `finished_products`
    part_size: int  # elements of a thread's scratch memory
    window_size: int  # elements of a window
    sums_size: int  # elements of the partial sums
    results_size: int  # elements of results that are put together before they are stored
