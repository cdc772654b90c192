"""Where operations on MLX arrays run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from .dtypes import check_dtype

__all__ = ["as_device", "device_of", "devices", "placed", "to_device"]


def devices() -> tuple[Any, ...]:
    """The devices that are here."""
    return tuple(mx.Device(kind, 0) for kind in (mx.cpu, mx.gpu) if mx.is_available(kind))


def as_device(device: Any) -> Any:
    """`device` as `mx.Device`: one already, ``mx.cpu`` or ``mx.gpu``, or ``"cpu"`` or ``"gpu"``."""
    kinds = {"cpu": mx.cpu, "gpu": mx.gpu}
    if isinstance(device, str) and device in kinds:
        device = kinds[device]
    if isinstance(device, mx.DeviceType):
        device = mx.Device(device, 0)
    if not isinstance(device, mx.Device):
        raise ValueError(f"`device` must be an mlx.core.Device, 'cpu' or 'gpu', but got {device!r}.")
    if not mx.is_available(device):
        raise ValueError(f"`device` is {device}, but MLX has no such device here; it has {list(devices())}.")
    return device


def device_of(x: Any) -> Any:
    """Where operations on the array run: the CPU for float64, and MLX's default device for all else."""
    return mx.Device(mx.cpu, 0) if x.dtype == mx.float64 else mx.default_device()


def to_device(x: Any, device: Any) -> Any:
    """The array itself: devices share memory. A device that cannot compute with it is refused."""
    if as_device(device).type == mx.gpu and x.dtype == mx.float64:
        raise ValueError(f"`device` is {device}, but MLX has float64 on its CPU device only; cast it to float32 first.")
    return x


def placed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run on the device that its `device=` names, or on the CPU where float64 is among its arguments."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        if dtype is not None:
            check_dtype(dtype)
        if device is None:
            if mx.default_device() == mx.cpu or not _any_float64((*args, *kwargs.values())):
                return function(*args, **kwargs)
            device = mx.cpu
        with mx.stream(as_device(device)):
            return function(*args, **kwargs)

    return call


def _any_float64(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, (list, tuple)):
            if _any_float64(value):
                return True
        elif isinstance(value, (np.ndarray, np.float64)):
            if value.dtype == np.float64:
                return True
        elif isinstance(value, (mx.array, mx.Dtype)) and mx.float64 == getattr(value, "dtype", value):
            return True
    return False
