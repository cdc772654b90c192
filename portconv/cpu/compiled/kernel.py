"""How kernels are compiled: when they are called first, kept on disk, and without Python's lock.

Arrays are flat, with the strides of their axes in elements, so that one compilation serves every layout; what changes
from call to call is passed as arguments, what is fixed by the plan as one tuple of integers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.compiler_lock import global_compiler_lock

from .cache import code_cache
from .compiling import compilation

__all__ = ["kernel"]

# A child that is forked while another thread compiles would wait for the compiler's lock for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def kernel(function: Callable[..., Any]) -> Any:
    """The function, compiled when it is called first, and kept on disk."""
    # No fastmath: NaN, Inf and the order of the sums are part of the contract.
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    dispatcher._cache = code_cache(function)  # what `cache=True` sets, which fails where no folder can be written
    dispatcher.compile = compilation()(dispatcher.compile)  # which Numba calls for code that is not in memory
    return dispatcher
