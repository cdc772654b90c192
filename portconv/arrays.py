"""Namespaces, devices and sizes of arrays, for MLX too."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import array_api_compat

from .core.array_types import library_of

__all__ = ["array_namespace", "device", "is_mlx_array", "size", "to_device"]


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


def size(x: Any, /) -> int | None:
    """The number of elements of an array, for libraries whose arrays have no attribute `size`, or another one, too.

    Parameters
    ----------
    x
        An array of any library, of any shape.

    Returns
    -------
    int or None
        None where a size is not known yet: that of a Dask array after a mask, for example.

    Raises
    ------
    TypeError
        If `x` is no array.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.size(np.zeros((2, 3)))
    6
    """
    _library_of(x)
    elements: int | None = array_api_compat.size(x)
    return elements


def is_mlx_array(x: object, /) -> bool:
    """Whether this is an array of MLX, as `array_api_compat.is_torch_array` and others ask for other libraries.

    MLX is not imported to find out.

    Parameters
    ----------
    x
        Anything: what is no array is no array of MLX.

    Returns
    -------
    bool
        True for instances of ``mlx.core.array`` alone; dtypes, devices and layers of MLX are none.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.is_mlx_array(np.zeros(3))
    False
    """
    mlx = sys.modules.get("mlx.core")  # where it was not imported, there are no arrays of it
    return mlx is not None and isinstance(x, mlx.array)


def _library_of(x: Any) -> str:
    library = library_of(x)
    if library is None or not hasattr(x, "shape"):  # a library has other things than arrays, too
        raise TypeError(f"`x` must be an array, but got {type(x).__name__}; `numpy.asarray` makes one of it.")
    return str(library)
