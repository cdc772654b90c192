"""The numbers that the kernels of `direct` work by, in the order in which they unpack them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Geometry"]


class Geometry(NamedTuple):
    """All sizes and strides are in elements. The kernels get it as a plain tuple, from `CompiledPlan.numbers`."""

    batch: int
    inputs: int  # of a group
    outputs: int
    group_outputs: int  # of a group
    kh: int
    kw: int
    dh: int
    dw: int
    top: int
    left: int
    height: int
    width: int
    out_rows: int
    out_cols: int
    strips: int  # of rows
    col_strips: int  # of columns
    copied: int  # whether a strip is copied with its padding
    rows: int  # of a patch
    vectors: int  # of a patch, side by side
    chunk: int  # terms that are added one after the other
    part_size: int  # elements of a thread's scratch memory
    window_size: int  # elements of a window
    window_rows: int  # of a strip with its halo
    window_cols: int  # of a strip with its halo
    pixel: int  # channels that lie side by side, with one kernel for all of them
    line: int  # elements from row to row of a window, or of what is between two passes
    between_size: int  # elements of what is between two passes
    table_size: int  # elements that a table of rows takes
    together: int  # tasks that a thread takes at a time, which share a window
