"""The ways to call a convolution, and to differentiate one, in every library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from .. import Conv2d, UnsupportedError, conv2d, conv2d_vjp
from ..core.backend import Backend
from .problems import Problem

__all__ = ["CALL", "DIFFERENTIATE", "gradients", "traced"]


def _plainly(_p: Problem, backend: Backend, arrays: list[Any], options: dict[str, Any]) -> Any:
    return conv2d(*arrays, **options, backend=backend)


def _function(backend: Backend, arrays: list[Any], options: dict[str, Any]) -> Callable[[Any], Any]:
    """Of the image alone."""
    return lambda x: conv2d(x, *arrays[1:], **options, backend=backend)


def _layer(p: Problem, backend: Backend, arrays: list[Any], options: dict[str, Any]) -> Callable[[Any], Any]:
    """A layer that was called before, with other weights and with an image of another size; or the function."""
    x, weight, bias = arrays
    if weight.shape[0] == 0 or any(name != p.dtype for name in p.dtypes[2 if bias is not None else 3 :]):
        return _function(backend, arrays, options)
    g, o, i, kh, kw = p.parts
    device = backend.describe(x).device
    out_dtype = p.out_dtype or None
    given = {"out_dtype": out_dtype, "residual": options.get("residual")}
    options = {name: value for name, value in options.items() if name not in given}
    layer = Conv2d(
        g * i, g * o, (kh, kw), bias=bias is not None, dtype=p.dtype, backend=backend, device=device or None, rng=0,
        **options,
    )  # fmt: skip
    layer(x, out_dtype=out_dtype)
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    other = [slice(None)] * 4
    for axis in (2, 3) if p.argument("layout") == "NCHW" else (1, 2):
        other[axis] = slice(0, max(1, x.shape[axis] - 1))
    with suppress(ValueError):  # the kernel may not fit any more
        layer(x[tuple(other)], out_dtype=out_dtype)
    return partial(layer, **given)


def _as_layer(p: Problem, backend: Backend, arrays: list[Any], options: dict[str, Any]) -> Any:
    return _layer(p, backend, arrays, options)(arrays[0])


def _traced(_p: Problem, backend: Backend, arrays: list[Any], options: dict[str, Any]) -> Any:
    return traced(backend, lambda *arrays: conv2d(*arrays, **options), [a for a in arrays if a is not None])


def traced(backend: Backend, function: Callable[..., Any], given: list[Any]) -> Any:
    """The result of a function of arrays, whose values it does not see."""
    if backend.name == "jax":
        return importlib.import_module("jax").jit(function)(*given)
    if backend.name == "mlx":
        return importlib.import_module("mlx.core").compile(function)(*given)
    torch = importlib.import_module("torch")
    if not given[0].is_floating_point():
        return torch.func.vjp(lambda *rest: function(given[0], *rest), *given[1:])[0]
    return torch.func.vjp(function, *given)[0]


def _constant(p: Problem, backend: Backend, arrays: list[Any], options: dict[str, Any]) -> Any:
    """The result in a function that is traced, of arrays that have values; or one after it, of what was kept."""
    call = _function(backend, arrays, options) if p.seed % 4 < 2 else _layer(p, backend, arrays, options)

    def function(given: Any) -> Any:
        return given, call(arrays[0])

    given = backend.from_numpy(np.ones(1, np.float32), device=backend.describe(arrays[0]).device)
    if backend.name == "jax":
        y = importlib.import_module("jax").jit(function)(given)[1]
    elif backend.name == "mlx":
        y = importlib.import_module("mlx.core").compile(function)(given)[1]
    else:
        y = importlib.import_module("torch").func.vjp(function, given, has_aux=True)[2]
    return y if p.seed % 2 else call(arrays[0])


def _mapped(_p: Problem, backend: Backend, arrays: list[Any], options: dict[str, Any]) -> Any:
    """Each image of the batch by itself, and all of them at once."""

    def function(image: Any) -> Any:
        return conv2d(image[None], *arrays[1:], **options)[0]

    if backend.name == "jax":
        jax = importlib.import_module("jax")
        return jax.jit(jax.vmap(function))(arrays[0])  # compiled as a whole, as gradients are
    if backend.name == "mlx":
        return importlib.import_module("mlx.core").vmap(function)(arrays[0])
    return importlib.import_module("torch").func.vmap(function)(arrays[0])


def _forward(p: Problem, backend: Backend, arrays: list[Any], options: dict[str, Any]) -> Any:
    """The derivative in the direction of the image: without a bias the result itself, since convolution is linear."""
    x, function = arrays[0], _function(backend, arrays, options)
    if backend.name == "jax":
        jax = importlib.import_module("jax")
        return jax.jit(lambda x: jax.jvp(function, (x,), (x,))[1])(x)
    if backend.name == "mlx":
        try:
            return importlib.import_module("mlx.core").jvp(lambda x: [function(x)], [x], [x])[1][0]
        except ValueError as error:
            if "Not implemented" in str(error):
                raise UnsupportedError(f"`engine` {p.engine!r} has no forward derivative in MLX: {error}") from error
            raise
    return importlib.import_module("torch").func.jvp(function, (x,), (x,))[1]


def _compiled(p: Problem, _backend: Backend, arrays: list[Any], options: dict[str, Any]) -> Any:
    """`portconv.torch.Conv2d` in `torch.compile`, for which `conv2d` is not made."""
    torch, portconv_torch = (importlib.import_module(name) for name in ("torch", "portconv.torch"))
    x, weight, bias = arrays
    g, o, i, kh, kw = p.parts
    given = {name: value for name, value in options.items() if name != "layout"}
    layer = portconv_torch.Conv2d(
        g * i, g * o, (kh, kw), bias=bias is not None, dtype=weight.dtype, device=weight.device, **given
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
        return torch.compile(layer, backend="eager")(x)  # captured, and not translated to C++: that is PyTorch's part


CALL: dict[str, Callable[..., Any]] = {
    "conv2d": _plainly, "layer": _as_layer, "traced": _traced, "constant": _constant,
    "mapped": _mapped, "forward": _forward, "compiled": _compiled,
}  # fmt: skip


def _of_mlx(function: Any, arrays: list[Any], dy: Any) -> Any:
    mx = importlib.import_module("mlx.core")
    return mx.vjp(function, arrays, [dy])[1]


def _of_torch(function: Any, arrays: list[Any], dy: Any) -> Any:
    leaves = [a.detach().requires_grad_() if a.is_floating_point() else a for a in arrays]
    function(*leaves).backward(dy)
    return [leaf.grad for leaf in leaves]


def _of_jax(function: Any, arrays: list[Any], dy: Any) -> Any:
    jax = importlib.import_module("jax")
    # compiled as a whole: operation by operation it would take minutes
    gradients = jax.jit(lambda dy, *arrays: jax.vjp(function, *arrays)[1](dy))
    return gradients(dy, *arrays)


def gradients(backend: Backend, arrays: list[Any], options: dict[str, Any], dy: Any) -> list[Any]:
    """By `conv2d_vjp`, for image, weight and bias if there is one; None for an image of integers."""
    _, vjp = conv2d_vjp(*arrays, **options, backend=backend)
    return list(vjp(dy))


# By the library itself, of a function of the arrays.
DIFFERENTIATE = {"mlx": _of_mlx, "torch": _of_torch, "jax": _of_jax}
