"""`ConvTranspose2d`: a transposed convolution with its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

from .dispatch.transposed import ConvTranspose2dSpec, normalised_transposed
from .layer import LayerArguments
from .module import Module

if TYPE_CHECKING:
    from .core.words import Accuracy, ComputeMode, ConvMode, Layout, Strategy
    from .signatures import ActivationLike, PaddingLike, Size

__all__ = ["ConvTranspose2d", "TransposedModule"]


class TransposedModule(Module):
    """What the modules of transposed convolutions have that others have not: weights with the inputs first."""

    @property
    def output_padding(self) -> Any:
        """Rows and columns that the result has besides, at the bottom and right."""
        spec = self._arguments.spec
        assert isinstance(spec, ConvTranspose2dSpec)
        return spec.output_padding

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        o, i, g = self.out_channels, self.in_channels, self.groups
        return (i, o, *self._kernel) if g == 1 else (g, i // g, o // g, *self._kernel)

    @property
    def _weight_shapes(self) -> list[tuple[int, ...]]:
        o, i, g = self.out_channels, self.in_channels, self.groups
        return [self._weight_shape] if g == 1 else [self._weight_shape, (i, o // g, *self._kernel)]

    @property
    def _fan_in(self) -> int:
        return self.out_channels

    @property
    def weight_layout(self) -> str:
        """Layout of the weight: "IOHW"; with more than one group "GIOHW", (G, I/G, O/G, kh, kw)."""
        return ("IO" if self.groups == 1 else "GIO") + "HW"[-len(self._kernel) :]


class ConvTranspose2d(TransposedModule):
    """Two-dimensional transposed convolution layer with MegEngine's semantics, for arrays of any library.

    In all that is not said here it is like `portconv.Conv2d`, with the same methods: the result follows the image, and
    converted and packed copies of the parameters are kept until they change.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the image and of the result.
    kernel_size
        An int, or a pair (height, width).
    stride, padding, output_padding, dilation, groups
        As in `portconv.conv_transpose2d`.
    bias
        Whether there is a bias (a truth value).
    conv_mode, compute_mode, name, dtype, backend, device, layout, engine, accuracy, strategy, activation, rng
        As in `portconv.Conv2d`.

    Attributes
    ----------
    weight
        ``(I, O, kh, kw)``; with more than one group ``(G, I/G, O/G, kh, kw)``. Grouped ones may be assigned and loaded
        in PyTorch's and ONNX's form ``(I, O/G, kh, kw)``, too.
    bias
        ``(1, O, 1, 1)`` or None.

    Raises
    ------
    TypeError
        For the wrong kind of argument.
    ValueError
        For values that are not allowed.

    Notes
    -----
    Initial weights are normal with mean 0 and standard deviation ``sqrt(1 / (kh * kw * out_channels))``, and the bias
    is zero, as in MegEngine. `repr` is MegEngine's, with an `output_padding` that is not zero.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> up = portconv.ConvTranspose2d(16, 8, 4, stride=2, padding=1, rng=0)
    >>> up
    ConvTranspose2d(16, 8, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1))
    >>> up.weight.shape, up.bias.shape
    ((16, 8, 4, 4), (1, 8, 1, 1))
    >>> up(np.ones((1, 16, 12, 12), np.float32)).shape
    (1, 8, 24, 24)
    """

    _kind = "ConvTranspose2d"
    _shown = (
        ("stride", (1, 1)), ("padding", (0, 0)), ("output_padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1),
    )  # fmt: skip

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: PaddingLike = 0,
        output_padding: Size = 0,
        dilation: Size = 1,
        groups: SupportsIndex = 1,
        bias: Any = True,
        conv_mode: ConvMode = "cross_correlation",
        compute_mode: ComputeMode = "default",
        *,
        name: str | None = None,
        dtype: Any = "float32",
        backend: Any = "numpy",
        device: str | None = None,
        layout: Layout = "NCHW",
        engine: str = "auto",
        accuracy: Accuracy = "normwise",
        strategy: Strategy = "heuristic",
        activation: ActivationLike = None,
        rng: Any = None,
    ) -> None:
        arguments = LayerArguments.normalise(
            in_channels, out_channels, kernel_size, bias, stride, padding, output_padding, dilation, groups, conv_mode,
            compute_mode, spec_of=normalised_transposed, layout=layout, engine=engine, accuracy=accuracy,
            strategy=strategy, activation=activation,
        )  # fmt: skip
        self._start(arguments, name, dtype, backend, device, rng)
