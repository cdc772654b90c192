"""`portconv.mlx.Conv2d`: the convolution as a layer of `mlx.nn`, for training and inference on MLX."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

try:
    import mlx.core as mx
    import mlx.nn as nn
except ImportError as error:
    raise ImportError(
        f"portconv.mlx needs MLX, which cannot be imported ({error}). Install it with: pip install 'portconv[mlx]'"
    ) from error

from .core.backend import PackedWeight, Plan
from .core.dtypes import dtype_name
from .dispatch.packing import PackCache
from .dispatch.path import executed, plan_for
from .dispatch.registry import get_backend
from .layer import Layer, LayerArguments, checked_name

__all__ = ["Conv2d"]

MAX_PACKS = 8  # of one weight: engines, and image sizes where an engine's packed weight depends on them


class Conv2d(Layer, nn.Module):  # type: ignore[misc]
    """Two-dimensional convolution layer with MegEngine's semantics, as an `mlx.nn.Module`.

    It does all that MLX's own layers do: `parameters`, `update`, `freeze`, `save_weights`, `load_weights`, `set_dtype`,
    `mlx.nn.value_and_grad`, `mlx.optimizers`, `mx.compile`, `mx.vmap`. It computes as `portconv.conv2d` does with MLX
    arrays, and takes and returns NCHW unless told otherwise.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As in `portconv.Conv2d`, in the same order.
    conv_mode, compute_mode, padding_mode
        As in `portconv.conv2d`.
    name
        Any string, for the user's own use.
    dtype
        Dtype of the parameters, by name or as MLX's: ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"float64"``.
    layout, engine, accuracy, strategy
        As in `portconv.conv2d`. With ``layout="NHWC"`` the weight stays as it is described below.
    activation
        What is applied to the sums; as in `portconv.conv2d`.
    rng
        Seed or `numpy.random.Generator` for the initial weights, which are then those of a `portconv.Conv2d` with the
        same `rng`; None draws a seed from `mlx.core.random`, so that `mx.random.seed` governs it.

    Attributes
    ----------
    weight
        ``(O, I, kh, kw)``; with more than one group ``(G, O/G, I/G, kh, kw)``. A grouped weight that is assigned, or
        set by `update`, in PyTorch's and ONNX's form ``(O, I/G, kh, kw)`` is brought into this one. (`load_weights`
        refuses that form unless ``strict=False``.)
    bias
        ``(1, O, 1, 1)``; None without a bias, which is no parameter then.

    Raises
    ------
    TypeError
        For the wrong kind of argument.
    ValueError
        For values that are not allowed. A call raises it for a weight or bias of the wrong shape, too, which `update`
        and assignments let through, as they do in every MLX layer.

    Notes
    -----
    While training, the weight is packed for its engine in every call. In evaluation mode (``layer.eval()``), or with a
    frozen weight, it is packed once, and again when it changed: by assignment, `update`, an optimizer, or in place by
    MLX (``layer.weight[0] = 1``). One change cannot be seen there: writing to the weight's memory from outside MLX,
    through ``numpy.array(layer.weight, copy=False)``. Assign a new array instead.

    `mx.export_function` writes MLX's operations to a file: on a CPU device give the layers ``engine="native"`` for it.

    Initial weights are normal with mean 0 and standard deviation ``sqrt(1 / (kh * kw * in_channels))``, also when
    grouped, and the bias is zero: MegEngine's ``Conv2d.reset_parameters``.

    Examples
    --------
    >>> import mlx.core as mx, mlx.nn as nn, portconv.mlx
    >>> model = nn.Sequential(portconv.mlx.Conv2d(3, 8, 3, padding=1, rng=0), nn.ReLU())
    >>> model
    Sequential(
      (layers.0): Conv2d(3, 8, kernel_size=(3, 3), padding=(1, 1))
      (layers.1): ReLU()
    )
    >>> model(mx.ones((2, 3, 32, 32))).shape
    (2, 8, 32, 32)
    >>> def loss(x):
    ...     return mx.mean(mx.square(model(x)))
    >>> value, gradients = nn.value_and_grad(model, loss)(mx.ones((2, 3, 32, 32)))
    >>> gradients["layers"][0]["weight"].shape, gradients["layers"][0]["bias"].shape
    ((8, 3, 3, 3), (1, 8, 1, 1))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: Any = True,
        conv_mode: str = "cross_correlation",
        compute_mode: str = "default",
        padding_mode: str = "zeros",
        *,
        name: str | None = None,
        dtype: Any = "float32",
        layout: str = "NCHW",
        engine: str = "auto",
        accuracy: str = "normwise",
        strategy: str = "heuristic",
        activation: Any = None,
        rng: Any = None,
    ) -> None:
        super().__init__()
        self._arguments = LayerArguments.normalise(
            in_channels, out_channels, kernel_size, bias, stride, padding, dilation, groups, conv_mode, compute_mode,
            padding_mode=padding_mode, layout=layout, engine=engine, accuracy=accuracy, strategy=strategy,
            activation=activation,
        )  # fmt: skip
        self.name = checked_name(name)
        self._packs = _Packs()
        self._draw(rng, dtype_name(dtype))

    def __setitem__(self, key: str, value: Any) -> None:
        # Assignments, `update` and `load_weights` all end here; the weight has one form, so that the states of
        # optimizers and what `save_weights` writes have it, too.
        # Unpickling comes here before the layer has its arguments; what was pickled had the right form.
        known = key == "weight" and "_arguments" in self.__dict__
        if known and isinstance(value, mx.array) and value.shape in self._weight_shapes[1:]:
            value = value.reshape(self._weight_shape)
        super().__setitem__(key, value)

    def reset_parameters(self, rng: Any = None) -> None:
        """Draw new initial weights, and set the bias to zero; `rng` is as for the layer itself."""
        self._draw(rng, _name(self.weight.dtype))

    def _draw(self, rng: Any, dtype: str) -> None:
        if rng is None:
            rng = mx.random.randint(0, 2**31 - 1).item()
        library = get_backend("mlx")
        weight, bias = self._initial_parameters(rng)
        self.weight = library.from_numpy(weight, dtype=dtype)
        self.bias = None if bias is None else library.from_numpy(bias, dtype=dtype)

    def _place(self) -> dict[str, Any]:
        return {"dtype": _name(self.weight.dtype), "backend": "mlx", "device": None}

    def __call__(self, x: Any, *, residual: Any = None) -> Any:
        """Convolve an image ``(N, in_channels, H, W)``, or NHWC if that is the layout; see `portconv.conv2d`."""
        if not isinstance(x, mx.array):
            raise TypeError(
                f"`x` must be an mlx.core.array, but got {type(x).__name__}. "
                f"Convert it, or use `portconv.Conv2d`, which takes the arrays of every library."
            )
        weight, bias = self.weight, self.bias
        if isinstance(weight, mx.array) and weight.shape != self._weight_shape:
            shapes = " or ".join(str(shape) for shape in self._weight_shapes)
            raise ValueError(f"`weight` must have shape {shapes}, but got {weight.shape}.")
        _, plan = plan_for(self._arguments.spec, x, weight, bias, residual=residual)
        if self.training and "weight" not in self._no_grad:
            self._packs.forget()
            return executed(plan, x, plan.pack(weight), bias, residual)
        return executed(plan, x, self._packs.get(weight, plan), bias, residual)


