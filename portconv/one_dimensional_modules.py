"""`Conv1d` and `ConvTranspose1d`: the layers of images that are one pixel high."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex

from .core.array_types import library_of
from .core.backend import Plan
from .core.integers import integer
from .dispatch.arguments import Conv2dSpec, check_channels
from .dispatch.transposed import check_transposed_channels, normalised_transposed
from .layer import LayerArguments
from .module import Module
from .one_dimensional import LAYOUTS, image_layout, narrowed, padding_of, pulled_back, widened
from .transposed_module import TransposedModule

if TYPE_CHECKING:
    from .core.words import Accuracy, ComputeMode, ConvMode, PaddingMode, SignalLayout, Strategy
    from .signatures import ActivationLike, PaddingLike

__all__ = ["Conv1d", "ConvTranspose1d"]


def _kernel_of(name: str, value: Any, minimum: int) -> tuple[int]:
    return (integer(name, value, minimum),)


class _OneDimensional(Module):
    """A module whose plans are those of images one pixel high: arrays are shown to them as such."""

    _shown: tuple[tuple[str, Any], ...] = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
    _fitting = staticmethod(check_channels)

    @property
    def kernel_size(self) -> int:
        """Size of the kernel."""
        return self._kernel[0]

    @property
    def stride(self) -> int:
        """The stride, in pixels."""
        return self._arguments.spec.stride[1]

    @property
    def padding(self) -> Any:
        """Padding: an int, a pair (left, right) where the sides differ, or "same"."""
        padding = self._arguments.spec.padding
        return padding if isinstance(padding, str) else padding[1]

    @property
    def dilation(self) -> int:
        """The dilation, in pixels."""
        return self._arguments.spec.dilation[1]

    @property
    def layout(self) -> str:
        """Layout of image and result."""
        return next(name for name, images in LAYOUTS.items() if images == self._arguments.spec.layout)

    @property
    def _height(self) -> int:
        """The axis that images have besides."""
        return image_layout(self.layout).index("H")

    def _planned(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        return value[..., None, :] if name == "weight" else value[..., None]

    def __call__(self, x: Any, *, residual: Any = None, out_dtype: Any = None, out: Any = None) -> Any:
        """Convolve ``(N, in_channels, W)``, or NWC if that is the layout; see `portconv.conv1d`."""
        image, _, _, added, target = widened(x, None, None, residual, out, self.layout)
        self._check_channels(x.shape)
        y = super().__call__(image, residual=added, out_dtype=out_dtype, out=target)
        return narrowed(y, self.layout) if out is None else out

    forward = __call__

    def vjp(
        self, x: Any, *, residual: Any = None, wrt: Sequence[str] | str | None = None
    ) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
        """The result and a function that gives the gradients; see `portconv.conv1d_vjp`."""
        image, _, _, added, _ = widened(x, None, None, residual, None, self.layout)
        self._check_channels(x.shape)
        y, pull = super().vjp(image, residual=added, wrt=wrt)
        y = narrowed(y, self.layout)
        return y, partial(pulled_back, pull, self.layout, tuple(y.shape))

    def plan(self, x_or_shape: Any, *, out_dtype: Any = None, residual: Any = None) -> Plan:
        """How an image, or one of this shape, would be computed: the plan of an image one pixel high."""
        if library_of(x_or_shape) is not None:
            image, _, _, added, _ = widened(x_or_shape, None, None, residual, None, self.layout)
            self._check_channels(x_or_shape.shape)
            return super().plan(image, out_dtype=out_dtype, residual=added)
        shape = [*x_or_shape]
        if len(shape) != 3:
            raise ValueError(f"`x` must have 3 axes, {self.layout}, but got shape {tuple(shape)}.")
        shape.insert(self._height, 1)
        return super().plan(tuple(shape), out_dtype=out_dtype, residual=residual)

    def _check_channels(self, x_shape: Sequence[int]) -> None:
        """Whether the channels of a signal fit, in the words of signals: what follows would speak of images."""
        self._fitting(tuple(x_shape), self._weight_shape, None, self.groups, self.layout)

    @property
    def _planned_shape(self) -> tuple[int, ...]:
        *channels, size = self._weight_shape
        return (*channels, 1, size)

    def output_shape(self, input_shape: Any) -> tuple[int, ...]:
        """Shape of the result for an image of this shape, in the layer's layout."""
        shape = [*super().output_shape(input_shape)]
        del shape[self._height]
        return tuple(shape)


def _arguments(
    in_channels: Any, out_channels: Any, kernel_size: Any, bias: Any, stride: Any, padding: Any, extra: tuple[Any, ...],
    dilation: Any, *rest: Any, layout: Any, **options: Any,
) -> LayerArguments:  # fmt: skip
    """Every argument in normal form; `extra` is an output padding for the spec of images, or nothing."""
    return LayerArguments.normalise(
        in_channels, out_channels, kernel_size, bias, (1, integer("stride", stride, 1)), padding_of(padding),
        *((0, integer("output_padding", value, 0)) for value in extra), (1, integer("dilation", dilation, 1)), *rest,
        spec_of=normalised_transposed if extra else Conv2dSpec.normalise, kernel_of=_kernel_of,
        layout=image_layout(layout), **options,
    )  # fmt: skip


