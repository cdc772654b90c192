"""The functional form: docstrings, validation, dispatch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np

from .core.array_types import library_of
from .core.backend import ArrayInfo, Backend, Plan, executed
from .core.dtypes import dtype_name
from .core.integers import integer
from .dispatch import path, planner, registry
from .dispatch.arguments import Conv2dSpec, device_name, flag, make_problem, normalised
from .dispatch.path import described, prepared

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .core.words import Accuracy, ComputeMode, ConvMode, Layout, PaddingMode, Strategy
    from .signatures import ActivationLike, ArrayT, CallOptions, NumpyArray, PaddingLike, Size

__all__ = ["conv2d", "conv2d_output_shape", "plan_conv2d", "plan_like", "tune", "warmup"]


@overload
def conv2d(
    x: NumpyArray,
    weight: NumpyArray,
    bias: NumpyArray | None = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
    dilation: Size = 1,
    groups: SupportsIndex = 1,
    conv_mode: ConvMode = "cross_correlation",
    compute_mode: ComputeMode = "default",
    *,
    out: NumpyArray | None = None,
    residual: NumpyArray | None = None,
    **options: Unpack[CallOptions],
) -> NumpyArray: ...


@overload
def conv2d(
    x: ArrayT,
    weight: ArrayT,
    bias: ArrayT | None = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
    dilation: Size = 1,
    groups: SupportsIndex = 1,
    conv_mode: ConvMode = "cross_correlation",
    compute_mode: ComputeMode = "default",
    *,
    out: ArrayT | None = None,
    residual: ArrayT | None = None,
    **options: Unpack[CallOptions],
) -> ArrayT: ...


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    conv_mode: Any = "cross_correlation",
    compute_mode: Any = "default",
    *,
    padding_mode: Any = "zeros",
    layout: Any = "NCHW",
    engine: str = "auto",
    accuracy: Any = "normwise",
    strategy: Any = "heuristic",
    backend: Any = None,
    out_dtype: Any = None,
    out: Any = None,
    activation: Any = None,
    residual: Any = None,
) -> Any:
    """Two-dimensional convolution (cross-correlation) of an array of any library.

    The result is an array of the same library, on the same device. Dask's is lazy, with a task for each chunk.

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
        ``"auto"``, or the name of an engine that the backend has: ``"gemm"``, ``"winograd"``, ``"fft"``, ``"direct"``,
        ``"native"`` for a routine of the library's own. With ``"auto"`` a kernel that turns out to be separable (a
        Gaussian, a box) runs as two one-dimensional passes where that is faster.
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
    out_dtype
        Dtype of the result, by name: a floating one, or one of integers, such as ``"uint8"`` for a photograph. What is
        rounded is the sum with its bias, once. Integers are rounded half to even, numbers that are too large become the
        nearest that there is, and NaN becomes 0.
    out
        An array of NumPy or PyTorch that becomes the result, and is returned: of the result's shape and dtype, in any
        order of memory, sharing none with the other arguments.
    activation
        What is applied to the sum, with bias and `residual`, before it is rounded: None, ``"relu"``, ``"relu6"``,
        ``"leaky_relu"`` (of slope 0.01 below zero, or ``("leaky_relu", slope)``), ``"silu"``, ``"hard_swish"``,
        ``"gelu"`` (by the error function), ``"sigmoid"`` or ``"tanh"``. With ``z`` the exact sum and ``B`` the bound of
        its error, the result ``a(z)`` is within ``L B + 4 eps max(|z|, |a(z)|)``, where ``L``, the largest slope of
        `activation`, is 1 for relu, relu6 and tanh, the larger of 1 and the slope for leaky_relu, 1.1 for silu, 1.5
        for hard_swish, 1.13 for gelu and 0.25 for sigmoid.
    residual
        An array of the shape of the result that is added before the activation, or None: floating, of `x`'s library.

    Returns
    -------
    array
        ``(N, O, oh, ow)``, or ``(N, oh, ow, O)`` with ``layout="NHWC"``, with
        ``oh = floor((H + top + bottom - dilation * (kh - 1) - 1) / stride) + 1``. Its dtype is that to which the
        floating dtypes among `x`, `weight`, `bias` and `residual` promote, or `out_dtype`.

    Raises
    ------
    TypeError
        For the wrong kind of argument, no array, arrays of two libraries, or a dtype that is not supported; for `out`
        with another library.
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

    A photograph, blurred:

    >>> photograph = np.full((1, 20, 30, 3), 200, np.uint8)
    >>> box = np.full((3, 1, 5, 5), 1 / 25, np.float32)
    >>> blurred = portconv.conv2d(photograph, box, padding="same", padding_mode="reflect", groups=3, layout="NHWC",
    ...                           out_dtype="uint8")
    >>> blurred.dtype.name, int(blurred.min()), int(blurred.max())
    ('uint8', 200, 200)

    A block of a network, ``relu(convolution + bias + x)``:

    >>> x, weight = np.ones((1, 4, 8, 8), np.float32), np.full((4, 4, 3, 3), -1 / 36, np.float32)
    >>> y = portconv.conv2d(x, weight, np.zeros(4, np.float32), padding=1, activation="relu", residual=x)
    >>> round(abs(float(y[0, 0, 4, 4])), 6), round(float(y[0, 0, 0, 0]), 3)
    (0.0, 0.556)
    """
    spec = normalised(
        stride, padding, dilation, groups, conv_mode, compute_mode,
        padding_mode=padding_mode, layout=layout, engine=engine, accuracy=accuracy, strategy=strategy,
        out_dtype=out_dtype, activation=activation,
    )  # fmt: skip
    plan, packed = prepared(spec, x, weight, bias, backend, out, residual)
    if out is None and residual is None:
        return plan.execute(x, packed, bias)
    return executed(plan, x, packed, bias, residual, out)


def plan_conv2d(
    x_or_shape: Any,
    weight_or_shape: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
    dilation: Size = 1,
    groups: SupportsIndex = 1,
    conv_mode: ConvMode = "cross_correlation",
    compute_mode: ComputeMode = "default",
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    engine: str = "auto",
    accuracy: Accuracy = "normwise",
    strategy: Strategy = "heuristic",
    dtype: str | None = None,
    backend: Any = None,
    device: str | None = None,
    out_dtype: Any = None,
    activation: ActivationLike = None,
    residual: Any = None,
) -> Plan:
    """How `conv2d` would compute this, without computing it.

    The plan has ``engine``, ``workspace_bytes``, ``output_shape``, ``explain()``, ``pack(weight)`` and
    ``execute(x, packed, bias)``.

    The other arguments are those of `conv2d`, and so are the errors.

    Parameters
    ----------
    x_or_shape, weight_or_shape
        Arrays, or their shapes as tuples of ints (see `conv2d`).
    bias
        An array, or a truth value: whether there is one.
    residual
        The same of a residual.
    dtype
        Where shapes are given, the dtype by name, ``"float32"`` by default.
    backend
        Name or `Backend`; by default that of the array, ``"numpy"`` for shapes.
    device
        Where shapes are given, the device in the library's own words; by default its default device.

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
        out_dtype=out_dtype, activation=activation,
    )  # fmt: skip
    return plan_like(spec, x_or_shape, weight_or_shape, bias, residual, dtype, backend, device)


