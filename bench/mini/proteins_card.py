"""The data card of the embedded backbones, docs/mini_proteins.md: how they were made, and their reference rows.

python -m bench.mini.proteins_card      (needs tmtools)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.metrics.protein_rows import Row, row_values
from bench.mini.make import DATA
from bench.mini.proteins import BLUR, HELIX, LOOP, NAME, STRAND, TURN
from bench.records.inputs import read_arrays
from bench.records.store import read_json, write_atomically
from bench.registry import datasets
from bench.structures.dataset import SPLITS, grouped

CARD = Path(__file__).parents[2] / "docs" / f"{NAME}.md"


def write_card() -> None:
    """Write docs/mini_proteins.md."""
    record, arrays = read_json(DATA / f"{NAME}.json"), read_arrays(DATA / f"{NAME}.npz")
    entry = datasets[NAME]
    values = row_values(entry.build(entry.config()))
    shown = {(value.at["samples"], value.name): value for value in values}
    names = {value.name: value.label + (f", {value.unit}" if value.unit == "angstrom" else "") for value in values}
    rows = "\n".join(
        f"| {label} | {' | '.join(_number(shown[str(row), name].value) for row in Row)} |"
        for name, label in names.items()
    )
    n, kinds = arrays["n_residues"], record["kinds"]
    described = "\n".join(
        f"| {kind} | {count} | {n[arrays['kind'] == kind].min()} to {n[arrays['kind'] == kind].max()} "
        f"| {grouped(record['candidates'][kind])} |"
        for kind, count in kinds.items()
    )
    text = TEXT.format(
        n=grouped(len(n)),
        shortest=n.min(),
        longest=n.max(),
        command=record["command"],
        seed=record["seed"],
        numpy=record["versions"]["numpy"],
        helix=_pair(HELIX),
        strand=_pair(STRAND),
        turn=" and ".join(_pair(angles) for angles in TURN),
        loop=", ".join(_pair(angles) for angles in LOOP),
        blur=BLUR,
        described=described,
        splits=", ".join(f"{name} {record['in_split'][name]}" for name in SPLITS),
        sha256=record["sha256"],
        header=" | ".join(str(row) for row in Row),
        line="---:|" * len(Row),
        rows=rows,
    )
    write_atomically(CARD, text.encode())


def _pair(angles: tuple[float, float] | np.ndarray) -> str:
    return f"({angles[0]:g}, {angles[1]:g})"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


TEXT = """# The embedded data set `mini_proteins`

<!-- Written by `python -m bench.mini.proteins_card`; do not edit by hand. -->

{n} backbones of {shortest} to {longest} residues (N, C-alpha, C): ideal helices, hairpins and helix bundles. They ship
with the package, so that backbones can be generated and judged where no structures are at hand.

**No structure of it is of a protein.** All are made by geometry. Numbers obtained on it compare methods with each other
on it, and are not to be put beside published numbers; every table and figure names its data set.

## How it was made

`{command}` (seed {seed}; numpy {numpy}) makes it again, up to the last digits of the numerical libraries.

1. *Geometry.* Atoms are placed one by one with ideal bond lengths and angles (Engh & Huber, 1991) and the dihedral
   angles (φ, ψ) of their kind, with normal noise: helices {helix}°, strands {strand}° with a shift common to
   the two strands of a hairpin, the two residues of its turn {turn}°, loops of two to five residues
   that are each near one of {loop}°.
2. *Selection.* Candidates are kept if no two C-alphas three or more places apart are nearer than 4.2 Å, opposite
   C-alphas of a hairpin are 4.2 to 6.6 Å apart, and the helices of a bundle are antiparallel, with axes 7.5 to 11 Å
   apart.
3. *Noise* of {blur} Å on each coordinate, and a random rotation of each backbone.
4. *Split* by one seeded permutation: {splits}. Members of one kind resemble one another across splits.

| kind | backbones | residues | candidates drawn |
|---|---:|---:|---:|
{described}

`bench/data/mini_proteins.npz` (SHA-256 `{sha256}`) holds `n_residues`, `kind`,
`split`, and `centi_angstrom` [residues, 3, 3], N, C-alpha and C in hundredths of an angstrom.

## Rows to read against

Metrics of [metrics.md](metrics.md#protein-backbones) on C-alphas, against the test split: the validation split, its
mirror images, the same with noise, and random chains of its lengths that keep the distance of neighbours and avoid
clashes.

| | {header} |
|---|{line}
{rows}
"""


if __name__ == "__main__":
    write_card()
