"""The sizes of a core's caches, as the system tells them when they are first asked for: blocks are made to fit them."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import lru_cache

__all__ = ["cache_bytes"]

# macOS's names, of the fast cores, whose second cache several cores share; and those of Macs with one kind of cores.
_SYSCTL = {
    1: ("hw.perflevel0.l1dcachesize", "hw.l1dcachesize"),
    2: ("hw.perflevel0.l2cachesize", "hw.l2cachesize"),
}
_SHARED = "hw.perflevel0.cpusperl2"


@lru_cache(maxsize=3)
def cache_bytes(level: int) -> int:
    """The size of the first core's cache for data of this level, 1 to 3; 0 where the system does not say.

    Of a second cache that several cores share on macOS, it is the share of one; of a third one it is all of it.
    """
    if sys.platform == "linux":
        return _in_sysfs(level)
    if sys.platform == "darwin" and level in _SYSCTL:
        found = next((size for name in _SYSCTL[level] if (size := _sysctl(name))), 0)
        return found // max(_sysctl(_SHARED), 1) if level == 2 else found
    return 0


def _in_sysfs(level: int) -> int:
    for index in range(8):
        folder = f"/sys/devices/system/cpu/cpu0/cache/index{index}"
        with suppress(OSError, ValueError):
            if int(_text(f"{folder}/level")) == level and _text(f"{folder}/type") != "Instruction":
                size = _text(f"{folder}/size")
                return int(size.removesuffix("K")) << 10 if size.endswith("K") else int(size)
    return 0


def _text(name: str) -> str:
    with open(name, encoding="ascii") as file:  # noqa: PTH123  pathlib would take a while to import
        return file.read().strip()


def _sysctl(name: str) -> int:
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    with suppress(OSError, AttributeError):
        if ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0) == 0:
            return value.value
    return 0
