"""Checks of options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

__all__ = ["output_file"]


def output_file(*suffixes: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """What checks the name of a file to be written: a mistake must show at once, and not after the work."""

    def check(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
        if name is None or (name == "-" and not suffixes):
            return name
        path = Path(name)
        if suffixes and path.suffix.lower() not in suffixes:
            raise click.BadParameter(f"{name} must end in {', '.join(suffixes)}.")
        if path.is_dir():
            raise click.BadParameter(f"{name} is a directory.")
        if not os.access(path.resolve().parent, os.W_OK):
            raise click.BadParameter(f"{name} cannot be written: no such directory, or no permission.")
        return name

    return check
