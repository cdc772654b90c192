"""Times portconv with the arrays of one library: the argument is the backend's name, the rest comes by `serve`."""

from __future__ import annotations

import argparse
import importlib
import os
from typing import Any

import portconv

from ..processes.devices import placement
from ..processes.serve import serve, versions
from ..processes.session import Target
from .layers import Layer
from .runner import handle_task
from .timing import Prepare, Prepared, seconds

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


def tier_target(tier: str) -> Target:
    """The worker for a tier. The compiled one counts as missing without Numba."""
    arguments = ("numpy", "--require", "numba") if tier == "portconv-jit" else ("numpy",)
    return Target(tier, "portconv.bench.worker", arguments, TIERS[tier])


def backend_target(backend: str, name: str | None = None) -> Target:
    """The worker for a backend, in the tier that this process would use, under a name (by default the backend's)."""
    compiled = portconv.environment()["tier"] != "plain"
    return Target(name or backend, "portconv.bench.worker", (backend,), COMPILED if compiled else ())


def make_conv(layer: Layer, weight: Any, bias: Any, **options: Any) -> portconv.Conv2d:
    """The module for a layer, with these parameters (NumPy arrays)."""
    conv = portconv.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel, bias=layer.bias, **layer.options, **options
    )
    conv.weight = weight.reshape(conv.weight.shape)
    if layer.bias:
        conv.bias = bias.reshape(conv.bias.shape)
    return conv


def prepare(name: str, engine: str, device: str) -> Prepare:
    """What prepares layers for portconv on arrays of the library `name`, on a device (empty: its default)."""
    library = portconv.get_backend(name)

    def with_arrays(layer: Layer, x: Any, weight: Any, bias: Any) -> Prepared:
        place = placement(name, device) if device else None
        conv = make_conv(layer, weight, bias, backend=name, device=place, engine=engine)
        array = library.from_numpy(x, device=place)
        library.synchronize(array)

        def call() -> Any:
            y = conv(array)
            library.synchronize(y)
            return y

        def notes() -> dict[str, Any]:
            plan = conv.plan(array)
            found: dict[str, Any] = {"engine": plan.engine, "workspace_bytes": plan.workspace_bytes}
            if name == "numpy":  # others may pack lazily
                found["pack_ms"] = 1e3 * seconds(lambda: plan.pack(conv.weight))
            return found

        return Prepared(call, library.to_numpy, notes)

    return with_arrays


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend")
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

    serve(hello, lambda message: handle_task(lambda engine, device: prepare(options.backend, engine, device), message))