class Conv1d(_OneDimensional):
    """One-dimensional convolution layer with MegEngine's semantics, for arrays of any library.

    In all that is not said here it is like `portconv.Conv2d`, with the same methods.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the image and of the result.
    kernel_size
        An int.
    stride, padding, dilation, groups
        As in `portconv.conv1d`.
    bias
        Whether there is a bias (a truth value).
    layout
        ``"NCW"`` or ``"NWC"``.
    conv_mode, compute_mode, padding_mode, name, dtype, backend, device, engine, accuracy, strategy, activation, rng
        As in `portconv.Conv2d`.

    Attributes
    ----------
    weight
        ``(O, I, k)``; with more than one group ``(G, O/G, I/G, k)``. Grouped ones may be assigned and loaded in
        PyTorch's and ONNX's form ``(O, I/G, k)``, too.
    bias
        ``(1, O, 1)`` or None.

    Raises
    ------
    TypeError
        For the wrong kind of argument.
    ValueError
        For values that are not allowed.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> conv = portconv.Conv1d(3, 8, 5, stride=2, padding=2, rng=0)
    >>> conv
    Conv1d(3, 8, kernel_size=5, stride=2, padding=2)
    >>> conv.weight.shape, conv.bias.shape
    ((8, 3, 5), (1, 8, 1))
    >>> conv(np.ones((1, 3, 100), np.float32)).shape
    (1, 8, 50)
    """

    _kind = "Conv1d"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: PaddingLike = 0,
        dilation: int = 1,
        groups: SupportsIndex = 1,
        bias: Any = True,
        conv_mode: ConvMode = "cross_correlation",
        compute_mode: ComputeMode = "default",
        padding_mode: PaddingMode = "zeros",
        *,
        name: str | None = None,
        dtype: Any = "float32",
        backend: Any = "numpy",
        device: str | None = None,
        layout: SignalLayout = "NCW",
        engine: str = "auto",
        accuracy: Accuracy = "normwise",
        strategy: Strategy = "heuristic",
        activation: ActivationLike = None,
        rng: Any = None,
    ) -> None:
        arguments = _arguments(
            in_channels, out_channels, kernel_size, bias, stride, padding, (), dilation, groups, conv_mode,
            compute_mode, padding_mode=padding_mode, layout=layout, engine=engine, accuracy=accuracy,
            strategy=strategy, activation=activation,
        )  # fmt: skip
        self._start(arguments, name, dtype, backend, device, rng)


class ConvTranspose1d(_OneDimensional, TransposedModule):
    """One-dimensional transposed convolution layer, for arrays of any library.

    In all that is not said here it is like `portconv.ConvTranspose2d`, with the same methods.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the image and of the result.
    kernel_size
        An int.
    stride, padding, output_padding, dilation, groups
        As in `portconv.conv_transpose1d`.
    bias
        Whether there is a bias (a truth value).
    layout
        ``"NCW"`` or ``"NWC"``.
    conv_mode, compute_mode, name, dtype, backend, device, engine, accuracy, strategy, activation, rng
        As in `portconv.Conv2d`.

    Attributes
    ----------
    weight
        ``(I, O, k)``; with more than one group ``(G, I/G, O/G, k)``. Grouped ones may be assigned and loaded in
        PyTorch's and ONNX's form ``(I, O/G, k)``, too.
    bias
        ``(1, O, 1)`` or None.

    Raises
    ------
    TypeError
        For the wrong kind of argument.
    ValueError
        For values that are not allowed.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> up = portconv.ConvTranspose1d(16, 8, 4, stride=2, padding=1, rng=0)
    >>> up
    ConvTranspose1d(16, 8, kernel_size=4, stride=2, padding=1)
    >>> up(np.ones((1, 16, 50), np.float32)).shape
    (1, 8, 100)
    """

    _kind = "ConvTranspose1d"
    _shown = (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1), ("groups", 1))
    _fitting = staticmethod(check_transposed_channels)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: PaddingLike = 0,
        output_padding: int = 0,
        dilation: int = 1,
        groups: SupportsIndex = 1,
        bias: Any = True,
        conv_mode: ConvMode = "cross_correlation",
        compute_mode: ComputeMode = "default",
        *,
        name: str | None = None,
        dtype: Any = "float32",
        backend: Any = "numpy",
        device: str | None = None,
        layout: SignalLayout = "NCW",
        engine: str = "auto",
        accuracy: Accuracy = "normwise",
        strategy: Strategy = "heuristic",
        activation: ActivationLike = None,
        rng: Any = None,
    ) -> None:
        arguments = _arguments(
            in_channels, out_channels, kernel_size, bias, stride, padding, (output_padding,), dilation, groups,
            conv_mode, compute_mode, layout=layout, engine=engine, accuracy=accuracy, strategy=strategy,
            activation=activation,
        )  # fmt: skip
        self._start(arguments, name, dtype, backend, device, rng)

    @property
    def output_padding(self) -> int:
        """Elements that the result has besides, at its end."""
        extra: int = super().output_padding[1]
        return extra