def plan_like(
    spec: Conv2dSpec,
    x_or_shape: Any,
    weight_or_shape: Any,
    bias: Any,
    residual: Any,
    dtype: str | None = None,
    backend: Any = None,
    device: str | None = None,
) -> Plan:
    """`plan_conv2d` for arguments in normal form, those of a transposed convolution among them."""
    library, infos = _described(spec, x_or_shape, weight_or_shape, bias, dtype, backend, device)
    return path.plan_of(spec, library, *infos, residual=_described_residual(spec, library, infos, residual))


def tune(
    x_or_shape: Any,
    weight_or_shape: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    conv_mode: ConvMode = "cross_correlation",
    compute_mode: ComputeMode = "default",
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    accuracy: Accuracy = "normwise",
    dtype: str | None = None,
    backend: Any = None,
    device: str | None = None,
    out_dtype: Any = None,
    activation: Any = None,
    residual: Any = None,
    remember: bool = True,
) -> Plan:
    """Time the engines on this machine, anew, and keep which is fastest, where ``strategy="measure"`` finds it.

    It takes about a quarter of a second for each engine that is worth its time, on random data. Run it while nothing
    else does: times that were taken while something else used a core are not kept.

    The other arguments are those of `plan_conv2d`, without `engine` and `strategy`, and so are the errors.

    Parameters
    ----------
    remember
        Whether the result is kept, for this and later processes: see `portconv.wisdom`. Layers that have convolved
        images of this size already keep their engine.

    Returns
    -------
    Plan
        That of the fastest engine. Its ``chosen_by`` is ``"measurement"``, or begins with ``"heuristic"`` and says what
        was in the way: then it is the plan by estimates, and nothing is kept. Of its ``candidates``, those that were
        timed are ``measured``, and have their ``seconds``.

    Examples
    --------
    >>> import portconv
    >>> plan = portconv.tune((1, 8, 20, 20), (8, 8, 3, 3), padding=1, remember=False)
    >>> plan.output_shape
    (1, 8, 20, 20)
    >>> seconds = {c.engine: c.seconds for c in plan.candidates if c.measured}
    """
    from .dispatch import measurement  # only who measures needs it

    spec = Conv2dSpec.normalise(
        stride, padding, dilation, groups, conv_mode, compute_mode,
        padding_mode=padding_mode, layout=layout, accuracy=accuracy, out_dtype=out_dtype, activation=activation,
    )  # fmt: skip
    library, infos = _described(spec, x_or_shape, weight_or_shape, bias, dtype, backend, device)
    added = _described_residual(spec, library, infos, residual)
    problem = path.plan_of(spec, library, *infos, residual=added).problem
    plan = planner.plan(library, problem, choose=partial(measurement.measure, remember=flag("remember", remember)))
    if remember and plan.chosen_by == measurement.MEASURED:
        path.forget_plans()  # this process, too, has another engine from now on
    return plan


