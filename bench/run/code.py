"""The code that makes a result: this one's version, and how many steps of a training each code has done."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.records import schema


def code_version() -> dict[str, Any]:
    """Package version and, in a git checkout, the commit and whether the code has uncommitted changes."""
    home = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(home), *args], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # code alone: publishing results must not mark the next run as modified
    changes = git("status", "--porcelain", "--", ":(top)bench", ":(top)methods")
    return {
        "version": schema.package_version(),
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def trained_with(before: Sequence[Mapping[str, Any]], code: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
    """The codes that have trained up to `step`, in order, each with its steps; all steps since `before` are of `code`.

    Args:
        before: the same list at an earlier step.
    """
    since = [*before, {**code, "steps": step - n_steps(before)}]
    found: list[dict[str, Any]] = []
    for part in since:
        about = {key: value for key, value in part.items() if key != "steps"}
        if found and {**found[-1], "steps": 0} == {**about, "steps": 0}:
            found[-1]["steps"] += part["steps"]
        elif part["steps"] > 0:
            found.append({**about, "steps": part["steps"]})
    return found


def n_steps(codes: Iterable[Mapping[str, Any]]) -> int:
    """Steps that a list of codes has trained together."""
    return sum(part["steps"] for part in codes)
