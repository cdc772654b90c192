"""Memory beside pages that nobody may touch: whoever reads or writes beyond an array there is killed.

Linux alone: the pages are protected by its mprotect.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from portconv.cpu import threads
from portconv.cpu.compiled import base, epilogue
from portconv.cpu.compiled.channels_last import plan as last_plan
from portconv.cpu.compiled.depthwise import plan as depthwise_plan
from portconv.cpu.compiled.direct import plan as direct_plan
from portconv.cpu.compiled.excitation import plan as excitation_plan
from portconv.cpu.compiled.gemm import plan as gemm_plan
from portconv.cpu.compiled.gradient import plan as gradient_plan
from portconv.cpu.compiled.recurrent import plan as recurrent_plan
from portconv.cpu.compiled.stencil import plan as stencil_plan
from portconv.cpu.compiled.windows import plan as windows_plan
from portconv.cpu.compiled.winograd import plan as winograd_plan

PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(shape, dtype, at_the_end=True):
    """An array that ends before, or begins after, a page that must not be touched."""
    count = int(np.prod(shape))
    nbytes = count * np.dtype(dtype).itemsize
    if nbytes == 0:
        return np.empty(shape, dtype)
    pages = -(-nbytes // PAGE) * PAGE
    area = mmap.mmap(-1, pages + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in (start, start + PAGE + pages):
        if _libc.mprotect(page, PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return np.frombuffer(area, dtype, count, PAGE + (pages - nbytes if at_the_end else 0)).reshape(shape)


def copy(a, at_the_end=True):
    """The same values beside such a page."""
    b = guarded(a.shape, a.dtype, at_the_end)
    b[...] = a
    return b


class GuardedNumPy:
    """NumPy for a module whose results, packed weights and tables are to lie beside such pages."""

    def __init__(self):
        self.made, self.at_the_end = 0, True

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        self.made += 1
        return guarded(shape, dtype, self.at_the_end)

    def zeros(self, shape, dtype=float):
        return copy(np.zeros(shape, dtype), self.at_the_end)

    def array(self, *args, **kwargs):
        return copy(np.array(*args, **kwargs), self.at_the_end)

    def ascontiguousarray(self, a, dtype=None):
        return copy(np.ascontiguousarray(a, dtype), self.at_the_end)

    def scratch(self, count, dtype, use=""):
        """For `threads.scratch`; full of NaN, or the largest integers: no result may depend on what it held before."""
        memory = guarded((count,), dtype, self.at_the_end)
        memory[...] = np.iinfo(memory.dtype).max if memory.dtype.kind in "iu" else np.nan
        return memory


def install():
    """Let the compiled tier of this process have its memory there, on the side that `at_the_end` of the result says."""
    numpy = GuardedNumPy()
    modules = (
        base,
        epilogue,
        last_plan,
        depthwise_plan,
        direct_plan,
        excitation_plan,
        gemm_plan,
        gradient_plan,
        recurrent_plan,
        stencil_plan,
        windows_plan,
        winograd_plan,
    )
    for module in modules:
        module.np = numpy
    threads.scratch = numpy.scratch
    return numpy
