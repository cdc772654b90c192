"""`portconv info`: what is installed here, and what portconv makes of it."""

from __future__ import annotations

from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..check.installation import installation
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
    for name, value in _lines(found):
        console.print(f"{name + ':':<15} {value}", markup=False, soft_wrap=True)
    console.print(_table(found["libraries"]))
    for name, library in found["libraries"].items():
        if library["missing"]:
            console.print(f"{name}: {library['missing']}", markup=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, found)
    return 0


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    where = found["machine"]
    bits = f", vectors of {where['vector_bits']} bits" if where["vector_bits"] else ""
    memory = f", {where['memory_gib']} GiB" if where["memory_gib"] else ""
    threads = found["threads"] if found["threads"] is not None else found["error"]
    variables = " ".join(f"{name}={value}" for name, value in found["environment"].items())
    lines = [
        ("portconv", f"{found['portconv']}, {found['folder']}"),
        ("Python", found["python"]),
        ("platform", f"{where['os']}, {where['architecture']}"),
        ("CPU", f"{where['cpu']}, {where['usable_cores']} of {where['cores']} cores{bits}{memory}"),
        ("NumPy's BLAS", found["blas"] or "unknown"),
        ("compiled tier", _tier(found["compiled_tier"])),
        ("threads", f"{threads}" + (f" ({variables})" if variables else "")),
    ]
    kept = found["wisdom"]
    lines.append(("wisdom", kept.get("error") or kept["path"] + ("" if kept["exists"] else " (not written yet)")))
    return lines


def _tier(tier: dict[str, Any]) -> str:
    if tier["state"] != "on":
        return f"{tier['state']}: {tier['why']}" if "why" in tier else tier["state"]
    kept = f"{tier['files']} kernels, {tier['mib']} MiB in {tier['cache']}" if tier["cache"] else "its code is not kept"
    return f"on, Numba {tier['numba']}; {kept}"


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
