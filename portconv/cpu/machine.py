"""The processor and what was installed for it: what times depend on, for measurements that are kept.

`import portconv` loads this file, so what is needed to ask is imported where it is asked.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from .threads import get_num_threads

__all__ = ["code_folder", "host_environment", "memory_bytes", "processor", "vector_bits", "version"]

# The names that NumPy gives to instruction sets, and the bits of their vectors.
_VECTORS = {"X86_V4": 512, "AVX512": 512, "X86_V3": 256, "AVX2": 256, "AVX": 256, "X86_V2": 128, "SSE": 128}
_VECTORS |= {"NEON": 128, "ASIMD": 128, "VSX": 128, "VX": 128}


def host_environment() -> dict[str, str]:
    """What the times of NumPy's engines depend on: processor, NumPy and its BLAS, tier, threads.

    Examples
    --------
    >>> from portconv.extending import host_environment
    >>> sorted(host_environment())
    ['blas', 'cpu', 'numpy', 'threads', 'tier']
    """
    return {
        "cpu": processor(),
        "numpy": np.__version__,
        "blas": _blas(),
        "tier": _tier(),
        "threads": str(get_num_threads()),
    }


def _tier() -> str:
    from .bridge import jit_enabled

    return f"numba {version('numba')}" if jit_enabled() else "plain"


def version(library: str) -> str:
    """The version of an installed library."""
    found = getattr(sys.modules.get(library), "__version__", None)
    if found is None:
        from importlib import metadata  # 20 ms, which only those pay who measure

        with contextlib.suppress(metadata.PackageNotFoundError):
            found = metadata.version(library)
    return str(found or "unknown")


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's name.

    Examples
    --------
    >>> from portconv import machine
    >>> len(machine.processor()) > 0
    True
    """
    import platform
    import subprocess
    from pathlib import Path

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "linux":
            with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
                for line in lines:
                    if line.startswith("model name"):
                        return line.partition(":")[2].strip()
        if sys.platform == "darwin":
            name = subprocess.check_output(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], text=True)
            return name.strip()
    return platform.processor() or platform.machine()


def vector_bits() -> int | None:
    """Bits of the processor's widest vectors as NumPy found them, None where it does not say.

    Examples
    --------
    >>> from portconv import machine
    >>> machine.vector_bits() in (None, 128, 256, 512)
    True
    """
    sets = _configuration().get("SIMD Extensions", {})
    names = [*sets.get("baseline", ()), *sets.get("found", ())]
    return max((bits for name in names for start, bits in _VECTORS.items() if name.startswith(start)), default=None)


# Where Linux keeps the limit of a container, of both generations; in the older one a huge number is "none".
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int | None:
    """The memory of this machine, or of the container if it may have less; None where the system does not say.

    Examples
    --------
    >>> from portconv import machine
    >>> memory = machine.memory_bytes()
    >>> memory is None or memory > 2**20
    True
    """
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError), open(name, encoding="ascii") as file:  # noqa: PTH123  see above
            found.append(int(file.read()))  # "max", without a limit, is no number
    return min((number for number in found if number > 0), default=None)


def code_folder() -> str | None:
    """The folder where compiled code is kept; None in the plain tier, and where no folder can be written.

    It imports Numba.

    Examples
    --------
    >>> from portconv import machine
    >>> folder = machine.code_folder()
    """
    from .bridge import jit_enabled

    if not jit_enabled():
        return None
    from .compiled import memory

    folder: str | None = (
        memory.fill_plane.kernel.stats.cache_path
    )  # Numba says it of every function, and it is one for all
    return folder


@lru_cache(maxsize=1)
def _blas() -> str:
    blas = _configuration().get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name')} {blas.get('version')}"


def _configuration() -> dict[str, Any]:
    """How NumPy was built, and what it found here."""
    configuration: Any = np.show_config(mode="dicts")
    return dict(configuration)
