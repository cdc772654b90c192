"""The OpenMP library whose threads PyTorch's operators run on, so that portconv's engines run on them as well.

Threads that have no work wait at work for the next: PyTorch's between two of its operators, those of a team of our own
between two convolutions. In a network the two would take the cores from each other. Its own operators start a parallel
region by `GOMP_parallel`, which GNU's library has, and LLVM's and Intel's for its sake.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

from ...cpu.threads import OpenMP

__all__ = ["found"]


def _find() -> OpenMP | None:
    """What PyTorch's own calls reach: the first in the process's global scope, then among what PyTorch brings."""
    if sys.platform == "win32" or not torch.backends.openmp.is_available():
        return None
    suffix = "dylib" if sys.platform == "darwin" else "so"
    for name in (None, str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}")):
        with suppress(OSError, AttributeError):  # no such library; no such function
            library = ctypes.CDLL(name)
            addresses = [_address(library[function]) for function in ("GOMP_parallel", "omp_get_thread_num")]
            return OpenMP(*addresses)
    return None


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]  # a function is cast, too


found = _find()


def _forget() -> None:
    global found
    found = None  # a fork copies no threads, and the library would wait for them for ever


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
