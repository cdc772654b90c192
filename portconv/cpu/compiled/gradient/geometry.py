"""The numbers that the kernels of the weight's gradient work by, in the order in which they unpack them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Geometry"]


class Geometry(NamedTuple):
    """All sizes are in elements. The kernels get it as a plain tuple."""

    groups: int
    inputs: int  # of a group
    outputs: int  # of a group
    pixels: int  # whether the stage has pixels with their channels side by side, and not blocks of channels
    blocks: int  # of channels of a group in the stage
    block_size: int  # of the stage
    image_size: int  # of the stage
    stage_cols: int
    halo_rows: int  # of the stage, besides those of outputs
    row_step: int  # rows of the stage from output to output
    col_step: int  # from output to output, in elements of the stage
    line: int  # from row to row of the stage
    shift: int  # columns from the image's first one to that at the column `left` of the stage
    apart: int  # columns of the image from column to column of the stage
    left: int  # columns of the stage before the image
    width: int  # columns of the image in the stage
    taps: int  # places in the stage that an output reads vectors from
    vectors: int  # at each of them
    vector_step: int  # from one of these to the next
    tile_rows: int  # outputs of a register tile
    tile_vectors: int  # of it
    at_a_time: int  # outputs of a task
    chunk: int  # terms that are added one after the other
    near: int  # positions that all tiles of a task read one after the other, while they are in the first cache
    out_cols: int
    images_as_lines: int  # whether the outputs of an image follow each other like those of a row
    part_size: int  # elements of a thread's scratch memory
