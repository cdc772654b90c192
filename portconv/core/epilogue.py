"""The epilogue: what is applied to the sums of a convolution where they are stored."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Epilogue"]


@dataclass(frozen=True, slots=True)
class Epilogue:
    """The bias alone so far. Each tier has one function `finish` that applies it; no engine knows what it is.

    Attributes
    ----------
    bias
        Whether each output channel has a number that is added.
    """

    bias: bool = False

    def __str__(self) -> str:
        return "bias" if self.bias else "none"
