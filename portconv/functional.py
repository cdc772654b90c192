"""The functional form: docstrings, validation, dispatch."""

from __future__ import annotations

import importlib
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from . import planner, registry
from .backend import ArrayInfo, Backend, PackedWeight, Plan
from .spec import Conv2dSpec, device_name, dtype_name, flag, integer, make_problem

__all__ = [
    "array_namespace",
    "conv2d",
    "conv2d_output_shape",
    "describe",
    "device",
    "plan_conv2d",
    "plan_for",
    "to_device",
]


def conv2d(
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
) -> Any:
    """Two-dimensional convolution (cross-correlation) of an array of any library.

    The result is an array of the same library, on the same device.

    The semantics and the order of the arguments are those of ``megengine.functional.conv2d``.

    Parameters
    ----------
    x
        Image, ``(N, C, H, W)``, or ``(N, H, W, C)`` with ``layout="NHWC"``. Floating, integer or boolean; integers and
        booleans are converted to the weight's dtype.
    weight
        ``(O, C/groups, kh, kw)`` in either layout, or ``(groups, O/groups, C/groups, kh, kw)``. Floating, of the same
        library as `x`.
    bias
        ``(1, O, 1, 1)`` or ``(O,)``, or None.
    stride, dilation
        An int, or a pair (height, width), in pixels.
    padding
        An int, a pair (height, width), ``((top, bottom), (left, right))``, ``"valid"`` (none), or ``"same"``: as much
        as makes the result ``ceil(size / stride)``, the odd pixel at the bottom and right, as XLA and Keras do.
    groups
        Groups of channels that are convolved apart; it divides `C` and `O`.
    conv_mode
        Only ``"cross_correlation"``.
    compute_mode
        ``"default"`` or ``"float32"``. It concerns float16 alone in MegEngine; here float16 and bfloat16 are always
        summed in float32.
    padding_mode
        What stands in the padding, here of 2 around ``1234``: ``"zeros"`` ``00123400``, ``"reflect"`` ``32123432``,
        ``"replicate"`` ``11123444``, ``"circular"`` ``34123412``.
    layout
        ``"NCHW"`` or ``"NHWC"``, of `x` and of the result.
    engine
        ``"auto"``, or one of ``"native"``, ``"gemm"``, ``"winograd"``, ``"fft"``, ``"direct"``. With ``"auto"`` a
        kernel that turns out to be separable (a Gaussian, a box) runs as two one-dimensional passes where that is
        faster.
    accuracy
        With ``c = sum |x| |w|`` over the receptive field, ``C`` what it would be if every weight met the largest pixel
        of its channel, and ``eps`` of the dtype of the sums: ``"normwise"`` keeps ``|error| <= 8 eps c + 24 eps C`` for
        each image and output channel; ``"elementwise"`` keeps ``8 eps c`` at every output and leaves out the engines
        that cannot.
    strategy
        ``"heuristic"`` picks the engine by estimates, ``"measure"`` by timing the candidates once on this machine, for
        this and later processes (see `portconv.wisdom`).
    backend
        Name or `Backend` that computes, instead of the one of `x`'s library.

    Returns
    -------
    array
        ``(N, O, oh, ow)``, or ``(N, oh, ow, O)`` with ``layout="NHWC"``, with
        ``oh = floor((H + top + bottom - dilation * (kh - 1) - 1) / stride) + 1``. Its dtype is that to which the
        floating dtypes among `x`, `weight` and `bias` promote.

    Raises
    ------
    TypeError
        For the wrong kind of argument, no array, arrays of two libraries, or a dtype that is not supported.
    ValueError
        For sizes that do not fit, and values that are not allowed.
    UnsupportedError
        (a `ValueError`) If the engine named cannot run the problem.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x = np.ones((1, 3, 32, 32), np.float32)
    >>> weight = np.ones((8, 3, 3, 3), np.float32)
    >>> y = portconv.conv2d(x, weight, stride=2, padding=1)
    >>> y.shape, y.dtype.name, float(y[0, 0, 5, 5])
    ((1, 8, 16, 16), 'float32', 27.0)
    """
    spec = Conv2dSpec.normalise(
        stride, padding, dilation, groups, conv_mode, compute_mode,
        padding_mode=padding_mode, layout=layout, engine=engine, accuracy=accuracy, strategy=strategy,
    )  # fmt: skip
    library, plan = plan_for(spec, x, weight, bias, backend)
    # A pack made from, or among, traced values belongs to the trace and must not outlive it.
    token = None if plan.problem.traced else library.cache_token(weight)
    packed = plan.pack(weight) if token is None else _packs.get(weight, token, plan)
    return plan.execute(x, packed, bias)


