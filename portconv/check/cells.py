"""The cells of the device matrix: the ways to call a library, and the problems that each of them gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..testing.problems import Problem
from .runner import Library

__all__ = ["DTYPES", "Cell", "cell_problems", "cells", "modes"]

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Cell:
    """What a cell is about. `mode` is a key of `modes`."""

    device: str
    engine: str
    dtype: str
    mode: str


# The first is one that every engine can run; the others differ from it in what an engine may do apart.
_PLAIN = Problem((2, 4, 9, 10), (6, 4, 3, 3), {"padding": 1}, bias_shape=(6,))
_OTHERS = (
    Problem((1, 6, 11, 9), (4, 3, 3, 3), {"stride": (2, 1), "groups": 2, "padding": 2, "padding_mode": "reflect"}),
    Problem((1, 3, 12, 11), (4, 3, 3, 2), {"dilation": 2, "padding": 2, "padding_mode": "circular", "layout": "NHWC"}),
    Problem((1, 2, 24, 21), (3, 2, 11, 11), {"padding": ((5, 4), (3, 6)), "padding_mode": "replicate"}),
    Problem((2, 5, 9, 8), (5, 1, 3, 3), {"groups": 5, "padding": "same"}, bias_shape=(5,)),
)

_FORWARD = {"call": "forward", "bias_shape": None}
_BY_LIBRARY, _BY_PORTCONV = {"gradient": True, "seed": 0}, {"gradient": True, "seed": 1}  # by the parity of the seed
_EVERYWHERE: dict[str, dict[str, Any]] = {"conv2d": {}, "Conv2d": {"call": "layer"}, "conv2d_vjp": _BY_PORTCONV}
_OF_LIBRARY: dict[str, dict[str, dict[str, Any]]] = {
    "jax": {
        "jax.vjp": _BY_LIBRARY, "jax.jit": {"call": "traced"}, "jax.vmap": {"call": "mapped"}, "jax.jvp": _FORWARD,
    },
    "mlx": {
        "mx.vjp": _BY_LIBRARY, "mx.compile": {"call": "traced"}, "mx.vmap": {"call": "mapped"}, "mx.jvp": _FORWARD,
    },
    "torch": {
        "backward": _BY_LIBRARY, "torch.func.vjp": {"call": "traced"}, "torch.func.vmap": {"call": "mapped"},
        "torch.func.jvp": _FORWARD, "torch.compile": {"call": "compiled"},
    },
}  # fmt: skip
_WHOLE = ("conv2d", "conv2d_vjp")  # the modes that get all problems: the others are compiled for each of them


def modes(library: str) -> dict[str, dict[str, Any]]:
    """The ways to call a library by the names of their columns, and what each of them changes of a problem."""
    return _EVERYWHERE | _OF_LIBRARY.get(library, {})


def cell_problems(library: str, mode: str, dtype: str, engine: str) -> list[Problem]:
    """What is computed for a cell."""
    changes = modes(library)[mode]
    chosen = (_PLAIN, *_OTHERS) if mode in _WHOLE else (_PLAIN,)
    return [replace(p, dtype=dtype, engine=engine, **changes) for p in chosen]


def cells(library: Library) -> Iterator[Cell]:
    """All cells of a library that was asked for its devices."""
    for device, there in library.devices.items():
        for engine in ("auto", *there["engines"]):
            for dtype in DTYPES:
                for mode in modes(library.name):
                    # there PyTorch's own routine computes, whichever engine the layer has
                    if mode != "torch.compile" or engine == "auto":
                        yield Cell(device, engine, dtype, mode)
