"""Keeps NumPy's BLAS to the threads that portconv may use: to one where several threads of portconv call it.

OpenBLAS splits a product over all its threads, which small products lose by, and two callers at a time fight for them.
Its setting is one for the whole process: callers lower it to what they need, and the last of them puts it back.

The package `threadpoolctl` sets the same number, as fast if its controller is kept, some eighty times slower if not.
But each of its users puts back what it found: of two threads whose limits overlap, the first to leave lifts that of the
second, and the second leaves the process limited for ever. Nor does it know of forks. So this file counts the users.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

__all__ = ["can_limit", "limited"]

_lock = Lock()
_users = 0
_before = 1


class _Setting(NamedTuple):
    get: Callable[[], int]
    set: Callable[[int], None]


@lru_cache(maxsize=1)
def _setting() -> _Setting | None:
    """The functions of the OpenBLAS in NumPy's wheels; other libraries are left alone."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for file in sorted(folder.glob("*openblas*")):
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(str(file))
                for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
                    if hasattr(library, f"{prefix}openblas_set_num_threads{suffix}"):
                        return _Setting(
                            library[f"{prefix}openblas_get_num_threads{suffix}"],
                            library[f"{prefix}openblas_set_num_threads{suffix}"],
                        )
    return None


def _after_fork() -> None:
    global _lock, _users
    if _users and (setting := _setting()) is not None:  # the thread that would put it back is not here
        setting.set(_before)
    _lock, _users = Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def can_limit() -> bool:
    """Whether `limited` has an effect."""
    return _setting() is not None


def limited(count: int) -> AbstractContextManager[object]:
    """Within it, in any thread, NumPy's products use so many threads at most, the calling one among them."""
    setting = _setting()
    if setting is None or (_users == 0 and setting.get() <= count):
        return contextlib.nullcontext()
    return _lowered(setting, count)


@contextlib.contextmanager
def _lowered(setting: _Setting, count: int) -> Iterator[None]:
    global _users, _before
    with _lock:
        current = setting.get()
        if _users == 0:
            _before = current
        if count < current:
            setting.set(count)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                setting.set(_before)
