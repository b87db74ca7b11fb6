"""`equibench publish`: copy records, curves and small weights of a study from `runs/` into the committed `results/`."""

from __future__ import annotations

import csv
import io
import logging
import shutil
from pathlib import Path

from bench.records import schema
from bench.records.inputs import csv_cell
from bench.records.schema import EVALUATION, MANIFEST, STEP
from bench.records.store import RunFolder, StudyFolder, flatten, read_json, read_steps, write_atomically
from bench.records.values import Kind
from bench.run.checkpoint import save_average
from bench.run.sample import weights_file

log = logging.getLogger("equibench")

N_CURVE_POINTS = 200
MAX_WEIGHTS_BYTES = 1_000_000


def publish(study: str, runs_root: Path, results_root: Path) -> Path:
    """Copy records, thinned curves, drawn samples and small averaged weights of every run, and write runs.csv.

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
        manifest = read_json(RunFolder(folder).manifest, MANIFEST)
        for file in RunFolder(folder).published():
            copy = target / folder.name / file.name
            if file.exists():
                write_atomically(copy, file.read_bytes())
            else:
                copy.unlink(missing_ok=True)
        if steps := read_steps(RunFolder(folder).steps):
            write_atomically(RunFolder(target / folder.name).curves, curves(steps).encode())
        if manifest["status"] == "done":
            publish_weights(folder, target / folder.name, manifest["parameters"]["total"])
    write_atomically(
        StudyFolder(target).table, table([published_row(folder) for folder in StudyFolder(target).runs()]).encode()
    )
    return target


def publish_weights(folder: Path, target: Path, n_parameters: int) -> None:
    """Copy the averaged weights, last and best, if they are small enough for a repository."""
    weights = weights_file(folder, None)
    if weights.exists() and 4 * n_parameters < MAX_WEIGHTS_BYTES:
        target.mkdir(parents=True, exist_ok=True)
        save_average(RunFolder(target).weights, weights)
        if RunFolder(folder).best.exists():
            write_atomically(RunFolder(target).best, RunFolder(folder).best.read_bytes())


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
    has_result = RunFolder(folder).eval.exists()
    evaluation = read_json(RunFolder(folder).eval, EVALUATION) if has_result else None
    return row(read_json(RunFolder(folder).manifest, MANIFEST), evaluation)


def row(manifest: dict, evaluation: dict | None) -> dict:
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
    scalars = [value for value in (evaluation or {}).get("values", []) if not value.get("at")]
    return line | {v["name"]: v["value"] for v in scalars if v.get("kind") != Kind.DIAGNOSTIC and v["name"] not in line}


def table(rows: list[dict]) -> str:
    """CSV with the columns of all rows, in order of first appearance; missing values are empty."""
    out = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))  # runs without a result have no values
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    return out.getvalue()
