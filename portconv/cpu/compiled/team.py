"""What all kernels share: how they are compiled, and what a thread of the team works on.

A kernel takes its own number `part` and the number of `parts`, and does its share. A driver runs one kernel on every
thread of the team. Arrays are flat, with the strides of their axes in elements, so that one compilation serves
every layout; what changes from call to call is passed as arguments, what is fixed by the plan as one tuple of integers.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.compiler_lock import global_compiler_lock

from .cache import code_cache
from .compiling import compilation

__all__ = ["compile_ahead", "driver", "kernel"]

# A child that is forked while another thread compiles would wait for the compiler's lock for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def kernel(function: Callable[..., Any]) -> Any:
    """The function, compiled when it is called first, and kept on disk."""
    return _kept(function)


def driver(function: Callable[..., Any]) -> Any:
    """The same for a function whose `prange` runs on every thread of the team."""
    return _kept(function, parallel=True)


def _kept(function: Callable[..., Any], **options: bool) -> Any:
    # No fastmath: NaN, Inf and the order of the sums are part of the contract.
    dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
    dispatcher._cache = code_cache(function)  # what `cache=True` sets, which fails where no folder can be written
    dispatcher.compile = compilation()(dispatcher.compile)  # which Numba calls for code that is not in memory
    return dispatcher


def compile_ahead(alone: Any, team: Any, parts: int, *arguments: Any) -> list[str]:
    """What `threads.launch` does, but nothing is run: both kernels are compiled for such arguments, or loaded.

    Returns
    -------
    list of str
        The names of the kernels that had to be compiled.
    """
    compiled = []
    with global_compiler_lock:  # what another thread compiles does not count
        for function, given in ((alone, arguments), (team, (parts, *arguments))):
            before = function.stats.cache_misses.total()
            bound = inspect.signature(function.py_func).bind(*given).arguments.values()
            function.compile(tuple(map(function.typeof_pyval, bound)))
            if function.stats.cache_misses.total() > before:
                compiled.append(function.__name__)
    return compiled
