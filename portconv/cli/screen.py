"""The console that a command prints its tables on."""

from __future__ import annotations

import os

from rich.console import Console

__all__ = ["screen"]


def screen(json_file: str | None = None) -> Console:
    """Stdout, or stderr where stdout has the document.

    A terminal has its width, and so has whatever COLUMNS gives one; a file or a pipe has no edge.
    """
    console = Console(stderr=json_file == "-", highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = 200
    return console
