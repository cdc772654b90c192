"""What a caller may have meant: the sentence that ends a message, after a space, or nothing.

Nothing here decides anything. It is asked where an error is raised, and knows what other libraries call things and how
their arrays are laid out.
"""

from __future__ import annotations

from collections.abc import Iterable

from .layout import OIHW_FROM, kernel_axes, pixel_axes

__all__ = [
    "attribute", "conversion", "image", "kernel", "no_file", "of_a_model", "sizes", "transposed", "unbatched", "weight",
    "word",
]  # fmt: skip

# What others call it, in lower case, by the argument, and what to say of it.
_WORDS: dict[str, dict[str, str]] = {
    "padding_mode": {
        "edge": "'edge' is NumPy's word for 'replicate'.",
        "nearest": "'nearest' is SciPy's word for 'replicate'.",
        "border_replicate": "OpenCV's BORDER_REPLICATE is 'replicate'.",
        "border_reflect_101": "OpenCV's BORDER_REFLECT_101 is 'reflect'.",
        "mirror": "'mirror' is SciPy's word for 'reflect'.",
        "wrap": "'wrap' is NumPy's and SciPy's word for 'circular'.",
        "constant": "'constant' is NumPy's and SciPy's word for 'zeros'.",
        "symmetric": "A mode that repeats the edge does not exist here: pad with `numpy.pad` before, or use 'reflect'.",
        "same": "How much is padded is `padding='same'`; `padding_mode` is what stands there.",
        "valid": "How much is padded is `padding='valid'`; `padding_mode` is what stands there.",
    },
    "conv_mode": {
        "convolution": "Turn the weight by weight[:, :, ::-1, ::-1] to convolve in the sense of mathematics.",
        **dict.fromkeys(
            ("zeros", "reflect", "replicate", "circular"),
            "That is a `padding_mode`: PyTorch has it at this place, here give it by its name.",
        ),
    },
    "padding": {
        "full": "Give the numbers: `padding=(kh - 1, kw - 1)` is what SciPy calls 'full'.",
        "causal": "Give four sides: ((kh - 1, 0), (kw - 1, 0)).",
    },
    "layout": {
        **dict.fromkeys(("channels_last", "hwc"), "Did you mean 'NHWC'?"),
        **dict.fromkeys(("channels_first", "chw", "contiguous_format"), "Did you mean 'NCHW'?"),
    },
    "backend": {
        "pytorch": "Did you mean 'torch'?",
        **dict.fromkeys(("np", "cpu"), "Did you mean 'numpy'?"),
        **dict.fromkeys(("mx", "mlx.core", "metal"), "Did you mean 'mlx'?"),
        **dict.fromkeys(("jnp", "jax.numpy"), "Did you mean 'jax'?"),
        **dict.fromkeys(("da", "dask.array"), "Did you mean 'dask'?"),
        "tensorflow": "TensorFlow's arrays do not follow the array API standard: hand over `tensor.numpy()`.",
    },
    "activation": {
        "swish": "Did you mean 'silu'?",
        **dict.fromkeys(("hardswish", "h_swish"), "Did you mean 'hard_swish'?"),
        **dict.fromkeys(("leakyrelu", "lrelu"), "Did you mean 'leaky_relu'?"),
        **dict.fromkeys(("linear", "identity", "none"), "Without an activation it is None."),
    },
    "engine": {
        "im2col": "Matrix products are 'gemm' here.",
        "cudnn": "The library's own routine is 'native' here.",
    },
    "dtype": {
        "half": "Did you mean 'float16'?",
        **dict.fromkeys(("float", "single", "f32", "fp32"), "Did you mean 'float32'?"),
        **dict.fromkeys(("double", "f64", "fp64"), "Did you mean 'float64'?"),
        **dict.fromkeys(("f16", "fp16"), "Did you mean 'float16'?"),
        "bf16": "Did you mean 'bfloat16'?",
    },
    "mode": {
        "linear": "Did you mean 'bilinear'?",
        **dict.fromkeys(("bicubic", "cubic"), "Only 'nearest' and 'bilinear' exist here."),
        "area": "Only 'nearest' and 'bilinear' exist here; `avg_pool2d` has the means of areas.",
    },
    "strategy": {"auto": "'heuristic' is what runs by itself."},
}
_WORDS["out_dtype"] = {**_WORDS["dtype"], "int": "Did you mean 'int64'?", "uint": "Did you mean 'uint8'?"}
_DEVICES = ("cpu", "gpu", "cuda", "mps")


