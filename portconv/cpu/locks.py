"""A lock between processes: a file that one of them at a time holds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nobody waits there
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]


@contextlib.contextmanager
def locked(file: Path, seconds: float, pause: float = 0.01) -> Iterator[bool]:
    """Wait until no other process holds the file, and hold it; no lock in time is no reason not to go on.

    The lock goes back at the end, or with the process, whatever ends it. The file stays: another process may be waiting
    for it.

    Parameters
    ----------
    file
        It is made if need be.
    seconds
        How long to wait for another process, asking every `pause` seconds.

    Yields
    ------
    bool
        False if another process held it all the time. Where there are no locks, true.

    Raises
    ------
    OSError
        If the file cannot be opened for writing.
    """
    if fcntl is None:
        yield True
        return
    with file.open("a") as stream:
        deadline = time.monotonic() + seconds
        held = late = False
        while not (held or late):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                late = time.monotonic() >= deadline
                if not late:
                    time.sleep(pause)
            except OSError:  # a file system without locks
                break
        try:
            yield not late
        finally:
            if held:  # not by closing alone: a process that was forked meanwhile has the file open, too
                with contextlib.suppress(OSError):
                    fcntl.flock(stream, fcntl.LOCK_UN)
