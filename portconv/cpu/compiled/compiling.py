"""What goes on around a compilation: one process at a time compiles, and whoever waits is told why.

Kernels take seconds to compile, and of a program that runs in several processes all want the same ones at once. The
first to come takes a lock in the folder where the code is kept, and the others find there what it has compiled. Where
that does not work, each process compiles for itself.

All that is remembered here belongs to the one thread of the process that has Numba's compiler lock.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

from numba.core.compiler_lock import global_compiler_lock

from ..locks import locked

__all__ = ["begin", "compilation"]

SILENT_SECONDS = 1.0  # of a compilation: shorter ones are no news
LOCK_SECONDS = 120.0  # to wait for another process: many times what an engine takes
PAUSE = 0.05  # between two looks at the lock

_under_way: list[ExitStack] = []  # a function's compilation, and in it those of the functions that it calls
_folders: set[str] = set()  # in which it is this process's turn
_patient = True  # until a lock was held for too long: then this process waits for no other one any more
_waiting = False  # for another process, at the moment
_timer: Timer | None = None
_told = False  # once is enough


@contextmanager
def compilation() -> Iterator[None]:
    """Around whatever loads a function's code or compiles it: what `begin` has begun ends with it."""
    with global_compiler_lock, ExitStack() as ends:
        _under_way.append(ends)
        try:
            yield
        finally:
            _under_way.pop()


def begin(function: Callable[..., Any], folder: str | None) -> None:
    """Prepare for compiling a function, whose code is not in the folder; None where no folder can keep it.

    When it returns, another process may have put the code there.
    """
    _under_way[-1].enter_context(_noticed(function.__module__.split("."), folder))
    if folder is not None:
        _under_way[-1].enter_context(_turn(folder))


# --- one process at a time --------------------------------------------------------------------------------------------


@contextmanager
def _turn(folder: str) -> Iterator[None]:
    """Wait for the processes that compile for the folder; the turn lasts until the function is compiled, and written.

    A function takes its folder's turn before those of the functions that it calls. No two call each other, so neither
    do two processes wait for each other.
    """
    global _patient, _waiting
    if not _patient or folder in _folders:
        yield
        return
    with ExitStack() as ends:
        _waiting = True
        try:
            _patient = ends.enter_context(locked(Path(folder) / "portconv.lock", LOCK_SECONDS, PAUSE))
        except OSError:  # the code will not be kept either, and that is what the user will be told
            pass
        finally:
            _waiting = False
        _folders.add(folder)
        ends.callback(_folders.discard, folder)
        yield


# --- a word about it --------------------------------------------------------------------------------------------------


@contextmanager
def _noticed(module: list[str], folder: str | None) -> Iterator[None]:
    """If it takes long, say so: once in a process."""
    global _timer
    if _told or _timer is not None or os.environ.get("PORTCONV_QUIET", "0").strip() not in ("", "0"):
        yield
        return
    timer = Timer(SILENT_SECONDS, _tell, (_of_what(module), folder))
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # there can be no more threads, as at the end of the process: then it is done in silence
        yield
        return
    _timer = timer
    try:
        yield
    finally:
        _timer = None
        timer.cancel()
        timer.join(SILENT_SECONDS)  # Python warns of forks while there are other threads


def _of_what(module: list[str]) -> str:
    """The engine, whose folder has a file `kernels`, or what a file of other kernels is for."""
    return module[-2] if module[-1] == "kernels" else {"jobs": "the team"}.get(module[-1], module[-1])


def _tell(what: str, folder: str | None) -> None:
    """To those who have set up logging as they like it, and to all others on stderr, if there is one."""
    global _told
    _told = True
    if _waiting:
        text = f"another process is compiling the kernels of {what} for this machine, once; waiting for it"
    else:
        kept = "no folder can keep them" if folder is None else f"later processes find them in {folder}"
        text = f"compiling the kernels of {what} for this machine, once, as of each engine, for some seconds; {kept}"
    logger = logging.getLogger("portconv")
    with suppress(Exception):  # a closed stream, a handler that fails: nothing that a convolution should fail for
        if logger.hasHandlers():
            logger.info(text)
        else:
            sys.stderr.write(f"portconv: {text}\n")
            sys.stderr.flush()
