"""Namespaces and devices of arrays, for MLX too."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import array_api_compat

from .core.array_types import library_of

__all__ = ["array_namespace", "device", "to_device"]


def array_namespace(*arrays: Any) -> ModuleType:
    """The array API namespace of the arrays, like `array_api_compat.array_namespace`; it knows MLX, too.

    For MLX arrays it is `portconv.namespaces.mlx`: the standard 2025.12, but for what MLX cannot do.

    Raises
    ------
    TypeError
        If there is no array among the arguments, or arrays of several libraries. None and Python numbers are passed
        over.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> xp = portconv.array_namespace(np.zeros(3))
    >>> float(xp.sum(xp.ones(4)))
    4.0
    """
    present = [a for a in arrays if a is not None and type(a) not in (bool, int, float, complex)]
    libraries = sorted({str(library_of(a)) for a in present})
    if libraries == ["mlx"]:
        return importlib.import_module("portconv.namespaces.mlx")
    if "mlx" in libraries:
        raise TypeError(f"arrays of several libraries have no namespace in common: {', '.join(libraries)}.")
    return array_api_compat.array_namespace(*present)


def device(x: Any, /) -> Any:
    """The device of an array, for libraries whose arrays have no attribute `device`, too.

    MLX's memory is shared, so an MLX array is where MLX would compute with it: on its default device, float64 on the
    CPU.

    Parameters
    ----------
    x
        An array of any library.

    Returns
    -------
    device
        In the library's own terms: the array's namespace takes it as ``device=``, and so does `to_device`.

    Raises
    ------
    TypeError
        If `x` is no array.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.device(np.zeros(3))
    'cpu'
    """
    if _library_of(x) == "mlx":
        return importlib.import_module("portconv.namespaces.mlx.devices").device_of(x)
    return array_api_compat.device(x)


def to_device(x: Any, device: Any, /) -> Any:
    """The array on a device; itself if it is there already.

    Parameters
    ----------
    x
        An array of any library.
    device
        In the library's own terms. For MLX an ``mlx.core.Device``, ``"cpu"`` or ``"gpu"``; nothing is moved, because
        its devices share memory.

    Returns
    -------
    array
        Of the same library, shape and dtype.

    Raises
    ------
    TypeError
        If `x` is no array.
    ValueError
        If there is no such device, or it cannot compute with the array (MLX: float64 on a GPU).

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.to_device(np.zeros(3), "cpu").shape
    (3,)
    """
    if _library_of(x) == "mlx":
        return importlib.import_module("portconv.namespaces.mlx.devices").to_device(x, device)
    return array_api_compat.to_device(x, device)


def _library_of(x: Any) -> str:
    library = library_of(x)
    if library is None:
        raise TypeError(f"`x` must be an array, but got {type(x).__name__}; `numpy.asarray` makes one of it.")
    return str(library)
