"""What several commands take, in the same words: layers, libraries and their arrays, files to be written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

import portconv

from ..bench import suites
from ..bench.layers import Layer, LayerError, load, padding_of, parse_sizes
from ..check.runner import libraries
from ..processes.devices import devices, placement

__all__ = ["Arrays", "json_option", "layer_options", "layers_of", "one", "output", "several"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

MODES = ("zeros", "reflect", "replicate", "circular")
DTYPES = ("float16", "bfloat16", "float32", "float64")
LAYOUTS = ("NCHW", "NHWC")
ACCURACIES = ("normwise", "elementwise")
ENGINES = ("auto", "direct", "fft", "gemm", "native", "winograd")


def _sizes(*lengths: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]:
    """What reads an option such as 1x64x56x56; one number for a pair stands for both."""

    def read(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
        if text is None:
            return None
        try:
            sizes = parse_sizes(text, lengths)
        except LayerError as error:
            raise click.BadParameter(str(error)) from None
        return sizes * 2 if len(sizes) == 1 else sizes

    return read


def _padding(context: click.Context, option: click.Parameter, text: str) -> str | tuple[int, ...] | None:
    """What reads --padding: a word as it stands, or one, two or four numbers."""
    return text if text in ("same", "valid") else _sizes(1, 2, 4)(context, option, text)


def _decorator(*options: Decorator) -> Decorator:
    """What gives a command these options, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# --- files to be written ----------------------------------------------------------------------------------------------


