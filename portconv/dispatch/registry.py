"""Which backend serves an array, found by the type's name; no array library is imported to decide.

Looked up in this order: the `backend` argument, `use_backend`, the libraries that portconv knows, `register_backend`,
the entry points of the group `portconv.backends`, and last any library that follows the array API standard.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ..core import hints
from ..core.array_types import ENTRY_POINT_GROUP, extend, library_of, plugins
from ..core.backend import Backend, Plan, lacking
from ..core.errors import missing_library, no_array
from ..core.problem import Problem
from . import planner

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["available_backends", "get_backend", "is_known", "register_backend", "resolve", "use_backend"]

# top-level package of the array type -> (module with the adapter, the extra that installs the library)
_KNOWN: dict[str, tuple[str, str | None]] = {
    "numpy": ("portconv.backends.numpy", None),
    "mlx": ("portconv.backends.mlx", "mlx"),
    "torch": ("portconv.backends.torch", "torch"),
    "jax": ("portconv.backends.jax", "jax"),
    "cupy": ("portconv.backends.cupy", "cupy"),
    "dask": ("portconv.backends.dask", "dask"),
    "array_api_strict": ("portconv.backends.array_api", None),
}

# Whose arrays consist of arrays of other libraries: their back ends are handed how those are found and planned.
_OF_PARTS = {"dask"}

_registered: dict[str, Backend] = {}
_loaded: dict[str, Backend] = {}
extend(*_KNOWN)
_override: ContextVar[Backend | None] = ContextVar("portconv_backend", default=None)


def _plan(backend: Backend, problem: Problem, engine: str) -> Plan:
    return planner.plan(backend, problem, engine)


def _load(name: str, x: Any = None) -> Backend:
    """The backend of this name, importing its library; `x` is an array of the library, if there is one."""
    if name in _loaded:
        return _loaded[name]
    if name in _KNOWN:
        module, extra = _KNOWN[name]
        try:
            handed = (get_backend, _plan) if name in _OF_PARTS else ()
            backend: Backend = importlib.import_module(module).backend(name, *handed)
        except ImportError as error:
            raise missing_library(name, extra, error) from error
    elif name in _registered:
        return _registered[name]
    elif (entry := _plugin(name)) is not None:
        backend = _from_entry_point(entry)
    else:
        backend = _any_library(name, x)
    _loaded[name] = backend
    return backend


def _plugin(name: str) -> EntryPoint | None:
    """The plug-in for the array library `name`, or the one, for a library that portconv knows, of that name."""
    entries = plugins()
    for entry in entries:
        if entry.name == name and name not in _KNOWN:
            return entry
    for entry in entries:
        if entry.name in _KNOWN and _from_entry_point(entry).name == name:
            return entry
    return None


def _from_entry_point(entry: EntryPoint) -> Backend:
    found = entry.load()
    backend = found() if isinstance(found, type) else found
    if not isinstance(backend, Backend):
        raise TypeError(
            f"The entry point {entry.name!r} of {ENTRY_POINT_GROUP!r} ({entry.value}) is no portconv backend: "
            f"it lacks {', '.join(lacking(backend))}."
        )
    return backend


def _any_library(name: str, x: Any) -> Backend:
    """The adapter for any array API library, or an error that lists the names there are."""
    try:
        namespace = x.__array_namespace__() if x is not None else importlib.import_module(name)
    except (ImportError, ValueError, TypeError):
        namespace = None
    if namespace is None or not hasattr(namespace, "__array_namespace_info__"):
        known = sorted({*_KNOWN, *_registered, *(entry.name for entry in plugins())})
        raise ValueError(
            f"`backend` must be one of {', '.join(known)}, or the name of an array API library, but got {name!r}."
            f"{hints.word('backend', name, known)}"
        )
    backend: Backend = importlib.import_module("portconv.backends.base").ArrayApiBackend(name, namespace)
    return backend


def get_backend(x_or_name: Any, /) -> Backend:
    """The backend of an array, of a name, or the backend itself.

    Parameters
    ----------
    x_or_name
        An array of any library, a name such as ``"numpy"`` or ``"mlx"``, or a `Backend`.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If no backend has this name.
    ImportError
        If its library is not installed; the message names the extra to install.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.get_backend(np.zeros(3)).name
    'numpy'
    >>> portconv.get_backend("numpy").describe(np.zeros((1, 2), "float32"))
    ArrayInfo(shape=(1, 2), dtype='float32', device='cpu', traced=False)
    """
    if isinstance(x_or_name, str):
        return _load(x_or_name)
    if (library := library_of(x_or_name)) is not None:
        return _load(library, x_or_name)
    if isinstance(x_or_name, Backend):
        return x_or_name
    if hasattr(x_or_name, "candidates") and not isinstance(x_or_name, type):  # meant as a backend
        raise TypeError(f"`backend` {type(x_or_name).__name__} lacks {', '.join(lacking(x_or_name))}.")
    raise TypeError(
        f"`backend` must be a backend, its name or an array of its library, but got {type(x_or_name).__name__}. "
        f"Lists and numbers become arrays by `numpy.asarray`."
    )


def resolve(x: Any, backend: Any = None) -> Backend:
    """The backend that computes with `x`: the one named, the one of `use_backend`, or that of its library.

    Without any `x`, as where only shapes are known, the last is NumPy's.
    """
    if backend is not None:
        return get_backend(backend)
    chosen = _override.get()
    if chosen is not None:
        return chosen
    library = "numpy" if x is None else library_of(x)
    if library is None:
        raise no_array("x", x)
    return _loaded.get(library) or _load(library, x)


def is_known(name: str) -> bool:
    """Whether `get_backend` finds a backend of this name."""
    return name in _KNOWN or name in _registered or _plugin(name) is not None


def register_backend(name: str, backend: Backend, /) -> None:
    """Make a backend serve the arrays whose type lives in the top-level package `name`.

    Packages do the same without any call by an entry point of the group ``portconv.backends`` with that name.

    Parameters
    ----------
    name
        Top-level package of the array type, such as ``"mylib"`` for ``mylib.core.Array``; also what users write as
        ``backend=``.
    backend
        An object with the members of `portconv.extending.Backend`. `portconv.testing.check_backend` verifies one.

    Raises
    ------
    TypeError
        If `backend` lacks a member of the protocol.
    ValueError
        If the name is taken.

    Examples
    --------
    >>> import portconv
    >>> portconv.register_backend("numpy", portconv.get_backend("numpy"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
      ...
    ValueError: `name` 'numpy' is taken. ...
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"`name` must be the name of a top-level package, but got {name!r}.")
    if not isinstance(backend, Backend):
        raise TypeError(
            f"`backend` must have the members of portconv.extending.Backend; "
            f"{type(backend).__name__} lacks {', '.join(lacking(backend))}."
        )
    if name in _KNOWN or name in _registered:
        raise ValueError(
            f"`name` {name!r} is taken. Pass the backend itself as `backend=`, or register it under another name."
        )
    _registered[name] = backend
    _loaded.pop(name, None)  # a plug-in or the generic adapter may have served the library so far
    extend(name)


@contextmanager
def use_backend(backend: Any, /) -> Iterator[Backend]:
    """Within the ``with`` block, send every call that names no backend itself to this one.

    The setting belongs to the current thread or task (a context variable).

    Parameters
    ----------
    backend
        A name or a `Backend` that can read the arrays in question.

    Examples
    --------
    >>> import portconv
    >>> with portconv.use_backend("numpy") as backend:
    ...     backend.name
    'numpy'
    """
    chosen = get_backend(backend)
    token = _override.set(chosen)
    try:
        yield chosen
    finally:
        _override.reset(token)


def available_backends() -> tuple[str, ...]:
    """Names of the backends whose libraries are installed and can be imported. This imports them.

    Examples
    --------
    >>> import portconv
    >>> "numpy" in portconv.available_backends()
    True
    """
    names = dict.fromkeys([*_KNOWN, *_registered, *(entry.name for entry in plugins())])
    return tuple(name for name in names if _importable(name))


def _importable(name: str) -> bool:
    try:
        _load(name)
    except Exception:  # noqa: BLE001 - a broken library or plug-in is not available, whatever it raises on import
        return False
    return True
