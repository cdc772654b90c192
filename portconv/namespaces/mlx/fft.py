"""The `fft` extension. MLX transforms in float32: float64 is refused."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from .devices import placed
from .dtypes import DEFAULT_FLOAT

__all__ = [
    "fft", "fftfreq", "fftn", "fftshift", "hfft", "ifft", "ifftn", "ifftshift", "ihfft", "irfft", "irfftn", "rfft",
    "rfftfreq", "rfftn",
]  # fmt: skip

SWAPPED = {"backward": "forward", "ortho": "ortho", "forward": "backward"}


def _checked(x: Any, norm: str) -> Any:
    if norm not in SWAPPED:
        raise ValueError(f"`norm` must be 'backward', 'ortho' or 'forward', but got {norm!r}.")
    if x.dtype == mx.float64:
        raise TypeError("`x` is float64, which MLX transforms in complex64 only; cast it to float32 with `astype`.")
    return x


def fft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    return mx.fft.fft(_checked(x, norm), n, axis, norm)


def ifft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    return mx.fft.ifft(_checked(x, norm), n, axis, norm)


def rfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    return mx.fft.rfft(_checked(x, norm), n, axis, norm)


def irfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    return mx.fft.irfft(_checked(x, norm), n, axis, norm)


def hfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    return mx.fft.irfft(mx.conj(_checked(x, norm)), n, axis, SWAPPED[norm])


def ihfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    return mx.conj(mx.fft.rfft(_checked(x, norm), n, axis, SWAPPED[norm]))


def _axes(x: Any, s: Any, axes: Any) -> tuple[int, ...]:
    """The axes to transform: where only sizes are given, the last ones."""
    if axes is not None:
        return tuple(axes)
    return tuple(range(x.ndim)) if s is None else tuple(range(x.ndim - len(s), x.ndim))


def _sizes(x: Any, s: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x.shape[a] for a in axes) if s is None else tuple(s)


def fftn(x: Any, /, *, s: Any = None, axes: Any = None, norm: str = "backward") -> Any:
    axes = _axes(x, s, axes)
    return mx.fft.fftn(_checked(x, norm), _sizes(x, s, axes), axes, norm)


def ifftn(x: Any, /, *, s: Any = None, axes: Any = None, norm: str = "backward") -> Any:
    axes = _axes(x, s, axes)
    return mx.fft.ifftn(_checked(x, norm), _sizes(x, s, axes), axes, norm)


def rfftn(x: Any, /, *, s: Any = None, axes: Any = None, norm: str = "backward") -> Any:
    axes = _axes(x, s, axes)
    return mx.fft.rfftn(_checked(x, norm), _sizes(x, s, axes), axes, norm)


def irfftn(x: Any, /, *, s: Any = None, axes: Any = None, norm: str = "backward") -> Any:
    axes = _axes(x, s, axes)
    if s is None:
        s = _sizes(x, s, axes)
        s = (*s[:-1], 2 * (s[-1] - 1))
    return mx.fft.irfftn(_checked(x, norm), tuple(s), axes, norm)


def fftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Any = None) -> Any:
    return mx.array(np.fft.fftfreq(n, d), dtype=DEFAULT_FLOAT if dtype is None else dtype)


def rfftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Any = None) -> Any:
    return mx.array(np.fft.rfftfreq(n, d), dtype=DEFAULT_FLOAT if dtype is None else dtype)


def fftshift(x: Any, /, *, axes: Any = None) -> Any:
    return _shifted(x, axes, lambda size: size // 2)


def ifftshift(x: Any, /, *, axes: Any = None) -> Any:
    return _shifted(x, axes, lambda size: -(size // 2))


def _shifted(x: Any, axes: Any, distance: Any) -> Any:
    axes = range(x.ndim) if axes is None else (axes,) if isinstance(axes, int) else axes
    for axis in axes:
        x = mx.roll(x, distance(x.shape[axis]), axis)
    return x


for _name in __all__:
    globals()[_name] = placed(globals()[_name])
