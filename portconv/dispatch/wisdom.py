"""Measurements that outlive the process: JSON in the user's cache folder, by circumstances and problem.

``strategy="measure"`` looks here before it times the engines, and adds what it timed; ``portconv tune`` fills it ahead.
The planner takes no more from it than which engine was fastest, and only an engine that can run the problem, so no file
can make a result wrong. What stands there for another version, library or processor is kept, and not used.

Times that are taken while other programs are at work say little, and are not kept: see `busy.py`. ``portconv tune``
takes them anew, ``portconv tune --clear`` forgets them. ``PORTCONV_CACHE_DIR`` names another folder;
``PORTCONV_WISDOM=0`` switches reading and writing off.

The package `platformdirs` would say the same folder on Linux and macOS, and on Windows a folder `Cache` inside it. It
would replace ten lines here, and everyone would install it for those who measure.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import sys
import warnings
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ..core.files import replace_file
from ..core.problem import Problem
from ..core.version import __version__
from ..cpu.locks import locked

__all__ = ["Key", "Record", "WisdomError", "clear", "enabled", "load", "path", "recall", "remember", "save"]

FORMAT = 1
MARK = "portconv wisdom"  # the entry of the file that says what it is, and in which format
MAX_RECORDS = 4096  # some megabytes
LOCK_SECONDS = 5.0  # to wait for another writer; of two that write at the same moment the last one wins

Key: TypeAlias = tuple[str, str]  # what the times depend on beyond the problem, and the problem


class Record(NamedTuple):
    """What was measured for a problem: seconds of each engine, and when (ISO 8601, UTC).

    Examples
    --------
    >>> from portconv.wisdom import Record
    >>> record = Record({"gemm": 2e-3, "winograd": 1e-3}, "2026-01-01T00:00:00+00:00")
    >>> min(record.seconds, key=record.seconds.get)
    'winograd'
    """

    seconds: dict[str, float]
    when: str


class WisdomError(Exception):
    """The file cannot be used; the message names it and says how to mend that.

    Examples
    --------
    >>> from portconv import wisdom
    >>> try:
    ...     kept = wisdom.load()
    ... except wisdom.WisdomError as error:
    ...     print(error)
    """


_Stamp: TypeAlias = tuple[str, int, int, int]
_seen: tuple[_Stamp, dict[Key, Record]] | None = None  # the file as it was read last
_warned: set[str] = set()


# --- where ------------------------------------------------------------------------------------------------------------


def enabled() -> bool:
    """Whether measurements are read and kept: unless the environment says ``PORTCONV_WISDOM=0``.

    Examples
    --------
    >>> from portconv import wisdom
    >>> wisdom.enabled() in (False, True)
    True
    """
    return os.environ.get("PORTCONV_WISDOM", "").strip() != "0"


def path() -> Path:
    """The file, which need not exist.

    It is ``wisdom.json`` in ``PORTCONV_CACHE_DIR``, or else in the folder ``portconv`` of the system's cache folder:
    ``XDG_CACHE_HOME`` or ``~/.cache``, on macOS ``~/Library/Caches``, on Windows ``%LOCALAPPDATA%``.

    Raises
    ------
    WisdomError
        If nothing says where the user's home is.

    Examples
    --------
    >>> from portconv import wisdom
    >>> wisdom.path().name
    'wisdom.json'
    """
    try:
        return _folder() / "wisdom.json"
    except RuntimeError:
        raise WisdomError("There is no home folder for measurements. Name a folder in PORTCONV_CACHE_DIR.") from None


def _folder() -> Path:
    if own := os.environ.get("PORTCONV_CACHE_DIR"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "portconv"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "portconv"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # the standard has relative paths ignored
    return (Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache") / "portconv"


# --- for the planner --------------------------------------------------------------------------------------------------


def recall(environment: Mapping[str, str], problem: Problem) -> dict[str, float] | None:
    """Seconds of each engine, as measured for the problem in this environment before; None if it was not.

    Never fails: of a file that cannot be used it warns, once.
    """
    if not enabled():
        return None
    try:
        record = _current().get(_key(environment, problem))
    except WisdomError as error:
        _warn(error)
        return None
    return None if record is None else dict(record.seconds)


def remember(environment: Mapping[str, str], problem: Problem, seconds: Mapping[str, float]) -> None:
    """Keep what was measured, for `recall` in this and in other processes. Never fails: it warns, once."""
    if not enabled():
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        save({_key(environment, problem): Record(dict(seconds), now)})
    except WisdomError as error:
        _warn(error)


def _key(environment: Mapping[str, str], problem: Problem) -> Key:
    # what is measured is the computation alone, however often a weight is packed
    sizes = {field.name: getattr(problem, field.name) for field in fields(problem) if field.name != "packed_once"}
    return _text({"portconv": __version__, **environment}), _text(sizes)


def _text(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}={value}" for name, value in values.items())


def _warn(error: WisdomError) -> None:
    where = os.environ.get("PORTCONV_CACHE_DIR", "")
    if where not in _warned:
        _warned.add(where)
        warnings.warn(f"{error} Until then measurements are not kept.", stacklevel=3)


# --- the file ---------------------------------------------------------------------------------------------------------


def load() -> dict[Key, Record]:
    """All that is kept, for every version, library and processor; empty if there is no file yet.

    Returns
    -------
    dict
        `Record` (seconds of each engine, and when) by environment and problem, both in words.

    Raises
    ------
    WisdomError
        If the file cannot be read, is damaged, or is of another format.

    Examples
    --------
    >>> from portconv import wisdom
    >>> for (environment, problem), record in wisdom.load().items():
    ...     fastest = min(record.seconds, key=record.seconds.get)
    """
    return dict(_current())


def save(records: Mapping[Key, Record]) -> None:
    """Add records to the file, atomically; of those with the same key the later one stays.

    The oldest leave when there are too many. Without any records it still finds out whether the file can be written.

    Parameters
    ----------
    records
        As `load` returns them.

    Raises
    ------
    WisdomError
        If the file cannot be written, or if what stands there cannot be read: it is never overwritten then.

    Examples
    --------
    >>> import os, tempfile
    >>> from portconv import wisdom
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     before, os.environ["PORTCONV_CACHE_DIR"] = os.environ.get("PORTCONV_CACHE_DIR"), folder
    ...     wisdom.save({("portconv=0.1.0", "batch=1"): wisdom.Record({"gemm": 0.5}, "2026-01-01T00:00:00+00:00")})
    ...     print([record.seconds for record in wisdom.load().values()])
    ...     if before is None:
    ...         del os.environ["PORTCONV_CACHE_DIR"]
    ...     else:
    ...         os.environ["PORTCONV_CACHE_DIR"] = before
    [{'gemm': 0.5}]
    """
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file):
            kept = dict(_current())  # as it is now: others may have added theirs
            for key, record in records.items():
                if key not in kept or kept[key].when <= record.when:
                    kept[key] = record
            by_age = sorted(kept.items(), key=lambda item: item[1].when)
            _write(file, dict(by_age[-MAX_RECORDS:]))
    except OSError as error:
        raise WisdomError(
            f"{file} cannot be written ({error.strerror or error}). Make the folder writable, name another one in "
            f"PORTCONV_CACHE_DIR, or set PORTCONV_WISDOM=0."
        ) from None


def clear() -> bool:
    """Forget everything: delete the file, whatever it is. Returns whether there was one.

    Raises
    ------
    WisdomError
        If the file cannot be deleted.

    Examples
    --------
    >>> import os, tempfile
    >>> from portconv import wisdom
    >>> before = os.environ.get("PORTCONV_CACHE_DIR")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     os.environ["PORTCONV_CACHE_DIR"] = folder
    ...     wisdom.clear()
    False
    >>> _ = os.environ.pop("PORTCONV_CACHE_DIR") if before is None else os.environ.update(PORTCONV_CACHE_DIR=before)
    """
    file = path()
    if not file.parent.is_dir():
        return False
    try:
        with _locked(file):
            for left in file.parent.glob(".wisdom.*.json"):  # of writers that were killed
                left.unlink(missing_ok=True)
            if not os.path.lexists(file):
                return False
            file.unlink()
    except OSError as error:
        raise WisdomError(f"{file} cannot be deleted ({error.strerror or error}). Delete it by hand.") from None
    _warned.clear()
    return True


def _current() -> dict[Key, Record]:
    """What the file holds now. It is read again only when it has changed."""
    global _seen
    file = path()
    try:
        state = file.stat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(file, error) from None
    if not stat.S_ISREG(state.st_mode):  # reading a pipe would wait for ever
        raise WisdomError(f"{file} is no file. Move it away, or name another folder in PORTCONV_CACHE_DIR.")
    # every writer makes a new file, so the inode alone would nearly do
    stamp = (str(file), state.st_ino, state.st_mtime_ns, state.st_size)
    seen = _seen
    if seen is None or seen[0] != stamp:
        seen = _seen = (stamp, _read(file))
    return seen[1]


def _read(file: Path) -> dict[Key, Record]:
    mend = "Delete it (`portconv tune --clear` does), or name another folder in PORTCONV_CACHE_DIR."
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:  # cleared this moment
        return {}
    except OSError as error:
        raise _unreadable(file, error) from None
    except (ValueError, RecursionError):
        raise WisdomError(f"{file} is damaged: it is no JSON. {mend}") from None
    if not isinstance(document, dict) or MARK not in document:
        raise WisdomError(f"{file} holds no measurements of portconv. {mend}")
    if document[MARK] != FORMAT:
        raise WisdomError(f"{file} is of format {document[MARK]!r}, but this portconv has format {FORMAT}. {mend}")
    try:
        return {
            (environment, problem): Record(_checked_seconds(record["seconds"]), _checked_time(record["when"]))
            for environment, problems in document["measurements"].items()
            for problem, record in problems.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WisdomError(f"{file} is damaged: its measurements are not what portconv writes. {mend}") from None


def _unreadable(file: Path, error: OSError) -> WisdomError:
    return WisdomError(
        f"{file} cannot be read ({error.strerror or error}). Make it readable, name another folder in "
        f"PORTCONV_CACHE_DIR, or set PORTCONV_WISDOM=0."
    )


def _checked_seconds(seconds: Any) -> dict[str, float]:
    if not seconds or not all(type(value) in (int, float) and 0 <= value < math.inf for value in seconds.values()):
        raise ValueError
    return {engine: float(value) for engine, value in seconds.items()}


def _checked_time(when: Any) -> str:
    datetime.fromisoformat(when)
    return str(when)


def _write(file: Path, records: Mapping[Key, Record]) -> None:
    measurements: dict[str, dict[str, Any]] = {}
    for (environment, problem), record in records.items():
        measurements.setdefault(environment, {})[problem] = record._asdict()

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as stream:
            json.dump({MARK: FORMAT, "measurements": measurements}, stream, indent=1)

    replace_file(file, write, mode=0o600)


def _locked(file: Path) -> contextlib.AbstractContextManager[bool]:
    """One writer at a time, so that none loses what another adds."""
    return locked(file.with_suffix(".lock"), LOCK_SECONDS)
