"""The numbers that the kernels of the stencil work by, in the order in which they unpack them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Geometry"]


class Geometry(NamedTuple):
    """All sizes and strides are in elements. The kernels get it as a plain tuple, from `CompiledPlan.numbers`."""

    batch: int
    channels: int
    multiplier: int  # outputs of a channel
    together: int  # channels of a task
    strips: int  # of rows
    height: int
    width: int
    out_rows: int
    out_cols: int
    kh: int
    kw: int
    sh: int
    sw: int
    top: int
    left: int
    zeros: int  # whether what stands in the padding is zero
    tile: int  # number of the tile of one vector; that of two is the next one
    rows: int  # of a tile
    phases: int  # of the columns: each is a plane of the strip of its own
    pitch: int  # elements from row to row of a phase
    part_size: int  # elements of a thread's scratch memory
    strip_size: int  # elements of a padded strip
    image_size: int  # elements of a strip of an image whose numbers are converted
    results_size: int  # elements of a strip of results that are converted
