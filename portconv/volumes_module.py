"""`Conv3d`: a convolution of volumes with its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from .core.array_types import library_of
from .core.backend import Plan
from .core.errors import UnsupportedError
from .core.shapes import output_size
from .dispatch import registry
from .dispatch.path import info_of
from .functional import plan_like
from .layer import LayerArguments
from .module import Module
from .volumes import conv3d, conv3d_vjp, triple

if TYPE_CHECKING:
    from .core.words import Accuracy, ConvMode, Strategy
    from .signatures import PaddingLike, Size

__all__ = ["Conv3d"]


class Conv3d(Module):
    """Three-dimensional convolution layer with MegEngine's semantics, for arrays of any library.

    In all that is not said here it is like `portconv.Conv2d`, with the same methods. Its weights are packed in every
    call.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the volume and of the result.
    kernel_size
        An int, or three of them (depth, height, width).
    stride, padding, dilation, groups
        As in `portconv.conv3d`.
    bias
        Whether there is a bias (a truth value).
    conv_mode, name, dtype, backend, device, engine, accuracy, strategy, rng
        As in `portconv.Conv2d`.

    Attributes
    ----------
    weight
        ``(O, I, kd, kh, kw)``; with more than one group ``(G, O/G, I/G, kd, kh, kw)``. Grouped ones may be assigned and
        loaded in PyTorch's and ONNX's form ``(O, I/G, kd, kh, kw)``, too.
    bias
        ``(1, O, 1, 1, 1)`` or None.

    Raises
    ------
    TypeError
        For the wrong kind of argument.
    ValueError
        For values that are not allowed.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> conv = portconv.Conv3d(2, 4, 3, stride=(1, 2, 2), padding=1, rng=0)
    >>> conv
    Conv3d(2, 4, kernel_size=(3, 3, 3), stride=(1, 2, 2), padding=(1, 1, 1))
    >>> conv.weight.shape, conv.bias.shape
    ((4, 2, 3, 3, 3), (1, 4, 1, 1, 1))
    >>> conv(np.ones((1, 2, 5, 8, 8), np.float32)).shape
    (1, 4, 5, 4, 4)
    """

    _kind = "Conv3d"
    _shown = (("stride", (1, 1, 1)), ("padding", (0, 0, 0)), ("dilation", (1, 1, 1)), ("groups", 1))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: PaddingLike = 0,
        dilation: Size = 1,
        groups: SupportsIndex = 1,
        bias: Any = True,
        conv_mode: ConvMode = "cross_correlation",
        *,
        name: str | None = None,
        dtype: Any = "float32",
        backend: Any = "numpy",
        device: str | None = None,
        engine: str = "auto",
        accuracy: Accuracy = "normwise",
        strategy: Strategy = "heuristic",
        rng: Any = None,
    ) -> None:
        triples = triple("stride", stride, 1), triple("padding", padding, 0), triple("dilation", dilation, 1)
        arguments = LayerArguments.normalise(
            in_channels, out_channels, kernel_size, bias, *(value[1:] for value in triples), groups, conv_mode,
            kernel_of=triple, engine=engine, accuracy=accuracy, strategy=strategy,
        )  # fmt: skip
        self._along_depth = tuple(value[0] for value in triples)  # all else is in the arguments of the planes
        self._start(arguments, name, dtype, backend, device, rng)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Stride, (depth, height, width)."""
        return self._along_depth[0], *self._arguments.spec.stride

    @property
    def padding(self) -> tuple[int, int, int]:
        """Padding, (depth, height, width)."""
        rows_and_cols: Any = self._arguments.spec.padding  # a pair here
        return self._along_depth[1], *rows_and_cols

    @property
    def dilation(self) -> tuple[int, int, int]:
        """Dilation, (depth, height, width)."""
        return self._along_depth[2], *self._arguments.spec.dilation

    @property
    def layout(self) -> str:
        """Layout of volume and result."""
        return "NCDHW"

    def _options(self, backend: Any) -> dict[str, Any]:
        return {
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups,
            "engine": self.engine, "accuracy": self.accuracy, "strategy": self.strategy, "backend": backend,
        }  # fmt: skip

    def __call__(self, x: Any, *, residual: Any = None, out_dtype: Any = None, out: Any = None) -> Any:
        """Convolve a volume ``(N, in_channels, D, H, W)``; there is no residual, `out_dtype` or `out`."""
        for name, value in (("residual", residual), ("out_dtype", out_dtype), ("out", out)):
            if value is not None:
                raise UnsupportedError(f"`{name}` is not supported by Conv3d.")
        library, *parameters = self._parameters_like(x)
        return conv3d(x, *parameters, **self._options(library))

    forward = __call__

    def vjp(
        self, x: Any, *, residual: Any = None, wrt: Sequence[str] | str | None = None
    ) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
        """As `portconv.Conv2d.vjp`, without a residual."""
        if residual is not None:
            raise UnsupportedError("`residual` is not supported by Conv3d.")
        library, *parameters = self._parameters_like(x)
        return conv3d_vjp(x, *parameters, **self._options(library), wrt=wrt)

    def _parameters_like(self, x: Any) -> tuple[Any, Any, Any]:
        """The library of an image, and weight and bias in it."""
        self._tell_jax()
        library = registry.resolve(x)
        return library, *self._parameters_for(library, info_of(library, "x", x))

    def plan(self, x_or_shape: Any, *, out_dtype: Any = None, residual: Any = None) -> Plan:
        """How a plane of the kernel would be computed, for a volume or one of this shape: with all planes as images."""
        place = self._place()
        if library_of(x_or_shape) is not None:
            library = registry.resolve(x_or_shape)
            place |= {"backend": library, "device": info_of(library, "x", x_or_shape).device or None}
            x_or_shape = x_or_shape.shape
        n, _, channels, height, width = self._sizes(x_or_shape)
        weight_shape = (*self._weight_shape[:-3], *self._weight_shape[-2:])
        images = n * self._depth(x_or_shape), channels, height, width
        return plan_like(self._arguments.spec, images, weight_shape, self._arguments.has_bias, None, **place)

    def output_shape(self, input_shape: Any) -> tuple[int, ...]:
        """Shape of the result for a volume of this shape."""
        _, *rest = self.plan(input_shape).output_shape
        channels, height, width = rest
        return self._sizes(input_shape)[0], channels, self._depth(input_shape), height, width

    @staticmethod
    def _sizes(shape: Any) -> tuple[int, int, int, int, int]:
        """(N, D, C, H, W)."""
        if len(shape) != 5:
            raise ValueError(f"`x` must have 5 axes, NCDHW, but got shape {tuple(shape)}.")
        n, channels, depth, height, width = (int(size) for size in shape)
        return n, depth, channels, height, width

    def _depth(self, shape: Any) -> int:
        """That of the result."""
        stride, padding, dilation = self._along_depth
        depth = output_size(self._sizes(shape)[1], self._kernel[0], stride, padding, padding, dilation)
        if depth < 1:
            raise ValueError(f"The kernel does not fit: it is deeper than a volume of shape {tuple(shape)}.")
        return depth
