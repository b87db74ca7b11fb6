"""Safe reading of untrusted files: sizes, YAML and npz, with errors of one short line.

Only regular files of a bounded size are opened, nothing is unpickled or executed, and declared sizes are checked
against the file before memory is allocated.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import numpy as np  # loaded where an npz file is read: `equibench status` needs none


def size_of(path: Path, at_most: int | None = None) -> int:
    """Size in bytes of a regular file, links followed; call it before opening a file.

    Raises:
        OSError: missing; a folder; a pipe or a device, which could block or never end; more than `at_most` bytes.
    """
    about = path.stat()
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, expected a regular file", str(path))
    if at_most is not None and about.st_size > at_most:
        raise OSError(errno.EFBIG, f"has {about.st_size} bytes, expected at most {at_most}", str(path))
    return about.st_size


def one_line(error: BaseException, at_most: int = 160) -> str:
    """An exception's message as one short line; its type where it has no message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return truncate(" ".join(str(error).split()), at_most) or type(error).__name__


def truncate(text: str, at_most: int = 80) -> str:
    """Text from a file, printable and short enough for a message."""
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= at_most else text[:at_most] + "..."


def printable(value: Any) -> Any:
    """Text of a record, or the texts of a list, without what a terminal or a browser would obey: escape sequences, line
    breaks, marks that change the direction of writing; these are shown as escapes. Other values as they are."""
    if isinstance(value, list):
        return [printable(entry) for entry in value]
    if not isinstance(value, str) or value.isprintable():
        return value
    spaces = "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"
    return "".join(c if c.isprintable() or c in spaces else c.encode("unicode_escape").decode() for c in value)


def csv_cell(value: Any) -> Any:
    """A value for a CSV file; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def is_folder_name(name: str) -> bool:
    """Whether a name from a file can name a folder inside another, and nothing outside of it."""
    return 0 < len(name) <= 200 and name not in (".", "..") and not set(name) & set("/\\\0\n\r")


# ---------------------------------------------------------------------- YAML

MAX_YAML_BYTES = 1 << 18
MAX_NODES = 20_000  # with aliases written out
MAX_DEPTH = 40
# Scalars as in the core schema of YAML 1.2, where 1e-4 is a number and 010, 1:30, on, no and 2024-01-01 are text.
SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
TAG = "tag:yaml.org,2002:"
PLAIN = [TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map")]


class YamlError(ValueError):
    """A YAML file that cannot be read; one line: file, what was found, what was expected."""


def _resolvers(base: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Patterns of plain scalars by their first character: ours, then those of `base`."""
    found: dict[str, list[Any]] = {}
    for kind, (pattern, first) in SCALARS.items():
        for character in first:
            found.setdefault(character, []).append((TAG + kind, re.compile(f"(?:{pattern})$")))
    for character, others in base.items():
        found.setdefault(character, []).extend(others)
    return found


class _Loader(yaml.SafeLoader):
    """Counts nodes, with aliases expanded, before anything is constructed from them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.n_nodes, self.depth, self.expanded = 0, 0, {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, is_alias = self.n_nodes, self.check_event(yaml.AliasEvent)
        self.n_nodes, self.depth = self.n_nodes + 1, self.depth + 1
        if self.depth > MAX_DEPTH:
            raise YamlError(f"nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self.expanded:
                raise YamlError("an alias refers to a value that contains it")
            self.n_nodes += self.expanded[id(node)]
        else:
            self.expanded[id(node)] = self.n_nodes - before
        if self.n_nodes > MAX_NODES:
            raise YamlError(f"holds more than {MAX_NODES} values, aliases written out")
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise YamlError(f"line {key.start_mark.line + 1}: key {truncate(key.value)!r} comes twice")
                seen.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        node.value.encode()  # raises for a lone surrogate, which no file could hold
        return node


_Loader.yaml_implicit_resolvers = _resolvers({})
_Loader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in PLAIN} | {
    None: yaml.SafeLoader.construct_undefined
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""


_Dumper.yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers)


def read_yaml(path: Path) -> Any:
    """Contents of a YAML file: mappings, lists, text, numbers, booleans and null.

    Raises:
        YamlError: not UTF-8, not YAML, not plain data, a duplicate key, or more than MAX_NODES values.
        OSError: missing, not a regular file, or more than MAX_YAML_BYTES long.
    """
    size_of(path, MAX_YAML_BYTES)
    try:
        return parse_yaml(path.read_bytes().decode("utf-8-sig"))
    except YamlError as error:
        raise YamlError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: not readable as YAML ({one_line(error)})") from error


def parse_yaml(text: str) -> Any:
    """The same for text, such as the value of a command-line argument; errors do not name a file."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except YamlError as error:
        raise YamlError(f"{error}; write it out plainly") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(f"not readable as YAML ({line}{truncate(error.problem or error.context or '')})") from error
    except Exception as error:  # for malformed numbers PyYAML passes on any error of Python's parsers
        raise YamlError(f"not readable as YAML ({one_line(error)})") from error


