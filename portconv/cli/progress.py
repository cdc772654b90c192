"""How a command that works on one layer after the other shows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..bench.layers import Layer

__all__ = ["each"]

Row = TypeVar("Row")


def each(layers: Sequence[Layer], work: Callable[[Layer], Row], verdict: Callable[[Row], str]) -> list[Row]:
    """What `work` makes of every layer; on stderr a bar, or elsewhere than on a terminal a line with the verdict."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", total=len(layers))
        for layer in layers:
            bar.update(shown, description=layer.id)
            rows.append(row := work(layer))
            bar.advance(shown)
            if not console.is_terminal:
                console.print(f"{layer.id}: {verdict(row)}", markup=False, soft_wrap=True)
    return rows
