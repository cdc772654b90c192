"""Compiled code on disk: kept where that is possible, compiled anew where it is missing or damaged, never an error.

Numba keeps a function's code in a file per signature (.nbc) and an index of these (.nbi), in `NUMBA_CACHE_DIR`, beside
the source or in the user's cache folder, whichever it can write first. Left to itself it refuses to make a function
where none can be written, and gives up on a file that a full disk or a killed process has cut short. It would also run
machine code in which a byte has changed; so the code is kept with a digest.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature
from numba.misc.appdirs import AppDirs

from . import compiling

__all__ = ["CodeCache", "code_cache", "note_need"]

_warned = False  # by this process


def code_cache(function: Callable[..., Any]) -> CodeCache | _NoCache:
    """Where the code of a function is kept; nowhere, with a warning, if no folder can be written."""
    try:
        return CodeCache(function)
    except RuntimeError:
        beside = str(Path(function.__code__.co_filename).parent / "__pycache__")
        user = AppDirs(appname="numba", appauthor=False).user_cache_dir
        tried = [folder for folder in (config.CACHE_DIR, beside, user) if folder]
        _warn(f"none of the folders {', '.join(tried)} can be written")
        return _NoCache(function)


def _warn(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"Compiled code is not kept, and every process will compile it anew: {reason}. "
            "Name a folder that can be written in NUMBA_CACHE_DIR.",
            stacklevel=2,
        )


NEEDS = "portconv_needs"  # of a library of code: what it calls in other ones


def note_need(library: Any, function: Any, given: tuple[Any, ...], symbol: str) -> None:
    """Remember that a library calls the kernel `function`, for such arguments, by a symbol."""
    needs = library.__dict__.setdefault(NEEDS, [])
    needs.append((function.py_func.__module__, function.py_func.__name__, given, symbol))


def _needs(library: Any) -> list[tuple[Any, ...]]:
    """What a library calls in other ones, by itself or in what was compiled into it."""
    needs = list(library.__dict__.get(NEEDS, ()))
    for part in library._linking_libraries:
        needs += [need for need in _needs(part) if need not in needs]
    return needs


class DamagedError(Exception):
    """What a file holds is not what was written, or not what was asked for."""


class _CheckedCode(CompileResultCacheImpl):  # type: ignore[misc]
    """Compiled code as bytes, with their digest and what they were compiled from and for.

    An index that was begun anew numbers its files anew, and a process killed between the two writes leaves it with the
    old files: so the index alone does not say what a file holds. Nor does Numba look at the sources of the functions
    that a function calls, whose code is part of its own.
    """

    def reduce(self, cres: Any) -> Any:
        """What is written."""
        needs = _needs(cres.library)
        data = dumps((self._origin(cres.library.codegen), needs, super().reduce(cres)))
        return hashlib.sha256(data).digest(), data

    def rebuild(self, target_context: Any, reduced_data: Any) -> Any:
        """The code, out of what was read."""
        digest, data = reduced_data
        if hashlib.sha256(data).digest() != digest:
            raise DamagedError
        origin, needs, payload = pickle.loads(data)
        if origin != self._origin(target_context.codegen()):
            raise DamagedError
        for module, name, given, symbol in needs:
            function = getattr(importlib.import_module(module), name)
            function = getattr(function, "kernel", function)  # of one that is called apart
            function.compile(given)
            if function.overloads[given].fndesc.mangled_name != symbol:  # compiled anew: LLVM would not find it
                raise DamagedError
        found = super().rebuild(target_context, payload)
        found.library.__dict__[NEEDS] = needs
        return found

    def _origin(self, codegen: Any) -> tuple[Any, ...]:
        return numba.__version__, self.locator.get_source_stamp(), _sources(), codegen.magic_tuple()


@lru_cache(maxsize=1)
def _sources() -> bytes:
    """A digest of what compiled code is made of: the sources of this tier but its plans, and Winograd's matrices."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    for file in [*sorted(here.rglob("*.py")), here.parents[1] / "engines" / "winograd.py"]:
        if not file.stem.endswith(("plan", "plans")):
            digest.update(file.read_bytes())
    return digest.digest()


class _NoCache(NullCache):  # type: ignore[misc]
    """For a function whose code is not kept."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def load_overload(self, sig: Any, target_context: Any) -> None:
        """Numba compiles what is not found."""
        compiling.begin(self._function, None)


class CodeCache(FunctionCache):  # type: ignore[misc]
    """The files of one function. Whatever goes wrong with them costs time, and no result."""

    _impl_class = _CheckedCode

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for a signature, or None: then Numba compiles it, and it is this process's turn to do so."""
        found = self._found(sig, target_context)
        if found is None:
            compiling.begin(self._py_func, self.cache_path)
            found = self._found(sig, target_context)  # another process may have compiled it meanwhile
        return found

    def _found(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
            if found is not None and tuple(found.signature.args) != tuple(normalize_signature(sig)[0]):
                raise DamagedError
        except Exception:  # noqa: BLE001  damaged bytes raise anything, a MemoryError too
            return None
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for a signature, in the place of damaged files too."""
        try:
            try:
                super().save_overload(sig, data)
            except Exception:  # noqa: BLE001  as above: the index is read before it is written
                self.flush()
                super().save_overload(sig, data)
        except Exception as error:  # noqa: BLE001  a computation does not fail for it
            _warn(f"{self.cache_path} cannot be used ({type(error).__name__}: {error})")
