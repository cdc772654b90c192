"""The numbers that the kernels of `winograd` work by, in the order in which they unpack them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Geometry"]


class Geometry(NamedTuple):
    """All sizes and strides are in elements. The kernels get it as a plain tuple, which Numba unpacks at less cost."""

    channels: int
    c_pad: int  # channels in whole vectors
    outputs: int
    o_pad: int  # outputs in whole vectors
    down: int  # rows of tiles of an image
    row_tiles: int  # tiles of a row
    segments: int  # parts of a row
    across: int  # tiles of a line, which is a segment
    mh: int  # outputs of a tile
    mw: int
    nh: int  # inputs of a tile
    nw: int
    out_rows: int
    row_cols: int  # columns of the result
    left: int
    width: int
    chunk: int  # terms that are added one after the other
    form: int  # the tile's place in the table of tiles
