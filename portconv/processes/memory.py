"""The memory that this process has resident, as the operating system counts it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

__all__ = ["peak_resident", "reset_peak_resident"]


def peak_resident() -> int:
    """The most memory that this process has had resident, in bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError, StopIteration):
        # not `ru_maxrss`, which on Linux starts at the peak of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return 0


def reset_peak_resident() -> None:
    """Make the peak what is resident now. Linux only; elsewhere the peak of setting up stays in, and hides as much."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
