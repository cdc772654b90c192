"""The words that arguments of users may be: their types, and the same as tuples, for checks and messages."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = [
    "ACCURACIES", "ACTIVATIONS", "AVERAGES", "COMPUTE_MODES", "CONV_MODES", "INTERPOLATIONS", "LAYOUTS",
    "PADDING_MODES", "STRATEGIES", "Accuracy", "ActivationName", "Average", "ComputeMode", "ConvMode",
    "Interpolation", "Layout", "PaddingMode", "SignalLayout", "Strategy", "VolumeLayout",
]  # fmt: skip

Layout: TypeAlias = Literal["NCHW", "NHWC"]
SignalLayout: TypeAlias = Literal["NCW", "NWC"]
VolumeLayout: TypeAlias = Literal["NCDHW", "NDHWC"]
PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
ConvMode: TypeAlias = Literal["cross_correlation"]
ComputeMode: TypeAlias = Literal["default", "float32"]
Accuracy: TypeAlias = Literal["normwise", "elementwise"]
Strategy: TypeAlias = Literal["heuristic", "measure"]
ActivationName: TypeAlias = Literal[
    "relu", "relu6", "leaky_relu", "silu", "hard_swish", "gelu", "sigmoid", "tanh"
]  # fmt: skip
Average: TypeAlias = Literal["average_count_exclude_padding", "average"]
Interpolation: TypeAlias = Literal["bilinear", "nearest"]

LAYOUTS: tuple[str, ...] = get_args(Layout)
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)
CONV_MODES: tuple[str, ...] = get_args(ConvMode)
COMPUTE_MODES: tuple[str, ...] = get_args(ComputeMode)
ACCURACIES: tuple[str, ...] = get_args(Accuracy)
STRATEGIES: tuple[str, ...] = get_args(Strategy)
ACTIVATIONS: tuple[str, ...] = get_args(ActivationName)
AVERAGES: tuple[str, ...] = get_args(Average)
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
