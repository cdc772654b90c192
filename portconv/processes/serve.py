"""A worker's side of the conversation with `runner.py`: a line of JSON for a line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import portconv

__all__ = ["serve", "versions"]

Message = dict[str, Any]

_LIBRARIES = (
    *("portconv", "numpy", "numba", "mlx.core", "torch", "jax", "cupy", "dask"),
    *("onnxruntime", "openvino", "cv2"),
)


def serve(hello: Callable[[], Message], handle: Callable[[Message], Message]) -> None:
    """Say hello, then answer every message on stdin, until its end. A hello with `missing` in it is the last word."""
    # Libraries print to stdout as they like; the answers keep a channel of their own.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: Message) -> None:
        print(json.dumps(message), file=channel, flush=True)

    greeting = hello()
    send(greeting)
    if "missing" in greeting:
        return
    for line in sys.stdin:
        send(handle(json.loads(line)))


def versions() -> dict[str, str]:
    """Versions of the libraries that this process has loaded, and the BLAS that NumPy was built with."""
    found = {name: str(getattr(sys.modules[name], "__version__", "?")) for name in _LIBRARIES if name in sys.modules}
    return {**found, "blas": str(portconv.environment()["blas"])}
