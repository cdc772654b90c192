"""The devices of an array library, by the names that portconv gives them, and how arrays get there."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np

import portconv

__all__ = ["absent", "devices", "hardware", "placement"]

# What each library can compute on, by the words that stand in the names of its devices; of others it is not known.
KINDS = {
    "numpy": ("cpu",), "dask": ("cpu",), "array_api_strict": ("cpu",), "cupy": ("cuda",), "mlx": ("cpu", "gpu"),
    "torch": ("cpu", "cuda", "mps", "xpu"), "jax": ("cpu", "cuda", "tpu"),
}  # fmt: skip


def absent(library: str, here: Iterable[str]) -> list[str]:
    """The kinds of devices that the library can compute on, and of which none is among those here."""
    return [kind for kind in KINDS.get(library, ()) if not any(kind in device.lower() for device in here)]


def devices(library: str) -> list[str]:
    """One device of each kind, the default first: eight equal GPUs would give the same figures eight times."""
    backend = portconv.get_backend(library)
    names = [backend.describe(backend.from_numpy(np.ones(1, np.float32))).device]
    if library == "mlx":
        names.append("cpu")  # the default is the GPU where there is one
    elif library == "torch":
        torch = importlib.import_module("torch")
        names += [f"{kind}:0" for kind in ("cuda", "mps", "xpu") if _has(torch, kind)]
    elif library == "jax":
        with contextlib.suppress(RuntimeError):  # JAX was told to leave the CPU alone
            names.append(str(importlib.import_module("jax").devices("cpu")[0]))
    return list(dict.fromkeys(names))


def _has(torch: Any, kind: str) -> bool:
    module = torch.backends.mps if kind == "mps" else getattr(torch, kind, None)
    return bool(module is not None and module.is_available())


def hardware(library: str, device: str) -> str:
    """What the library calls the hardware behind a device; empty for the processor."""
    if library == "torch" and device.startswith("cuda"):
        return str(importlib.import_module("torch").cuda.get_device_name(device))
    if library == "jax" and not device.startswith("cpu"):
        kind, _, index = device.partition(":")
        return str(importlib.import_module("jax").devices(kind)[int(index or 0)].device_kind)
    return ""


def placement(library: str, device: str) -> str | None:
    """What to pass as `device=` for arrays on this device. MLX has one device at a time, and is told here."""
    if library != "mlx":
        return device
    mx = importlib.import_module("mlx.core")
    mx.set_default_device(getattr(mx, device))
    return None
