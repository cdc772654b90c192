"""Sizes that users give: checked ints and pairs of them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["MAX_SIZE", "Pair", "integer", "pair", "sequence_of_two"]

Pair: TypeAlias = tuple[int, int]
MAX_SIZE = 2**31 - 1  # of one axis: what the native routines of every library can index


def integer(name: str, value: object, minimum: int) -> int:
    """`value` as an int of at least `minimum`; NumPy integers count, booleans and floats do not."""
    kind = type(value)
    if kind is not int:
        if isinstance(value, bool) or "bool" in kind.__name__ or "bool" in str(getattr(value, "dtype", "")):
            raise TypeError(f"`{name}` must be an integer, but got the boolean {value!r}.")
        try:
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"`{name}` must be an integer, but got {value!r} ({kind.__name__}).") from None
    assert isinstance(value, int)
    if not minimum <= value <= MAX_SIZE:
        bound = f"at least {minimum}" if value < minimum else f"at most {MAX_SIZE}"
        raise ValueError(f"`{name}` must be {bound}, but got {value}.")
    return value


def sequence_of_two(value: object) -> Sequence[object] | None:
    """A tuple, list or one-dimensional array (its `tolist`) of any length as a sequence; `None` for a single thing."""
    if isinstance(value, (tuple, list)):
        return value
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        listed = value.tolist()
        return listed if isinstance(listed, list) else None
    return None


def pair(name: str, value: object, minimum: int) -> Pair:
    """An int, or two of them as (height, width)."""
    if type(value) is int and minimum <= value <= MAX_SIZE:  # most calls
        return value, value
    items = sequence_of_two(value)
    if items is None:
        if isinstance(value, str) or not hasattr(value, "__index__"):
            raise TypeError(f"`{name}` must be an int or a pair of ints (height, width), but got {value!r}.")
        single = integer(name, value, minimum)
        return single, single
    if len(items) != 2:
        raise ValueError(
            f"`{name}` must be an int or a pair of ints (height, width), but got {len(items)} values: {value!r}."
        )
    return integer(f"{name}[0]", items[0], minimum), integer(f"{name}[1]", items[1], minimum)
