"""How NumPy computes for a network: for libraries that are slow at it on a CPU, and with few threads or many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..cpu import threads
from ..cpu.blas import limited
from ..cpu.bridge import jit_enabled
from ..cpu.caches import cache_bytes
from ..dispatch import registry

__all__ = ["compiled_excitation", "compiled_lstm", "one_by_one", "seen", "side_by_side"]

# Libraries whose arrays have values at once on a CPU, and take longer there for a small step than NumPy does.
SLOW_STEPS = ("mlx", "jax")
SECOND_CACHE_BYTES = 1 << 20  # where the system does not say


def seen(arrays: Sequence[Any]) -> list[Any] | None:
    """Arrays of one library as NumPy's, where it is slow on a CPU and they are there; else None."""
    backend = registry.get_backend(arrays[0])
    if backend.name not in SLOW_STEPS or registry.resolve(arrays[0]) is not backend:
        return None
    infos = [backend.describe(a) for a in arrays]
    if any(info.traced or info.dtype == "bfloat16" or "cpu" not in info.device.lower() for info in infos):
        return None
    try:
        return [backend.to_numpy(a) for a in arrays]
    except ValueError:  # a library differentiates, or traces unseen: there are no values yet
        return None


def side_by_side(function: Callable[[int], Any], items: list[int], nbytes: int) -> list[Any]:
    """What a function of NumPy makes of each item: many small steps, each with the same matrix of so many bytes.

    A matrix that a core's cache does not hold is left to the threads of NumPy's products: each of these has a part of
    it, which stays in its core's cache from step to step.
    """
    if nbytes > (cache_bytes(2) or SECOND_CACHE_BYTES):
        return one_by_one(function, items)
    found: dict[int, Any] = {}

    def task(item: int) -> None:
        found[item] = function(item)

    with limited(1):
        threads.run(task, items, threads.allowed_threads())
    return [found[item] for item in items]


def one_by_one(function: Callable[[int], Any], items: list[int]) -> list[Any]:
    """The same in turn, for libraries that have threads of their own."""
    return [function(item) for item in items]


def compiled_lstm(recurrences: Any) -> Any:
    """The steps of an LSTM with these weights of float32, ``(D, 4H, H)``; None where there is no compiled tier."""
    if not jit_enabled():
        return None
    from ..cpu.compiled.recurrent.plan import CompiledLstm

    return CompiledLstm(recurrences)


def compiled_excitation(*products: tuple[Any, Any, Any, Any]) -> Any:
    """Squeeze and excitation with these two products: for each a matrix, a bias, an activation, a factor and a term."""
    if not jit_enabled():
        return None
    from ..cpu.compiled.excitation.plan import CompiledExcitation, Dense

    first, second = (Dense(*product) for product in products)
    return CompiledExcitation(first, second)
