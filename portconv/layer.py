"""What a `Conv2d` layer is apart from its parameters' arrays: its arguments, and what follows from them.

`portconv.Conv2d` and `portconv.mlx.Conv2d` hold the arrays, each in its way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .core.array_types import library_of
from .core.backend import Plan
from .core.dtypes import result_name
from .core.epilogue import SLOPE
from .core.integers import integer, pair
from .dispatch.arguments import Conv2dSpec, flag
from .functional import plan_like

__all__ = ["Layer", "LayerArguments", "checked_name"]


def checked_name(name: object) -> str | None:
    """A layer's name: any string, or None."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"`name` must be a string or None, but got {type(name).__name__}.")
    return name


@dataclass(frozen=True, slots=True)
class LayerArguments:
    """The arguments of a layer in normal form."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    has_bias: bool
    spec: Conv2dSpec

    @classmethod
    def normalise(
        cls,
        in_channels: object,
        out_channels: object,
        kernel_size: object,
        bias: object,
        *args: object,
        spec_of: Callable[..., Conv2dSpec] = Conv2dSpec.normalise,
        kernel_of: Callable[[str, Any, int], tuple[int, ...]] = pair,
        **kwargs: Any,
    ) -> LayerArguments:
        """Check every argument; those not named here are those of `spec_of`, which brings them into normal form.

        `kernel_of` does that with the kernel's size, given its name, the value and the least that it may be.
        """
        inputs, outputs = integer("in_channels", in_channels, 1), integer("out_channels", out_channels, 1)
        kernel = kernel_of("kernel_size", kernel_size, 1)
        spec = spec_of(*args, **kwargs)
        for what, channels in (("in_channels", inputs), ("out_channels", outputs)):
            if channels % spec.groups:
                raise ValueError(f"`groups` must divide `{what}`, but {channels} is no multiple of {spec.groups}.")
        return cls(inputs, outputs, kernel, flag("bias", bias), spec)


class Layer:
    """The attributes of a layer, read from its arguments; subclasses hold the parameters."""

    _arguments: LayerArguments
    _kind = "Conv2d"  # as it is shown
    # What is shown where it is not the default.
    _shown: tuple[tuple[str, Any], ...] = (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1))

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return self._arguments.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self._arguments.out_channels

    @property
    def kernel_size(self) -> Any:
        """Kernel height and width."""
        return self._arguments.kernel_size

    @property
    def _kernel(self) -> tuple[int, ...]:
        """The kernel's sizes as the weight has them."""
        return self._arguments.kernel_size

    @property
    def stride(self) -> Any:
        """Stride, (height, width)."""
        return self._arguments.spec.stride

    @property
    def padding(self) -> Any:
        """Padding: (height, width), ((top, bottom), (left, right)) where the sides differ, or "same"."""
        return self._arguments.spec.padding

    @property
    def dilation(self) -> Any:
        """Dilation, (height, width)."""
        return self._arguments.spec.dilation

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self._arguments.spec.groups

    @property
    def conv_mode(self) -> str:
        """The mode, always "cross_correlation"."""
        return self._arguments.spec.conv_mode

    @property
    def compute_mode(self) -> str:
        """The mode, "default" or "float32"."""
        return self._arguments.spec.compute_mode

    @property
    def padding_mode(self) -> str:
        """What stands in the padding."""
        return self._arguments.spec.padding_mode

    @property
    def layout(self) -> str:
        """Layout of image and result."""
        return self._arguments.spec.layout

    @property
    def engine(self) -> str:
        """The engine asked for."""
        return self._arguments.spec.engine

    @property
    def accuracy(self) -> str:
        """The accuracy asked for."""
        return self._arguments.spec.accuracy

    @property
    def strategy(self) -> str:
        """How the engine is chosen."""
        return self._arguments.spec.strategy

    @property
    def activation(self) -> str | tuple[str, float] | None:
        """The activation: its name, with the slope of a leaky_relu that is not the usual one; or None."""
        found = self._arguments.spec.activation
        return None if found is None else found.name if found.slope == SLOPE else (found.name, found.slope)

    def __repr__(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        for what, default in self._shown:
            if (value := getattr(self, what)) != default:
                parts.append(f"{what}={value!r}")
        if not self._arguments.has_bias:
            parts.append("bias=False")
        if self.activation is not None:
            parts.append(f"activation={self.activation!r}")
        return f"{self._kind}({', '.join(parts)})"

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        o, i, g = self.out_channels, self.in_channels, self.groups
        return (o, i, *self._kernel) if g == 1 else (g, o // g, i // g, *self._kernel)

    @property
    def _weight_shapes(self) -> list[tuple[int, ...]]:
        """The shapes that a weight may have: its own, and with groups that of PyTorch and ONNX."""
        o, i, g = self.out_channels, self.in_channels, self.groups
        return [self._weight_shape] if g == 1 else [self._weight_shape, (o, i // g, *self._kernel)]

    @property
    def _planned_shape(self) -> tuple[int, ...]:
        """The weight's shape as plans take it."""
        return self._weight_shape

    @property
    def _bias_shape(self) -> tuple[int, ...]:
        return (1, self.out_channels, *[1] * len(self._kernel))

    @property
    def _fan_in(self) -> int:
        """The channels that initial weights are scaled by."""
        return self.in_channels

    @property
    def weight_layout(self) -> str:
        """Layout of the weight: "OIHW"; with more than one group "GOIHW", (G, O/G, I/G, kh, kw)."""
        return ("OI" if self.groups == 1 else "GOI") + "DHW"[-len(self._kernel) :]

    def _take(self, weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any] | None) -> None:
        """Take parameters of the right shapes: `weight` (O, I/G, kh, kw), `bias` (O,) or (1, O, 1, 1)."""
        raise NotImplementedError  # abstract: every layer has its own

    def _initial_parameters(self, rng: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
        """New weight and bias, in float64; `rng` is a seed or a `numpy.random.Generator`."""
        try:
            generator = np.random.default_rng(rng)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"`rng` must be None, a seed or a numpy.random.Generator, but got {rng!r}: {error}"
            ) from None
        scale = math.sqrt(1 / (math.prod(self._kernel) * self._fan_in))
        weight = generator.standard_normal(self._weight_shape) * scale
        return weight, np.zeros(self._bias_shape) if self._arguments.has_bias else None

    def _place(self) -> dict[str, Any]:
        """`dtype`, `backend` and `device` of the parameters, as `plan_conv2d` takes them."""
        raise NotImplementedError  # abstract: every layer has its own

    def output_shape(self, input_shape: Any) -> tuple[int, ...]:
        """Shape of the result for an image of this shape, in the layer's layout."""
        return self.plan(input_shape).output_shape

    def plan(self, x_or_shape: Any, *, out_dtype: Any = None, residual: Any = None) -> Plan:
        """How an image, or one of this shape, would be computed; see `portconv.plan_conv2d`."""
        place = self._place()
        if library_of(x_or_shape) is not None:  # the image says where it is
            place = {"dtype": place["dtype"]}
        spec = replace(self._arguments.spec, out_dtype=None if out_dtype is None else result_name(out_dtype))
        return plan_like(spec, x_or_shape, self._planned_shape, self._arguments.has_bias, residual, **place)

    def explain(self, x_or_shape: Any) -> str:
        """A table of the engines for an image, or one of this shape: their costs, and why the losers lost."""
        return self.plan(x_or_shape).explain()
