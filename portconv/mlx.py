"""`portconv.mlx.Conv2d`: the convolution as a layer of `mlx.nn`, for training and inference on MLX."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

try:
    import mlx.core as mx
    import mlx.nn as nn
except ImportError as error:
    raise ImportError(
        f"portconv.mlx needs MLX, which cannot be imported ({error}). Install it with: pip install 'portconv[mlx]'"
    ) from error

from .core.backend import PackedWeight, Plan, executed
from .core.dtypes import dtype_name
from .core.errors import choices
from .core.layout import OIHW_FROM
from .dispatch.packing import PackCache
from .dispatch.path import plan_for
from .dispatch.registry import get_backend
from .formats import layers
from .formats.layouts import convert_layout, is_ambiguous
from .layer import Layer, LayerArguments, checked_name

if TYPE_CHECKING:
    from .core.words import Accuracy, ComputeMode, ConvMode, Layout, PaddingMode, Strategy
    from .signatures import ActivationLike, PaddingLike, Size

__all__ = ["Conv2d"]


def __dir__() -> list[str]:
    """The public names: what an editor offers."""
    return sorted(__all__)


WEIGHT_LAYOUTS = ("OIHW", "OHWI")
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
        As in `portconv.conv2d`. `layout` is that of images; with ``"NHWC"`` the weight stays as it is described below.
    activation
        What is applied to the sums; as in `portconv.conv2d`.
    weight_layout
        ``"OIHW"``, or ``"OHWI"``: parameters as those of `mlx.nn.Conv2d`, whose parameter trees and files of weights
        fit then. See `weight`.
    rng
        Seed or `numpy.random.Generator` for the initial weights, which are then those of a `portconv.Conv2d` with the
        same `rng`; None draws a seed from `mlx.core.random`, so that `mx.random.seed` governs it.

    Attributes
    ----------
    weight
        ``(O, I, kh, kw)``; with more than one group ``(G, O/G, I/G, kh, kw)``. A grouped weight that is assigned, or
        set by `update`, in PyTorch's and ONNX's form ``(O, I/G, kh, kw)`` is brought into this one. (`load_weights`
        refuses that form unless ``strict=False``.) With ``weight_layout="OHWI"`` it is ``(O, kh, kw, I/G)``.
    bias
        ``(1, O, 1, 1)``, with ``weight_layout="OHWI"`` ``(O,)``; the other of these forms is brought into this one.
        None without a bias, which is no parameter then.

    Raises
    ------
    TypeError
        For the wrong kind of argument.
    ValueError
        For values that are not allowed. A call raises it for a weight or bias of the wrong shape, too, which `update`
        and assignments let through, as they do in every MLX layer.

    Notes
    -----
    Where a weight in OIHW has the shape that it has in OHWI, as ``(8, 3, 3, 3)``, `update` and `load_weights` take a
    parameter tree only if it has the form of this layer's own: they raise `ValueError` for a bias of the other form,
    such as `mlx.nn.Conv2d` and PyTorch have, and for a grouped weight of four axes, since nothing says the layout of
    the weight. `from_mlx` and `portconv.weights.from_torch` know it from the layer. A weight without a bias beside it
    has nothing that could tell: it is taken as `weight_layout` says, as optimizers give it.

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

    weight: Any
    bias: Any

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
        compute_mode: ComputeMode = "default",
        padding_mode: PaddingMode = "zeros",
        *,
        name: str | None = None,
        dtype: Any = "float32",
        layout: Layout = "NCHW",
        engine: str = "auto",
        accuracy: Accuracy = "normwise",
        strategy: Strategy = "heuristic",
        activation: ActivationLike = None,
        weight_layout: str = "OIHW",
        rng: Any = None,
    ) -> None:
        super().__init__()
        self._arguments = LayerArguments.normalise(
            in_channels, out_channels, kernel_size, bias, stride, padding, dilation, groups, conv_mode, compute_mode,
            padding_mode=padding_mode, layout=layout, engine=engine, accuracy=accuracy, strategy=strategy,
            activation=activation,
        )  # fmt: skip
        if not isinstance(weight_layout, str) or weight_layout not in WEIGHT_LAYOUTS:
            kind = ValueError if isinstance(weight_layout, str) else TypeError
            raise kind(f"`weight_layout` must be {choices(WEIGHT_LAYOUTS)}, but got {weight_layout!r}.")
        self.name = checked_name(name)
        self._as_mlx = weight_layout == "OHWI"
        self._packs = _Packs()
        self._draw(rng, dtype_name(dtype))

    @classmethod
    def from_mlx(cls, layer: Any, *, weight_layout: str = "OHWI", layout: Layout = "NHWC", **options: Any) -> Conv2d:
        """A layer that computes what an `mlx.nn.Conv2d` does, with copies of its parameters.

        Parameters
        ----------
        layer
            An `mlx.nn.Conv2d`.
        weight_layout, layout
            Of parameters and images; by default as the layer has them, so that its files of weights fit.
        options
            `name`, `engine`, `accuracy`, `strategy` and `activation`.

        Raises
        ------
        TypeError
            If `layer` is another thing, or derived from `mlx.nn.Conv2d` and computes otherwise.

        Examples
        --------
        >>> import mlx.core as mx, mlx.nn as nn, portconv.mlx
        >>> layer = nn.Conv2d(3, 8, 3)
        >>> conv = portconv.mlx.Conv2d.from_mlx(layer)
        >>> x = mx.random.uniform(shape=(1, 16, 16, 3))
        >>> bool(mx.abs(conv(x) - layer(x)).max() < 1e-5)
        True
        """
        state = layers.read(layer, "mlx")
        if state is None:
            raise TypeError(
                f"`layer` must be an mlx.nn.Conv2d, but got {type(layer).__module__}.{type(layer).__name__}."
            )
        o, *kernel_size, i = state.weight.shape
        own = cls(
            i * state.groups, o, kernel_size, groups=state.groups, bias=state.bias is not None, dtype=state.dtype,
            weight_layout=weight_layout, rng=0, **{**state.arguments, "layout": layout, **options},
        )  # fmt: skip
        turned = convert_layout(state.weight, "OHWI", own.weight_layout, groups=state.groups)
        own.weight = mx.contiguous(mx.array(turned))
        if state.bias is not None:
            own.bias = mx.array(state.bias)
        return own

    # --- parameters -------------------------------------------------------------------------------------------------

    @property
    def weight_layout(self) -> str:
        """Layout of the weight: "OIHW", with more than one group "GOIHW"; or "OHWI"."""
        return "OHWI" if self._as_mlx else super().weight_layout

    @property
    def _forms(self) -> dict[str, list[tuple[int, ...]]]:
        """The shapes that parameters may have, their own first."""
        o, i = self.out_channels, self.in_channels // self.groups
        biases: list[tuple[int, ...]] = [(1, o, 1, 1), (o,)]
        if self._as_mlx:
            return {"weight": [(o, *self.kernel_size, i)], "bias": biases[::-1]}
        return {"weight": self._weight_shapes, "bias": biases}

    def __setattr__(self, key: str, value: Any) -> None:
        # who assigns a parameter itself knows its form
        super().__setattr__(key, self._own_form(key, value))

    def __setitem__(self, key: str, value: Any) -> None:
        # Assignments, `update` and `load_weights` all end here; parameters have one form, so that the states of
        # optimizers and what `save_weights` writes have it, too.
        self._refuse_unknown({key: value})
        super().__setitem__(key, self._own_form(key, value))

    def update(self, parameters: Any, strict: bool = True) -> Conv2d:
        """Replace parameters, as in every layer of MLX's; a tree whose layout cannot be known is refused."""
        if isinstance(parameters, dict):
            self._refuse_unknown(parameters)  # before any of them is replaced
        updated: Conv2d = super().update(parameters, strict)
        return updated

    def _own_form(self, key: str, value: Any) -> Any:
        """A parameter in the layer's own form, if its shape is another one that it may have."""
        # Unpickling comes here before the layer has its arguments; what was pickled had the right form.
        known = key in ("weight", "bias") and "_as_mlx" in self.__dict__ and isinstance(value, mx.array)
        if known and value.shape in self._forms[key][1:]:
            return value.reshape(self._forms[key][0])
        return value

    def _refuse_unknown(self, parameters: dict[str, Any]) -> None:
        """Raise for parameters of another form than the layer's, if they leave open what the weight's axes are."""
        if "_as_mlx" not in self.__dict__ or not is_ambiguous(self.in_channels // self.groups, self.kernel_size):
            return
        # a grouped weight tells by its own shape whether it is the layer's
        tells = "bias" if self.groups == 1 else "weight"
        value, (own, *others) = parameters.get(tells), self._forms[tells]
        if isinstance(value, mx.array) and value.shape in others:
            raise ValueError(
                f"`parameters` of {self!r} have a {tells} of shape {value.shape}, where this layer has {own}: they are "
                f"another layer's, and their weight may be OIHW (PyTorch) or OHWI (MLX), which have the same shape "
                f"here. For those of an mlx.nn.Conv2d use portconv.mlx.Conv2d.from_mlx(layer), or a layer with "
                f"weight_layout='OHWI'; else assign `weight`, in the layout of this layer, {self.weight_layout}, and "
                f"`bias`."
            )

    def _take(self, weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any] | None) -> None:
        library, dtype = get_backend("mlx"), _name(self.weight.dtype)
        turned = np.ascontiguousarray(convert_layout(weight, "OIHW", self.weight_layout, groups=self.groups))
        self.weight = library.from_numpy(turned, dtype=dtype)
        if bias is not None:
            self.bias = library.from_numpy(bias, dtype=dtype)

    def _oihw(self, weight: Any) -> Any:
        """The weight as engines take it, (O, I/G, kh, kw) or (G, O/G, I/G, kh, kw)."""
        return weight.transpose(OIHW_FROM["OHWI"]) if self._as_mlx else weight

    def reset_parameters(self, rng: Any = None) -> None:
        """Draw new initial weights, and set the bias to zero; `rng` is as for the layer itself."""
        self._draw(rng, _name(self.weight.dtype))

    def _draw(self, rng: Any, dtype: str) -> None:
        if rng is None:
            rng = mx.random.randint(0, 2**31 - 1).item()
        library = get_backend("mlx")
        weight, bias = self._initial_parameters(rng)
        if self._as_mlx:
            weight = np.ascontiguousarray(convert_layout(weight, super().weight_layout, "OHWI"))
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
        if isinstance(weight, mx.array) and weight.shape != self._forms["weight"][0]:
            raise ValueError(self._wrong_shape(weight.shape))
        turned = self._oihw(weight) if isinstance(weight, mx.array) else weight
        _, plan = plan_for(self._arguments.spec, x, turned, bias, residual=residual)
        if self.training and "weight" not in self._no_grad:
            self._packs.forget()
            return executed(plan, x, plan.pack(turned), bias, residual)
        return executed(plan, x, self._packs.get(weight, turned, plan), bias, residual)

    def _wrong_shape(self, shape: tuple[int, ...]) -> str:
        shapes = " or ".join(str(each) for each in self._forms["weight"])
        o, i = self.out_channels, self.in_channels // self.groups
        others = {(o, *self.kernel_size, i): "OHWI (mlx.nn.Conv2d)", (o, i, *self.kernel_size): "OIHW (PyTorch)"}
        hint = f" That would be its shape in {others[shape]}: see `weight_layout`." if shape in others else ""
        return f"`weight` must have shape {shapes}, but got {shape}.{hint}"


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
        self.seen: tuple[Any, Any] | None = None  # the array, and the view of it that was packed

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

    def get(self, weight: Any, turned: Any, plan: Plan) -> PackedWeight:
        """The weight packed for the plan; `turned` is the weight as the plan takes it, a view or the weight itself."""
        token = None if plan.problem.traced else self._token_of(weight)
        if token is None:
            return plan.pack(turned)
        if turned is not weight:
            # A view is made anew in every call, and the cache knows arrays by their identity. Another array in the same
            # place may be the one that MLX differentiates by.
            seen = token.seen
            if seen is None or seen[0] is not weight:
                seen = token.seen = weight, turned
            turned = seen[1]
        return self._cache.get(turned, token, plan)

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
