"""Which libraries find a GPU here: what the tests marked `gpu` ask, and what `make test-gpu` runs before them."""

from __future__ import annotations

import importlib
import os
import sys
from functools import lru_cache

# JAX would take most of the GPU's memory for itself, which the other libraries in the process need, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

LIBRARIES = ("torch", "cupy", "jax", "mlx")


def _torch(torch):
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    return torch.device("mps:0") if torch.backends.mps.is_available() else None


def _cupy(cupy):
    return cupy.cuda.Device(0) if cupy.cuda.runtime.getDeviceCount() else None


def _jax(jax):
    return jax.devices("gpu")[0]


def _mlx(mx):
    return mx.Device(mx.gpu) if mx.metal.is_available() or mx.cuda.is_available() else None


FIND = {"torch": ("torch", _torch), "cupy": ("cupy", _cupy), "jax": ("jax", _jax), "mlx": ("mlx.core", _mlx)}


@lru_cache
def find(library):
    """The library's own object for its first GPU, and ""; or None, and why there is none."""
    module, device_of = FIND[library]
    try:
        device = device_of(importlib.import_module(module))
    except Exception as error:  # noqa: BLE001  drivers fail in many ways, each of which is a reason
        return None, f"{library} finds no GPU ({type(error).__name__}: {' '.join(str(error).split())})"
    return device, "" if device is not None else f"{library} finds no GPU"


def main():
    found = {library: find(library) for library in LIBRARIES}
    for library, (device, reason) in found.items():
        print(f"{library}: {device}" if device is not None else reason)
    if any(device is not None for device, _ in found.values()):
        return 0
    print("The tests marked `gpu` need a GPU, and no library finds one.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
