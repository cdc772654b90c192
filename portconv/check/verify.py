"""Runs one problem with the arrays of one library, and compares the result with the float64 sum."""

from __future__ import annotations

import importlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import portconv
from portconv.testing import assert_close, reference_conv2d, reference_gradients

from ..bench.devices import devices, hardware, placement
from .problems import Data, Problem, make_data, problem

__all__ = ["describe_library", "verify"]

Message = dict[str, Any]
Array = np.ndarray[Any, Any]

TOO_SLOW = 0.3  # seconds, by estimate, that an engine may take for one of the large problems


def describe_library(name: str) -> Message:
    """A library's devices, and of each the hardware and the engines: what they are, or why they cannot run a layer."""
    found = {}
    for device in devices(name):
        plan = portconv.plan_conv2d(
            (1, 16, 32, 32), (16, 16, 3, 3), padding=1, backend=name, device=placement(name, device)
        )
        engines = {c.engine: c.why_not or c.note for c in plan.candidates}
        able = [c.engine for c in plan.candidates if c.why_not is None]
        found[device] = {"hardware": hardware(name, device), "engines": engines, "able": able}
    return {"devices": found, "compiled": _compiled_tier() if name == "numpy" else {}}


def _compiled_tier() -> Message:
    """The state of the compiled tier in this process, and where it keeps its code."""
    if not any(c.note.startswith("compiled") for c in portconv.plan_conv2d((1, 1, 8, 8), (1, 1, 3, 3)).candidates):
        return {"state": "off"}
    # the one place that knows: what Numba says of a kernel
    kernels = importlib.import_module("portconv.cpu.jit.memory")
    folder = kernels.fill_plane.stats.cache_path
    files = list(Path(folder).glob("*.nbc")) if folder else []
    size = sum(file.stat().st_size for file in files)
    version = sys.modules["numba"].__version__
    return {"state": "on", "numba": version, "cache": folder, "files": len(files), "mib": round(size / 2**20, 1)}


def verify(name: str, number: int, seed: int, device: str, engine: str, accuracy: str) -> Message:
    """One run: ``share``, the largest error as a share of the bound, or ``refused`` or ``failed`` with the reason.

    A mistake gives ``raised``, the error that it should be.
    """
    p = problem(number, seed)
    try:
        arrays = _arrays(name, number, seed, device)
    except (TypeError, ValueError) as error:  # a dtype that the library, or this device, does not have
        return {"refused": _one_line(error)}
    except Exception as error:  # noqa: BLE001  it belongs in the report, and the next problem gets its turn
        return {"failed": f"making the arrays: {_one_line(error)}"}
    x, weight, bias = arrays
    options = {**p.arguments, "engine": engine, "accuracy": accuracy}
    try:
        if p.mistake:
            return _mistake(p, x, weight, bias, options)
        if p.slow and (estimate := _estimate(name, x, weight, bias, options)) > TOO_SLOW:
            return {"refused": f"too slow for a check, more than {TOO_SLOW:g} s by estimate", "estimate": estimate}
        if p.gradient:
            return _gradients(name, p, seed, device, options)
        y = portconv.conv2d(x, weight, bias, **options)
        return {"share": _share(portconv.get_backend(name), p, seed, x, y, accuracy)}
    except portconv.UnsupportedError as error:
        return {"refused": _why_not(name, x, weight, bias, options) or _one_line(error)}
    except AssertionError as error:
        return {"failed": str(error)}
    except Exception as error:  # noqa: BLE001  as above
        return {"failed": _one_line(error)}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _why_not(name: str, x: Any, weight: Any, bias: Any, options: Message) -> str | None:
    """The reason alone, which is the same for many problems."""
    try:
        plan = portconv.plan_conv2d(x, weight, bias, **{**options, "engine": "auto"}, backend=name)
    except portconv.UnsupportedError:
        return None
    return next((c.why_not for c in plan.candidates if c.engine == options["engine"]), None)


def _estimate(name: str, x: Any, weight: Any, bias: Any, options: Message) -> float:
    plan = portconv.plan_conv2d(x, weight, bias, **options, backend=name)
    return min(c.seconds for c in plan.candidates if c.engine == plan.engine)


# --- the arrays -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)  # all engines have their turn at a problem before the next one comes
def _data(number: int, seed: int) -> Data:
    return make_data(problem(number, seed), seed)


@lru_cache(maxsize=2)
def _expected(number: int, seed: int) -> tuple[Array, Array]:
    p, data = problem(number, seed), _data(number, seed)
    distinct = p.distinct or p.x_shape[0]
    y, c = reference_conv2d(data.x[:distinct], data.weight, data.bias, **p.arguments)
    repeats = np.arange(p.x_shape[0]) % max(distinct, 1)
    return y[repeats], c[repeats]


