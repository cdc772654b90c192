"""The cache of packed weights: one for the arrays that `conv2d` is called with, and one in each layer for its own."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any, TypeAlias

import numpy as np

from ..core.backend import PackedWeight, Plan
from ..cpu.machine import memory_bytes

__all__ = ["PackCache", "Values", "bound", "packs"]

# The bound of what `conv2d` keeps for its users follows the machine: a network whose packed weights exceed it packs all
# of them anew in every pass, since the least recently used leave first. VGG-19's, for Winograd, need some 600 MiB.
# What belongs to weights that are gone leaves at the next packing, so that a large bound costs nobody who needs it not.
MEMORY_SHARE = 1 / 4
LEAST_BOUND = 256 << 20  # bytes; also where the system does not say how much memory there is
COMPARED = 1 << 15  # elements at a time: what they are compared by stays in cache, and a change is seen early


class Values:
    """A token of an array that may change unseen: its values themselves, in the order of their memory.

    `kept` is a copy of `array` in the same order, to pack and to compare later ones with, which takes `nbytes`.
    """

    __hash__ = None  # type: ignore[assignment]  # they may change

    def __init__(self, array: np.ndarray[Any, Any], order: tuple[int, ...]) -> None:
        self.array, self.nbytes, self._order = array, array.nbytes, order

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> Values | None:
        """Those of an array of NumPy's; None where its elements do not lie together."""
        if array.flags.c_contiguous:
            return cls(array, ())
        # an axis of one element may lie anywhere among the others
        order = tuple(sorted(range(array.ndim), key=lambda axis: (array.shape[axis] > 1, -array.strides[axis])))
        return cls(array, order) if array.transpose(order).flags.c_contiguous else None

    @property
    def kept(self) -> Values:
        """A copy, which does not change."""
        return Values(self.array.copy(order="K"), self._order)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Values):
            return NotImplemented
        a, b = self.array, other.array
        if a.shape != b.shape or a.dtype != b.dtype or self._order != other._order:
            return False
        if self._order:
            a, b = a.transpose(self._order), b.transpose(self._order)
        bits = f"u{a.itemsize}"  # in which a NaN is equal to itself, and zeros have signs
        first, second = a.reshape(-1).view(bits), b.reshape(-1).view(bits)
        for start in range(0, first.size, COMPARED):
            part = slice(start, start + COMPARED)
            if not (first[part] == second[part]).all():
                return False
        return True


# The weight that is watched, a token of its values, how many bytes are kept, and what it was packed to.
_Entry: TypeAlias = "tuple[weakref.ref[Any], Hashable | Values, int, PackedWeight]"


class PackCache:
    """Packed weights, the least recently used leaving first; bounded in bytes, in their number, or in both.

    Whoever asks says by a token whether the values are still the same: two tokens are equal only if they are.
    """

    def __init__(self, limit_bytes: float = math.inf, limit: float = math.inf) -> None:
        self.limit_bytes, self.limit, self.nbytes = limit_bytes, limit, 0
        self._entries: OrderedDict[tuple[int, Hashable], _Entry] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, weight: Any, token: Hashable | Values, plan: Plan) -> PackedWeight:
        """The weight packed for the plan, from the cache if it is the same array with the same token."""
        key = (id(weight), plan.stamp)
        entry = self._entries.get(key)
        # not within the lock: to compare values takes a while
        if entry is not None and entry[0]() is weight and entry[1] == token:
            with self._lock:
                if key in self._entries:
                    self._entries.move_to_end(key)
            return entry[3]
        source, copied = weight, 0
        if isinstance(token, Values):
            if 2 * token.nbytes > self.limit_bytes:  # so large that copying it could exhaust the memory
                return plan.pack(weight)
            # the copy is packed: what is made of the array itself could keep it alive, and may meanwhile be written
            token, copied = token.kept, token.nbytes
            source = token.array
        packed = plan.pack(source)
        if packed.data is weight:  # as it is: to keep it would keep the user's array alive
            return packed
        nbytes = packed.nbytes + copied
        try:
            reference = weakref.ref(weight)
        except TypeError:  # the library's arrays cannot be watched, so their identity means nothing later
            return packed
        with self._lock:
            self._drop(key)
            if nbytes <= self.limit_bytes:
                self._entries[key] = reference, token, nbytes, packed
                self.nbytes += nbytes
            dead = [k for k, entry in self._entries.items() if entry[0]() is None]
            for k in dead:
                self._drop(k)
            while self.nbytes > self.limit_bytes or len(self._entries) > self.limit:
                self._drop(next(iter(self._entries)))
        return packed

    def _drop(self, key: tuple[int, Hashable]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.nbytes -= entry[2]


def bound(memory: int | None) -> int:
    """The bytes of packed weights that `conv2d` keeps on a machine with so many bytes of memory (None: not known)."""
    return max(LEAST_BOUND, int((memory or 0) * MEMORY_SHARE))


packs = PackCache(limit_bytes=bound(memory_bytes()))
