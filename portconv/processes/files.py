"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["replace_file", "write_json", "write_text"]


def replace_file(target: str | Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file beside the target, then move it there: a reader never sees half a file."""
    target = Path(target)
    # the suffix stays, since libraries take the format from it
    handle, name = tempfile.mkstemp(dir=target.resolve().parent, prefix=f".{target.stem}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text; `-` is stdout."""
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, document: dict[str, Any]) -> None:
    """Write a document as JSON; `-` is stdout."""
    write_text(path, json.dumps(document, indent=1) + "\n")
