"""The command `portconv`, also `python -m portconv`. It needs what the extra `bench` installs; the library does not."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_EXTRA = ("click", "rich", "matplotlib")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process; returns the exit status."""
    try:
        from .app import run

        return run(arguments)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _EXTRA:
            raise
        sys.stderr.write(f"portconv: {name} is not installed; pip install 'portconv[bench]' brings it.\n")
        return 1
