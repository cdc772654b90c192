"""The types of the arguments of public functions: what an editor and a type checker know of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, SupportsIndex, TypeAlias, TypedDict, TypeVar

import numpy as np

from .core.words import Accuracy, ActivationName, Layout, PaddingMode, Strategy

__all__ = ["ActivationLike", "Array", "ArrayT", "CallOptions", "NumpyArray", "PaddingLike", "Size"]


class Array(Protocol):
    """What arrays of all libraries have."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...


# Arrays of one library in, one of the same out. NumPy's type says the dtype, too, which may be another one in the
# result, so that its arrays have signatures of their own.
ArrayT = TypeVar("ArrayT", bound=Array)
NumpyArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]

Size: TypeAlias = "SupportsIndex | Sequence[SupportsIndex] | NumpyArray"
PaddingLike: TypeAlias = "Size | Literal['same', 'valid'] | Sequence[Sequence[SupportsIndex]]"
ActivationLike: TypeAlias = "ActivationName | tuple[Literal['leaky_relu'], float] | None"


class CallOptions(TypedDict, total=False):
    """The arguments by keyword that the convolutions share."""

    padding_mode: PaddingMode
    layout: Layout
    engine: str
    accuracy: Accuracy
    strategy: Strategy
    backend: Any
    out_dtype: Any
    activation: ActivationLike
