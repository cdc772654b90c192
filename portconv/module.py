"""`Conv2d`: a convolution with its parameters; and what all modules of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, TypeVar, overload

import numpy as np

from .core import hints
from .core.array_types import library_of
from .core.backend import ArrayInfo, Backend, PackedWeight, Plan, executed
from .core.dtypes import FLOATING, INTEGRAL, dtype_name, result_name
from .core.errors import no_array
from .dispatch import path, registry
from .dispatch.arguments import device_name
from .dispatch.packing import PackCache
from .dispatch.path import info_of
from .gradient import checked_wrt, value_and_gradients
from .layer import Layer, LayerArguments, checked_name
from .pytree import register as register_pytree

if TYPE_CHECKING:
    from .core.words import Accuracy, ComputeMode, ConvMode, Layout, PaddingMode, Strategy
    from .signatures import ActivationLike, ArrayT, NumpyArray, PaddingLike, Size

__all__ = ["Conv2d", "Module"]

M = TypeVar("M", bound="Module")

MAX_BOUND = 64  # problems (sizes, libraries, devices) that a module remembers
COPIES = ("_copies", "_bound", "_packs")  # what a module makes of its parameters, and can make again


class _Bound(NamedTuple):
    """What a call needs once sizes, library and device are known."""

    plan: Plan
    weight: PackedWeight
    bias: Any
    source: Any  # the weight as the library holds it
    token: Any  # of `source` when it was packed
    run: Callable[..., Any]  # the plan, as a function of the image and a residual


class Module(Layer):
    """What `Conv2d` and its relatives share: the parameters, what is made of them for each image, the calls."""

    def _start(
        self, arguments: LayerArguments, name: str | None, dtype: Any, backend: Any, device: str | None, rng: Any
    ) -> None:
        """Check what the arguments in normal form have not, and draw the first weights."""
        self._arguments = arguments
        self.name = checked_name(name)
        self._dtype = dtype_name(dtype)
        self._home: Backend = registry.get_backend(backend)
        self._device = device_name(device)
        self._weight: Any = None
        self._bias: Any = None
        self._forget_copies()
        self.reset_parameters(rng)
        self._tell_jax()

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what is fixed, and slips of what is not; a user may keep attributes of other names."""
        found = getattr(type(self), name, None)
        if isinstance(found, property):
            if found.fset is None:
                raise AttributeError(f"`{name}` of a {self._kind} cannot be changed: make a new one.")
        elif not name.startswith("_") and name not in (*self.__dict__, "name"):
            known = ["name", *(each for each in dir(type(self)) if not each.startswith("_"))]
            if (near := hints.attribute(name, known)) is not None:
                raise AttributeError(f"A {self._kind} has no attribute {name!r}. Did you mean {near!r}?")
        super().__setattr__(name, value)

    # --- parameters -------------------------------------------------------------------------------------------------

    @property
    def weight(self) -> Any:
        """The master weight."""
        return self._weight

    @weight.setter
    def weight(self, value: Any) -> None:
        self._weight = self._parameter("weight", value, self._weight_shapes)
        self._forget_copies()

    @property
    def bias(self) -> Any:
        """The master bias, or None."""
        return self._bias

    @bias.setter
    def bias(self, value: Any) -> None:
        if value is None and not self._arguments.has_bias:
            return
        self._bias = self._checked_bias(value)
        self._forget_copies()

    def _checked_bias(self, value: Any) -> Any:
        if not self._arguments.has_bias:
            raise ValueError("`bias` cannot be set: this module was made with bias=False.")
        return self._parameter("bias", value, self._bias_shapes)

    @property
    def _bias_shapes(self) -> list[tuple[int, ...]]:
        return [self._bias_shape, (self.out_channels,)]

    def _parameter(self, name: str, value: Any, shapes: list[tuple[int, ...]]) -> Any:
        """`value`, of any library, as a parameter: in the master's library, dtype and first of the shapes."""
        source = self._reader(name, value)
        info = info_of(source, name, value)
        if info.dtype not in (*FLOATING, *INTEGRAL):
            raise TypeError(f"`{name}` must be of a floating or integer dtype, but got {info.dtype}.")
        _check_shape(name, info, shapes)
        return self._master(source.to_numpy(value).reshape(shapes[0]))

    def _reader(self, name: str, value: Any) -> Backend:
        """The backend that reads a parameter: JAX may put arrays of another library than the module's into it."""
        if library_of(value) is None:
            raise no_array(name, value)
        return self._home if library_of(value) == self._home.name else registry.get_backend(value)

    def _numpy(self, name: str, value: Any) -> Any:
        return None if value is None else self._reader(name, value).to_numpy(value)

    def _master(self, value: np.ndarray[Any, Any]) -> Any:
        array = self._home.from_numpy(np.array(value), dtype=self._dtype, device=self._device)
        if isinstance(array, np.ndarray):
            # else a change in place would leave packed copies behind, unseen; the flag of a view cannot be set again
            array.flags.writeable = False
            array = array.view()
        return array

    def _forget_copies(self) -> None:
        # New ones, not cleared ones: a thread that packs the old weight meanwhile puts it into the old ones.
        self._copies: dict[tuple[Backend, str], tuple[Any, Any]] = {}  # parameters, by library and device
        self._bound: dict[tuple[Backend, ArrayInfo, str | None, ArrayInfo | None], _Bound] = {}
        self._packs = PackCache(limit=MAX_BOUND)

    def reset_parameters(self, rng: Any = None) -> None:
        """Draw new initial weights, and set the bias to zero; `rng` is a seed or a `numpy.random.Generator`."""
        weight, bias = self._initial_parameters(rng)
        weight, bias = self._master(weight), None if bias is None else self._master(bias)
        self._weight, self._bias = weight, bias
        self._forget_copies()

    def parameters(self) -> Iterator[Any]:
        """The bias, if there is one, and the weight."""
        return (value for _, value in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Names and arrays of the parameters, in MegEngine's order: bias, weight."""
        if self._bias is not None:
            yield "bias", self._bias
        yield "weight", self._weight

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters as NumPy arrays (copies; bfloat16 as float32), keyed ``bias`` and ``weight``."""
        return {name: np.array(self._numpy(name, value)) for name, value in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take the parameters from a mapping of arrays of any library. When it fails, the module is as it was.

        The module keeps its dtype, and takes the shapes that may be assigned: grouped weights also in the form
        ``(O, I/G, kh, kw)`` that PyTorch and ONNX have.

        Raises
        ------
        TypeError
            If `state` is no mapping, or a value no array.
        ValueError
            For a wrong shape; with `strict`, also for missing and unexpected keys.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"`state` must be a mapping of names to arrays, but got {type(state).__name__}.")
        expected = dict(self.named_parameters())
        missing, unexpected = (
            sorted(expected.keys() - state.keys()),
            sorted(str(k) for k in state.keys() - expected.keys()),
        )
        if strict and (missing or unexpected):
            mend = hints.of_a_model(unexpected, expected)
            raise ValueError(
                f"`state` must have exactly the keys {sorted(expected)}, but it lacks {missing} and has {unexpected} "
                f"besides.{mend or ' With strict=False what is missing stays and what is unexpected is passed over.'}"
            )
        weight = self._parameter("weight", state["weight"], self._weight_shapes) if "weight" in state else self._weight
        bias = self._checked_bias(state["bias"]) if "bias" in state and self._arguments.has_bias else self._bias
        self._weight, self._bias = weight, bias
        self._forget_copies()

    def _take(self, weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any] | None) -> None:
        self.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})

    def to(self: M, backend: Any, device: str | None = None) -> M:
        """Move the master parameters to another library or device; returns the module."""
        return self._move(registry.get_backend(backend), device_name(device), self._dtype)

    def astype(self: M, dtype: Any) -> M:
        """Convert the master parameters to another floating dtype; returns the module."""
        return self._move(self._home, self._device, dtype_name(dtype))

    def _move(self: M, home: Backend, device: str | None, dtype: str) -> M:
        before = self._home, self._device, self._dtype
        weight, bias = self._numpy("weight", self._weight), self._numpy("bias", self._bias)
        self._home, self._device, self._dtype = home, device, dtype
        try:
            moved = self._master(weight), None if bias is None else self._master(bias)
        except BaseException:
            self._home, self._device, self._dtype = before
            raise
        self._weight, self._bias = moved
        self._forget_copies()
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key not in COPIES}
        # A backend holds modules and devices: its name says the same in another process, if the registry knows it.
        name = self._home.name
        known = registry.is_known(name) and registry.get_backend(name) is self._home
        return state | {
            "_home": name if known else self._home,
            "_weight": self.state_dict()["weight"],
            "_bias": self.state_dict().get("bias"),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._home = registry.get_backend(state["_home"])
        self._weight = self._master(state["_weight"])
        self._bias = None if state["_bias"] is None else self._master(state["_bias"])
        self._forget_copies()
        self._tell_jax()

    # --- as a pytree of JAX ------------------------------------------------------------------------------------------

    @classmethod
    def _tell_jax(cls) -> None:
        register_pytree(cls, ("bias", "weight"), cls._flatten, cls._unflatten)

    def _flatten(self) -> tuple[tuple[Any, Any], tuple[tuple[str, Any], ...]]:
        rest = {key: value for key, value in self.__dict__.items() if key not in ("_bias", "_weight", *COPIES)}
        return (self._bias, self._weight), tuple(sorted(rest.items()))

    @classmethod
    def _unflatten(cls: type[M], rest: tuple[tuple[str, Any], ...], leaves: tuple[Any, Any]) -> M:
        module = cls.__new__(cls)
        module.__dict__.update(rest)
        module._bias, module._weight = leaves
        module._forget_copies()
        return module

    # --- what it does -----------------------------------------------------------------------------------------------

    @overload
    def __call__(
        self, x: NumpyArray, *, residual: NumpyArray | None = None, out_dtype: Any = None, out: NumpyArray | None = None
    ) -> NumpyArray: ...

    @overload
    def __call__(
        self, x: ArrayT, *, residual: ArrayT | None = None, out_dtype: Any = None, out: ArrayT | None = None
    ) -> ArrayT: ...

    def __call__(self, x: Any, *, residual: Any = None, out_dtype: Any = None, out: Any = None) -> Any:
        """Convolve an image ``(N, in_channels, H, W)``, or NHWC if that is the layout; see `portconv.conv2d`."""
        library = registry.resolve(x)
        info = info_of(library, "x", x)
        more = None if residual is None else path.described(library, [("x", x), ("residual", residual)])[1]
        out_dtype = out_dtype if out_dtype is None else result_name(out_dtype)
        bound = self._bound.get((library, info, out_dtype, more))
        if bound is None or (bound.token is not None and bound.token != library.cache_token(bound.source)):
            bound = self._bind(library, info, out_dtype, more)
        if out is None:
            return bound.run(x) if residual is None else bound.run(x, residual)
        path.check_out(library, bound.plan, out, x, bound.source, bound.bias, residual)
        return executed(bound.plan, x, bound.weight, bound.bias, residual, out)

    forward = __call__

    def _ready(self, x: Any, residual: Any = None) -> Callable[..., Any]:
        """The call as a function of an image, and a residual, like these: without what finds out what they are."""
        library = registry.resolve(x)
        arguments = [("x", x)] if residual is None else [("x", x), ("residual", residual)]
        info, *more = path.described(library, arguments)
        return self._bind(library, info, None, *more).run

    def vjp(
        self, x: Any, *, residual: Any = None, wrt: Sequence[str] | str | None = None
    ) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
        """The result for an image, and a function that gives the gradients; see `portconv.conv2d_vjp`.

        Parameters
        ----------
        x, residual
            As for a call.
        wrt
            ``"x"``, ``"weight"``, ``"bias"``, ``"residual"``, or several of them: what gradients are wanted for. None:
            for all.

        Returns
        -------
        y : array
            What a call returns.
        vjp : function
            ``vjp(dy) -> (dx, dweight, dbias)``, with a `residual` its gradient besides, for a `dy` like `y`: arrays of
            the image's library. `dweight` and
            `dbias` have the shapes of the layer's parameters, and all have the dtypes of what they are gradients of.

        Examples
        --------
        >>> import numpy as np, portconv
        >>> conv = portconv.Conv2d(4, 8, 3, padding=1, groups=2, rng=0)
        >>> y, vjp = conv.vjp(np.ones((1, 4, 6, 6), np.float32))
        >>> [gradient.shape for gradient in vjp(np.ones_like(y))]
        [(1, 4, 6, 6), (2, 4, 2, 3, 3), (1, 8, 1, 1)]
        """
        names = checked_wrt(wrt)
        library = registry.resolve(x)
        info = info_of(library, "x", x)
        more = None if residual is None else path.described(library, [("x", x), ("residual", residual)])[1]
        bound = self._bind(library, info, residual=more)
        arrays = x, bound.source, bound.bias, residual
        return value_and_gradients(library, bound.plan, arrays, names, lambda: bound.weight)

    def _bind(
        self, library: Backend, info: ArrayInfo, out_dtype: str | None = None, residual: ArrayInfo | None = None
    ) -> _Bound:
        """Check, plan and pack for an image like `info`; remembered unless the values are not to be kept.

        Where a library cannot tell of changes in place (its token is None), weights are taken to change by assignment.
        """
        self._tell_jax()  # of modules that were made before JAX was imported
        known, packs = self._bound, self._packs
        weight, bias = self._parameters_for(library, info)
        weight_info = library.describe(weight)
        bias_info = None if bias is None else library.describe(bias)
        spec = self._arguments.spec if out_dtype is None else replace(self._arguments.spec, out_dtype=out_dtype)
        plan = path.plan_of(spec, library, info, weight_info, bias_info, residual)
        token = library.cache_token(weight)
        # gradients are recorded, or the values belong to a trace: such a pack is good for this call alone
        if plan.problem.traced or _recorded(weight):
            packed = plan.pack(weight)
            return _Bound(plan, packed, bias, weight, token, plan.ready(packed, bias))
        packed = packs.get(weight, token, plan)
        bound = _Bound(plan, packed, bias, weight, token, plan.ready(packed, bias))
        if len(known) >= MAX_BOUND:
            known.clear()
        known[library, info, out_dtype, residual] = bound
        return bound

    def _parameters_for(self, library: Backend, info: ArrayInfo) -> tuple[Any, Any]:
        """Weight and bias in the library and on the device of the image."""
        key, copies = (library, info.device), self._copies
        if key in copies:
            return copies[key]
        own = {"weight": (self._weight, self._weight_shapes)}
        if self._arguments.has_bias:
            own["bias"] = self._bias, self._bias_shapes
        found = {name: self._for(library, info, name, *value) for name, value in own.items()}
        weight, bias = (self._planned(name, found.get(name)) for name in ("weight", "bias"))
        passing = info.traced or any(library.describe(a).traced or _recorded(a) for a in found.values())
        if not passing and (weight is not self._weight or bias is not self._bias):
            copies[key] = weight, bias
        return weight, bias

    def _planned(self, name: str, value: Any) -> Any:
        """A parameter of the library of the image, or None, in the form that plans take it."""
        return value

    def _for(self, library: Backend, info: ArrayInfo, name: str, value: Any, shapes: list[tuple[int, ...]]) -> Any:
        """A parameter in the library and on the device of the image."""
        reader = self._reader(name, value)
        known = info_of(reader, name, value)
        _check_shape(name, known, shapes)
        if library is reader and (info.traced or known.device == info.device):
            return value
        if known.traced:
            if library.name == reader.name:
                return value
            raise TypeError(
                f"`x` is an array of {library.name}, but the values of `{name}` are not known while {reader.name} "
                f"traces the module. Give it an image of {reader.name}."
            )
        return library.from_numpy(reader.to_numpy(value), dtype=known.dtype, device=info.device or None)

    def _place(self) -> dict[str, Any]:
        return {"dtype": self._dtype, "backend": self._home, "device": self._device}


class Conv2d(Module):
    """Two-dimensional convolution layer with MegEngine's semantics, for arrays of any library.

    The result follows the image: its library, its device, its layout. The module holds one master copy of its
    parameters; for an image of another library it converts them once and keeps the converted and packed copy until they
    change.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the image and of the result.
    kernel_size
        An int, or a pair (height, width).
    stride, padding, dilation, groups
        As in `portconv.conv2d`.
    bias
        Whether there is a bias (a truth value).
    activation
        What is applied to the sums; as in `portconv.conv2d`.
    conv_mode, compute_mode, padding_mode
        As in `portconv.conv2d`.
    name
        Any string, for the user's own use.
    dtype
        Dtype of the parameters, by name: ``"float32"``, ``"float16"``, ``"bfloat16"`` (where the library has it) or
        ``"float64"``.
    backend, device
        Library and device of the master parameters; images may come from any other.
    layout, engine, accuracy, strategy
        As in `portconv.conv2d`.
    rng
        Seed or `numpy.random.Generator` for the initial weights.

    Attributes
    ----------
    weight
        ``(O, I, kh, kw)``; with more than one group ``(G, O/G, I/G, kh, kw)``. Assign an array of this shape, of any
        library, to change it; grouped ones also in PyTorch's and ONNX's form ``(O, I/G, kh, kw)``. The module keeps its
        dtype. NumPy parameters are handed out read-only. Of other libraries' arrays only PyTorch's
        can be changed in place, by what its version counter sees (not through ``.data``); assign to be sure.
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
    Initial weights are normal with mean 0 and standard deviation ``sqrt(1 / (kh * kw * in_channels))``, also when
    grouped, and the bias is zero: MegEngine's ``Conv2d.reset_parameters``.

    In JAX a module is a pytree. Its leaves are its parameters, bias and weight; all else that it has, its `name` and
    attributes of the user's too, is static, and must be hashable. So it can be an argument of functions that are
    transformed (`jax.jit`, `jax.grad`, `jax.vmap`), and its gradient is a `Conv2d`, too. Leaves that JAX puts into one
    are not checked before it is called. JAX knows the class from the first module on that is made after JAX was
    imported, or called.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> conv = portconv.Conv2d(3, 8, 3, stride=2, padding=1, rng=0)
    >>> conv
    Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    >>> conv.weight.shape, conv.bias.shape
    ((8, 3, 3, 3), (1, 8, 1, 1))
    >>> conv(np.ones((1, 3, 32, 32), np.float32)).shape
    (1, 8, 16, 16)
    """

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
            in_channels, out_channels, kernel_size, bias, stride, padding, dilation, groups, conv_mode, compute_mode,
            padding_mode=padding_mode, layout=layout, engine=engine, accuracy=accuracy, strategy=strategy,
            activation=activation,
        )  # fmt: skip
        self._start(arguments, name, dtype, backend, device, rng)


def _recorded(parameter: Any) -> bool:
    """Whether a library records the gradient of a parameter: what is made of it is good for one call alone."""
    return bool(getattr(parameter, "requires_grad", False))


def _check_shape(name: str, info: ArrayInfo, shapes: list[tuple[int, ...]]) -> None:
    if info.shape not in shapes:
        raise ValueError(
            f"`{name}` must have shape {' or '.join(str(s) for s in shapes)}, but got {info.shape}."
            f"{hints.weight(info.shape, shapes[-1])}"
        )
