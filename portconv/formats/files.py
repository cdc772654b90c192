"""Files of weights: what is written into them, and what is taken from them, with the layout of each weight.

The kinds of files, `safetensors.py` and `npz.py`, know arrays and texts by name, and no layouts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..core.array_types import library_of
from ..core.errors import WeightsError, choices
from ..core.files import replace_file
from ..core.layout import WEIGHT_LAYOUTS
from ..dispatch.registry import get_backend
from ..layer import Layer
from . import layers, npz, safetensors
from .layouts import check_axes, checked_layout, convert_layout, meanings

__all__ = ["Weights", "load", "save"]

LAYOUT = "portconv.layout"  # the text of a file that names layouts: one for all, or a JSON object of one for each name
FORMATS: dict[str, ModuleType] = {".safetensors": safetensors, ".npz": npz}


class Weights(Mapping[str, "np.ndarray[Any, Any]"]):
    """What a file of weights holds: NumPy arrays by name, as they stand there.

    Attributes
    ----------
    layouts
        The layout of each convolution's weight, by name.
    metadata
        The file's other texts, by name.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.weights import Weights
    >>> Weights({"conv.weight": np.ones((8, 3, 3, 3))}, {"conv.weight": "OIHW"}, {})
    Weights(conv.weight: (8, 3, 3, 3) OIHW)
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray[Any, Any]], layouts: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        self._arrays, self.layouts, self.metadata = dict(arrays), dict(layouts), dict(metadata)

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        shapes = [f"{name}: {a.shape} {self.layouts.get(name, '')}".rstrip() for name, a in self._arrays.items()]
        return f"Weights({', '.join(shapes)})"


