"""A small study made up for the tests of `analysis`: schema-valid records, numbers invented and simple.

Methods: `bare` (no guarantee), `turned` (at optimum) and `turned_later` (in law; uses the weights of `turned`) on dit,
`strict` (exact) on egnn, and the cell `strict` on dit, which is skipped. Two seeds. One run failed, one is not
evaluated.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem

from bench.records.schema import EVALUATION, MANIFEST, SCHEMA_VERSION, STEP, check
from bench.records.store import read_json, write_json

GUARANTEES = {"bare": "none", "turned": "at_optimum", "turned_later": "in_law", "strict": "exact"}
# (method, backbone, seed) -> atom stability, molecule stability
SCORES = {
    ("bare", "dit", 0): (0.70, 0.10),
    ("bare", "dit", 1): (0.72, 0.14),
    ("turned", "dit", 0): (0.80, 0.30),
    ("turned", "dit", 1): (0.821, 0.35),
    ("turned_later", "dit", 0): (0.81, 0.32),
    ("strict", "egnn", 0): (0.90, 0.50),
}
N_STEPS = 400
LABELS = {
    "atom_stability": "Atom stability",
    "molecule_stability": "Molecule stability",
    "validity": "Validity",
    "uniqueness": "Uniqueness of valid",
    "novelty": "Novelty of unique",
    "valid_and_unique": "Valid and unique",
}
COSTS = {  # name -> key of the manifest's cost, label, unit
    "step_seconds": ("step_seconds", "Training step", "s"),
    "train_seconds": ("train_seconds", "Training", "s"),
    "sample_seconds_per_molecule": ("sample_seconds_per_molecule", "Sampling", "s/molecule"),
    "peak_memory": ("peak_memory_mb", "Peak memory", "MB"),
}


def manifest(
    method: str, backbone: str, seed: int, minute: int, status: str = "done", reason: str | None = None
) -> dict:
    trains = method != "turned_later"
    return {
        "schema": SCHEMA_VERSION,
        "run": run_name(method, backbone, seed),
        "study": "made_up",
        "status": status,
        "reason": reason,
        "method": {"name": method},
        "backbone": {"name": backbone, "size": "small", "width": 64},
        "seed": seed,
        "guarantee": GUARANTEES[method],
        "n_steps": N_STEPS if trains else 0,
        "weights_from": None if trains else run_name("turned", backbone, seed),
        "data": {
            "name": "invented",
            "label": "Invented molecules, at most 14 atoms",
            "source": "test",
            "fingerprint": "0123456789abcdef",
            "n_train": 1000,
            "n_valid": 100,
            "n_test": 100,
            "mean_atoms": 12.5,
            "elements": [1, 6, 7, 8],
            "notes": ["nothing measured"],
        },
        "code": {"version": "0.1.0", "commit": "a" * 40, "dirty": False},
        "environment": {
            "device": "CPU: none",
            "dtype": "float32",
            "n_threads": 1,
            "compile": "eager",
            "versions": {"torch": "2.0", "rdkit": "2024.3"},
            "platform": "test",
        },
        "parameters": {"backbone": 150_000, "method": 500 * seed, "total": 150_000 + 500 * seed},
        "cost": {
            "sample_seconds_per_molecule": 0.05 if backbone == "dit" else 0.11,
            "sample_network_calls": 101,
            "peak_memory_mb": 700.0 + seed,
            **(
                {"step_seconds": 0.02 if backbone == "dit" else 0.045, "train_seconds": 120.0 + 6 * seed}
                if trains
                else {}
            ),
        },
        "created": f"2026-01-01T00:{minute:02d}:00+00:00",
        "updated": f"2026-01-01T01:{minute:02d}:00+00:00",
    }


def evaluation(method: str, backbone: str, seed: int, atom: float, molecule: float) -> dict:
    costs = manifest(method, backbone, seed, 0)
    valid = min(1.0, molecule + 0.3)
    interval = {"atom_stability": 0.004, "molecule_stability": 0.03}
    found = {"atom_stability": atom, "molecule_stability": molecule, "validity": valid, "uniqueness": 0.98}
    found |= {"novelty": 0.75, "valid_and_unique": 0.98 * valid}
    values = [
        fraction(name, value)
        | ({"low": value - interval[name], "high": value + interval[name]} if name in interval else {})
        for name, value in found.items()
    ]
    bound = {"upper_bound": True} if GUARANTEES[method] == "in_law" else {}
    nll = {"name": "nll", "label": "NLL", "value": -30.0 - seed - 10 * atom, "unit": "nats/molecule", "better": "lower"}
    values.append(nll | {"kind": "likelihood", "sem": 0.5, "definition": "variational bound"} | bound)
    for name, (key, label, unit) in COSTS.items():
        if key in costs["cost"]:
            cost = {"name": name, "label": label, "value": costs["cost"][key], "unit": unit, "better": "lower"}
            values.append(cost | {"kind": "cost"})
    count = {"name": "parameters", "label": "Parameters", "value": costs["parameters"]["total"], "unit": "count"}
    values.append(count | {"kind": "cost"})
    term = {
        "name": "nll_size",
        "label": "NLL, size",
        "value": 1.5 + seed,
        "unit": "nats/molecule",
        "kind": "diagnostic",
    }
    values.append(term)
    data = {"atom_stability": 0.993, "molecule_stability": 0.957, "validity": 0.978, "uniqueness": 1.0}
    data |= {"novelty": None, "valid_and_unique": 0.978}
    return {
        "schema": SCHEMA_VERSION,
        "run": run_name(method, backbone, seed),
        "step": N_STEPS,
        "weights": "ema",
        "n_sampling_steps": 100,
        "sampling_seed": 0,
        "n_samples": 1000,
        "values": values,
        "data_values": [fraction(name, value) for name, value in data.items()],
        "versions": {"rdkit": "2024.3"},
    }


def fraction(name: str, value: float | None) -> dict:
    """A value as a record holds it."""
    return {"name": name, "label": LABELS[name], "value": value, "unit": "fraction", "better": "higher"}


def steps(method: str, seed: int) -> list[dict]:
    rng = np.random.default_rng(sum(map(ord, method)) + seed)
    floor = {"bare": 0.10, "turned": 0.08, "strict": 0.05}[method]
    out = []
    for step in range(20, N_STEPS + 1, 20):
        loss = (floor + 0.4 / (1 + step / 15)) * float(np.exp(0.04 * rng.standard_normal()))
        line = {"step": step, "seconds": step * (0.045 if method == "strict" else 0.02), "loss": loss, "lr": 1e-3}
        if step % 100 == 0:
            line["valid_loss"] = floor + 0.4 / (1 + step / 15)
        out.append(line)
    return out


def run_name(method: str, backbone: str, seed: int) -> str:
    return f"{method}-{backbone}-s{seed}-0000000000"


def write_study(folder: Path, published: bool = False) -> Path:
    """Write the study in the live layout (steps.jsonl) or the published one (curves.csv)."""
    cells = [
        (m, b, s)
        for m, b in (("bare", "dit"), ("turned", "dit"), ("turned_later", "dit"), ("strict", "egnn"))
        for s in (0, 1)
    ]
    for minute, (method, backbone, seed) in enumerate(cells):
        path = folder / run_name(method, backbone, seed)
        failed = (method, seed) == ("strict", 1)
        record = manifest(
            method, backbone, seed, minute, *(("failed", "loss is not finite at step 120") if failed else ())
        )
        write_json(path / "manifest.json", record, MANIFEST)
        if (method, backbone, seed) in SCORES:
            write_json(
                path / "eval.json", evaluation(method, backbone, seed, *SCORES[method, backbone, seed]), EVALUATION
            )
            write_drawn(path / "drawn.sdf")
        if method != "turned_later":
            write_steps(path, steps(method, seed), published)
    skipped = manifest("strict", "dit", 0, 30, "skipped", "method 'strict' needs an equivariant backbone, got 'dit'")
    write_json(folder / skipped["run"] / "manifest.json", skipped, MANIFEST)
    return folder


def write_steps(path: Path, lines: list[dict], published: bool) -> None:
    for line in lines:
        check(line, STEP, str(path))
    if published:
        pd.DataFrame(lines).to_csv(path / "curves.csv", index=False)
    else:
        (path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit(path: Path, **changes: object) -> None:
    """Change keys of a record; 'code.dirty' is written code__dirty."""
    record = read_json(path)
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = record
        for parent in parents:
            target = target[parent]
        target[last] = copy.deepcopy(value)
    path.write_text(json.dumps(record))


def edit_value(path: Path, name: str, key: str = "values", **changes: object) -> None:
    """Change keys of a value of eval.json, or add a value with these keys; `at` tells apart values of one name."""
    record = read_json(path)
    at = changes.get("at", {})
    value = next((v for v in record[key] if (v["name"], v.get("at", {})) == (name, at)), None)
    if value is None:
        value = {"name": name}
        record[key].append(value)
    value |= copy.deepcopy(changes)
    path.write_text(json.dumps(record))


def write_drawn(
    file: Path, smiles: tuple[str, ...] = ("CCO", "c1ccoc1", "CC(=O)N", "C#CC1CC1", "CC.O"), broken: bool = True
) -> None:
    """Molecules with coordinates; with `broken`, also a carbon of five bonds, a bare carbon and a bridging hydrogen."""
    molecules = []
    for word in smiles:
        molecule = Chem.AddHs(Chem.MolFromSmiles(word))
        AllChem.EmbedMolecule(molecule, randomSeed=1)
        molecules.append(molecule)
    if broken:
        molecules[1:1] = [
            _mol([6, 1, 1, 1, 1, 1], [(0, i) for i in range(1, 6)]),
            _mol([6, 1, 6, 1], [(0, 1), (1, 2), (2, 3)]),
        ]
    RDLogger.DisableLog("rdApp.*")
    file.write_text("".join(Chem.MolToMolBlock(m, kekulize=False) + "$$$$\n" for m in molecules))


def _mol(numbers: list[int], bonds: list[tuple[int, int]]) -> Chem.Mol:
    editable = Chem.RWMol()
    for number in numbers:
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)
        editable.AddAtom(atom)
    for i, j in bonds:
        editable.AddBond(i, j, Chem.BondType.SINGLE)
    conformer = Chem.Conformer(len(numbers))
    for i in range(len(numbers)):
        conformer.SetAtomPosition(i, (1.1 * np.cos(i), 1.1 * np.sin(i), 0.3 * i))
    editable.AddConformer(conformer)
    molecule = editable.GetMol()
    molecule.UpdatePropertyCache(strict=False)
    return molecule
