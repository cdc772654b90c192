"""A table in groups, each under a line of its own, so that it fits a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Group
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "Line", "Section", "grouped", "word"]


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


def grouped(columns: Sequence[Column], sections: Sequence[Section], caption: str) -> Group:
    """The heads, the sections, all with columns of the same widths, and the caption."""
    widths = [cell_len(column.head) for column in columns]
    for section in sections:
        for line in section.lines:
            for place, cell in enumerate(line.cells):
                widths[place] = max(widths[place], cell_len(str(cell)))

    def table(lines: Sequence[Line], heads: bool = False) -> Table:
        grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=heads, header_style="bold")
        for column, width in zip(columns, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column.is_number else "left"
            grid.add_column(column.head, justify=justify, no_wrap=True, min_width=width)
        for line in lines:
            grid.add_row(*line.cells, style=line.style)
        return grid

    parts: list[Text | Table | Rule] = [table([], heads=True), Rule(style="dim")]
    for section in sections:
        parts += [section.heading, table(section.lines)]
        parts += [Text(section.conclusion), Text()] if section.conclusion else [Text()]
    return Group(*parts, Text(caption, style="italic dim"))
