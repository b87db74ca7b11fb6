"""Arrays of an npz file that nobody vouches for.

`np.load` allocates what a header declares, unpacks whatever an entry unpacks to, and finds an entry `x` where `x.npy`
was meant. Here sizes are held against the file before anything is unpacked, names have one meaning, and nothing is
unpickled.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.records.inputs import cut, said, size_of

MAX_GROWTH = 100  # times the file's size, where that is more than SMALL; padding compresses well, hardly beyond this
SMALL = 1 << 25
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # differs in the encoding of field names, which are refused
}
Header = tuple[tuple[int, ...], np.dtype]


class NpzError(ValueError):
    """What is wrong with an npz file, in one line without its name."""


def read_arrays(path: Path, names: Sequence[str] | None = None, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Arrays by name: all, or `names` and those of `optional` that are there.

    Memory stays below MAX_GROWTH times the file's size (or SMALL).

    Raises:
        NpzError: no npz file, damaged, without one of `names`, or larger unpacked than it may be.
        OSError: missing, or no regular file.
    """
    n_bytes = size_of(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found = _entries(archive, names, optional)
            headers = {name: _header(archive, entry, name) for name, entry in found.items()}
            total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers.values())
            if total > max(SMALL, MAX_GROWTH * n_bytes):
                raise NpzError(
                    f"its arrays have {total} bytes, more than {MAX_GROWTH} times the file's {n_bytes}; "
                    "save it again with np.savez, which does not compress"
                )
            return {name: _array(archive, entry) for name, entry in found.items()}
    except (NpzError, OSError, MemoryError):  # too little memory is no fault of the file
        raise
    except Exception as error:  # a damaged archive raises a dozen kinds of error from zipfile, zlib and numpy
        raise NpzError(f"no npz archive, or a damaged one ({said(error)})") from error


def _entries(
    archive: zipfile.ZipFile, names: Sequence[str] | None, optional: Sequence[str]
) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name in found:
            raise NpzError(f"array {cut(name)!r} comes twice; it is damaged")
        found[name] = entry
    if names is None:
        return found
    for name in names:
        if name not in found:
            raise NpzError(f"array {name!r} is missing; expected {', '.join(names)}, got {cut(', '.join(found))!r}")
    return {name: found[name] for name in (*names, *optional) if name in found}


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Header:
    """Shape and type, held against the bytes that the archive says are there."""
    shown = repr(cut(name))
    # bz2 and lzma, which numpy never writes, unpack to any size in one call
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NpzError(f"array {shown} is packed as numpy never does; save the file again with np.savez")
    with archive.open(entry) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"format {version} is unknown")
            shape, _, dtype = _HEADERS[version](file)
        except Exception as error:  # numpy hands the header to Python's parser, which has many ways to refuse
            raise NpzError(f"array {shown} is damaged ({said(error)})") from error
        n_header = file.tell()
    if dtype.hasobject:
        raise NpzError(f"array {shown} holds pickled objects, which are never loaded; save it as plain numbers")
    size = math.prod(shape) * dtype.itemsize + n_header
    # an element without bytes would let any shape pass; no array that numpy makes of data has such
    if not dtype.itemsize or dtype.names or any(n < 0 for n in shape) or size != entry.file_size:
        raise NpzError(
            f"array {shown} declares shape {cut(str(shape))} of {cut(str(dtype))}, but the file holds something else; "
            "it is damaged"
        )
    return shape, dtype


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