def as_yaml(data: Any) -> str:
    """Plain data as YAML that both `read_yaml` and readers of YAML 1.1 read back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


# ---------------------------------------------------------------------- npz

MAX_GROWTH = 100  # unpacked bytes per byte of the file, above SMALL; even padding hardly compresses better
SMALL = 1 << 25


class NpzError(ValueError):
    """What is wrong with an npz file, in one line without its name."""


def read_arrays(path: Path, names: Sequence[str] | None = None, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Arrays by name: all, or `names` and those of `optional` that are there.

    Memory stays below MAX_GROWTH times the file's size (or SMALL): `np.load` would allocate what a header declares and
    unpack whatever an entry unpacks to.

    Raises:
        NpzError: not an npz file, damaged, lacking one of `names`, or too large when unpacked.
        OSError: missing, or not a regular file.
    """
    import numpy as np

    n_bytes = size_of(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive, names, optional)
            total = sum(_declared_bytes(archive, entry, name) for name, entry in entries.items())
        if total > max(SMALL, MAX_GROWTH * n_bytes):
            raise NpzError(
                f"its arrays have {total} bytes, more than {MAX_GROWTH} times the file's {n_bytes}; "
                "save it again with np.savez, which does not compress"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[entry.filename] for name, entry in entries.items()}
    except (NpzError, OSError, MemoryError):  # too little memory is no fault of the file
        raise
    except Exception as error:  # a damaged archive raises a dozen kinds of error from zipfile, zlib and numpy
        raise NpzError(f"no npz archive, or a damaged one ({one_line(error)})") from error


def _entries(
    archive: zipfile.ZipFile, names: Sequence[str] | None, optional: Sequence[str]
) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name in found:
            raise NpzError(f"array {truncate(name)!r} comes twice; it is damaged")
        found[name] = entry
    if names is None:
        return found
    for name in names:
        if name not in found:
            raise NpzError(
                f"array {name!r} is missing; expected {', '.join(names)}, got {truncate(', '.join(found))!r}"
            )
    return {name: found[name] for name in (*names, *optional) if name in found}


def _declared_bytes(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> int:
    """Size of an array by its header, which must agree with the size of its entry in the archive."""
    import numpy.lib.format as npy

    # format 3 differs from 2 in the encoding of field names, which are refused
    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0, (3, 0): npy.read_array_header_2_0}
    shown = repr(truncate(name))
    # bz2 and lzma, which numpy never writes, unpack to any size in one call
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NpzError(f"array {shown} has a compression that numpy never writes; save the file again with np.savez")
    with archive.open(entry) as file:
        try:
            version = npy.read_magic(file)
            if version not in headers:
                raise ValueError(f"format {version} is unknown")
            shape, _, dtype = headers[version](file)
        except Exception as error:  # numpy hands the header to Python's parser, which has many ways to refuse
            raise NpzError(f"array {shown} is damaged ({one_line(error)})") from error
        n_header = file.tell()
    if dtype.hasobject:
        raise NpzError(f"array {shown} holds pickled objects, which are never loaded; save it as plain numbers")
    n_bytes = math.prod(shape) * dtype.itemsize
    # elements of zero bytes would let any shape pass, and no numeric array has them
    if not dtype.itemsize or dtype.names or any(n < 0 for n in shape) or n_bytes + n_header != entry.file_size:
        raise NpzError(
            f"array {shown} declares shape {truncate(str(shape))} of {truncate(str(dtype))}, but the file holds "
            "something else; it is damaged"
        )
    return n_bytes
