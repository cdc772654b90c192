"""A table in groups, each under a line of its own, so that it fits a narrow terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "Grouped", "Line", "Section", "word"]


@dataclass(frozen=True)
class Column:
    """A column: its head, and whether it has numbers, which stand on the right."""

    head: str
    is_number: bool = True


@dataclass(frozen=True)
class Line:
    """A row. It may have fewer cells than there are columns."""

    cells: Sequence[str | Text]
    style: str | None = None


@dataclass(frozen=True)
class Section:
    """Rows under a heading, and what they come to."""

    heading: Text
    lines: Sequence[Line]
    conclusion: str = ""


def word(answer: dict[str, object]) -> Text:
    """What stands in the place of the figures of an answer that has none."""
    return Text("error", style="bold red") if "error" in answer else Text("skipped", style="dim")


@dataclass(frozen=True)
class Grouped:
    """The heads, the sections, all with columns of the same widths, and the caption.

    Where that is too wide, the first `lead` cells of the rows get lines of their own, and if that does not do, the last
    columns are left out, which is said: so the columns that matter least come last. Nothing is cut within a cell.
    """

    columns: Sequence[Column]
    sections: Sequence[Section]
    caption: str = ""
    lead: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """What Rich prints."""
        width, first, last = options.max_width, 0, len(self.columns)
        if self._width(first, last) > width:
            first = self.lead
        while last > first + 1 and self._width(first, last) > width:
            last -= 1
        yield self._table([], first, last, heads=True)
        yield Text("─" * min(width, self._width(first, last)), style="dim")
        apart = any(len(section.lines) != 1 or section.conclusion for section in self.sections)
        for section in self.sections:
            yield section.heading
            for led, lines in groupby(section.lines, lambda line: tuple(map(str, line.cells[:first]))):
                if led:
                    yield Text(" ".join(led))
                yield self._table(list(lines), first, last)
            if section.conclusion:
                yield Text(section.conclusion)
            if apart:
                yield Text()
        if not apart:
            yield Text()
        if self.caption:
            yield Text(self.caption, style="italic dim")
        if gone := [column.head for column in self.columns[last:]]:
            yield Text(f"not shown at this width: {', '.join(gone)}", style="italic dim")

    def _widths(self, first: int, last: int) -> list[int]:
        cells = [line.cells for section in self.sections for line in section.lines]
        return [
            max([cell_len(self.columns[place].head), *(cell_len(str(row[place])) for row in cells if place < len(row))])
            for place in range(first, last)
        ]

    def _width(self, first: int, last: int) -> int:
        return sum(self._widths(first, last)) + last - first - 1

    def _table(self, lines: Sequence[Line], first: int, last: int, heads: bool = False) -> Table:
        grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=heads, header_style="bold")
        for column, width in zip(self.columns[first:last], self._widths(first, last), strict=True):
            justify: Literal["left", "right"] = "right" if column.is_number else "left"
            grid.add_column(column.head, justify=justify, no_wrap=True, min_width=width)
        for line in lines:
            grid.add_row(*line.cells[first:last], style=line.style)
        return grid
