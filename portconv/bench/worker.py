"""Times portconv with the arrays of one library: the argument is the backend's name, the rest comes by `serve`."""

from __future__ import annotations

import argparse
import importlib
import os
from typing import Any

import numpy as np

import portconv

from ..processes.devices import placement
from ..processes.serve import serve, versions
from ..processes.session import Target
from .layers import Layer
from .runner import handle_task
from .timing import Prepare, Prepared, Unsupported, seconds

__all__ = ["TIERS", "backend_target", "main", "make_conv", "prepare", "tier_target"]

# What makes a neighbour disturb the compiled tier least, unless the user has set it: after a product, as when a weight
# is packed, OpenBLAS's threads spin for some 25 ms against those that convolve; with 4 they sleep at once. In the plain
# tier, whose products follow each other, they would have to be woken for each, which costs up to a fifth on an idle
# machine: benchmarks/README.md has the figures. Other libraries run as their users have them.
COMPILED: tuple[tuple[str, str | None], ...] = (
    ("OPENBLAS_THREAD_TIMEOUT", os.environ.get("OPENBLAS_THREAD_TIMEOUT", "4")),
)
# portconv's two tiers on NumPy arrays: with its compiled kernels, and without them.
TIERS: dict[str, tuple[tuple[str, str | None], ...]] = {
    "portconv-jit": (("PORTCONV_JIT", None), *COMPILED),
    "portconv-numpy": (("PORTCONV_JIT", "0"),),
}


def tier_target(tier: str, layout: str = "NCHW") -> Target:
    """The worker for a tier. The compiled one counts as missing without Numba."""
    arguments = ("numpy", "--layout", layout, *(("--require", "numba") if tier == "portconv-jit" else ()))
    return Target(tier, "portconv.bench.worker", arguments, TIERS[tier])


def backend_target(backend: str, name: str | None = None, layout: str = "NCHW") -> Target:
    """The worker for a backend, in the tier that this process would use, under a name (by default the backend's)."""
    compiled = portconv.environment()["tier"] != "plain"
    arguments = (backend, "--layout", layout)
    return Target(name or backend, "portconv.bench.worker", arguments, COMPILED if compiled else ())


def make_conv(layer: Layer, weight: Any, bias: Any, **options: Any) -> portconv.Conv2d:
    """The module for a layer, with these parameters (NumPy arrays)."""
    options |= {"dtype": layer.dtype, **layer.options}
    conv = portconv.Conv2d(layer.in_channels, layer.out_channels, layer.kernel, bias=layer.bias, **options)
    conv.weight = weight.reshape(conv.weight.shape)
    if layer.bias:
        conv.bias = bias.reshape(conv.bias.shape)
    return conv


class Images:
    """Images as arrays of a library, in a layout. Engines that take turns on an image get the same array of it."""

    def __init__(self, name: str, layout: str = "NCHW") -> None:
        self.library, self.layout = portconv.get_backend(name), layout
        self._last: tuple[Any, str | None, Any] = (None, None, None)  # the image, its device, and the array

    def array(self, x: Any, place: str | None, dtype: str = "float32") -> Any:
        """The array of an NCHW image."""
        if self._last[0] is not x or self._last[1] != place:
            own = x if self.layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
            array = self.library.from_numpy(own, dtype=dtype, device=place)
            self.library.synchronize(array)
            self._last = x, place, array
        return self._last[2]

    def to_numpy(self, y: Any) -> Any:
        """A result as an NCHW array of NumPy's."""
        y = self.library.to_numpy(y)
        return y if self.layout == "NCHW" else y.transpose(0, 3, 1, 2)


def prepare(name: str, engine: str, device: str, images: Images | None = None) -> Prepare:
    """What prepares layers for portconv on arrays of the library `name`, on a device (empty: its default).

    `images` makes the arrays; by default new ones in layout NCHW.
    """
    images = images or Images(name)
    library, layout = images.library, images.layout

    def with_arrays(layer: Layer, x: Any, weight: Any, bias: Any) -> Prepared:
        place = placement(name, device) if device else None
        options = {"backend": name, "device": place, "engine": engine, "layout": layout, "accuracy": layer.accuracy}
        conv = make_conv(layer, weight, bias, **options)
        array = images.array(x, place, layer.dtype)
        try:
            conv.plan(array)
        except portconv.UnsupportedError as reason:
            if engine == "native":  # which a library need not have, or not for every layer
                raise Unsupported(str(reason)) from None
            raise

        def call() -> Any:
            y = conv(array)
            library.synchronize(y)
            return y

        def notes() -> dict[str, Any]:
            plan = conv.plan(array)
            found: dict[str, Any] = {"engine": plan.engine, "tier": plan.tier, "device": plan.problem.device}
            found["workspace_bytes"] = plan.workspace_bytes
            if name == "numpy":  # others may pack lazily
                found["pack_ms"] = 1e3 * seconds(lambda: plan.pack(conv.weight))
            return found

        return Prepared(call, images.to_numpy, notes)

    return with_arrays


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend")
    parser.add_argument("--layout", default="NCHW", help="of the arrays")
    parser.add_argument("--require", metavar="MODULE", help="count as missing without this module")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of a GPU's memory

    def hello() -> dict[str, Any]:
        try:
            if options.require:
                importlib.import_module(options.require)
            portconv.get_backend(options.backend)
        except (ImportError, OSError, ValueError) as error:  # OSError: a shared library of its own is missing
            return {"missing": f"{type(error).__name__}: {error}"}
        return {"versions": versions()}

    def handle(message: dict[str, Any]) -> dict[str, Any]:
        images = Images(options.backend, options.layout)
        return handle_task(lambda engine, device: prepare(options.backend, engine, device, images), message)

    serve(hello, handle)