def output(*suffixes: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """What checks the name of a file to be written: a mistake must show at once, and not after the timing."""

    def check(context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
        if name is None or (name == "-" and not suffixes):
            return name
        path = Path(name)
        if suffixes and path.suffix.lower() not in suffixes:
            raise click.BadParameter(f"{name} must end in {', '.join(suffixes)}.")
        if path.is_dir():
            raise click.BadParameter(f"{name} is a directory.")
        if path.exists() and not path.is_file():  # a device, say, in whose place a file would be put
            raise click.BadParameter(f"{name} is no file.")
        if not os.access(path.resolve().parent, os.W_OK):
            raise click.BadParameter(f"{name} cannot be written: no such directory, or no permission.")
        taken = context.meta.setdefault("portconv.outputs", set())
        if path.resolve() in taken:
            raise click.BadParameter(f"{name} is named twice: one would overwrite the other.")
        taken.add(path.resolve())
        return name

    return check


json_option = click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(),
    callback=output(),
    help="Write everything there; - is stdout.",
)

# --- layers -----------------------------------------------------------------------------------------------------------

layer_options = _decorator(
    click.option(
        "--suite",
        "names",
        multiple=True,
        metavar="NAME",
        type=click.Choice([*suites.SUITES, "all"]),
        help="Layers of a published network, see bench --list; repeatable. Without any layers: resnet50.",
    ),
    click.option("--layers", "file", metavar="FILE", type=click.Path(), help="Layers from a JSON file."),
    click.option("--x", "x_shape", metavar="NxCxHxW", callback=_sizes(4), help="A layer: its image, 1x64x56x56 ..."),
    click.option(
        "--weight", "weight_shape", metavar="OxIxkhxkw", callback=_sizes(4), help="... its weight, 64x64x3x3 ..."
    ),
    click.option("--stride", default="1", metavar="N[xN]", callback=_sizes(1, 2), help="... and more; 2 is 2x2."),
    click.option(
        "--padding",
        default="0",
        metavar="PADDING",
        callback=_padding,
        help="N, NxN, top x bottom x left x right as 0x1x0x1, same, or valid.",
    ),
    click.option("--dilation", default="1", metavar="N[xN]", callback=_sizes(1, 2)),
    click.option("--groups", type=click.IntRange(1), metavar="N", help="By default what --x and --weight imply."),
    click.option("--padding-mode", type=click.Choice(MODES), default="zeros"),
    click.option("--bias", is_flag=True, help="That layer has a bias."),
    click.option("--select", "pattern", default="", metavar="REGEX", help="Only layers whose suite/name has a match."),
)


def layers_of(
    names: tuple[str, ...], file: str | None, pattern: str, dtype: str, accuracy: str, **options: Any
) -> list[Layer]:
    """The layers that the options name, in a dtype and to an accuracy.

    Raises
    ------
    LayerError
        If they make no sense, or nothing is left.
    """
    others = load(file) if file else []
    others += _given(**options)
    found = suites.select(names if names or others else ["resnet50"], others, pattern)
    return [replace(layer, dtype=dtype, accuracy=accuracy) for layer in found]


def _given(
    x_shape: tuple[int, ...] | None, weight_shape: tuple[int, ...] | None, groups: int | None, **options: Any
) -> list[Layer]:
    """The layer of the command line, if there is one."""
    if x_shape is None and weight_shape is None:
        return []
    if x_shape is None or weight_shape is None:
        raise LayerError("a layer needs both --x and --weight.")
    n, channels, *size = x_shape
    outputs, per_group, *kernel = weight_shape
    if groups is None:
        groups = max(1, channels // max(per_group, 1))
    if channels != per_group * groups:
        raise LayerError(f"--x has {channels} channels, but --weight has {per_group} in each of {groups} groups.")
    sizes: dict[str, Any] = {"size": tuple(size), "kernel": tuple(kernel), **options}
    steps = options["stride"], options["dilation"]
    sizes["padding"] = padding_of(options["padding"], sizes["size"], sizes["kernel"], *steps)
    return [Layer("given", "layer", n, channels, out_channels=outputs, groups=groups, **sizes).check()]


# --- libraries, devices, engines, and what their arrays are -----------------------------------------------------------


def _engines(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """The names of engines that a shell offers; plug-ins may have more."""
    return [name for name in ENGINES if name.startswith(begun)]


def _libraries(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """The names of libraries that a shell offers; none is imported for that."""
    return sorted({library.name for library in libraries() if library.name.startswith(begun)})


_CHOICES = {"dtype": DTYPES, "layout": LAYOUTS, "accuracy": ACCURACIES}
_HELP_OF_ONE = {
    "library": "Whose arrays; by default numpy.",
    "device": "As the library names it; by default its default device.",
    "dtype": "By default float32.",
    "layout": "By default NCHW.",
    "accuracy": "What is promised of errors; by default normwise.",
}
_HELP_OF_SEVERAL = {
    "library": "By default all there are; repeatable.",
    "device": "As the library names it; by default all; repeatable.",
    "engine": "By default all; repeatable.",
    "dtype": "By default all; repeatable.",
    "layout": "By default both; repeatable.",
    "accuracy": "By default both; repeatable.",
}


def _option(name: str, variable: str, **more: Any) -> Decorator:
    if name in _CHOICES:
        return click.option(f"--{name}", variable, type=click.Choice(_CHOICES[name]), **more)
    offered = {"library": _libraries, "engine": _engines}
    return click.option(f"--{name}", variable, metavar="NAME", shell_complete=offered.get(name), **more)


def one(*names: str) -> Decorator:
    """Give a command options of which it takes one each: `library`, `device`, `dtype`, `layout`, `accuracy`."""
    usual = {"library": "numpy", "dtype": "float32", "layout": "NCHW", "accuracy": "normwise"}
    return _decorator(*(_option(name, name, default=usual.get(name), help=_HELP_OF_ONE[name]) for name in names))


def several(*names: str, **help_texts: str) -> Decorator:
    """Give a command options that it takes repeatedly: `library` as `libraries`, and so on, and `engine`.

    `help_texts` has those that differ from the usual ones.
    """
    plural = {"library": "libraries", "accuracy": "accuracies"}
    texts = {**_HELP_OF_SEVERAL, **help_texts}
    return _decorator(*(_option(name, plural.get(name, f"{name}s"), multiple=True, help=texts[name]) for name in names))


@dataclass(frozen=True)
class Arrays:
    """What layers are convolved on: arrays of one library, on one device."""

    backend: Any
    device: str
    place: str | None  # the device, as portconv takes it
    options: dict[str, str]  # dtype, layout, accuracy

    @classmethod
    def of(cls, library: str, device: str | None, **options: str) -> Arrays:
        """What the options say; `ValueError` or `ImportError` if the library, the device or the dtype is not there."""
        backend = portconv.get_backend(library)
        known = devices(library)
        if device is not None and device not in known:
            raise ValueError(f"device {device!r} is none of {', '.join(known)}.")
        place = placement(library, device or known[0])
        try:  # whether the library has such arrays there
            portconv.plan_conv2d((1, 1, 1, 1), (1, 1, 1, 1), backend=library, device=place, dtype=options["dtype"])
        except TypeError as error:
            raise ValueError(str(error)) from None
        return cls(backend, device or known[0], place, options)

    def arguments(self, layer: Layer) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What `portconv.plan_conv2d` takes for a layer: its positional arguments, and the others."""
        n, c, h, w = layer.x_shape
        x_shape = (n, c, h, w) if self.options["layout"] == "NCHW" else (n, h, w, c)
        others = {"backend": self.backend, "device": self.place, **layer.options, **self.options}
        return (x_shape, layer.weight_shape, layer.bias), others

    def __str__(self) -> str:
        return ", ".join([f"{self.backend.name} {self.device}", *self.options.values()])
