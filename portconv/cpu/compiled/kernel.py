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
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.extending import intrinsic

from .cache import code_cache, note_need
from .compiling import compilation

__all__ = [
    "address",
    "address_of",
    "apart",
    "called_by_address",
    "code_of",
    "compiled_for",
    "declared",
    "elsewhere",
    "inner",
    "kernel",
    "table",
    "words",
]

# A child that is forked while another thread compiles would wait for the compiler's lock for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


# What Numba does for closures, array expressions, parallel loops and literals, of which kernels have none.
_NEEDLESS = {
    *("with_lifting", "inline_closure_likes", "find_literally", "literal_unroll", "inline_inlinables"),
    *("inline_overloads", "nopython_rewrites", "dump_parfor_diagnostics", "LiteralPropagation"),
}


class _Library(JITCodeLibrary):  # type: ignore[misc]  # Numba is not typed here
    """Machine code that LLVM optimises once, as a whole.

    Numba's own library has it optimise each function by itself before, which takes a fifth of the time of compiling.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout  # so that sizes of types are known, as Numba's own does


class _Compiler(CompilerBase):  # type: ignore[misc]
    """Numba's compiler, without the passes that kernels do not need: these took a tenth of the time."""

    library = _Library

    def define_pipelines(self) -> list[Any]:
        """The passes, which Numba asks for when it knows the function."""
        state = self.state
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()  # so that the code can be kept on disk
        found = PassManager("kernel")
        for which, description in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if which.name() not in _NEEDLESS:
                found.add_pass(which, description)
        found.finalize()
        return [found]


class _ThoroughCompiler(_Compiler):
    """The same, but LLVM optimises functions by themselves, too: loops over tiles and rows are a twentieth faster."""

    library = JITCodeLibrary


def kernel(function: Callable[..., Any]) -> Any:
    """The function, compiled when it is called first, and kept on disk."""
    return _compiled(function)


def inner(function: Callable[..., Any]) -> Any:
    """A function that kernels call, compiled into each of them; Python cannot call it.

    What makes Python's objects the numbers and arrays of a function takes as long to compile as a small function does.
    """
    return _compiled(function, no_cpython_wrapper=True)


def _compiled(function: Callable[..., Any], compiler: type[_Compiler] = _Compiler, **options: Any) -> Any:
    # No fastmath: NaN, Inf and the order of the sums are part of the contract. Nobody calls kernels from C, and their
    # memory is their caller's, so that nobody needs to count its users.
    options = {"no_cfunc_wrapper": True, **options}
    dispatcher = njit(nogil=True, error_model="numpy", _nrt=False, pipeline_class=compiler, **options)(function)
    dispatcher._cache = code_cache(function)  # what `cache=True` sets, which fails where no folder can be written
    dispatcher.compile = compilation()(dispatcher.compile)  # which Numba calls for code that is not in memory
    found = dispatcher.get_call_template

    def without_literals(given: Any, named: Any) -> Any:
        """Numba would compile the function once more for every literal that another one calls it with."""
        return found(tuple(map(types.unliteral, given)), named)

    dispatcher.get_call_template = without_literals
    return dispatcher


def called_by_address(function: Callable[..., Any]) -> Any:
    """The function as a kernel that others call as C would, by its address; see `address_of`."""
    return _compiled(function, no_cfunc_wrapper=False)


def address_of(function: Any, given: tuple[Any, ...]) -> int:
    """Where the code of such a kernel lies for arguments of these types, which is compiled or loaded."""
    overload = compiled_for(function, given)
    found: int = overload.library.get_pointer_to_function(overload.fndesc.llvm_cfunc_wrapper_name)
    return found


