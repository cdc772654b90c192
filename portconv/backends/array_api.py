"""Any library that follows the array API standard, by portconv's own engines."""

from __future__ import annotations

from .base import ArrayApiBackend

__all__ = ["backend"]


def backend(name: str) -> ArrayApiBackend:
    """The adapter of the library of this name."""
    return ArrayApiBackend(name)
