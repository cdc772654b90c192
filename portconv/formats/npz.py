"""Files of the format npz, NumPy's archive of arrays, with NumPy alone.

No file makes this module run code (pickles are refused), read beyond its end, or allocate more than it holds: the shape
in an array's header is checked against the bytes that are there before any of them is read. Texts stand in one more
array, `portconv`: the bytes of a JSON object. So `numpy.load` and `mlx.core.load` read these files, too. Source of the
format: `numpy.lib.format`.
"""

from __future__ import annotations

import json
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..core.errors import WeightsError

__all__ = ["METADATA", "read", "write"]

METADATA = "portconv"  # the array of texts
MAX_RATIO = 100  # of what an archive may unpack to; weights shrink by a few percent, an attack by a thousand
FREE_BYTES = 64 << 20  # that any archive may unpack to: small arrays of zeros shrink well
# What zipfile, what unpacks, and NumPy say of files that are none, or damaged.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError,
    ValueError, OverflowError, LookupError, RecursionError, OSError,
)  # fmt: skip


def write(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays and texts by their names, uncompressed; equal ones make equal files."""
    if METADATA in arrays:
        raise ValueError(f"An array cannot be called {METADATA!r} in a .npz file: that is where its layouts are kept.")
    text = np.frombuffer(json.dumps(dict(metadata)).encode(), np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in {**arrays, METADATA: text}.items():
            # with the oldest date that there is, not with today's
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """The arrays and texts of a file; a `WeightsError` if it is none, or damaged."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                arrays = _arrays(archive, path.stat().st_size)
            text = arrays.pop(METADATA, None)
            metadata = {} if text is None else json.loads(text.tobytes())
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError(f"its array {METADATA!r} is no JSON object of texts")
        except _DAMAGE as error:
            raise WeightsError(f"{path} is no npz file of arrays, or is damaged: {error}") from error
    return arrays, metadata


def _arrays(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray[Any, Any]]:
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(FREE_BYTES, MAX_RATIO * size):
        raise ValueError(f"it has {size} bytes and would unpack to {unpacked}, more than {MAX_RATIO} times as many")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for member in members:
        name = member.filename
        if not name.endswith(".npy"):
            raise ValueError(f"its member {name!r} is no array")
        if name.removesuffix(".npy") in arrays:
            raise ValueError(f"it has several members {name!r}")
        stored = member.compress_type == zipfile.ZIP_STORED
        if member.compress_size > size or (stored and member.compress_size != member.file_size):
            raise ValueError(f"{name!r}: {member.file_size} bytes should be there, and are not")
        with archive.open(member) as stream:
            try:
                arrays[name.removesuffix(".npy")] = _array(stream, member.file_size)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from error
    return arrays


def _array(stream: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """The array of a member of so many bytes."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the format, which numbers do not need")
    if dtype.kind not in "biuf":
        raise ValueError(f"dtype {dtype}, which is none of numbers")
    wanted, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or wanted != there:
        raise ValueError(f"an array {shape} of {dtype} has {wanted} bytes, but {there} are there")
    data = bytearray(stream.read(wanted))
    if len(data) != wanted or stream.read(1):  # the end is where the checksum is compared
        raise ValueError(f"{wanted} bytes should be there, and are not")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
