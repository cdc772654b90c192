"""What an operation costs, by kind of device: the constants of the candidates' estimates.

Each is a time for a count that an engine knows from the sizes alone. They rank candidates; they do not promise
milliseconds.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CPU", "GENERIC", "Costs"]


class Costs(NamedTuple):
    """Seconds per operation."""

    gemm_flop: float  # one multiplication or addition inside a matrix product, on all threads
    fft_flop: float  # one operation of a transform, `2.5 n log2 n` of them each, on all threads
    element: float  # one element read, combined and written by an elementwise step, on one thread
    row: float  # one run of elements within such a step, or one product within a batch of products
    call: float  # one call of a library function
    task: float  # one block: its window, its place in the result
    threads: int  # what elementwise steps gain where they run in parallel


# Fitted on two cores of an AMD EPYC (Zen 4) with NumPy 2.4, by benchmarks/fit_costs.py.
CPU = Costs(gemm_flop=6.4e-12, fft_flop=6.5e-11, element=3.2e-11, row=9.8e-12, call=2.7e-7, task=1.9e-4, threads=2)
# Any other library: calls cost more, and elementwise steps use what threads the library has.
GENERIC = Costs(gemm_flop=6e-12, fft_flop=8e-11, element=1.5e-10, row=1e-8, call=6e-6, task=5e-5, threads=1)
