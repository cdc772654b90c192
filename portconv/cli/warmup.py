"""`portconv warmup`: compiles ahead what layers need, so that nobody waits for it later."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
from rich.console import Console

import portconv
from portconv import extending, machine

from ..bench.layers import Layer, LayerError
from .options import Arrays, layer_options, layers_of, one
from .progress import each

__all__ = ["warmup"]


@dataclass
class _Row:
    """A layer: the engine of its plan, what had to be compiled for it and how long it took; or what went wrong."""

    layer: Layer
    engine: str = ""
    compiled: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str = ""

    def verdict(self) -> str:
        done = f"compiled {', '.join(self.compiled)} in {self.seconds:.1f} s" if self.compiled else "nothing to compile"
        return self.error or f"{self.engine}, {done}"


@click.command(short_help="Compile ahead what layers need, so that no first call waits for it.")
@layer_options
@one("library", "device", "dtype", "layout", "accuracy")
@click.option("--gradients", is_flag=True, help="Compile what the gradients of image and weight need, too.")
def warmup(
    library: str, device: str | None, dtype: str, layout: str, accuracy: str, gradients: bool, **given: Any
) -> int:
    """Compile the engines of layers for this machine, where that has not been done, and keep the code.

    Nothing is computed, however large the images are. Do it where seconds do no harm, as when a container is built: the
    processes that follow load the code. A layer that cannot be planned makes the exit status 1.

    \b
    portconv warmup --suite resnet50
    portconv warmup --x 1x64x56x56 --weight 64x64x3x3 --padding 1
    portconv warmup --suite resnet50 --library torch --gradients
    """  # noqa: D301  \b is a character that keeps click from filling the paragraph
    try:
        layers = layers_of(**given, dtype=dtype, accuracy=accuracy)
        arrays = Arrays.of(library, device, dtype=dtype, layout=layout, accuracy=accuracy)
    except (LayerError, ImportError, ValueError) as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
    start = time.perf_counter()
    rows = each(layers, partial(_row, arrays, gradients), _Row.verdict)
    seconds = time.perf_counter() - start
    console = Console(highlight=False)
    for row in rows:
        if row.error:
            console.print(f"{row.layer.id}: {row.error}", markup=False, soft_wrap=True)
    console.print(_summary([name for row in rows for name in row.compiled], seconds), markup=False, soft_wrap=True)
    return 1 if any(row.error for row in rows) else 0


def _row(arrays: Arrays, gradients: bool, layer: Layer) -> _Row:
    arguments, options = arrays.arguments(layer)
    start = time.perf_counter()
    try:
        plan = portconv.plan_conv2d(*arguments, **options)
        compiled = (*plan.warmup(), *(extending.warmup_gradients(plan) if gradients else ()))
    except Exception as error:  # noqa: BLE001  it belongs in the report, and the next layer gets its turn
        return _Row(layer, error=f"{type(error).__name__}: {error}"[:300])
    return _Row(layer, plan.engine, compiled, time.perf_counter() - start)


def _summary(compiled: list[str], seconds: float) -> str:
    if portconv.environment()["tier"] == "plain":
        return "Nothing to compile: there is no Numba here, or PORTCONV_JIT is 0."
    folder = machine.code_folder()
    if compiled:
        kept = "no folder can keep them" if folder is None else f"kept in {folder}"
        return f"Compiled {', '.join(compiled)} in {seconds:.1f} s; {kept}."
    return f"Nothing had to be compiled ({seconds:.1f} s){'' if folder is None else f'; the code is in {folder}'}."