def plan_for(spec: Conv2dSpec, x: Any, weight: Any, bias: Any, backend: Any = None) -> tuple[Backend, Plan]:
    """The backend that convolves these arrays, and how, after every check."""
    library = registry.resolve(x, backend)
    info = describe(library, "x", x)
    parts = [("weight", weight)] if bias is None else [("weight", weight), ("bias", bias)]
    infos = [_describe_like(library, ("x", x), info, name, array) for name, array in parts]
    return library, _plan(spec, library, info, infos)


def describe(library: Backend, name: str, array: Any) -> ArrayInfo:
    """What the library says of an argument; its complaint, if it has one, with the argument's name."""
    try:
        return library.describe(array)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}`: {error}") from None


def _describe_like(library: Backend, first: tuple[str, Any], info: ArrayInfo, name: str, array: Any) -> ArrayInfo:
    """`array` described, if it is of the library and on the device of the first array."""
    mine, other = registry.library_of(first[1]), registry.library_of(array)
    if other is None:
        raise TypeError(
            f"`{name}` must be an array, but got {type(array).__name__}. "
            f"Lists and numbers become arrays by `numpy.asarray`."
        )
    if mine != other:
        raise TypeError(
            f"`{first[0]}` is an array of {mine}, but `{name}` is one of {other}. "
            f"Convert one of them; portconv moves no data unasked."
        )
    described = describe(library, name, array)
    if described.device != info.device and not (described.traced or info.traced):
        raise ValueError(
            f"`{first[0]}` is on the device {info.device}, but `{name}` is on {described.device}. Move one of them."
        )
    return described


def _plan(spec: Conv2dSpec, library: Backend, x: ArrayInfo, others: list[ArrayInfo]) -> Plan:
    weight, bias = others[0], others[1] if len(others) > 1 else None
    dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
    traced = x.traced or any(info.traced for info in others)
    problem = make_problem(spec, x.shape, weight.shape, None if bias is None else bias.shape, dtypes, x.device, traced)
    return planner.plan(library, problem, spec.engine, spec.strategy)


class PackCache:
    """Packed weights of arrays that cannot change unseen, the least recently used leaving first; bounded in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.nbytes = limit_bytes, 0
        self._entries: OrderedDict[tuple[int, Hashable], tuple[weakref.ref[Any], Hashable, PackedWeight]] = (
            OrderedDict()
        )
        self._lock = Lock()

    def get(self, weight: Any, token: Hashable, plan: Plan) -> PackedWeight:
        """The weight packed for the plan, from the cache if it is the same array with the same token."""
        key = (id(weight), plan.stamp)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry[0]() is weight and entry[1] == token:
                self._entries.move_to_end(key)
                return entry[2]
        packed = plan.pack(weight)
        try:
            reference = weakref.ref(weight)
        except TypeError:  # the library's arrays cannot be watched, so their identity means nothing later
            return packed
        with self._lock:
            self._drop(key)
            if packed.nbytes <= self.limit_bytes:
                self._entries[key] = (reference, token, packed)
                self.nbytes += packed.nbytes
            dead = [k for k, (ref, _, _) in self._entries.items() if ref() is None]
            for k in dead:
                self._drop(k)
            while self.nbytes > self.limit_bytes:
                self._drop(next(iter(self._entries)))
        return packed

    def _drop(self, key: tuple[int, Hashable]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.nbytes -= entry[2].nbytes


_packs = PackCache(256 << 20)


def plan_conv2d(
    x_or_shape: Any,
    weight_or_shape: Any,
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
    dtype: str | None = None,
    backend: Any = None,
    device: str | None = None,
) -> Plan:
    """How `conv2d` would compute this, without computing it.

    The plan has ``engine``, ``workspace_bytes``, ``output_shape``, ``explain()``, ``pack(weight)`` and
    ``execute(x, packed, bias)``.

    Parameters
    ----------
    x_or_shape, weight_or_shape
        Arrays, or their shapes as tuples of ints (see `conv2d`).
    bias
        An array, or a truth value: whether there is one.
    dtype
        Where shapes are given, the dtype by name, ``"float32"`` by default.
    backend
        Name or `Backend`; by default that of the array, ``"numpy"`` for shapes.
    device
        Where shapes are given, the device in the library's own words; by default its default device.

    The other arguments are those of `conv2d`, and so are the errors.

    Examples
    --------
    >>> import portconv
    >>> plan = portconv.plan_conv2d((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    >>> plan.engine, plan.output_shape
    ('winograd', (1, 64, 56, 56))
    >>> portconv.plan_conv2d((1, 1, 2048, 2048), (1, 1, 31, 31), padding=15).engine
    'fft'
    """
    spec = Conv2dSpec.normalise(
        stride, padding, dilation, groups, conv_mode, compute_mode,
        padding_mode=padding_mode, layout=layout, engine=engine, accuracy=accuracy, strategy=strategy,
    )  # fmt: skip
    library = registry.resolve(_first_array(x_or_shape, weight_or_shape), backend)
    name, device = dtype_name(dtype), device_name(device)
    given = (("x_or_shape", x_or_shape), ("weight_or_shape", weight_or_shape), ("bias", bias))
    arrays = [(what, a) for what, a in given if registry.library_of(a) is not None]
    # an array of one element shows where the library puts what names no device, and whether it knows the one named
    sample = arrays[0] if arrays else ("dtype", library.from_numpy(np.ones(1, np.float32), dtype=name, device=device))
    info = describe(library, *sample)
    described = {what: _describe_like(library, sample, info, what, a) for what, a in arrays}
    infos = []
    for what, value in given[:2]:
        infos.append(described.get(what) or ArrayInfo(_shape(what, value), name, info.device))
    if "bias" in described:
        infos.append(described["bias"])
    elif flag("bias", bias):
        infos.append(ArrayInfo((1, _out_channels(infos[1].shape), 1, 1), infos[1].dtype, info.device))
    return _plan(spec, library, infos[0], infos[1:])


def _first_array(*values: Any) -> Any:
    return next((value for value in values if registry.library_of(value) is not None), None)


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"`{name}` must be an array or a shape (a tuple of ints), but got {type(value).__name__}.")
    return tuple(integer(f"{name}[{axis}]", size, 0) for axis, size in enumerate(value))


def _out_channels(weight_shape: tuple[int, ...]) -> int:
    return weight_shape[0] * weight_shape[1] if len(weight_shape) == 5 else weight_shape[0] if weight_shape else 0


def conv2d_output_shape(
    x_shape: Any,
    weight_shape: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> tuple[int, int, int, int]:
    """Shape of the result of `conv2d` for these shapes, in `layout`; integers only.

    Parameters
    ----------
    x_shape, weight_shape
        Tuples of ints, as for the arrays of `conv2d`.

    The other arguments, and the errors for shapes that do not fit, are those of `conv2d`.

    Examples
    --------
    >>> import portconv
    >>> portconv.conv2d_output_shape((1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3)
    (1, 64, 112, 112)
    """
    spec = Conv2dSpec.normalise(stride, padding, dilation, groups, padding_mode=padding_mode, layout=layout)
    shapes = _shape("x_shape", x_shape), _shape("weight_shape", weight_shape)
    return make_problem(spec, *shapes, None, ("float32", "float32", None)).out_shape


def array_namespace(*arrays: Any) -> ModuleType:
    """The array API namespace of the arrays, like `array_api_compat.array_namespace`; it knows MLX, too.

    For MLX arrays it is `portconv.namespaces.mlx`: the standard 2024.12, but for what MLX cannot do.

    Raises
    ------
    TypeError
        If there is no array among the arguments, or arrays of several libraries. None and Python numbers are passed
        over.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> xp = portconv.array_namespace(np.zeros(3))
    >>> float(xp.sum(xp.ones(4)))
    4.0
    """
    present = [a for a in arrays if a is not None and type(a) not in (bool, int, float, complex)]
    libraries = sorted({str(registry.library_of(a)) for a in present})
    if libraries == ["mlx"]:
        return importlib.import_module("portconv.namespaces.mlx")
    if "mlx" in libraries:
        raise TypeError(f"arrays of several libraries have no namespace in common: {', '.join(libraries)}.")
    return array_api_compat.array_namespace(*present)


def device(x: Any, /) -> Any:
    """The device of an array, for libraries whose arrays have no attribute `device`, too.

    MLX's memory is shared, so an MLX array is where MLX would compute with it: on its default device, float64 on the
    CPU.

    Parameters
    ----------
    x
        An array of any library.

    Returns
    -------
    device
        In the library's own terms: the array's namespace takes it as ``device=``, and so does `to_device`.

    Raises
    ------
    TypeError
        If `x` is no array.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.device(np.zeros(3))
    'cpu'
    """
    if _library_of(x) == "mlx":
        return importlib.import_module("portconv.namespaces.mlx.devices").device_of(x)
    return array_api_compat.device(x)


def to_device(x: Any, device: Any, /) -> Any:
    """The array on a device; itself if it is there already.

    Parameters
    ----------
    x
        An array of any library.
    device
        In the library's own terms. For MLX an ``mlx.core.Device``, ``"cpu"`` or ``"gpu"``; nothing is moved, because
        its devices share memory.

    Returns
    -------
    array
        Of the same library, shape and dtype.

    Raises
    ------
    TypeError
        If `x` is no array.
    ValueError
        If there is no such device, or it cannot compute with the array (MLX: float64 on a GPU).

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.to_device(np.zeros(3), "cpu").shape
    (3,)
    """
    if _library_of(x) == "mlx":
        return importlib.import_module("portconv.namespaces.mlx.devices").to_device(x, device)
    return array_api_compat.to_device(x, device)


def _library_of(x: Any) -> str:
    library = registry.library_of(x)
    if library is None:
        raise TypeError(f"`x` must be an array, but got {type(x).__name__}; `numpy.asarray` makes one of it.")
    return str(library)
