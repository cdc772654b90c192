"""Long short-term memory, in operations of the array API.

Source: Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997), in the form that ONNX's
operator LSTM states: gates in the order input, output, forget, cell.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["lstm"]

Function = Callable[[Any], Any]


def lstm(
    xp: ModuleType, x: Any, weights: Any, recurrences: Any, biases: Any, h: Any, c: Any, peepholes: Any,
    direction: str, sigmoid: Function, each: Callable[[Callable[[int], Any], list[int]], list[Any]],
    product: Callable[[Any, int], Any] | None = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """All outputs ``(T, D, N, H)``, and the last output and cell ``(D, N, H)``, of a sequence ``(T, N, I)``.

    Parameters
    ----------
    weights, recurrences, biases, peepholes
        ``(D, 4H, I)``, ``(D, 4H, H)``, ``(D, 8H)`` or None, ``(D, 3H)`` or None.
    h, c
        What to begin with, ``(D, N, H)``, or None for zeros.
    direction
        ``"forward"``, ``"reverse"``, or ``"bidirectional"``: both, in this order.
    sigmoid
        How it is computed.
    each
        ``[function(k) for k in list]``, for the directions.
    product
        ``product(rows, way)``, rows times the transposed weights of a direction; None for a plain one.
    """
    steps, batch, _ = x.shape
    size = recurrences.shape[2]
    ways = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}[direction]

    rows = xp.reshape(x, (steps * batch, x.shape[2]))
    multiply = product or (lambda rows, way: xp.matmul(rows, xp.matrix_transpose(weights[way, ...])))
    # what does not depend on the steps before, for all steps at once
    products = [multiply(rows, way) for way in range(len(ways))]

    def one(way: int) -> tuple[Any, Any, Any]:
        entering = products[way]
        if biases is not None:
            entering = entering + (biases[way, : 4 * size] + biases[way, 4 * size :])
        entering = xp.reshape(entering, (steps, batch, 4 * size))
        recurrence = xp.matrix_transpose(recurrences[way, ...])
        state = xp.zeros_like(entering[0, :, :size]) if h is None else h[way, ...]
        cell = xp.zeros_like(state) if c is None else c[way, ...]
        peep = None if peepholes is None else [peepholes[way, k * size : (k + 1) * size] for k in range(3)]
        found: list[Any] = [None] * steps
        for t in range(steps)[:: ways[way]]:
            gates = entering[t, ...] + xp.matmul(state, recurrence)
            if peep is None:
                ahead = sigmoid(gates[:, : 3 * size])
                i, o, f = ahead[:, :size], ahead[:, size : 2 * size], ahead[:, 2 * size :]
                cell = f * cell + i * xp.tanh(gates[:, 3 * size :])
            else:
                i = sigmoid(gates[:, :size] + peep[0] * cell)
                f = sigmoid(gates[:, 2 * size : 3 * size] + peep[2] * cell)
                cell = f * cell + i * xp.tanh(gates[:, 3 * size :])
                o = sigmoid(gates[:, size : 2 * size] + peep[1] * cell)
            state = o * xp.tanh(cell)
            found[t] = state
        return xp.stack(found, axis=0), state, cell

    outputs, hs, cs = zip(*each(one, list(range(len(ways)))), strict=True)
    return xp.stack(outputs, axis=1), xp.stack(hs, axis=0), xp.stack(cs, axis=0)
