"""The numbers that the kernels work by."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Geometry"]


class Geometry(NamedTuple):
    """Of one job. After these numbers come the words of the call of each product; see `activations.py`."""

    phase: int
    tasks: int
    some: int  # planes of a task, where tasks are planes
    channels: int
    hidden: int
    pixels: int
    channel_vectors: int
    hidden_vectors: int
