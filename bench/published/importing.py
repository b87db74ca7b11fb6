"""`equibench import`: a published checkpoint as a run folder that can be sampled, evaluated and loaded.

The file gives the network by its names, its sizes by shapes, and the noise schedule by its table. The rest comes from a
YAML page of the user, with the keys of a run's configuration, and defaults to the published QM9 values; the manifest
records the source of each.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.config.run import ConfigError, RunConfig, build, naming, reason_to_skip, resolve
from bench.diffusion.paths import polynomial_2
from bench.published.weights import ELEMENTS, Checkpoint, Reading, read_checkpoint, understand
from bench.records import schema
from bench.records import store as records
from bench.records.inputs import YamlError, one_line, read_yaml, truncate
from bench.records.store import RunFolder
from bench.registry import tasks
from bench.run.batches import load_data
from bench.run.checkpoint import write_average
from bench.run.model import Model
from bench.run.provenance import describe, now
from bench.run.sample import facts_of
from bench.structures.dataset import grouped
from bench.structures.elements import MAX_NUMBER
from bench.structures.fetch import CannotStartError
from bench.symmetry.published import PublishedError

SCHEDULE_TOLERANCE = 1e-5  # of max |gamma|; the file's table is float32


@dataclass
class ImportConfig:
    """Settings that a checkpoint lacks; `method`, `backbone`, `data`, `diffusion`, `task`, `group`, `sample` as in a
    study file.

    If `sizes` (number of atoms -> molecules) is given, the data set is not read, and `elements` are its elements.
    """

    method: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=lambda: {"name": "qm9"})
    sizes: dict[Any, Any] | None = None
    elements: list[int] | None = None
    diffusion: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    group: str = "O3"
    sample: dict[str, Any] = field(default_factory=dict)


def read_page(path: Path | None) -> ImportConfig:
    """The user's page, or the defaults.

    Raises:
        ConfigError: not readable, unknown keys, wrong types.
    """
    if path is None:
        return ImportConfig()
    try:
        page = read_yaml(path)
    except (YamlError, OSError) as error:
        raise ConfigError(str(error)) from None
    with naming(path):
        return build(ImportConfig, {} if page is None else page)


def import_weights(path: Path, folder: Path, page: ImportConfig) -> str:
    """Make a run folder from a published checkpoint; returns a description of it for the terminal.

    Raises:
        PublishedError, ConfigError: the file is unreadable or of no known network, or the page contradicts it.
        OSError: the folder exists already, or cannot be written.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another folder, or move it away")
    checkpoint = read_checkpoint(path)
    try:
        reading = understand(checkpoint.weights, page.method, page.backbone)
        cfg, schedule = configure(checkpoint, reading, page, folder.parent.name or "published")
    except PublishedError as error:
        raise PublishedError(f"{path}: {error}") from None
    about, data = sizes_and_elements(cfg, page)
    charges = reading.n_features - len(about["elements"])
    if charges not in (0, 1):
        raise ConfigError(
            f"{path}: the network has {reading.n_features} features, and {len(about['elements'])} elements need that "
            "many, or one more with charges; give `elements`"
        )
    if page.task.get("include_charges", bool(charges)) != bool(charges):
        raise ConfigError(f"{path}: task.include_charges is given otherwise than {reading.n_features} features say")
    task = resolve(tasks, cfg.task.to_plain() | {"include_charges": bool(charges)}, "task")
    cfg = dataclasses.replace(cfg, task=task)

    facts = facts_of(about, path)
    try:
        with torch.device("meta"):  # shapes first: a damaged file may describe a network too large for memory
            outline = Model.build(cfg, facts)
            reading.load(checkpoint.weights, outline.denoiser.backbone, outline.method)
        model = Model.build(cfg, facts)
        reading.load(checkpoint.weights, model.denoiser.backbone, model.method)
    except PublishedError as error:
        raise PublishedError(f"{path}: {error}") from None
    manifest = describe(cfg, folder.name, data, 1) | {"status": "imported", "n_steps": 0}
    manifest["parameters"] = model.count_parameters()
    scales = "scales " + ", ".join(
        f"{getattr(cfg.task.options, f'scale_{of}'):g}" for of in ("position", "onehot", "charge")
    )
    manifest["imported"] = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "network": reading.weights.network,
        "schedule": schedule,
        "unused": checkpoint.ignored + reading.unused,
        "notes": [
            *reading.weights.notes,
            f"not told by the file, and taken as {scales}, no conditioning"
            + "".join(f", {key} {value}" for key, value in reading.weights.assumed.items()),
            "nothing was trained here: `train` and `seed` of config.yaml and the step 0 of the weights say nothing",
        ],
    }
    manifest["updated"] = now()

    # the manifest last: without it, readers do not see a run
    records.write_yaml(RunFolder(folder).config, cfg.to_dict())
    records.write_json(RunFolder(folder).data, about)
    write_average(RunFolder(folder).weights, model.named_weights(), {"step": 0, "seconds": 0.0})
    records.write_json(RunFolder(folder).manifest, manifest, schema.MANIFEST)
    return summary(cfg, manifest)


