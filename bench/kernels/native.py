"""Just-in-time compilation of the package's C files for the host processor.

The compiler is $CC, by default cc. Libraries are cached in $XDG_CACHE_HOME/equibench (~/.cache/equibench) under a hash
of source, constants, compiler and processor, each beside its SHA-256: a library that is cut or changed would end the
process with SIGBUS, or do worse. Nothing is loaded that another user owns or may write. Without a compiler one
warning is logged and kernels are not installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.records.store import write_atomically

log = logging.getLogger("equibench")
warn_once = functools.cache(log.warning)  # a file compiled for several widths fails for the same reason each time

# vectorise loops with exponentials, keep NaN; -std=c11 instead of gnu11 would forbid fused multiply-add
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
FOR_THIS_PROCESSOR = {"x86_64": ("-march=native", "-mprefer-vector-width=512")}
ELSEWHERE = ("-mcpu=native",)
HEADERS = Path(__file__).parent


class Library:
    """Functions of a C file, called with tensors (as pointers, None as NULL), integers (int64_t) and floats.

    Argument types are fixed by the first call of a function: pass 1.0, not 1, for a C float.
    """

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        function = getattr(self._functions, name)
        function.restype = None

        def call(*args: Tensor | int | float | None) -> None:
            if function.argtypes is None:
                function.argtypes = [_kind(value) for value in args]
            function(*[value.data_ptr() if isinstance(value, Tensor) else value for value in args])

        setattr(self, name, call)
        return call


def _kind(value: Tensor | int | float | None) -> Any:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p
    return ctypes.c_float if isinstance(value, float) else ctypes.c_int64


@functools.cache
def library(source: Path, **constants: int) -> Library | None:
    """The functions of a C file; None, with a warning, if it cannot be compiled or loaded.

    Args:
        constants: preprocessor macros.
    """
    try:
        return _built(source, constants)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        warn_once("%s is not compiled (%s); slower code is used", source.name, reason[0])
    except (OSError, ValueError) as error:
        warn_once("%s is not compiled (%s); slower code is used: install a C compiler", source.name, str(error))
    return None


def required(source: Path, **constants: int) -> Library:
    """The functions of a C file (`library`).

    Raises:
        RuntimeError: it cannot be compiled here.
    """
    found = library(source, **constants)
    if found is None:
        raise RuntimeError(f"{source.name} is not compiled here")
    return found


def usable(x: Tensor) -> bool:
    """Whether kernels support this tensor: float32 on a CPU, with matrix products in float32 or bf16."""
    return x.dtype is torch.float32 and x.is_cpu and of_products() in (torch.float32, torch.bfloat16)


def replace(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Override a method of one module (not of its class)."""
    setattr(module, name, types.MethodType(function, module))


def of_products() -> torch.dtype:
    """Dtype of matrix products of float32 operands on a CPU under the current autocast state."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def _compiler() -> tuple[list[str], str]:
    """The compiler's command and its version string."""
    command = shlex.split(os.environ.get("CC") or "cc")
    return command, subprocess.run([*command, "--version"], check=True, capture_output=True, text=True).stdout


def _built(source: Path, constants: dict[str, int]) -> Library:
    command, about = _compiler()
    defined = [f"-D{name}={value}" for name, value in constants.items()]
    flags = [*FLAGS, *FOR_THIS_PROCESSOR.get(platform.machine(), ELSEWHERE), *defined]
    headers = [header.read_text() for header in sorted({*source.parent.glob("*.h"), *HEADERS.glob("*.h")})]
    parts = [source.read_text(), *headers, about, *command, *flags, _processor()]
    name = f"{source.stem}-{hashlib.blake2b(chr(0).join(parts).encode(), digest_size=8).hexdigest()}.so"
    if (folder := _cache()) is not None:
        with contextlib.suppress(OSError):
            if _is_whole(folder / name):
                return Library(folder / name)
        with contextlib.suppress(OSError):  # no space left, for one
            made = _compiled(command, flags, source, folder, name)
            write_atomically(_checksum(folder / name), f"{_digest(made)}\n".encode())
            return Library(made.replace(folder / name))
    with tempfile.TemporaryDirectory() as scratch:  # a loaded library no longer needs its file
        return Library(_compiled(command, flags, source, Path(scratch), name))


def _compiled(command: list[str], flags: list[str], source: Path, folder: Path, name: str) -> Path:
    """Compile under a name unique to this worker, so that several can compile at once."""
    made = folder / f"{name}.{os.getpid()}"
    line = [*command, *flags, "-I", str(HEADERS), "-o", str(made), str(source), "-lm"]
    subprocess.run(line, check=True, capture_output=True, text=True)
    made.chmod(0o755)  # whatever the umask
    return made


def _is_whole(path: Path) -> bool:
    """Whether a cached library is there, this user's own and as it was compiled.

    Raises:
        OSError: it cannot be read.
    """
    parts = path, _checksum(path)
    return all(map(Path.exists, parts)) and all(map(_is_ours, parts)) and parts[1].read_text().strip() == _digest(path)


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_ours(path: Path) -> bool:
    """Whether a file or folder, and no link, is this user's (or root's), and nobody else's to write."""
    about = path.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return about.st_uid in (os.geteuid(), 0) and not stat.S_ISLNK(about.st_mode) and not about.st_mode & others


def _cache() -> Path | None:
    """Cache folder of libraries; None if it is not writable, the disk is full, or others may write into it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "equibench"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        if not _is_ours(folder):
            warn_once("%s: other users own it or may write it (chmod go-w), so compiled code is not kept there", folder)
            return None
    except (OSError, RuntimeError):  # there may be no home
        return None
    return folder if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2**20 else None


def _processor() -> str:
    """CPU feature flags: distinguishes the nodes of a cluster that share one cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
