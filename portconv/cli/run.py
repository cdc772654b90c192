"""`portconv run`: a network from an ONNX file, on a photograph."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

import portconv
from portconv import onnx

from ..processes.devices import devices, placement
from ..processes.files import replace_file
from .options import one, output

__all__ = ["run"]

LARGEST = 1 << 14  # of an axis of an image


@click.command(short_help="Run a network from an ONNX file on an image.")
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.argument("image", type=click.Path(exists=True, dir_okay=False))
@one("library", "device")
@click.option(
    "--size",
    metavar="H W",
    type=(click.IntRange(1, LARGEST), click.IntRange(1, LARGEST)),
    help="Of the image, where the network takes any; by default its own, in multiples of 32.",
)
@click.option(
    "--scale", type=float, default=1 / 255, metavar="S", help="Pixels p become (p S - M) / D; by default 1/255."
)
@click.option("--mean", type=float, default=0.0, metavar="M", help="By default 0.")
@click.option("--deviation", type=float, default=1.0, metavar="D", help="By default 1.")
@click.option("--repeat", type=click.IntRange(1), default=3, metavar="N", help="Runs that are timed; by default 3.")
@click.option(
    "--output", "file", metavar="FILE.npz", type=click.Path(), callback=output(".npz"), help="Write the outputs there."
)
def run(
    model: str,
    image: str,
    library: str,
    device: str | None,
    size: tuple[int, int] | None,
    scale: float,
    mean: float,
    deviation: float,
    repeat: int,
    file: str | None,
) -> int:
    """Run the network of an ONNX file on an image, on the arrays of any library, and print what it gives.

    The image is scaled to the size that the network takes, in its order of channels, RGB or grey.

    \b
    portconv run detector.onnx photograph.jpg
    portconv run detector.onnx photograph.jpg --library mlx --device gpu --output boxes.npz
    """  # noqa: D301  \b is a character that keeps click from filling the paragraph
    try:
        network = onnx.load(model)
        backend = portconv.get_backend(library)
        known = devices(library)
        if device is not None and device not in known:
            raise ValueError(f"device {device!r} is none of {', '.join(known)}.")
        if deviation == 0:
            raise ValueError("--deviation must not be 0.")
        pixels = _pixels(Path(image), network, size)
        x = backend.from_numpy(
            ((pixels * scale - mean) / deviation).astype(np.float32), device=placement(library, device or known[0])
        )
        found, seconds = _timed(network, backend, x, repeat)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
    console = Console(highlight=False)
    console.print(f"{network!r}", markup=False, soft_wrap=True)
    first, *rest = seconds
    later = f", then {min(rest) * 1e3:.1f} ms" if rest else ""
    console.print(f"{library}, {tuple(pixels.shape)}: {first * 1e3:.1f} ms at first{later}", markup=False)
    for name, value in found.items():
        console.print(f"{name}: {_described(value)}", markup=False, soft_wrap=True)
    if file is not None:
        replace_file(file, lambda target: np.savez(target, **found))
    return 0


def _pixels(path: Path, network: onnx.Network, size: tuple[int, int] | None) -> Any:
    """The image as the network takes it, ``(1, C, H, W)``, with pixels from 0 to 255."""
    pil: Any = importlib.import_module("PIL.Image")
    if len(network.inputs) != 1:
        raise ValueError(f"the network takes {', '.join(network.inputs)}; this command knows those with one input.")
    ((name, value),) = network.inputs.items()
    shape = value.shape
    if shape is None or len(shape) != 4 or shape[1] not in (1, 3) or value.dtype != "float32":
        raise ValueError(f"the network takes {name} {value}, and no image of shape (1, 1 or 3, H, W) in float32.")
    with pil.open(path) as opened:
        picture = opened.convert("L" if shape[1] == 1 else "RGB")
    own = size or tuple(max(32, round(n / 32) * 32) for n in (picture.height, picture.width))
    height, width = (fixed if isinstance(fixed, int) else free for fixed, free in zip(shape[2:], own, strict=True))
    if size is not None and size != (height, width):
        raise ValueError(f"the network takes images of {height} x {width}, not of {size[0]} x {size[1]}.")
    array = np.asarray(picture.resize((width, height), pil.Resampling.BILINEAR), np.float32)
    return np.moveaxis(array.reshape(height, width, -1), 2, 0)[None]


def _timed(network: onnx.Network, backend: Any, x: Any, repeat: int) -> tuple[dict[str, Any], list[float]]:
    """The outputs by their names, on NumPy, and the seconds of each run."""
    seconds = []
    found: Any = ()
    for _ in range(repeat):
        start = time.perf_counter()
        found = network(x)
        found = found if isinstance(found, tuple) else (found,)
        for value in found:
            backend.synchronize(value)
        seconds.append(time.perf_counter() - start)
    return {name: backend.to_numpy(value) for name, value in zip(network.outputs, found, strict=True)}, seconds


def _described(value: Any) -> str:
    """Shape and range of an output; of a few numbers for one image, the places of the largest."""
    text = f"{value.dtype.name} {value.shape}"
    if not value.size:
        return text
    text += f", from {value.min():.4g} to {value.max():.4g}"
    if value.ndim == 2 and value.shape[0] == 1 and value.shape[1] > 1:
        best = np.argsort(value[0])[::-1][:5]
        text += "; largest " + ", ".join(f"{i}: {value[0, i]:.4g}" for i in best)
    return text
