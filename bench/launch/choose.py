"""Choosing among the runs of a study: a part of it, what a call would do, what has changed, setting aside, removing."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.config.run import RunConfig, reason_to_skip
from bench.launch.items import Item
from bench.launch.status import position, state
from bench.records import schema
from bench.records import store as records
from bench.records.inputs import printable
from bench.records.lock import locked
from bench.records.store import RunFolder, StudyFolder
from bench.run.checkpoint import CheckpointError, about_of
from bench.run.provenance import sources


def with_needed(items: list[Item], only: Callable[[RunConfig], bool]) -> list[Item]:
    """The items that `only` chooses and those whose weights they need, in the same order."""
    wanted: set[Path] = set()
    for item in items:
        link = item if only(item.cfg) else None
        while link is not None:
            wanted.add(link.folder)
            link = link.needs
    return [item for item in items if item.folder in wanted]


def preview(items: list[Item], retry: bool, force: Callable[[RunConfig], bool]) -> str:
    """What a call would do with each run: the text of `equibench run --dry-run`."""
    lines, counts = [], Counter[str]()
    for item in items:
        word, why = _fate(item, retry, force(item.cfg))
        counts[word] += 1
        lines.append(f"{item.folder.name}  {word}{f': {why}' if why else ''}")
    totals = ", ".join(f"{n} {word}" for word, n in counts.items())
    return "\n".join([*map(printable, lines), "", f"{len(items)} runs: {totals}; nothing was run or written"])


def _fate(item: Item, retry: bool, force: bool) -> tuple[str, str]:
    """What a call would do with a run, and a remark."""
    status = item.status
    if status == "skipped":
        return "skipped", reason_to_skip(item.cfg) or ""
    if status == "done":
        return ("run again", "the finished one is set aside") if force else ("done already", "")
    if status == "failed":
        return ("retried" if retry else "failed before", item.reason + ("" if retry else "; --retry takes it up again"))
    if status == "running":
        return "continued", str(position(item.folder))
    return "run", f"with the weights of {item.needs.folder.name}" if item.needs is not None else ""


def changes(study_folder: Path, items: list[Item]) -> list[str]:
    """Lines on plug-ins whose source has changed since runs of the study were made with them."""
    since: dict[str, list[str]] = {}
    for item in items:
        with contextlib.suppress(OSError, schema.RecordError):
            recorded = records.read_json(RunFolder(item.folder).manifest, schema.MANIFEST).get("sources", {})
            for plugin, found in sources(item.cfg).items() if item.status in ("done", "running") else ():
                if recorded.get(plugin, found) != found:
                    since.setdefault(plugin, []).append(item.folder.name)
    lines = [
        f"{plugin} has changed since {some(runs)} began; finished runs are left alone, --force makes them again"
        for plugin, runs in since.items()
    ]
    # a file that the user names is part of a run's name: what it made before is no longer asked for
    now = {file.path: file.sha256 for item in items for file in item.cfg.plugins}
    planned, before = {item.folder.name for item in items}, dict[str, list[str]]()
    for folder in StudyFolder(study_folder).runs() if now else ():
        with contextlib.suppress(OSError, schema.RecordError, KeyError, TypeError):
            for file in records.read_config(RunFolder(folder))["plugins"] if folder.name not in planned else ():
                if now.get(file["path"], file["sha256"]) != file["sha256"]:
                    before.setdefault(file["path"], []).append(folder.name)
    return [
        *lines,
        *(f"plug-in {path} has changed since {some(r)} began; new runs are made" for path, r in before.items()),
    ]


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many there are beside them."""
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def set_aside(folder: Path) -> Path:
    """Move a run's folder to where no command looks at it; returns its new place.

    Raises:
        BusyError: a worker holds the run.
    """
    with locked(folder):
        place = StudyFolder(folder.parent).old / f"{folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        place.parent.mkdir(exist_ok=True)
        return folder.rename(place)


def last_checkpoint(folder: Path) -> int:
    """Step of a run's newest checkpoint; 0 if there is none."""
    with contextlib.suppress(OSError, CheckpointError):
        return about_of(RunFolder(folder).state)["step"]
    return 0


def describe_removal(folder: Path) -> str:
    """What `equibench remove` would remove, and which runs beside it use its weights."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    found = state(folder)
    lines = [f"{folder}: {found.status}{f', {found.detail}' if found.detail else ''}"]
    lines.append(f"{len(files)} files, {size / 2**20:.1f} MiB: {', '.join(sorted(path.name for path in files))}")
    for other in StudyFolder(folder.parent).runs():
        with contextlib.suppress(OSError, schema.RecordError):
            if records.read_json(RunFolder(other).manifest, schema.MANIFEST)["weights_from"] == folder.name:
                lines.append(f"{other.name} uses its weights, and could not be sampled again")
    return "\n".join(map(printable, lines))


def remove(folder: Path) -> None:
    """Remove a run's folder.

    Raises:
        BusyError: a worker holds the run.
        ValueError: it holds something that no run writes.
    """
    if folder.is_symlink() or any(path.is_dir() and path != RunFolder(folder).chunks for path in folder.iterdir()):
        raise ValueError(f"{folder} is a link or holds folders, as no run does; remove it by hand")
    aside = set_aside(folder)  # first: half a folder must not look like a run
    shutil.rmtree(aside)
    with contextlib.suppress(OSError):  # holds others
        aside.parent.rmdir()
