"""The numbers that the kernels of `gemm` for channels last work by, in the order in which they unpack them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Geometry"]


class Geometry(NamedTuple):
    """All sizes are in elements. The kernels get it as a plain tuple, from `CompiledPlan.numbers`."""

    batch: int
    channels: int  # of the image
    inputs: int  # of a group
    outputs: int  # of a group
    tiles: int  # of a group's outputs
    vectors: int  # of outputs in a register tile
    strips: int  # of rows
    col_strips: int
    output_parts: int  # parts that the outputs are computed in
    width: int  # of the image
    out_rows: int
    out_cols: int
    row_stride: int
    col_stride: int
    reach: int  # rows of the padded image that an output meets
    reach_cols: int
    line: int  # pixels of a row of the window
    left: int
    terms: int  # of an output
    in_place: int  # whether the image is read where it lies
    run_on: int  # whether rows of outputs may follow each other as one
    widest: int  # pixels of a tile
    part_size: int  # of a thread's scratch memory
    window_size: int
    sums_size: int  # of partial sums
    tile_size: int  # of a register tile
