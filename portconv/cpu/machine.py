"""What times on this machine's processor depend on, for measurements that are kept."""

from __future__ import annotations

import contextlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .bridge import jit_enabled
from .threads import get_num_threads

__all__ = ["host_environment", "processor", "version"]


def host_environment() -> dict[str, str]:
    """What the times of NumPy's engines depend on: processor, NumPy and its BLAS, tier, threads."""
    return {
        "cpu": processor(),
        "numpy": np.__version__,
        "blas": _blas(),
        "tier": f"numba {version('numba')}" if jit_enabled() else "plain",
        "threads": str(get_num_threads()),
    }


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
    """The processor's name."""
    import platform  # neither is needed by those who do not measure
    import subprocess

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


@lru_cache(maxsize=1)
def _blas() -> str:
    configuration: Any = np.show_config(mode="dicts")
    blas = configuration.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name')} {blas.get('version')}"