def configure(checkpoint: Checkpoint, reading: Reading, page: ImportConfig, study: str) -> tuple[RunConfig, str]:
    """The run's configuration, and the source of its noise schedule."""
    # weights are run as they were trained: published defects that have a switch are on, unless the page turns them off
    diffusion = {"edm_compat": True, **page.diffusion}
    sample, schedule = dict(page.sample), "not in the file: as given, or published"
    if checkpoint.gamma is not None:
        told = schedule_of(checkpoint.gamma)
        for key, value in told.items():
            if diffusion.setdefault(key, value) != value:
                raise PublishedError(f"diffusion.{key} is given as {diffusion[key]!r}, the file's table has {value!r}")
        schedule = "the file's table gamma.gamma"
    if isinstance(diffusion.get("n_levels"), int):
        sample.setdefault("n_steps", min(diffusion["n_levels"], 1000))
    values = {"method": reading.method, "backbone": reading.backbone, "data": page.data, "group": page.group}
    values["task"] = {"name": "denovo", **page.task}
    cfg = build(RunConfig, {"study": study, **values, "diffusion": diffusion, "sample": sample})
    if reason := reason_to_skip(cfg):
        raise ConfigError(reason)
    return cfg, schedule


def schedule_of(gamma: np.ndarray) -> dict[str, Any]:
    """T and s of the polynomial_2 schedule with this table.

    Raises:
        PublishedError: the table is of another schedule.
    """
    if gamma.ndim == 1 and len(gamma) > 1 and np.isfinite(gamma).all():
        n_levels, precision = len(gamma) - 1, float(f"{1 / (1 + np.exp(-gamma[0])):.3g}")  # alpha_0^2 = 1 - s
        if 0 < precision < 0.5:
            error = np.abs(polynomial_2(n_levels, precision) - gamma).max() / np.abs(gamma).max()
            if error <= SCHEDULE_TOLERANCE:
                return {"n_levels": n_levels, "precision": precision}
    raise PublishedError(f"gamma.gamma {gamma.shape} is no table of the schedule polynomial_2, the only one known here")


def sizes_and_elements(cfg: RunConfig, page: ImportConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Contents of `data.json` and of the manifest's `data`, from the data set or from the page."""
    if page.sizes is None:
        try:
            data = load_data(cfg)
        except CannotStartError as error:
            raise ConfigError(
                f"data set {cfg.data.name!r} could not be had, and the sizes that published weights know come from it; "
                f"give `sizes` and `elements`, or `data: mini` if that is meant ({error})"
            ) from error
        if page.elements is not None and tuple(page.elements) != data.elements:
            raise ConfigError(f"'elements' is {page.elements}, {data.label} has {list(data.elements)}")
        sizes = {str(n): count for n, count in data.size_histogram.items()}
        return {"elements": list(data.elements), "mean_atoms": data.mean_atoms, "sizes": sizes}, data.record()
    elements = list(ELEMENTS) if page.elements is None else page.elements
    if elements != sorted(set(elements)) or not elements or not 1 <= elements[0] <= elements[-1] <= MAX_NUMBER:
        raise ConfigError(f"'elements' is {truncate(str(elements))}, expected nuclear charges in ascending order")
    try:
        counts = {int(n): int(count) for n, count in page.sizes.items()}
        facts_of({"elements": elements, "mean_atoms": 1, "sizes": {str(n): c for n, c in counts.items()}}, Path("page"))
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"'sizes' is not a mapping from numbers of atoms to molecules ({one_line(error)})") from None
    total = sum(counts.values())
    mean = sum(n * count for n, count in counts.items()) / total
    about = {"elements": elements, "mean_atoms": mean, "sizes": {str(n): counts[n] for n in sorted(counts)}}
    record = {
        "name": cfg.data.name,
        "label": f"{cfg.data.name}, not read",
        "source": "sizes and elements as given at the import",
        "fingerprint": "not read",
        **{f"n_{split}": 0 for split in ("train", "valid", "test")},
        "mean_atoms": mean,
        "elements": elements,
        "notes": [f"the data set was not read; sizes are those of {total} molecules that the user stated"],
    }
    return about, record


def summary(cfg: RunConfig, manifest: dict[str, Any]) -> str:
    """A few lines on the imported run."""
    made, n = manifest["imported"], manifest["parameters"]["total"]
    lines = [
        f"{made['file']}: weights of {made['network']}, {grouped(n)} parameters",
        f"method {cfg.method.name} on backbone {cfg.backbone.name} {cfg.backbone.size or ''}".rstrip(),
        f"schedule: T = {cfg.diffusion.n_levels}, s = {cfg.diffusion.precision:g}; {made['schedule']}",
        f"molecule sizes: {manifest['data']['label']}, {manifest['data']['source']}",
        f"not used: {', '.join(made['unused']) or 'nothing'}",
        *(f"note: {note}" for note in made["notes"]),
    ]
    return "\n".join(lines)
