"""What all kernels share: how they are compiled, and what a thread of the team works on.

A kernel takes its own number `part` and the number of `parts`, and does its share. A driver runs one kernel on every
thread of the team. Arrays are flat, with steps between their axes counted in elements, so that one compilation serves
every layout; what changes from call to call is passed as arguments, what is fixed by the plan as one tuple of integers.
"""

from __future__ import annotations

from numba import njit

__all__ = ["driver", "kernel"]

# No fastmath: NaN, Inf and the order of the sums are part of the contract.
kernel = njit(nogil=True, cache=True, error_model="numpy")
driver = njit(nogil=True, cache=True, error_model="numpy", parallel=True)
