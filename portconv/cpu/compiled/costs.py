"""What the compiled engines' steps cost: the constants of their estimates, fitted by `benchmarks/fit_costs.py`."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMPILED", "CompiledCosts"]


class CompiledCosts(NamedTuple):
    """Seconds per count, on one thread."""

    launch: float  # a call of the kernels, whatever they do
    product: float  # a vector multiplied and added, in a register tile of several rows
    single: float  # the same, where the tile has one row: every vector is loaded for one multiplication
    tap: float  # the same in `direct`
    patch: float  # a patch of `direct`
    transform: float  # an element of a Winograd tile, one vector of channels, into or out of the transform
    stage: float  # a vector of channels, put in order for the transforms
    turned: float  # a vector of channels, transposed to or from their planes
    padded: float  # a vector of columns, copied into a padded strip or stored as results of one
    filled: float  # an element copied into a window, one after the other
    strided: float  # the same with a stride
    row: float  # a row copied into a window
    line: float  # a run of results stored
    stored: float  # a vector of results stored
    task: float  # a task: a strip of a group
    weight: float  # a byte of weights read from beyond the caches
    packed: float  # an element of a packed weight


COMPILED = CompiledCosts(
    launch=1.2e-5, product=2.8e-10, single=4.5e-10, tap=4.5e-10, patch=6e-8, transform=7e-10, stage=4e-9, turned=2e-9,
    padded=7.5e-10, filled=1.2e-10, strided=7e-10, row=1e-8, line=8e-9, stored=1.5e-9, task=3e-7, weight=3e-11,
    packed=1e-9,
)  # fmt: skip