def apart(function: Callable[..., Any]) -> Any:
    """The function as a kernel that others call where it lies.

    Numba compiles what a kernel calls once more with it, and with the callers of that: the register tiles of `gemm`
    were compiled five times. What is called so is compiled once. It costs some nanoseconds a call.
    """
    compiled = _compiled(function, _ThoroughCompiler, no_cpython_wrapper=True)

    def typed(_context: Any, *arguments: Any) -> Any:
        given = tuple(map(types.unliteral, arguments))
        result = compiled_for(compiled, given).signature.return_type

        def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
            callee = declared(context, b.module, compiled, given)
            values = cgutils.unpack_tuple(b, args[0])
            # kernels raise nothing, so there is no status to look at
            return context.call_conv.call_function(b, callee, result, given, values)[1]

        return result(types.Tuple(given)), lower

    call = intrinsic(typed)
    call.kernel = compiled
    return call


def elsewhere(result: Any, given: Callable[[Any], tuple[Any, ...]]) -> Callable[[Callable[..., Any]], Any]:
    """The function as a kernel of several kinds, each compiled by itself when it is asked for.

    Its first argument is the kind, whose value it has as a literal type. Others call it as `function(code, arguments)`
    with what `code_of` gives for a kind, so that none of them is compiled anew for another one. `given` are the types
    of these arguments for the type of the first one.
    """

    def decorated(function: Callable[..., Any]) -> Any:
        def typed(_context: Any, _code: Any, arguments: Any) -> Any:
            own = given(arguments[0])

            def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
                kinds = (types.int64, *own)
                # the code stands in the place of the kind, whose value nobody reads
                values = [args[0], *cgutils.unpack_tuple(b, args[1])]
                kind = context.call_conv.get_function_type(result, kinds)
                callee = b.inttoptr(args[0], kind.as_pointer())
                return context.call_conv.call_function(b, callee, result, kinds, values)[1]

            return result(types.int64, types.Tuple(own)), lower

        call = intrinsic(typed)
        call.kernel, call.given = _compiled(function, no_cpython_wrapper=True), given
        return call

    return decorated


def code_of(function: Any, kind: int, first: Any) -> int:
    """Where the code of such a kernel lies for a kind, and a first argument of this type."""
    overload = compiled_for(function.kernel, (types.literal(kind), *function.given(first)))
    found: int = overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)
    return found


def words(count: int) -> Any:
    """For compiled code: a function of an address, an int64, that gives so many integers from there on as a tuple."""
    kind = types.UniTuple(types.int64, count)

    def typed(_context: Any, address: Any) -> Any:
        def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
            return b.load(b.inttoptr(args[0], context.get_value_type(kind).as_pointer()), align=8)

        return kind(address), lower

    return intrinsic(typed)


def _address(_context: Any, array: Any) -> Any:
    def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, b, args[0]).data
        return b.ptrtoint(data, context.get_value_type(types.int64))

    return types.int64(array), lower


def _table(_context: Any, tables: Any, _number: Any) -> Any:
    def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
        memory, number = context.make_array(tables)(context, b, args[0]).data, args[1]
        begin, end = b.load(b.gep(memory, [number])), b.load(b.gep(memory, [b.add(number, number.type(1))]))
        size = context.get_constant(types.intp, tables.dtype.bitwidth // 8)
        found = context.make_array(tables)(context, b)
        context.populate_array(
            found, data=b.gep(memory, [begin]), shape=[b.sub(end, begin)], strides=[size], itemsize=size, meminfo=None
        )
        return found._getvalue()

    return tables(tables, types.int64), lower


# For compiled code, in a line where Numba would take several functions of its own:
address = intrinsic(_address)  # of an array's first element, an int64
table = intrinsic(_table)  # (tables, n): the table of this number, flat, of what `one_array` made


def compiled_for(function: Any, given: tuple[Any, ...]) -> Any:
    """The kernel's code for arguments of these types, compiled or loaded."""
    function.compile(given)
    return function.overloads[given]


def declared(context: Any, module: Any, function: Any, given: tuple[Any, ...]) -> Any:
    """The kernel as a function outside of an LLVM module that calls it, which needs its code from now on."""
    overload = function.overloads[given]
    note_need(context.active_code_library, function, given, overload.fndesc.mangled_name)
    return context.declare_function(module, overload.fndesc)
