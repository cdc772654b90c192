"""How kernels are compiled: when they are called first, kept on disk, and without Python's lock.

Memory is a flat array, with the strides of its axes in bytes, so that one compilation serves every layout; what changes
from call to call is passed as arguments, what is fixed by the plan as one tuple of integers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic, register_jitable

from .cache import code_cache, note_need
from .compiling import compilation

__all__ = ["apart", "compiled_for", "declared", "kernel", "words"]

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


def apart(function: Callable[..., Any]) -> Any:
    """The function as a kernel that others call where it lies.

    Numba compiles what a kernel calls once more with it, and with the callers of that: the register tiles of `gemm`
    were compiled five times. What is called so is compiled once. It costs some nanoseconds a call.
    """
    compiled = kernel(function)

    def typed(_context: Any, arguments: Any) -> Any:
        given = tuple(map(types.unliteral, arguments))
        result = compiled_for(compiled, given).signature.return_type

        def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
            callee = declared(context, b.module, compiled, given)
            values = cgutils.unpack_tuple(b, args[0])
            # kernels raise nothing, so there is no status to look at
            return context.call_conv.call_function(b, callee, result, given, values)[1]

        return result(types.Tuple(given)), lower

    call_compiled = intrinsic(typed)

    def call(*arguments: Any) -> Any:
        return call_compiled(arguments)

    call.kernel = compiled  # type: ignore[attr-defined]
    return register_jitable(call)


def words(count: int) -> Any:
    """For compiled code: a function of an address, an int64, that gives so many integers from there on as a tuple."""
    kind = types.UniTuple(types.int64, count)

    def typed(_context: Any, address: Any) -> Any:
        def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
            return b.load(b.inttoptr(args[0], context.get_value_type(kind).as_pointer()), align=8)

        return kind(address), lower

    return intrinsic(typed)


def compiled_for(function: Any, given: tuple[Any, ...]) -> Any:
    """The kernel's code for arguments of these types, compiled or loaded."""
    function.compile(given)
    return function.overloads[given]


def declared(context: Any, module: Any, function: Any, given: tuple[Any, ...]) -> Any:
    """The kernel as a function outside of an LLVM module that calls it, which needs its code from now on."""
    overload = function.overloads[given]
    note_need(context.active_code_library, function, given, overload.fndesc.mangled_name)
    return context.declare_function(module, overload.fndesc)