def word(argument: str, value: object, allowed: Iterable[str]) -> str:
    """For a word that is none of those allowed."""
    if not isinstance(value, str):
        return ""
    lower = value.lower()
    if argument == "backend" and lower.partition(":")[0] in _DEVICES:
        return (
            f" {value!r} is a device: name the library first, as in `backend='torch', device={value!r}` or "
            f"`to('torch', {value!r})`; NumPy's is 'numpy'."
        )
    if (sentence := _WORDS.get(argument, {}).get(lower)) is not None:
        return f" {sentence}"
    near = _nearest(value, allowed)
    return f" Did you mean {near!r}?" if near is not None else ""


def attribute(name: str, known: Iterable[str]) -> str | None:
    """The attribute that this name is a slip of, if there is one."""
    return _nearest(name, known, 0.8)


def _nearest(value: str, allowed: Iterable[str], cutoff: float = 0.7) -> str | None:
    from difflib import get_close_matches  # where something is wrong there is time to import it

    lower = {name.lower(): name for name in allowed}
    found = get_close_matches(value.lower(), lower, 1, cutoff)
    return lower[found[0]] if found else None


def conversion(first: str, mine: str | None, name: str, other: str) -> str:
    """The expression that gives the second of two arrays in the library of the first."""
    if mine is None:
        return "the back end's `from_numpy`"
    on_numpy = name if other == "numpy" else f"portconv.get_backend({name}).to_numpy({name})"
    return f"`{on_numpy if mine == 'numpy' else f'portconv.get_backend({first}).from_numpy({on_numpy})'}`"


def of_a_model(keys: Iterable[str], expected: Iterable[str]) -> str:
    """For a layer's parameters that are looked for among those of a model, whose names have the layer's in front."""
    keys, names = list(keys), list(expected)
    for key in keys:
        front = key.removesuffix(names[0])
        if front.endswith(".") and all(front + name in keys for name in names):
            those = ", ".join(f"{name!r}: state[{front + name!r}]" for name in names)
            return f" It is the state of a model: for its layer {front[:-1]!r} hand over {{{those}}}."
    return ""


_COLOURS = (1, 3, 4)  # channels that an image file has


def image(shape: tuple[int, ...], layout: str) -> str:
    """For an image that has not four axes."""
    if len(shape) == 2:
        return f" A gray image gets them by {'x[None, None]' if layout == 'NCHW' else 'x[None, :, :, None]'}."
    if len(shape) != 3:
        return ""
    first, last = shape[0] in _COLOURS, shape[-1] in _COLOURS
    if layout == "NCHW" and last and not first:
        return f" The last axis has {shape[-1]}, as an image file's (H, W, C): did you mean x[None] and layout='NHWC'?"
    if layout == "NHWC" and first and not last:
        return f" The first axis has {shape[0]}, as in (C, H, W): did you mean x[None] and layout='NCHW'?"
    return " Add a batch axis of size 1: x[None]."


def unbatched(shape: tuple[int, ...], axes: int) -> str:
    """For an input that has other axes than an array of one dimension or three, or that of a network, has."""
    return " Add a batch axis of size 1: x[None]." if len(shape) == axes - 1 else ""


def no_file(module: str, name: str) -> str:
    """For what is given in the place of the path of an ONNX file: an object of this class."""
    if name == "ModelProto":
        return " Write it to a file: `onnx.save(model, path)`."
    if module.partition(".")[0] == "torch":
        return " `torch.onnx.export` writes a model to a file."
    return ""


