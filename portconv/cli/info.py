"""`portconv info`: what is installed here, and what portconv makes of it."""

from __future__ import annotations

from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..check.installation import installation, lines
from ..processes.files import write_json
from .options import output

__all__ = ["info"]


@click.command(short_help="What is installed here: libraries, devices, engines, threads.")
@click.option("--json", "json_file", metavar="FILE", callback=output(), help="Write everything there; - is stdout.")
def info(json_file: str | None) -> int:
    """Print what is installed here and what portconv makes of it: for yourself, and for reports of errors.

    Every library is imported by a process of its own: that a package is there does not mean that it works.
    """
    found = installation()
    if json_file == "-":
        write_json("-", found)
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has no edge
    for name, value in lines(found):
        console.print(f"{name + ':':<15} {value}", markup=False, soft_wrap=True)
    console.print(_table(found["libraries"]))
    for name, library in found["libraries"].items():
        if library["missing"]:
            console.print(f"{name}: {library['missing']}", markup=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, found)
    return 0


def _table(libraries: dict[str, Any]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("library", "version", "device"):
        grid.add_column(column, no_wrap=True)
    grid.add_column("engines")
    for name, library in libraries.items():
        if library["missing"]:
            grid.add_row(Text(name), Text(library["version"] or "-"), "-", Text("cannot be used", style="red"))
        for device, here in library["devices"].items():
            place = device + (f" ({here['hardware']})" if here["hardware"] else "")
            grid.add_row(Text(name), Text(library["version"] or "?"), Text(place), Text(", ".join(here["able"])))
    return grid