@lru_cache(maxsize=2)
def _arrays(name: str, number: int, seed: int, device: str) -> tuple[Any, Any, Any]:
    p, data = problem(number, seed), _data(number, seed)
    library, place = portconv.get_backend(name), placement(name, device)

    def array(values: Array | None, dtype: str) -> Any:
        # a copy, since a library may share NumPy's memory, and the data must stay what they are
        return None if values is None else library.from_numpy(values.copy(), dtype=dtype, device=place)

    x_dtype = p.x_dtype or p.dtype
    x = _view(array, data.x, x_dtype) if p.view else array(data.x, x_dtype)
    if p.data == "list as image":
        x = data.x.tolist()
    weight = data.weight.tolist() if p.data == "list as weight" else array(data.weight, p.dtype)
    return x, weight, array(data.bias, p.dtype)


def _view(array: Any, values: Array, dtype: str) -> Any:
    """The same image over memory in the order W, N, C, H, where the library has a namespace to permute axes with."""
    permuted = array(np.ascontiguousarray(values.transpose(3, 0, 1, 2)), dtype)
    try:
        namespace = portconv.array_namespace(permuted)
    except TypeError:
        return array(values, dtype)
    return namespace.permute_dims(permuted, (1, 2, 3, 0))


# --- gradients --------------------------------------------------------------------------------------------------------


def _of_mlx(function: Any, arrays: list[Any], dy: Any) -> Any:
    mx = importlib.import_module("mlx.core")
    return mx.vjp(function, arrays, [dy])[1]


def _of_torch(function: Any, arrays: list[Any], dy: Any) -> Any:
    leaves = [array.detach().clone().requires_grad_() for array in arrays]
    function(*leaves).backward(dy)
    return [leaf.grad for leaf in leaves]


def _of_jax(function: Any, arrays: list[Any], dy: Any) -> Any:
    jax = importlib.import_module("jax")
    gradients = jax.jit(lambda dy, *arrays: jax.vjp(function, *arrays)[1](dy))  # operation by operation: minutes
    return gradients(dy, *arrays)


DIFFERENTIATE = {"mlx": _of_mlx, "torch": _of_torch, "jax": _of_jax}


def _gradients(name: str, p: Problem, seed: int, device: str, options: Message) -> Message:
    """The largest error of the gradients, of the image, the weight and the bias, as `_share` gives it."""
    if name not in DIFFERENTIATE:
        return {"refused": "the library does not differentiate, or how is not known here"}
    if name == "jax" and options["engine"] != "auto":
        return {"refused": "too slow for a check: JAX compiles every gradient for a second"}
    x, weight, bias = _arrays(name, p.number, seed, device)
    data, library = _data(p.number, seed), portconv.get_backend(name)
    dy = library.from_numpy(data.dy, dtype=p.dtype, device=placement(name, device))

    def convolve(x: Any, weight: Any, bias: Any = None) -> Any:
        return portconv.conv2d(x, weight, bias, **options)

    found = DIFFERENTIATE[name](convolve, [x, weight] if bias is None else [x, weight, bias], dy)
    shares = []
    for what, gradient, (exact, c) in zip(
        ("x", "weight", "bias"), found, _exact_gradients(p.number, seed), strict=False
    ):
        try:
            values = np.asarray(library.to_numpy(gradient))
            shape = getattr(data, what).shape
            shares.append(assert_close(values, exact.reshape(shape), c.reshape(shape), dtype=p.dtype))
        except AssertionError as error:
            raise AssertionError(f"gradient of `{what}`: {error}") from None
    return {"share": max(shares)}


@lru_cache(maxsize=2)
def _exact_gradients(number: int, seed: int) -> tuple[tuple[Array, Array], ...]:
    data = _data(number, seed)
    return reference_gradients(data.x, data.weight, data.dy, **problem(number, seed).arguments)


# --- the verdict ------------------------------------------------------------------------------------------------------


def _mistake(p: Problem, x: Any, weight: Any, bias: Any, options: Message) -> Message:
    try:
        y = portconv.conv2d(x, weight, bias, **options)
    except (TypeError, ValueError) as error:
        if isinstance(error, portconv.UnsupportedError) or f"`{p.mistake}`" not in str(error):
            return {"failed": f"the error should name `{p.mistake}`, but is {_one_line(error)}"}
        return {"raised": _one_line(error)}
    return {"failed": f"an error that names `{p.mistake}` is expected, but the result is {type(y).__name__}"}


def _share(library: Any, p: Problem, seed: int, x: Any, y: Any, accuracy: str) -> float:
    """The largest error as a share of the bound; `AssertionError` if it is above 1, or something else is wrong."""
    expected, c = _expected(p.number, seed)
    before, after = library.describe(x), library.describe(y)
    dtype = p.dtype
    if (after.dtype, after.device) != (dtype, before.device):
        got = f"{after.dtype} on {after.device}"
        raise AssertionError(f"the result is {got}, expected {dtype} on {before.device}")
    share = assert_close(np.asarray(library.to_numpy(y)), expected, c, dtype=dtype, accuracy=accuracy)
    if not np.array_equal(library.to_numpy(x), _data(p.number, seed).x, equal_nan=True):
        raise AssertionError("the call changed the image that it was given")
    return share