def kernel(shape: tuple[int, ...]) -> str:
    """For a weight that has neither four axes nor five."""
    if len(shape) != 2:
        return ""
    return (
        " A filter of two axes gets them by weight[None, None]; for each channel of a photograph by "
        "numpy.broadcast_to(weight, (3, 1, *weight.shape)) and groups=3."
    )


def sizes(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], layout: str, groups: int) -> str:
    """For a signal, an image or a volume and a weight whose channels do not fit."""
    if len(weight_shape) > len(layout):
        return ""
    axes, channels = pixel_axes(layout), x_shape[layout.index("C")]
    outputs, group_inputs = weight_shape[:2]
    if hint := _other_layout(x_shape, layout, group_inputs * groups):
        return hint
    if groups > 1 and group_inputs == channels:
        form = f"(O, {channels // groups}, {kernel_axes(layout)})"
        return f" With {groups} groups a weight is {form}: each output sees its group alone."
    if groups == 1 and group_inputs and channels % group_inputs == 0 and outputs % (channels // group_inputs) == 0:
        if outputs == channels and group_inputs > 1:
            other = f"`conv_transpose{len(axes)}d`, whose weight is IO{axes}"
            return f" Did you mean groups={channels // group_inputs}, or {other}?"
        return f" Did you mean groups={channels // group_inputs}?"
    if hint := _laid_out(weight_shape, f"OI{axes}", channels // groups, groups, "Keras's and Flax's"):
        return hint
    if groups > 1 and channels == groups == weight_shape[2] and axes == "HW":
        return " The weight may be Keras's of a DepthwiseConv2D: see `portconv.weights`, weight_layout='HWCM'."
    return ""


def _other_layout(x_shape: tuple[int, ...], layout: str, wanted: int) -> str:
    """For an input whose channels would be as many as are wanted in the other layout."""
    axes, first = pixel_axes(layout), layout[1] == "C"
    other = f"N{axes}C" if first else f"NC{axes}"
    if x_shape[other.index("C")] != wanted:
        return ""
    return f" The {'last' if first else 'second'} axis of `x` has {wanted}: did you mean layout={other!r}?"


def _laid_out(shape: tuple[int, ...], own: str, inputs: int, groups: int, keras: str) -> str:
    """A weight, without an axis of groups, whose channels would fit in the layout of another library.

    `own` is the layout it should be in, `keras` whose it is to have the pixels first.
    """
    axes = own[2:]
    for layout, where in ((f"{axes}{own[1]}{own[0]}", keras), (f"O{axes}I", "MLX's")):
        sizes = dict(zip(layout, shape, strict=True))
        # as kernels are; else little speaks for this layout
        square = len({sizes[axis] for axis in axes}) == 1
        if sizes["I"] == inputs and sizes["O"] % groups == 0 and square:
            order = tuple(layout.index(axis) for axis in own)
            return f" The weight may be in {where} layout {layout}: permute_dims(weight, {order}) is in {own}."
    return ""


def transposed(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], layout: str, groups: int) -> str:
    """For the same of a transposed convolution."""
    if len(weight_shape) > len(layout):
        return ""
    axes, channels = pixel_axes(layout), x_shape[layout.index("C")]
    if hint := _other_layout(x_shape, layout, weight_shape[0]):
        return hint
    if groups == 1 and weight_shape[1] == channels:
        turned = f"permute_dims(weight, {(1, 0, *range(2, len(layout)))})"
        return f" The inputs are its first axis, IO{axes}: did you mean {turned}, or `conv{len(axes)}d`?"
    return _laid_out(weight_shape, f"IO{axes}", channels, groups, "Keras's")


def weight(shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """For the weight of a layer that has another shape than is expected, (O, I, kh, kw)."""
    if len(shape) != 4 or len(expected) != 4 or shape == expected:
        return ""
    for layout, where in (("HWIO", "Keras's and Flax's"), ("OHWI", "MLX's")):
        if tuple(shape[axis] for axis in OIHW_FROM[layout]) == expected:
            return (
                f" In {where} layout {layout} it would fit: `portconv.weights` takes it with weight_layout={layout!r}."
            )
    return ""
