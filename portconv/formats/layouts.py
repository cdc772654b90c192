"""The layouts of weights: which there are, and how the axes of one are turned into another's.

A layout is named, never found out from a shape: (8, 3, 3, 3) is OIHW and OHWI. I is the number of input channels of one
group.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..arrays import array_namespace
from ..core import hints
from ..core.errors import choices
from ..core.integers import integer
from ..core.layout import OIHW_FROM, WEIGHT_LAYOUTS

__all__ = ["check_axes", "checked_layout", "convert_layout", "is_ambiguous", "meanings"]


def meanings(names: Iterable[str] = WEIGHT_LAYOUTS) -> str:
    """`'OIHW' (PyTorch), ...`: the layouts and who has them, for messages that ask for one."""
    return ", ".join(f"{name!r} ({WEIGHT_LAYOUTS[name]})" for name in names)


def checked_layout(argument: str, value: object) -> str:
    """The name of a layout, or an error that lists them."""
    if not isinstance(value, str):
        raise TypeError(
            f"`{argument}` must name the layout of a weight, {choices(WEIGHT_LAYOUTS)}, but got {value!r} "
            f"({type(value).__name__}). A shape does not tell it. There are {meanings()}."
        )
    if value not in WEIGHT_LAYOUTS:
        mend = hints.word(argument, value, WEIGHT_LAYOUTS) if value.upper() in WEIGHT_LAYOUTS else ""
        raise ValueError(
            f"`{argument}` must be {choices(WEIGHT_LAYOUTS)}, but got {value!r}.{mend} There are {meanings()}."
        )
    return value


def is_ambiguous(group_inputs: int, kernel_size: tuple[int, int]) -> bool:
    """Whether a weight has one shape, but two meanings, in OIHW and OHWI."""
    return group_inputs == kernel_size[0] == kernel_size[1] > 1


def convert_layout(weight: Any, source: str, target: str, *, groups: int | None = None) -> Any:
    """A weight with its axes in another layout.

    Parameters
    ----------
    weight
        An array of any library, with the axes of `source`.
    source, target
        ``"OIHW"`` (PyTorch, ONNX, MegEngine without groups), ``"OHWI"`` (MLX), ``"HWIO"`` (Keras, Flax), ``"HWCM"``
        (Keras's ``DepthwiseConv2D``: ``(kh, kw, channels, multiplier)``) or ``"GOIHW"`` (MegEngine with groups:
        ``(G, O/G, I/G, kh, kw)``). I is the number of input channels of one group.
    groups
        Of the convolution: needed to make ``"HWCM"`` or ``"GOIHW"`` of a layout that does not tell.

    Returns
    -------
    array
        Of the same library and dtype; a view where the library can give one.

    Raises
    ------
    TypeError, ValueError
        If a layout is not one of these, or the weight has other axes, or cannot be had in `target`.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv import weights
    >>> weights.convert_layout(np.ones((8, 5, 3, 2)), "OHWI", "OIHW").shape
    (8, 2, 5, 3)
    >>> weights.convert_layout(np.ones((3, 3, 6, 2)), "HWCM", "GOIHW").shape
    (6, 2, 1, 3, 3)
    """
    source, target = checked_layout("source", source), checked_layout("target", target)
    groups = None if groups is None else integer("groups", groups, 1)
    xp = array_namespace(weight)
    shape = tuple(weight.shape)
    check_axes("weight", shape, source)
    turned = xp.permute_dims(weight, OIHW_FROM[source])
    if source in ("HWCM", "GOIHW"):  # which have the groups among their axes
        first, second, *rest = turned.shape
        if groups not in (None, first):
            raise ValueError(
                f"`groups` is {groups}, but a weight {shape} in layout {source} belongs to {first} groups."
            )
        groups = first
        turned = xp.reshape(turned, (first * second, *([1] if source == "HWCM" else []), *rest))
    o, i, kh, kw = turned.shape
    if target in ("HWCM", "GOIHW"):
        if groups is None:
            raise ValueError(f"`groups` is needed to make a weight in layout {target}: {source} does not tell it.")
        if o % groups:
            raise ValueError(f"`groups` must divide the output channels, but {o} is no multiple of {groups}.")
        if target == "HWCM" and i != 1:
            raise ValueError(
                f"`target` 'HWCM' is for layers with as many groups as input channels, but each group of this weight "
                f"has {i}: weight.shape = {shape} {source}."
            )
        turned = xp.reshape(turned, (groups, o // groups, *([] if target == "HWCM" else [i]), kh, kw))
    order = OIHW_FROM[target]
    return xp.permute_dims(turned, tuple(order.index(axis) for axis in range(len(order))))


def check_axes(name: str, shape: tuple[int, ...], layout: str) -> None:
    """Whether a weight of this shape has as many axes as its layout."""
    if len(shape) != len(OIHW_FROM[layout]):
        raise ValueError(
            f"`{name}` in layout {layout} must have {len(OIHW_FROM[layout])} axes, but got {len(shape)}: "
            f"{name}.shape = {shape}. Layouts are {meanings()}."
        )
