"""C files of this package, compiled when first used, for the very processor that they run on.

The machine's C compiler is $CC, or else cc. Libraries are kept in $XDG_CACHE_HOME/equibench (~/.cache/equibench), under
a name that changes with the source, its constants, the compiler and the processor. Where there is no compiler, one line
says so and the caller has to do without.
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
import subprocess
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("equibench")
warn_once = functools.cache(log.warning)  # a file that has several widths fails for the same reason at each

# loops with exponentials become vector instructions, and NaN stays NaN; ISO's own dialect, -std=c11, would forbid to
# fuse a multiplication with the addition that follows
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
FOR_THIS_PROCESSOR = {"x86_64": ("-march=native", "-mprefer-vector-width=512")}
ELSEWHERE = ("-mcpu=native",)
HEADERS = Path(__file__).parent


class Library:
    """Functions of a C file, called with tensors (as pointers, None as NULL), integers (int64_t) and floats.

    Of which kind an argument is, the first call of a function says: what is a float in C must be one, not an integer.
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
    """The functions of a C file, or None where it cannot be compiled or loaded, with one line that says why.

    Args:
        constants: macros of the file, whose value the compiler then knows.
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
    """Whether kernels are for such numbers, here and now: float32 on a CPU, with products in float32 or bf16."""
    return x.dtype is torch.float32 and x.is_cpu and of_products() in (torch.float32, torch.bfloat16)


def replace(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Let one module have another method of this name than its class."""
    setattr(module, name, types.MethodType(function, module))


def of_products() -> torch.dtype:
    """Of matrix products of float32 numbers on a CPU, here and now."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def _compiler() -> tuple[list[str], str]:
    """Its command, and what it says of itself."""
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
            if (folder / name).exists():
                return Library(folder / name)
        with contextlib.suppress(OSError):  # a file that does not load, as after a full disk, is made again
            return Library(_compiled(command, flags, source, folder, name).replace(folder / name))
    with tempfile.TemporaryDirectory() as scratch:  # once loaded it needs no file
        return Library(_compiled(command, flags, source, Path(scratch), name))


def _compiled(command: list[str], flags: list[str], source: Path, folder: Path, name: str) -> Path:
    """A library under a name of its own, so that several processes can make it at once."""
    made = folder / f"{name}.{os.getpid()}"
    line = [*command, *flags, "-I", str(HEADERS), "-o", str(made), str(source), "-lm"]
    subprocess.run(line, check=True, capture_output=True, text=True)
    return made


def _cache() -> Path | None:
    """Where libraries are kept; None where nothing can be."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "equibench"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # there may be no home
        return None
    return folder if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2**20 else None


def _processor() -> str:
    """What tells processors apart that see one cache folder, as the nodes of a cluster do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
