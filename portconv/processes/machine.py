"""What figures depend on, for the files that keep them: processor, cores, memory, operating system, load."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from typing import Any

from ..machine import memory_bytes, processor, usable_cores

__all__ = ["machine"]


def machine() -> dict[str, Any]:
    """A description of this machine, as JSON has it."""
    memory = memory_bytes()
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": None if memory is None else round(memory / 2**30, 1),
        "os": platform.platform(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
