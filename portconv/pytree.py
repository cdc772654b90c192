"""Layers as JAX sees them: pytrees, whose leaves are their parameters. JAX is not imported for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Lock
from typing import Any

__all__ = ["register"]

_registered: set[type] = set()
_lock = Lock()


def register(
    kind: type, names: tuple[str, ...], flatten: Callable[[Any], tuple[Any, Any]], unflatten: Callable[[Any, Any], Any]
) -> None:
    """Tell JAX, if it has been imported, of a class of layers.

    Parameters
    ----------
    kind
        The class.
    names
        Those of the leaves.
    flatten
        Gives the leaves of a layer, and all else that it has, which can be hashed.
    unflatten
        Makes a layer of all else and of leaves, which may be anything at all.
    """
    if kind in _registered:
        return
    tree_util: Any = getattr(sys.modules.get("jax"), "tree_util", None)
    if tree_util is None:  # not imported, or not yet as a whole
        return

    def flatten_with_keys(layer: Any) -> tuple[Any, Any]:
        leaves, rest = flatten(layer)
        return [(tree_util.GetAttrKey(name), leaf) for name, leaf in zip(names, leaves, strict=True)], rest

    with _lock:
        if kind not in _registered:
            tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)
            _registered.add(kind)
