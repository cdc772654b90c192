"""`portconv info`: what is installed here, and what portconv makes of it."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from ..bench.tables import Column, Grouped, Line, Section
from ..check.installation import installation, lines
from ..processes.files import write_json
from .options import json_option
from .screen import screen

__all__ = ["info"]


@click.command(short_help="What is installed here: libraries, devices, engines, threads.")
@json_option
def info(json_file: str | None) -> int:
    """Print what is installed here and what portconv makes of it: for yourself, and for reports of errors.

    Every library is imported by a process of its own: that a package is there does not mean that it works.
    """
    found = installation()
    if json_file == "-":
        write_json("-", found)
        return 0
    console = screen()
    for name, value in lines(found):
        console.print(f"{name + ':':<15} {value}", markup=False, soft_wrap=True)
    console.print()
    console.print(_table(found["libraries"]))
    for name, library in found["libraries"].items():
        if library["missing"]:
            console.print(f"{name}: {library['missing']}", markup=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, found)
    return 0


def _table(libraries: dict[str, Any]) -> Grouped:
    sections = []
    for name, library in libraries.items():
        heading = Text.assemble((name, "bold"), " ", library["version"] or ("-" if library["missing"] else "?"))
        lines = [
            Line([device + (f" ({here['hardware']})" if here["hardware"] else ""), ", ".join(here["able"])])
            for device, here in library["devices"].items()
        ]
        if library["missing"]:
            lines = [Line(["-", Text("cannot be used", style="red")])]
        sections.append(Section(heading, lines))
    return Grouped([Column("device", is_number=False), Column("engines", is_number=False)], sections)
