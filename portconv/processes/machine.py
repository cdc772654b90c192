"""What figures depend on, for the files that keep them: processor, cores, memory, operating system, load."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from typing import Any

from ..machine import processor, usable_cores

__all__ = ["machine"]


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def machine() -> dict[str, Any]:
    """A description of this machine, as JSON has it."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": _memory(),
        "os": platform.platform(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
