"""The numbers that the kernels work by."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GATES", "Geometry"]

GATES = 4


class Geometry(NamedTuple):
    """Of one job."""

    tasks: int
    shares: int  # of the blocks, one for each thread; 0 where tasks are whole directions
    blocks: int  # of units, of a direction
    first_way: int
    backward: int  # whether the only direction is the one from the end
    first_step: int
    length: int  # steps of a task
    steps: int
    ways: int
    sequences: int
    units: int  # of a direction, whole blocks
    terms: int  # of each unit's sums: units without those that fill the last block
