"""The cache of packed weights: one for the arrays that `conv2d` is called with, and one in each layer for its own."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any

from ..core.backend import PackedWeight, Plan
from ..cpu.machine import memory_bytes

__all__ = ["PackCache", "bound", "packs"]

# The bound of what `conv2d` keeps for its users follows the machine: a network whose packed weights exceed it packs all
# of them anew in every pass, since the least recently used leave first. VGG-19's, for Winograd, need some 600 MiB.
# What belongs to weights that are gone leaves at the next packing, so that a large bound costs nobody who needs it not.
MEMORY_SHARE = 1 / 4
LEAST_BOUND = 256 << 20  # bytes; also where the system does not say how much memory there is


class PackCache:
    """Packed weights, the least recently used leaving first; bounded in bytes, in their number, or in both.

    Whoever asks says by a token whether the values are still the same: two tokens are equal only if they are.
    """

    def __init__(self, limit_bytes: float = math.inf, limit: float = math.inf) -> None:
        self.limit_bytes, self.limit, self.nbytes = limit_bytes, limit, 0
        self._entries: OrderedDict[tuple[int, Hashable], tuple[weakref.ref[Any], Hashable, PackedWeight]] = (
            OrderedDict()
        )
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, weight: Any, token: Hashable, plan: Plan) -> PackedWeight:
        """The weight packed for the plan, from the cache if it is the same array with the same token."""
        key = (id(weight), plan.stamp)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry[0]() is weight and entry[1] == token:
                self._entries.move_to_end(key)
                return entry[2]
        packed = plan.pack(weight)
        try:
            reference = weakref.ref(weight)
        except TypeError:  # the library's arrays cannot be watched, so their identity means nothing later
            return packed
        with self._lock:
            self._drop(key)
            if packed.nbytes <= self.limit_bytes:
                self._entries[key] = (reference, token, packed)
                self.nbytes += packed.nbytes
            dead = [k for k, (ref, _, _) in self._entries.items() if ref() is None]
            for k in dead:
                self._drop(k)
            while self.nbytes > self.limit_bytes or len(self._entries) > self.limit:
                self._drop(next(iter(self._entries)))
        return packed

    def _drop(self, key: tuple[int, Hashable]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.nbytes -= entry[2].nbytes


def bound(memory: int | None) -> int:
    """The bytes of packed weights that `conv2d` keeps on a machine with so many bytes of memory (None: not known)."""
    return max(LEAST_BOUND, int((memory or 0) * MEMORY_SHARE))


packs = PackCache(limit_bytes=bound(memory_bytes()))
