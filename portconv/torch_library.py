"""`conv2d` as an operation of PyTorch's, so that `torch.compile` and `torch.export` need not look into it.

Both follow a function's Python code with tensors that have no values. The operation tells them what they need: the
result's shape, dtype and order of memory, and what its gradients are. Its values are those of `portconv.conv2d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import torch

from .backends.base import ArrayApiBackend
from .backends.torch.operations import activated
from .cpu.gradient import host_pullback
from .dispatch.arguments import Conv2dSpec, activation_of
from .dispatch.path import plan_for
from .functional import conv2d

__all__: list[str] = []


# The arguments without arrays, in the forms that an operation can take. `padding` is (top, bottom, left, right), or
# empty for "same"; `options` are values of OPTIONS with commas between them.
ARGUMENTS = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str options"
OPTIONS = ("conv_mode", "compute_mode", "padding_mode", "layout", "engine", "accuracy", "strategy", "out_dtype")


class _Arguments(NamedTuple):
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    options: str

    def named(self) -> dict[str, Any]:
        """The keywords of `conv2d`."""
        top, bottom, left, right = self.padding or (0, 0, 0, 0)
        padding = ((top, bottom), (left, right)) if self.padding else "same"
        whole = {"stride": tuple(self.stride), "padding": padding, "dilation": tuple(self.dilation)}
        return {**whole, "groups": self.groups, **_named(self.options)}


@lru_cache(maxsize=1024)
def _named(options: str) -> dict[str, Any]:
    found: dict[str, Any] = dict(zip(OPTIONS, options.split(","), strict=True))
    return {**found, "out_dtype": None if found["out_dtype"] == "None" else found["out_dtype"]}


@torch.library.custom_op(
    "portconv::conv2d", mutates_args=(), schema=f"(Tensor x, Tensor weight, Tensor? bias, {ARGUMENTS}) -> Tensor"
)  # type: ignore[untyped-decorator]  # PyTorch is not typed here
def _operation(x: Any, weight: Any, bias: Any, *arguments: Any) -> Any:
    # in the order of memory that `_like_the_result` promises
    y = conv2d(x, weight, bias, **_Arguments(*arguments).named())
    return y.contiguous(memory_format=_memory_format(x, _named(arguments[-1])["layout"]))


def _memory_format(x: Any, layout: str) -> Any:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last and layout == "NCHW" else torch.contiguous_format


@_operation.register_fake  # type: ignore[untyped-decorator]  # PyTorch is not typed here
def _like_the_result(x: Any, weight: Any, bias: Any, *arguments: Any) -> Any:
    # by formulas of its own, since sizes may be symbols here
    given = _Arguments(*arguments)
    options, padding = _named(given.options), given.padding or (None, None, None, None)
    last = options["layout"] == "NHWC"
    image, kernel = x.shape[1:3] if last else x.shape[2:4], weight.shape[-2:]
    axes = zip(image, kernel, given.stride, given.dilation, padding[::2], padding[1::2], strict=True)
    rows, cols = (_size(*axis) for axis in axes)
    outputs = weight.shape[0] * (weight.shape[1] if weight.ndim == 5 else 1)
    shape = (x.shape[0], rows, cols, outputs) if last else (x.shape[0], outputs, rows, cols)
    floating = [a.dtype for a in (x, weight, bias) if a is not None and a.is_floating_point()]
    named = options["out_dtype"]
    dtype = getattr(torch, named) if named else reduce(torch.promote_types, floating)
    memory_format = _memory_format(x, options["layout"])
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=memory_format)


def _size(size: Any, kernel: Any, stride: Any, dilation: Any, before: Any, after: Any) -> Any:
    if before is None:
        return (size + stride - 1) // stride
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


@torch.library.custom_op(
    "portconv::conv2d_backward", mutates_args=(),
    schema=f"(Tensor dy, Tensor x, Tensor weight, Tensor? bias, bool[] wanted, {ARGUMENTS}) -> Tensor[]",
)  # type: ignore[untyped-decorator]  # PyTorch is not typed here  # fmt: skip
def _gradients(dy: Any, x: Any, weight: Any, bias: Any, wanted: list[bool], *arguments: Any) -> list[Any]:
    # no autograd, which PyTorch keeps out of an operation
    library, plan = plan_for(Conv2dSpec.normalise(**_Arguments(*arguments).named()), x, weight, bias)
    by: Any = host_pullback if x.device.type == "cpu" else ArrayApiBackend.pullback
    pullback = by(library, plan, x, weight, bias, (wanted[0], wanted[1], wanted[2]))
    return [gradient.contiguous() for gradient in pullback(dy) if gradient is not None]


@_gradients.register_fake  # type: ignore[untyped-decorator]  # PyTorch is not typed here
def _like_the_gradients(_dy: Any, x: Any, weight: Any, bias: Any, wanted: list[bool], *_arguments: Any) -> list[Any]:
    return [
        torch.empty_like(a, memory_format=torch.contiguous_format)
        for a, want in zip((x, weight, bias), wanted, strict=True)
        if want
    ]


def _keep(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG001  # PyTorch's name
    x, weight, bias, *ctx.arguments = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, dy: Any) -> Any:
    wanted = list(ctx.needs_input_grad[:3])
    found = iter(torch.ops.portconv.conv2d_backward(dy, *ctx.saved_tensors, wanted, *ctx.arguments))
    return *(next(found) if want else None for want in wanted), *(None for _ in ctx.arguments)


_operation.register_autograd(_backward, setup_context=_keep)


@torch.compiler.substitute_in_graph(conv2d)  # type: ignore[untyped-decorator]  # PyTorch is not typed here
def _in_a_graph(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    conv_mode: str = "cross_correlation",
    compute_mode: str = "default",
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    engine: str = "auto",
    accuracy: str = "normwise",
    strategy: str = "heuristic",
    backend: Any = None,
    out_dtype: Any = None,
    out: Any = None,
    activation: Any = None,
    residual: Any = None,
) -> Any:
    """What `torch.compile` follows in the place of `conv2d`."""
    if backend is not None or out is not None:
        raise TypeError("Within `torch.compile` and `torch.export` `conv2d` has no `backend` and no `out`.")
    sums_dtype = out_dtype
    if activation is not None or residual is not None:
        arrays = [array for array in (x, weight, bias, residual) if array is not None and array.is_floating_point()]
        dtype = reduce(torch.promote_types, [array.dtype for array in arrays])
        sums_dtype = "float64" if dtype == torch.float64 else "float32"
    options = f"{conv_mode},{compute_mode},{padding_mode},{layout},{engine},{accuracy},{strategy},{sums_dtype}"
    y = torch.ops.portconv.conv2d(
        x, weight, bias, _pair(stride), _sides(padding), _pair(dilation), int(groups), options
    )
    if activation is None and residual is None:
        return y
    if out_dtype is not None and not str(out_dtype).rpartition(".")[2].startswith(("float", "bfloat")):
        raise TypeError("Within `torch.compile` and `torch.export` an `activation` has no `out_dtype` of integers.")
    if residual is not None:
        if residual.shape != y.shape:
            raise ValueError(f"`residual` must have the shape of the result, {y.shape}, but got {residual.shape}.")
        y = y + residual
    if (named := activation_of(activation)) is not None:
        y = activated(y, named)
    return y.to(dtype if out_dtype is None else getattr(torch, str(out_dtype).rpartition(".")[2]))


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(one) for one in value]


def _sides(padding: Any) -> list[int]:
    if isinstance(padding, str):
        return [] if padding == "same" else [0, 0, 0, 0]
    vertical, horizontal = _pair(padding) if isinstance(padding, int) else padding
    return [*_pair(vertical), *_pair(horizontal)]
