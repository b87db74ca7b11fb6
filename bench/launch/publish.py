"""`equibench publish`: copy records, curves and small weights of a study from `runs/` into the committed `results/`."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.records import schema
from bench.records.inputs import csv_cell
from bench.records.measured import of_other_weights, values_of
from bench.records.schema import MANIFEST, STEP
from bench.records.store import RunFolder, StudyFolder, flatten, read_json, read_steps, write_atomically
from bench.records.values import Kind, Value
from bench.run.checkpoint import about_of, save_average
from bench.run.sample import weights_file

log = logging.getLogger("equibench")

N_CURVE_POINTS = 200
MAX_WEIGHTS_BYTES = 2_000_000  # of the weights in half precision


def publish(study: str, runs_root: Path, results_root: Path) -> Path:
    """Copy records, thinned curves, drawn samples and small averaged weights, and write runs.csv.

    Weights are those of one run per method and backbone, in half precision (`save_average`); the others' are removed.

    Runs published earlier, perhaps from another machine, stay if the study's plan still lists them.

    Raises:
        FileNotFoundError: the study has no runs.
    """
    source, target = runs_root / study, results_root / study
    folders = list(StudyFolder(source).runs())
    if not folders:
        raise FileNotFoundError(f"no runs of study {study!r} in {runs_root}; execute `equibench run {study}` first")
    asked = {folder.name for folder in folders}
    if StudyFolder(source).plan.exists():
        asked |= {run["run"] for run in read_json(StudyFolder(source).plan, schema.PLAN)["runs"]}
    for folder in StudyFolder(target).runs():  # runs that are no longer part of the study
        if folder.name not in asked:
            shutil.rmtree(folder)
    write_atomically(StudyFolder(target).study, StudyFolder(source).study.read_bytes())
    for folder in folders:
        copy_run(RunFolder(folder), RunFolder(target / folder.name))
        if steps := read_steps(RunFolder(folder).steps):
            write_atomically(RunFolder(target / folder.name).curves, curves(steps).encode())
    publish_weights(folders, target)
    write_atomically(
        StudyFolder(target).table, table([published_row(folder) for folder in StudyFolder(target).runs()]).encode()
    )
    return target


def copy_run(run: RunFolder, published: RunFolder) -> None:
    """Copy the records of a run. What was measured of its published weights stays; of other weights it goes."""
    for file in run.published():
        copy = published.path / file.relative_to(run.path)
        if file.exists():
            write_atomically(copy, file.read_bytes())
        else:
            copy.unlink(missing_ok=True)
    if (sha256 := read_json(run.manifest, MANIFEST).get("weights_sha256")) is not None:
        for file in of_other_weights(published, sha256):
            file.unlink()


def publish_weights(folders: Sequence[Path], target: Path) -> None:
    """Publish averaged weights, last and best, of the lowest seed of each method and backbone, if they are small.

    Where several runs have that seed, those of the most training molecules, then steps, are chosen.
    """
    chosen: dict[str, tuple[tuple[int, int, int], Path]] = {}
    for folder in folders:
        manifest = read_json(RunFolder(folder).manifest, MANIFEST)
        own = weights_file(folder, None)
        if manifest["status"] != "done" or not own.exists():
            continue
        if 2 * manifest["parameters"]["total"] > MAX_WEIGHTS_BYTES:
            continue
        key = json.dumps([manifest["method"], manifest["backbone"]], sort_keys=True)
        rank = (manifest["seed"], -manifest["data"]["n_train"], -manifest["n_steps"])
        chosen[key] = min(chosen.get(key, (rank, folder)), (rank, folder))
    wanted = {folder.name for _, folder in chosen.values()}
    for folder in folders:
        published = RunFolder(target / folder.name)
        for copy, original in (
            (published.weights, weights_file(folder, None)),
            (published.best, RunFolder(folder).best),
        ):
            if folder.name in wanted and original.exists():
                stored = save_average(copy, original)
                log.info("%s: weights in %s, for `equibench sample %s`", folder.name, stored, target / folder.name)
            else:
                copy.unlink(missing_ok=True)


def curves(steps: list[dict]) -> str:
    """At most N_CURVE_POINTS training lines, and every line with a validation loss, as CSV; the method's diagnostics in
    columns `diagnostics.NAME`."""
    every = -(-len(steps) // N_CURVE_POINTS)
    kept = [flatten(s) for i, s in enumerate(steps) if i % every == 0 or "valid_loss" in s]
    own = sorted({key for s in kept for key in s if key.startswith("diagnostics.")})
    keys = [key.rstrip("?") for key in STEP if STEP[key] is not dict] + own
    return table([{key: s.get(key, "") for key in keys} for s in kept])


def published_row(folder: Path) -> dict:
    """Line of runs.csv for a folder in results/."""
    run = RunFolder(folder)
    stored = about_of(run.weights).get("stored", "float32") if run.weights.exists() else ""
    return row(read_json(run.manifest, MANIFEST), values_of(run)) | {"weights": stored}


def row(manifest: dict, values: list[Value]) -> dict:
    """One line of runs.csv."""
    line = {
        "run": manifest["run"],
        "status": manifest["status"],
        "reason": manifest["reason"] or "",
        "method": manifest["method"]["name"],
        "backbone": manifest["backbone"]["name"],
        "size": manifest["backbone"].get("size", ""),
        "seed": manifest["seed"],
        "guarantee": manifest["guarantee"],
        "n_steps": manifest["n_steps"],
        "weights_from": manifest["weights_from"] or "",
        "data": manifest["data"]["label"],
        "fingerprint": manifest["data"]["fingerprint"],
        "commit": manifest["code"]["commit"] or "",
        "dirty": manifest["code"]["dirty"],
        "device": manifest["environment"]["device"],
        "parameters": manifest["parameters"]["total"],
        **{key.rstrip("?"): manifest["cost"].get(key.rstrip("?"), "") for key in MANIFEST["cost"]},
    }
    scalars = [value for value in values if not value.at]
    return line | {v.name: v.value for v in scalars if v.kind is not Kind.DIAGNOSTIC and v.name not in line}


def table(rows: list[dict]) -> str:
    """CSV with the columns of all rows, in order of first appearance; missing values are empty."""
    out = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))  # runs without a result have no values
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    return out.getvalue()