def warmup(layer_or_x: Any, /, *arguments: Any, gradients: bool = False, **options: Any) -> Plan:
    """Compile ahead what convolutions of this size need, so that the first one takes no longer than any other.

    With the extra ``jit``, engines on a CPU are compiled for the machine when they are needed first, which takes some
    seconds for each; later processes load what was compiled. Call it where seconds do no harm: while a server starts,
    or when a container is built. Nothing is computed, however large the image. Where the weight or the values of the
    image decide what runs, all of it is compiled.

    Parameters
    ----------
    layer_or_x
        A `Conv2d`, or anything that has a method `plan`, which is then given the arguments that follow: the image, or
        its shape. Or else the image, or its shape, and the arguments that follow are the others of `plan_conv2d`.
    gradients
        Whether to compile what the gradients of image and weight need as well, as in a training.

    Returns
    -------
    Plan
        That of the convolution; see `plan_conv2d`. Its `warmup` does the same, and says what had to be compiled.

    Raises
    ------
    TypeError, ValueError
        As `plan_conv2d`, or the layer's `plan`.

    Examples
    --------
    >>> import portconv
    >>> conv = portconv.Conv2d(1, 4, 3, padding=1, engine="direct")
    >>> portconv.warmup(conv, (1, 1, 480, 640)).output_shape
    (1, 4, 480, 640)
    >>> portconv.warmup((1, 1, 480, 640), (4, 1, 3, 3), padding=1, engine="direct", gradients=True).engine
    'direct'
    """
    is_layer = library_of(layer_or_x) is None and hasattr(layer_or_x, "plan")
    plan: Plan = (layer_or_x.plan if is_layer else partial(plan_conv2d, layer_or_x))(*arguments, **options)
    plan.warmup()
    if flag("gradients", gradients):
        from .cpu.gradient import warmup_gradients  # not before it is needed: it imports NumPy's engines

        warmup_gradients(plan)
    return plan


def _described(
    spec: Conv2dSpec,
    x_or_shape: Any,
    weight_or_shape: Any,
    bias: Any,
    dtype: str | None,
    backend: Any,
    device: str | None,
) -> tuple[Backend, list[ArrayInfo]]:
    """The backend, and what it would say of the arrays: x, the weight, and the bias if there is one."""
    library = registry.resolve(_first_array(x_or_shape, weight_or_shape), backend)
    name, device = dtype_name(dtype), device_name(device)
    given = (("x_or_shape", x_or_shape), ("weight_or_shape", weight_or_shape), ("bias", bias))
    arrays = [(what, a) for what, a in given if _is_array(a, library)]
    if not arrays:
        # an array of one element shows where the library puts what names no device, and whether it knows the one named
        arrays = [("dtype", library.from_numpy(np.ones(1, np.float32), dtype=name, device=device))]
    known = dict(zip((what for what, _ in arrays), described(library, arrays), strict=True))
    place = known[arrays[0][0]].device
    infos = []
    for what, value in given[:2]:
        infos.append(known.get(what) or ArrayInfo(_shape(what, value), name, place))
    if "bias" in known:
        infos.append(known["bias"])
    elif flag("bias", bias):
        infos.append(ArrayInfo((1, spec.out_channels(infos[1].shape), 1, 1), infos[1].dtype, place))
    return library, infos


def _described_residual(spec: Conv2dSpec, library: Backend, infos: list[ArrayInfo], residual: Any) -> ArrayInfo | None:
    """What the library says, or would say, of a residual: an array, or a truth value."""
    if _is_array(residual, library):
        return described(library, [("residual", residual)])[0]
    if not flag("residual", residual):
        return None
    return path.result_like(spec, *infos[:2])


def _is_array(value: Any, library: Backend) -> bool:
    """Whether this is an array, and neither a shape nor a truth value; a back end may know types of its own."""
    if library_of(value) is not None:
        return True
    if isinstance(value, (tuple, list, bool)) or value is None:
        return False
    try:
        library.describe(value)
    except TypeError:
        return False
    return True


def _first_array(*values: Any) -> Any:
    return next((value for value in values if library_of(value) is not None), None)


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"`{name}` must be an array or a shape (a tuple of ints), but got {type(value).__name__}.")
    return tuple(integer(f"{name}[{axis}]", size, 0) for axis, size in enumerate(value))


def conv2d_output_shape(
    x_shape: Any,
    weight_shape: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
) -> tuple[int, int, int, int]:
    """Shape of the result of `conv2d` for these shapes, in `layout`; integers only.

    The other arguments, and the errors for shapes that do not fit, are those of `conv2d`.

    Parameters
    ----------
    x_shape, weight_shape
        Tuples of ints, as for the arrays of `conv2d`.

    Examples
    --------
    >>> import portconv
    >>> portconv.conv2d_output_shape((1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3)
    (1, 64, 112, 112)
    """
    spec = Conv2dSpec.normalise(stride, padding, dilation, groups, padding_mode=padding_mode, layout=layout)
    shapes = _shape("x_shape", x_shape), _shape("weight_shape", weight_shape)
    return make_problem(spec, *shapes, None, ("float32", "float32", None)).out_shape
