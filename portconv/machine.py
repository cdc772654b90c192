"""What times on this machine depend on, and whether something else uses it now.

`environment` is also `portconv.environment`. The rest is for programs that time, or describe a machine beside figures,
as `portconv bench`, `check`, `info` and `tune` do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .core.array_types import library_of
from .core.version import __version__
from .cpu import busy
from .cpu.machine import code_folder, host_environment, memory_bytes, processor, vector_bits
from .cpu.threads import get_num_threads, usable_cores
from .dispatch.arguments import Conv2dSpec, device_name, make_problem
from .dispatch.registry import get_backend

__all__ = ["code_folder", "disturbed", "environment", "memory_bytes", "processor", "usable_cores", "vector_bits"]


def environment(x_or_name: Any = None, /, *, device: str | None = None) -> dict[str, str | int]:
    """What the times of convolutions on this machine depend on: what belongs beside every figure and error report.

    Parameters
    ----------
    x_or_name
        An array of any library, the name of a backend or a `Backend`, whose own facts are wanted, too; None for those
        of the processor and NumPy alone.
    device
        With a name or a `Backend`, the device in the library's own words; by default its default device.

    Returns
    -------
    dict
        Strings and numbers: ``portconv`` (version), ``cpu`` (the processor's name), ``usable_cores``, ``vector_bits``
        (of its widest vectors, where NumPy says it), ``numpy`` (version), ``blas`` (NumPy's), ``tier`` (``"plain"``, or
        Numba's version), ``threads``. With a library also ``backend``, ``device`` and what `Backend.environment` says:
        its version, the GPU, its own number of threads in the place of portconv's.

    Raises
    ------
    TypeError, ValueError, ImportError
        As `get_backend`, and for a device that the library has not; `ValueError` also if ``PORTCONV_NUM_THREADS`` is
        not a positive integer.

    Examples
    --------
    >>> import portconv
    >>> here = portconv.environment()
    >>> here["portconv"] == portconv.__version__ and here["threads"] == portconv.get_num_threads()
    True
    >>> here = portconv.environment("numpy")
    >>> here["backend"], here["device"]
    ('numpy', 'cpu')
    """
    bits = vector_bits()
    here: dict[str, str | int] = {
        "portconv": __version__,
        "usable_cores": usable_cores(),
        **({} if bits is None else {"vector_bits": bits}),
        **host_environment(),
    }
    if x_or_name is not None:
        backend = get_backend(x_or_name)
        device = device_name(device)
        x = x_or_name if library_of(x_or_name) else backend.from_numpy(np.ones(1, np.float32), device=device)
        place = backend.describe(x).device
        one = (1, 1, 1, 1)
        problem = make_problem(Conv2dSpec.normalise(), one, one, None, ("float32", "float32", None), place)
        here |= {"backend": backend.name, "device": place, **backend.environment(problem)}
    return {**here, "threads": int(here["threads"])}


def disturbed(threads: int | None = None) -> bool:
    """Whether something else uses a core that so many threads of this process would need now. It takes some 15 ms.

    Times that are taken meanwhile say little: an engine on several threads waits for the slowest of them.

    Parameters
    ----------
    threads
        By default `portconv.get_num_threads()`.

    Examples
    --------
    >>> from portconv import machine
    >>> machine.disturbed() in (False, True)
    True
    """
    return busy.disturbed(get_num_threads() if threads is None else threads)
