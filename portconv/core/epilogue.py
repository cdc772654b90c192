"""The epilogue: what is applied to the sums of a convolution where they are stored."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SLOPE", "Activation", "Epilogue"]

SLOPE = 0.01  # of leaky_relu below zero, where none is named


@dataclass(frozen=True, slots=True)
class Activation:
    """One of `words.ACTIVATIONS`.

    Attributes
    ----------
    name
        As users write it.
    slope
        Of leaky_relu below zero; `SLOPE` for all others.
    """

    name: str
    slope: float = SLOPE

    def __str__(self) -> str:
        return self.name if self.slope == SLOPE else f"{self.name} of slope {self.slope:g}"


@dataclass(frozen=True, slots=True)
class Epilogue:
    """``activation(sums + bias + residual)``. Each tier has one function that applies it; no engine knows what it is.

    Attributes
    ----------
    bias
        Whether each output channel has a number that is added.
    residual
        Whether an array like the result is added.
    activation
        What is applied to the whole, or None.
    """

    bias: bool = False
    residual: bool = False
    activation: Activation | None = None

    @property
    def linear(self) -> Epilogue:
        """What is left without activation and residual."""
        return Epilogue(bias=self.bias)

    def __str__(self) -> str:
        parts = ["bias"] * self.bias + ["residual"] * self.residual
        if self.activation is not None:
            parts.append(str(self.activation))
        return ", ".join(parts) or "none"
