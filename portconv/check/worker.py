"""A process that verifies one library: its argument is the name of the backend, the rest comes in messages."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import Any

import portconv

from ..processes.serve import serve, versions
from .verify import describe_library, verify, verify_cell

__all__ = ["main"]


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend")
    name = parser.parse_args().backend
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of a GPU's memory
    warnings.simplefilter("ignore")  # a warning is no wrong result

    def hello() -> dict[str, Any]:
        try:
            portconv.get_backend(name)
        except Exception as error:  # noqa: BLE001  a broken library is not available, whatever it raises on import
            return {"missing": f"{type(error).__name__}: {' '.join(str(error).split())}", "kind": type(error).__name__}
        own = getattr(sys.modules.get(name), "__version__", None)
        return {"versions": versions() | ({name: str(own)} if own else {})}

    def handle(message: dict[str, Any]) -> dict[str, Any]:
        if "number" in message:
            return verify(name, **message)
        if "mode" in message:
            return verify_cell(name, **message)
        try:
            return describe_library(name)
        except Exception as error:  # noqa: BLE001  a broken plug-in fails, and says why
            return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}

    serve(hello, handle)