def save(
    path: str | Path,
    content: Any,
    *,
    weight_layout: str | Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write layers and arrays into a file, with the layout of each convolution's weight; the whole file or nothing.

    Parameters
    ----------
    path
        Of a file that ends in ``.safetensors`` (which needs the package of this name) or ``.npz``. The formats are
        those that other libraries read.
    content
        A layer, or a mapping of names to layers and arrays, or what `load` returns. A layer is portconv's, of any kind,
        or one that `from_torch` and its like take; its parameters are called ``name.weight`` and ``name.bias`` (alone
        ``weight`` and ``bias``) and are written as the layer has them. Arrays are of any library. bfloat16 is written
        as float32.
    weight_layout
        Of the arrays in `content`, not of its layers: of every one that has four or five axes and is not called
        ``bias``; or a mapping of names to layouts, which tells those that are weights of convolutions.
    metadata
        Texts by name, which `load` returns.

    Raises
    ------
    TypeError
        If `content` has something else.
    ValueError
        If an array may be a convolution's weight, and its layout is not named.
    ImportError
        If safetensors is needed and not installed.

    Examples
    --------
    >>> import tempfile, portconv
    >>> from portconv import weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     weights.save(f"{folder}/conv.npz", portconv.Conv2d(4, 8, 3, groups=2), metadata={"trained on": "digits"})
    ...     weights.load(f"{folder}/conv.npz")
    Weights(weight: (2, 4, 2, 3, 3) GOIHW, bias: (1, 8, 1, 1))
    """
    path, form = _format(path)
    texts = dict(metadata or {})
    if not all(isinstance(text, str) for text in [*texts, *texts.values()]) or LAYOUT in texts:
        raise TypeError(f"`metadata` must be a mapping of texts to texts, without {LAYOUT!r}, but got {metadata!r}.")
    arrays, layouts = _content(content)
    shapes = {name: array.shape for name, array in arrays.items() if name not in layouts}
    layouts |= _stated(weight_layout, shapes, "`content`", ValueError)
    for name, layout in layouts.items():
        check_axes(name, arrays[name].shape, layout)
    replace_file(path, lambda file: form.write(file, arrays, {**texts, LAYOUT: json.dumps(layouts)}))


def load(path: str | Path, *, into: Any = None, weight_layout: str | Mapping[str, str] | None = None) -> Weights:
    """Read a file of weights, and give its parameters to layers.

    A file of any origin is safe to read: nothing in it is run, sizes are checked against the file before anything is
    allocated, and one that is damaged gives one error.

    Parameters
    ----------
    path
        Of a ``.safetensors`` or ``.npz`` file.
    into
        A layer, or a mapping of names to layers: `portconv.Conv2d`, `portconv.mlx.Conv2d` or a `torch.nn.Conv2d`. Each
        takes ``name.weight`` and ``name.bias`` (alone ``weight`` and ``bias``), turned into its layout, and keeps its
        dtype. If one of them cannot, all stay as they were. The file may hold more.
    weight_layout
        For a file that does not say its layouts, as other programs write them: the layout of every array that has four
        or five axes and is not called ``bias``; or a mapping of names to layouts, which tells those that are weights
        of convolutions. What the file says must agree with it.

    Returns
    -------
    Weights
        The arrays by name, their layouts, and the file's metadata.

    Raises
    ------
    WeightsError
        If the file is damaged, or is no such file, does not say its layouts (the message says what to pass), or has
        not what a layer needs. It is a `ValueError`.
    OSError
        If there is no such file, or it cannot be read.
    ImportError
        If safetensors is needed and not installed.

    Examples
    --------
    >>> import tempfile, numpy as np, portconv
    >>> from portconv import weights
    >>> conv = portconv.Conv2d(3, 8, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/mlx.npz", weight=np.ones((8, 3, 3, 3)), bias=np.ones(8))  # of another program
    ...     weights.load(f"{folder}/mlx.npz", into=conv, weight_layout="OHWI")
    Weights(weight: (8, 3, 3, 3) OHWI, bias: (8,))
    """
    path, form = _format(path, _OTHERS)
    arrays, texts = form.read(path)
    said = _said(path, texts.pop(LAYOUT, None), arrays)
    shapes = {name: array.shape for name, array in arrays.items()}
    if said is None:
        layouts = _stated(weight_layout, shapes, str(path), WeightsError)
    else:
        layouts = _agreed(path, said, weight_layout)
    for name, layout in layouts.items():
        try:
            check_axes(name, shapes[name], layout)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from error
    loaded = Weights(arrays, layouts, texts)
    if into is not None:
        _give(path, loaded, into)
    return loaded


# What reads the files of others, by their ends.
_OTHERS = {
    **dict.fromkeys(
        (".pt", ".pth", ".bin"), "A `state_dict` of `torch.load(path, weights_only=True)` goes to `load_state_dict`."
    ),
    **dict.fromkeys((".h5", ".keras"), "Load it with Keras, and give its layers to `portconv.weights.from_keras`."),
    ".npy": "`numpy.load` reads its array, which `portconv.weights.from_arrays` takes.",
    ".onnx": "`portconv.onnx.load` reads a whole network.",
}


def _format(path: str | Path, others: Mapping[str, str] | None = None) -> tuple[Path, Any]:
    try:
        path = Path(path)
    except TypeError:
        raise TypeError(f"`path` must be a path, but got {type(path).__name__}. It stands first.") from None
    if path.suffix not in FORMATS:
        mend = f" {others[path.suffix]}" if others and path.suffix in others else ""
        raise ValueError(f"`path` must end with {choices(FORMATS)}, but got {str(path)!r}.{mend}")
    return path, FORMATS[path.suffix]


def _content(content: Any) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """The arrays of what is to be written, and the layouts that are known."""
    if isinstance(content, Weights):
        return dict(content), dict(content.layouts)
    alone = _parameters(content)
    if alone is None and not isinstance(content, Mapping):
        raise TypeError(f"`content` must be a layer, or a mapping of names to layers and arrays, but got {content!r}.")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    layouts: dict[str, str] = {}
    for name, value in [("", content)] if alone is not None else content.items():
        if not isinstance(name, str):
            raise TypeError(f"`content` must have texts for names, but got {name!r}.")
        parameters = _parameters(value)
        if parameters is None:
            found = {name: _array(name, value)}
        else:
            weight, layout, bias = parameters
            own = f"{name}.weight" if name else "weight"
            layouts[own] = layout
            found = {own: _array(own, weight)}
            if bias is not None:
                own = f"{name}.bias" if name else "bias"
                found[own] = _array(own, bias)
        if twice := arrays.keys() & found.keys():
            raise ValueError(f"`content` has {sorted(twice)} twice.")
        arrays |= found
    return arrays, layouts


def _parameters(value: Any) -> tuple[Any, str, Any] | None:
    """Weight, its layout and bias of a layer; None for what is none."""
    if isinstance(value, Layer):
        own: Any = value
        return own.weight, own.weight_layout, own.bias
    state = layers.read(value)
    return None if state is None else (state.weight, state.weight_layout, state.bias)


def _array(name: str, value: Any) -> np.ndarray[Any, Any]:
    if library_of(value) is None or not hasattr(value, "dtype"):  # a layer of PyTorch is PyTorch's, too
        raise TypeError(
            f"`content` has a {type(value).__module__}.{type(value).__qualname__} for {name!r}, which is neither an "
            f"array nor a layer of two-dimensional convolution. Of a model, give its layers by their names."
        )
    array = np.asarray(get_backend(value).to_numpy(value))
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`content` has an array of dtype {array.dtype} for {name!r}, which is none of numbers.")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _may_be_weight(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) in (4, 5) and name.rpartition(".")[2] != "bias"


def _stated(
    weight_layout: Any, shapes: Mapping[str, tuple[int, ...]], source: str, error: type[ValueError]
) -> dict[str, str]:
    """The layouts that the user names for arrays that do not tell theirs."""
    if isinstance(weight_layout, Mapping):
        for name, layout in weight_layout.items():
            checked_layout(f"weight_layout[{name!r}]", layout)
        return {name: weight_layout[name] for name in shapes if name in weight_layout}
    weights = [name for name, shape in shapes.items() if _may_be_weight(name, shape)]
    if weight_layout is not None:
        return dict.fromkeys(weights, checked_layout("weight_layout", weight_layout))
    if weights:
        raise error(
            f"{source} does not say the layout of {weights[0]!r}, {shapes[weights[0]]}"
            f"{f', and of {len(weights) - 1} more' if weights[1:] else ''}, and a shape does not tell it. Pass "
            f"`weight_layout`: {meanings()}; or a mapping of the names of convolutions' weights to their layouts."
        )
    return {}


def _said(path: Path, text: str | None, arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, str] | None:
    """The layouts that a file names; None if it says nothing of them."""
    if text is None:
        return None
    if text in WEIGHT_LAYOUTS:
        return {name: text for name, array in arrays.items() if _may_be_weight(name, array.shape)}
    try:
        layouts = json.loads(text)
    except (ValueError, RecursionError):
        layouts = None
    if not isinstance(layouts, dict) or not all(
        name in arrays and isinstance(layout, str) and layout in WEIGHT_LAYOUTS for name, layout in layouts.items()
    ):
        raise WeightsError(
            f"{path}: its {LAYOUT!r} must be the name of a layout, or a JSON object of names of its arrays to layouts, "
            f"but it is {text[:200]!r}. Layouts are {meanings()}."
        )
    return layouts


def _agreed(path: Path, said: dict[str, str], weight_layout: Any) -> dict[str, str]:
    """The layouts that a file names, if they are what the user says."""
    if weight_layout is None:
        return said
    stated = weight_layout if isinstance(weight_layout, Mapping) else dict.fromkeys(said, weight_layout)
    for name, layout in stated.items():
        if checked_layout("weight_layout", layout) != said.get(name):
            says = f"is {said[name]}" if name in said else "is no weight of a convolution"
            raise WeightsError(f"`weight_layout` is {layout!r} for {name!r}, but {path} says that it {says}.")
    return said


def _give(path: Path, loaded: Weights, into: Any) -> None:
    """Give parameters to layers, once all of them are known to be right."""
    alone = isinstance(into, Layer) or _is_torch(into)
    if not alone and not isinstance(into, Mapping):
        raise TypeError(
            f"`into` must be a layer, or a mapping of names to layers, but got {type(into).__name__}. Of a model give "
            f"its convolutions, by the names that stand before '.weight' in the file: {{'conv1': model.conv1}}."
        )
    found = [
        (layer, *_for(path, loaded, layer, "" if alone else f"{name}."))
        for name, layer in ([("", into)] if alone else into.items())
    ]
    for layer, weight, bias in found:
        if isinstance(layer, Layer):
            layer._take(weight, bias)
        else:
            state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias.reshape(-1)}
            layer.load_state_dict({name: get_backend("torch").from_numpy(value) for name, value in state.items()})


def _for(path: Path, loaded: Weights, layer: Any, prefix: str) -> tuple[np.ndarray[Any, Any], Any]:
    """Weight (O, I/G, kh, kw) and bias for a layer."""
    if not isinstance(layer, Layer) and not _is_torch(layer):
        kind = type(layer)
        raise TypeError(
            f"`into` must have layers that are portconv.Conv2d, portconv.mlx.Conv2d or torch.nn.Conv2d, but got "
            f"{kind.__module__}.{kind.__qualname__} for {prefix!r}."
        )
    name, bias_name, has_bias = f"{prefix}weight", f"{prefix}bias", layer.bias is not None
    if name not in loaded.layouts or has_bias != (bias_name in loaded):
        raise WeightsError(
            f"{path} must have the weight of a convolution {name!r} and {'a' if has_bias else 'no'} {bias_name!r} for "
            f"this layer, but has {sorted(loaded)}."
        )
    expected = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    layout = loaded.layouts[name]
    try:
        weight = convert_layout(loaded[name], layout, "OIHW", groups=layer.groups)
    except ValueError as error:
        raise WeightsError(f"{path}: {name!r}: {error}") from error
    if weight.shape != expected:
        raise WeightsError(
            f"{path}: {name!r}, {loaded[name].shape} {layout}, is {weight.shape} in OIHW, but this layer has "
            f"{expected}."
        )
    bias = loaded.get(bias_name)
    shapes = [(layer.out_channels,), (1, layer.out_channels, 1, 1)]
    if bias is not None and bias.shape not in shapes:
        raise WeightsError(f"{path}: {bias_name!r} must have shape {shapes[0]} or {shapes[1]}, but has {bias.shape}.")
    return weight, bias


def _is_torch(layer: Any) -> bool:
    state = None if isinstance(layer, Mapping) else layers.read(layer, "torch")
    return state is not None
