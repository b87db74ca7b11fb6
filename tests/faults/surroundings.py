"""What surrounds a study and may be hostile: `python -m faults.surroundings [N]` prints rows as JSON.

Streams that are closed or full, files of the working directory with the names of modules, compiled kernels that are cut
or changed or another's, options of Slurm and free text of records that a shell, terminal or spreadsheet would obey,
clocks that jump. N random trials of each kind that costs milliseconds, fewer of those that run a study.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from e2e.test_study import ENVIRONMENT, contents, write_study
from faults.kills import STUDY, row
from submitit.slurm.slurm import _make_sbatch_string

from bench.config.run import ConfigError
from bench.kernels import native
from bench.launch.submission import refuse_shell_lines
from bench.records.inputs import csv_cell, printable
from bench.registry import ROOT

N = 2000
STUDIES = 2  # of each way to lose a stream
PIECES = ["a", "7", "-", "_", "=", " ", "\n", "\r", "\t", ";", "'", '"', "`", "$(x)", "#", "|", "&", "\\", "\0"]
PIECES += [
    "\x1b[2J",
    "\x9b",
    "\x07",
    "\u202e",
    "\u2028",
    "\u0085",
    "touch owned",
    "@",
    "+",
    "gpu:2",
    "[1-3]",
    "%j",
    "<b>",
]
STREAMS = ("| head -1", "2>&1 | head -1", "2>&-", "<&- >&- 2>&-", "2> /dev/full", "> /dev/full")
MODULES = ("bench", "methods", "analysis", "yaml", "numpy", "torch", "submitit", "json", "logging")
EQUIBENCH = "import sys; from bench.cli.main import main; sys.exit(main(sys.argv[1:]))"  # as the script does
SOURCE = "#include <stdint.h>\nvoid twice(float *x, int64_t n) { for (int64_t i = 0; i < n; i++) x[i] *= 2; }\n"


def words(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))


def options(n: int) -> dict[str, Any]:
    """Batch files hold the same shell lines, whatever the options, or are not written."""
    rng, refused, losses = random.Random(0), 0, 0
    plain = shell_lines({})
    for _ in range(n):
        given = {("account", words(rng))[rng.random() < 0.3]: words(rng)}
        try:
            refuse_shell_lines(given, Path("runs"))
        except ConfigError as error:
            refused, losses = refused + 1, losses + ("\n" in str(error))
        else:
            losses += shell_lines(given) != plain
    return row("Slurm option that the shell would read", n, losses, f"refused: {refused}, a plain value: {n - refused}")


def shell_lines(given: dict[str, Any]) -> list[str]:
    text = _make_sbatch_string(command="x", folder="runs", additional_parameters=given)
    return [line for line in text.split("\n") if not line.startswith("#")]


def texts(n: int) -> dict[str, Any]:
    """Text of a record as terminals, pages and spreadsheets get it."""
    rng, losses = random.Random(0), 0
    for _ in range(n):
        shown = printable(words(rng))
        cell = csv_cell(shown)
        losses += not shown.isprintable() or (cell[:1] in tuple("=+-@\t\r") and not is_number(cell))
    return row("control characters and formulas in a record's text", n, losses, "shown as escapes, or quoted")


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def kernels(n: int, home: Path) -> dict[str, Any]:
    """A cached library that is cut, changed, another user's or writable by others is made again; this process ends with
    SIGBUS, or with another result, where it is not."""
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    source, rng, losses = home / "twice.c", random.Random(0), 0
    for number in range(n):
        source.write_text(f"{SOURCE}/* {number} */\n")  # a library of its own: loaded ones stay mapped
        made = compiled_without_loading(source)
        content = bytearray(made.read_bytes())
        kind = rng.choice(("cut", "flip", "mode", "owner", "checksum"))
        if kind == "cut":
            made.write_bytes(content[: rng.randrange(len(content))])
        elif kind == "flip":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            made.write_bytes(content)
        elif kind == "mode":
            made.chmod(rng.choice((0o666, 0o664, 0o777)))
        elif kind == "owner" and os.geteuid() == 0:
            os.chown(made, 12345, 12345)
        else:
            made.with_suffix(".sha256").unlink()
        before = made.stat().st_ino
        x = torch.ones(3)
        native.library.cache_clear()
        native.required(source).twice(x, 3)
        losses += x.tolist() != [2.0] * 3 or made.stat().st_ino == before
    return row("compiled kernel cut, changed or another's", n, losses, "not loaded, compiled again")


def compiled_without_loading(source: Path) -> Path:
    class Unloaded(native.Library):
        def __init__(self, path: Path) -> None:
            self.path = path

    loading, native.Library = native.Library, Unloaded  # type: ignore[misc, assignment]
    try:
        native.library.cache_clear()
        return native.required(source).path
    finally:
        native.Library = loading  # type: ignore[misc]


def equibench(folder: Path, arguments: str, how: str = "") -> int:
    """Exit code of `equibench ARGUMENTS` with its streams redirected in the words of a shell."""
    first, pipe, reader = how.partition("|")
    line = f"{{ '{sys.executable}' -P -c '{EQUIBENCH}' {arguments} {first}; echo $? > code; }} {pipe}{reader}"
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, env=environment, check=False)
    return int((folder / "code").read_text())


def studies(home: Path, kinds: dict[str, Callable[[Path], str]], n: int) -> tuple[int, int]:
    """Trials and losses: a study in a folder that each kind prepares, which gives the redirections; it must end with
    exit code 0 and the bits of one that nothing disturbs."""
    write_study(home / "straight", **STUDY)
    if equibench(home / "straight", "run tiny.yaml"):
        raise RuntimeError("the study fails without any fault")
    expected, losses = contents(home / "straight/runs/tiny"), 0
    for number in range(n):
        for name, prepare in kinds.items():
            folder = home / f"{name}{number}"
            launch = {"cluster": ("debug", "local")[number % 2]}
            write_study(folder, **{**STUDY, "launch": launch})
            code = equibench(folder, "run tiny.yaml", prepare(folder))
            same = False
            with contextlib.suppress(OSError, ValueError):
                same = contents(folder / "runs/tiny") == expected
            if code or not same:
                losses += 1
                print(f"{folder}: exit code {code}, {'the same' if same else 'other'} bits", file=sys.stderr)
    return n * len(kinds), losses


def shadowed(folder: Path) -> str:
    for name in MODULES:
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the working directory was imported')\n")
    return ""


def clocks(home: Path, n: int) -> dict[str, Any]:
    """Files whose times jump, and copies: nothing of a finished study is made again."""
    write_study(home, **STUDY)
    losses, rng = int(equibench(home, "run tiny.yaml") != 0), random.Random(0)
    runs = home / "runs/tiny"
    for _ in range(n):
        for path in runs.rglob("*"):
            when = rng.randrange(2**32)
            os.utime(path, (when, when))
        before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*") if path.name != "lock"}
        code = equibench(home, "run tiny.yaml")
        after = {path: path.stat().st_mtime_ns for path in runs.glob("*/*") if path.name != "lock"}
        losses += bool(code) or before != after
    return row("times of files that jump", n, losses, "a finished study, called again: nothing is made again")


def campaign(n: int = N, n_studies: int = STUDIES) -> list[dict[str, Any]]:
    """All rows."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        rows = [options(n), texts(n), kernels(max(1, n // 10), home)]
        if n_studies:
            streams: dict[str, Callable[[Path], str]] = {
                f"stream{i}-": (lambda _, how=how: how) for i, how in enumerate(STREAMS)
            }
            told = ", ".join(f"`{how}`" for how in STREAMS).replace("|", r"\|")
            trials, losses = studies(home / "streams", streams, n_studies)
            rows.append(row("closed or full output", trials, losses, f"a study with {told}"))
            told = ", ".join(f"`{module}.py`" for module in MODULES)
            trials, losses = studies(home / "path", {"beside": shadowed}, n_studies)
            rows.append(row("modules in the working directory", trials, losses, f"a study beside {told}"))
            rows.append(clocks(home / "clocks", n_studies))
    return rows


if __name__ == "__main__":
    print(json.dumps(campaign(*map(int, sys.argv[1:])), indent=1))
