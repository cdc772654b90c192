"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(target: str | Path, write: Callable[[Path], object], mode: int = 0o644) -> None:
    """Have `write` fill a file beside the target, then move it there: a reader never sees half a file."""
    target = Path(target).resolve()  # of a link, the file that it names
    # the suffix stays, since libraries take the format from it
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    temporary = Path(name)
    try:
        os.close(handle)
        write(temporary)
        temporary.chmod(mode)  # mkstemp makes it private
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # else a power failure could leave an empty file
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
