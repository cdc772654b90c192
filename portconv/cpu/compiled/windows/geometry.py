"""The numbers that the kernels of pooling and interpolation work by, in the order in which they unpack them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MeanGeometry", "PoolingGeometry", "ResizingGeometry"]


class PoolingGeometry(NamedTuple):
    """All sizes are in elements. The kernels get it as a plain tuple."""

    batch: int
    planes: int
    cell: int
    strips: int  # of rows of outputs
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
    kind: int  # LARGEST or SUM
    rows_first: int  # whether rows are joined into a line
    whole_first: int  # the first column of outputs whose window lies in the image, and how many there are
    wholes: int
    part_size: int  # elements of a thread's scratch memory
    line_size: int  # elements of a line
    row_size: int  # elements of a row of the image


class ResizingGeometry(NamedTuple):
    """All sizes are in elements. The kernels get it as a plain tuple."""

    batch: int
    planes: int
    cell: int
    strips: int  # of rows of outputs
    width: int
    out_rows: int
    out_cols: int
    row_kind: int  # NEAREST or LINEAR
    col_kind: int
    part_size: int  # elements of a thread's scratch memory
    line_size: int  # elements of a row of outputs
    row_size: int  # elements of a row of the image


class MeanGeometry(NamedTuple):
    """All sizes are in elements. The kernels get it as a plain array."""

    tasks: int
    blocks: int  # of channels, of an image in NHWC; 0 in NCHW
    planes: int  # of all images, or channels of an image
    some: int  # of them in a task
    pixels: int