def _name(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


# --- packed weights that are kept -------------------------------------------------------------------------------------


def _place(array: Any) -> Hashable:
    """Where the array's values lie, and how; None while a function is traced, and where memory cannot be looked at."""
    try:
        # NumPy has no bfloat16 and gets its bytes, which it takes in the order of their axes only
        seen = np.frombuffer(array, np.uint8) if array.dtype == mx.bfloat16 else np.array(array, copy=False)
    except (ValueError, BufferError):
        return None
    interface = seen.__array_interface__
    return array.dtype, array.shape, interface["data"][0], interface["strides"]


class _Token:
    """Equal to another one of the same array if its values are the same.

    MLX never writes to memory that two arrays share. While `alias` lives, a change in place gives the weight another
    place, and the same place means the same values.
    """

    def __init__(self, place: Hashable, alias: Any) -> None:
        self.place, self._alias = place, alias

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Token) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place)


class _Packs:
    """What one weight was packed to, for as long as it has the same values."""

    def __init__(self) -> None:
        self._cache = PackCache(limit=MAX_PACKS)
        self._token: _Token | None = None

    def __reduce__(self) -> Any:
        return _Packs, ()  # copies of a layer, and its pickles, go without

    def forget(self) -> None:
        """Let go what belongs to former values, with the memory that they were in."""
        if self._token is not None:
            # a new cache, since another thread may be using the one before
            self._cache, self._token = PackCache(limit=MAX_PACKS), None

    def get(self, weight: Any, plan: Plan) -> PackedWeight:
        """The weight packed for the plan."""
        token = None if plan.problem.traced else self._token_of(weight)
        return plan.pack(weight) if token is None else self._cache.get(weight, token, plan)

    def _token_of(self, weight: Any) -> _Token | None:
        place = _place(weight)
        if place is None:
            return None
        token = self._token
        if token is None or token.place != place:
            alias = mx.stop_gradient(weight)
            if _place(alias) != place:
                return None
            self.forget()
            token = self._token = _Token(place, alias)
        return token
