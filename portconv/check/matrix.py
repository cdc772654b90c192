"""The device matrix: which cells of back end, device, dtype, engine and mode hold what they promise, as a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import portconv

from ..processes.devices import absent
from .cells import DTYPES, Cell, cells, modes
from .markdown import table, text
from .runner import Checks, Library, Message

__all__ = ["Matrix", "page"]

_LEGEND = """\
Every cell was computed, and compared with a float64 sum (float64 itself with an exact one). A number is the largest
error as a share of the bound that portconv states for `accuracy="normwise"`; 1 is the bound, and 16-bit results come
near it by their rounding alone. "refused" is an error with a reason, which the note tells; an engine may refuse some of
the problems of a cell and pass by the others. "not run" has its reason, too.

`conv2d` and `conv2d_vjp` get five problems (strides, dilation, groups, depthwise, every padding mode, both layouts, a
large kernel), all other columns one: `Conv2d` is a layer that has seen other weights and another size; then the
library's own differentiation, tracing, mapping and forward differentiation of `conv2d`, in JAX inside `jax.jit`;
`torch.compile` is of `portconv.torch.Conv2d`. There, and in `torch.func`, PyTorch's own routine computes, whichever the
engine is."""


class Matrix:
    """The cells of all libraries, with what was found of each."""

    def __init__(self, checks: Checks) -> None:
        self.checks = checks
        self.cells = {library.label: list(cells(library)) for library in checks.libraries}
        self.found: dict[str, dict[Cell, Message]] = {label: {} for label in self.cells}

    def run(self, progress: Callable[[Library, int], object]) -> None:
        """Compute all of them."""

        def keep(library: Library, cell: Cell, found: Message) -> None:
            self.found[library.label][cell] = found

        self.checks.ask(self.cells, {}, keep, progress)

    @property
    def failures(self) -> list[str]:
        """What went wrong, a line each."""
        broken = [f"{library.label}: {library.error}" for library in self.checks.libraries if library.error]
        broken += [
            f"{library.label} {device}: nothing passed"
            for library in self.checks.libraries
            for device in library.devices
            if not self.counts(library, device)["share"]
        ]
        return broken + [
            f"{label} {cell.device} {cell.engine} {cell.dtype} {cell.mode}: {found['failed']}"
            for label, mine in self.found.items()
            for cell, found in mine.items()
            if "failed" in found
        ]

    def counts(self, library: Library, device: str) -> dict[str, int]:
        """How many cells of a device passed ("share"), were "refused", "failed", or were not run ("")."""
        found = self.found[library.label]
        mine = [found.get(cell, {"": None}) for cell in self.cells[library.label] if cell.device == device]
        return {word: sum(word in m for m in mine) for word in ("share", "refused", "failed", "")}


class _Notes:
    """Reasons, each with a number: that of its first use."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, word: str, reason: str) -> str:
        number = self.numbers.setdefault(reason, len(self.numbers) + 1)
        return f"{word} [{number}](#note-{number})"

    def lines(self) -> list[str]:
        return [f'{n}. <a id="note-{n}"></a>{text(reason)}' for reason, n in self.numbers.items()]


def page(matrix: Matrix, command: str, where: dict[str, Any]) -> str:
    """The page, in Markdown; `where` is the machine. Nothing in it depends on the time."""
    notes = _Notes()
    libraries = matrix.checks.libraries
    versions: dict[str, str] = {}
    for library in libraries:
        versions.update(library.versions)
    blocks = [
        "# The device matrix",
        f"Made by `{command}`; change nothing here by hand.",
        _LEGEND,
        f"portconv {portconv.__version__}, Python {where['python']}; {where['cpu']}, {where['usable_cores']} cores, "
        f"{where['os']}; " + ", ".join(f"{name} {version}" for name, version in versions.items() if name != "portconv"),
        "\n".join(table(("back end", "device", "hardware", "cells", "verdict"), _summary(matrix, notes))),
    ]
    for library in libraries:
        for device in library.devices:
            blocks += [f"## {library.label}, {text(device)}", "\n".join(_part(matrix, library, device, notes))]
    blocks += ["## Notes", "\n".join(notes.lines())]
    return "\n\n".join(blocks) + "\n"


def _summary(matrix: Matrix, notes: _Notes) -> Iterable[Sequence[str]]:
    """A row for each library and device that there can be."""
    for library in matrix.checks.libraries:
        for device, there in library.devices.items():
            counts = matrix.counts(library, device)
            words = {"share": "passed", "refused": "refused", "failed": "FAILED", "": "not run"}
            said = ", ".join(f"{count} {words[word]}" for word, count in counts.items() if count)
            verdict = "FAILED" if counts["failed"] or library.error or not counts["share"] else "passed"
            yield library.label, text(device), there["hardware"] or "the processor", said, verdict
        if library.error and not library.devices:
            yield library.label, "-", "-", "-", notes.mark("FAILED", library.error)
        elif library.missing:
            for kind in absent(library.name, ()) or ["-"]:
                yield library.label, kind, "-", "-", notes.mark("not run", library.missing)
        else:
            for kind in absent(library.name, library.devices):
                reason = f"{library.name} finds no such device on this machine."
                yield library.label, kind, "-", "-", notes.mark("not run", reason)


def _part(matrix: Matrix, library: Library, device: str, notes: _Notes) -> list[str]:
    """The table of a device: a row for each engine and dtype, a column for each mode."""
    found, planned = matrix.found[library.label], set(matrix.cells[library.label])
    columns = list(modes(library.name))

    def said(cell: Cell) -> str:
        if cell not in planned:
            return "as auto"
        m = found.get(cell)
        if m is None:
            return notes.mark("not run", library.error)
        if "share" in m:
            return f"{math.ceil(100 * m['share']) / 100:.2f}"  # never less than it was
        return notes.mark("refused", m["refused"]) if "refused" in m else notes.mark("**FAILED**", m["failed"])

    return table(
        ("engine", "dtype", *(f"`{column}`" for column in columns)),
        (
            (engine, dtype, *(said(Cell(device, engine, dtype, mode)) for mode in columns))
            for engine in ("auto", *library.devices[device]["engines"])
            for dtype in DTYPES
        ),
    )
