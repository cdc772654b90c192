"""The command `portconv`, also `python -m portconv`. It needs what the extra `bench` installs; the library does not.

`portconv info` goes without: it is what a report of an error should begin with.
"""

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
        if list(sys.argv[1:] if arguments is None else arguments) == ["info"]:
            return _plain_info()
        sys.stderr.write(f"portconv: {name} is not installed; pip install 'portconv[bench]' brings it.\n")
        return 1


def _plain_info() -> int:
    from ..check.installation import installation, library_lines, lines

    found = installation()
    sys.stdout.writelines(f"{name + ':':<15} {value}\n" for name, value in lines(found) + library_lines(found))
    return 0
