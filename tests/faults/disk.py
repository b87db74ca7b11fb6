"""A disk that is full at a random moment, and what is lost by it: `python -m faults.disk` prints rows as JSON.

A tiny study runs on a tmpfs with room for a random part of what it writes, until it stops with one line that names a
file and says that there is no space. Then the file system grows and the same command is called again. The study must
end with the bits of the one run straight through. No rows where mounting is not permitted.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e2e.test_study import command, contents, write_study
from faults.kills import STUDY, row

TRIALS = 20
ENOUGH = 64 << 20  # bytes
LEAST = 64 << 10  # for the page and the study's own files


@contextlib.contextmanager
def tmpfs(folder: Path, n_bytes: int) -> Iterator[None]:
    """
    Raises:
        PermissionError: mounting is not permitted here.
    """
    folder.mkdir(parents=True)
    mount(folder, f"size={n_bytes}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def mount(folder: Path, *options: str) -> None:
    line = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    try:
        subprocess.run(line, capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise PermissionError("mounting a tmpfs is not permitted here") from error


def told(said: str, runs: Path) -> bool:
    """Whether one line of a failed command names a place in the study and says what is wrong with the disk."""
    lines = [line for line in said.splitlines() if "No space left on device" in line]
    return any(str(runs) in line for line in lines) and "Traceback" not in said


def trial(folder: Path, n_bytes: int, cluster: str, expected: dict[str, object]) -> tuple[bool, bool]:
    """Whether the disk was full before the end, and whether something was lost."""
    with tmpfs(folder, n_bytes):
        path = write_study(folder, **STUDY, launch={"cluster": cluster})
        first = command("run", str(path), cwd=folder)
        full = first.returncode != 0
        fine = not full or told(first.stderr + first.stdout, folder / "runs")
        mount(folder, "remount", f"size={ENOUGH}")
        again = command("run", str(path), cwd=folder)
        try:
            same = contents(folder / "runs/tiny") == expected
        except OSError:  # a file is not there
            same = False
        if not (fine and again.returncode == 0 and same):
            print(f"{cluster}, {n_bytes} bytes: {first.stderr[-1500:]}\nagain: {again.stderr[-1500:]}", file=sys.stderr)
        return full, not (fine and again.returncode == 0 and same)


def campaign() -> list[dict[str, Any]]:
    """The row of disks that were full."""
    rng, trials, losses = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        try:
            with tmpfs(home / "straight", ENOUGH):
                done = command("run", str(write_study(home / "straight", **STUDY)), cwd=home / "straight")
                if done.returncode:
                    raise RuntimeError(f"the study fails without any fault: {done.stderr[-500:]}")
                expected = contents(home / "straight/runs/tiny")
                blocks = [p.stat().st_blocks for p in (home / "straight").rglob("*") if p.is_file()]
        except PermissionError as error:
            print(f"no trials with a full disk: {error}", file=sys.stderr)
            return []
        number = 0
        while trials < TRIALS:
            number += 1
            n_bytes, cluster = rng.randint(LEAST, 512 * sum(blocks)), ("debug", "local")[number % 2]
            full, lost = trial(home / str(number), n_bytes, cluster, expected)
            if lost and not full:
                raise RuntimeError("the study fails on a disk that is not full")
            trials, losses = trials + full, losses + lost
    return [row("disk full", trials, losses, "a tmpfs with room for a random part of what the study writes")]


if __name__ == "__main__":
    print(json.dumps(campaign(), indent=1))
