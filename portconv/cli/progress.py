"""How commands that work on one layer after the other, or on all libraries at once, show how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..bench.layers import Layer
from ..check.runner import Library

__all__ = ["each", "libraries_bar"]

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


@contextmanager
def libraries_bar(runs: Mapping[str, Sized]) -> Iterator[Callable[[Library, int], None]]:
    """What tells of runs that are done: within it a bar for each library, or elsewhere than on a terminal a line."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, highlight=False)
    left = {label: len(mine) for label, mine in runs.items()}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = {label: bar.add_task(label, total=count) for label, count in left.items()}

        def progress(library: Library, done: int) -> None:
            bar.advance(shown[library.label], done)
            left[library.label] -= done
            if not left[library.label] and not console.is_terminal:
                console.print(f"{library.label}: {len(runs[library.label])} runs", markup=False)

        yield progress
