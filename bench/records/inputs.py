"""What all readers share: only regular files of a sensible size are opened, and a fault is told in one short line."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def size_of(path: Path, at_most: int | None = None) -> int:
    """Bytes of a regular file, or of what a link to one names; to be asked before a file is opened.

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


def said(error: BaseException, at_most: int = 160) -> str:
    """An exception's message as one short line; its kind where it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return cut(" ".join(str(error).split()), at_most) or type(error).__name__


def cut(text: str, at_most: int = 80) -> str:
    """A text that came from a file, in a length that suits a message, and printable."""
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= at_most else text[:at_most] + "..."


def is_folder_name(name: str) -> bool:
    """Whether a name from a file can name a folder inside another, and nothing outside of it."""
    return 0 < len(name) <= 200 and name not in (".", "..") and not set(name) & set("/\\\0\n\r")
