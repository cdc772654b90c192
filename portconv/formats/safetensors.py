"""Files of the format safetensors, by the package of this name.

The package checks sizes and offsets against the length of the file before anything is allocated. Source of the format:
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import WeightsError

__all__ = ["read", "write"]

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def _package() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"A .safetensors file needs the package safetensors, which cannot be imported ({error}). Install it with: "
            f"pip install 'portconv[safetensors]'; or use a .npz file, which needs NumPy alone."
        ) from error
    return safetensors


def write(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write arrays and texts by their names."""
    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    _package().numpy.save_file(dense, path, dict(metadata))


def read(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """The arrays and texts of a file; a `WeightsError` if it is none, or damaged."""
    package = _package()
    with path.open("rb"):  # what is missing or a folder is said in the system's words
        pass
    try:
        with package.safe_open(path, framework="numpy") as file:
            # its keys: it is no mapping
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except TypeError as error:  # of NumPy, for a dtype that it has not
        raise WeightsError(
            f"{path} has arrays of a dtype that NumPy has not ({error}). bfloat16 needs the package ml_dtypes."
        ) from error
    except (package.SafetensorError, ValueError, OverflowError, OSError) as error:
        raise WeightsError(f"{path} is no safetensors file, or is damaged: {error}") from error
