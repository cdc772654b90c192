"""`portconv matrix`: the page of the documentation that says what was computed where."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

import click

from ..check.matrix import Matrix, page
from ..check.runner import CheckError, Checks
from ..check.runner import libraries as libraries_named
from ..processes.files import write_text
from ..processes.machine import machine
from .options import output, several
from .progress import libraries_bar

__all__ = ["matrix"]


@click.command(short_help="Write which libraries, devices, dtypes, engines, modes are verified here.")
@click.argument("file", metavar="FILE", type=click.Path(), callback=output())
@several("library")
@click.option(
    "--limit",
    type=click.FloatRange(1),
    metavar="SECONDS",
    default=300,
    help="Until a cell is given up; by default 300.",
)
def matrix(file: str, libraries: Sequence[str], limit: float) -> int:
    """Verify a few problems for every back end, device, dtype, engine, gradient and traced mode, and write FILE.

    It is a page in Markdown; - is stdout. What cannot be run here stands there as "not run", with the reason. The exit
    status is 1 if anything failed.

    \b
    portconv matrix docs/matrix.md
    """  # noqa: D301  \b is a character that keeps click from filling the paragraph
    with Checks(libraries_named(libraries), limit) as checks:
        try:
            checks.survey(needed=bool(libraries))
        except CheckError as error:
            raise click.UsageError(str(error), click.get_current_context()) from None
        found = Matrix(checks)
        with libraries_bar(found.cells) as progress:
            found.run(progress)
    command = shlex.join(["portconv", "matrix", file, *(word for name in libraries for word in ("--library", name))])
    write_text(file, page(found, command, machine()))
    for line in found.failures:
        sys.stderr.write(f"failed: {line}\n")
    return 1 if found.failures else 0
