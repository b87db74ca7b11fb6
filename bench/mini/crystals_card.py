"""Writes docs/mini_crystals.md: how the embedded crystals are made, and the rows that match rates are read against.

python -m bench.mini.crystals_card                     the embedded set alone
CRYSTALS_DIR=... python -m bench.mini.crystals_card    Perov-5 beside it, where the folder has it
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from bench.metrics.crystal_rows import Row, row_values
from bench.mini import crystals as made_by
from bench.records.store import read_json, write_atomically
from bench.registry import datasets
from bench.structures.dataset import DataSet
from bench.structures.lattices import volumes

log = logging.getLogger(__name__)

PAGE = Path(__file__).parents[2] / "docs" / "mini_crystals.md"
COMMAND = "python -m bench.mini.crystals_card"
N_JUDGED = 500  # test crystals of a data set, at most
METRICS = ("match_rate", "match_rate_valid", "rmse", "plausible", "balanced")
OUTSIDE = "perov5"

TEXT = """\
# The embedded data set `mini_crystals`

<!-- Written by `{command}`; do not edit by hand. -->

{n} crystals: {perovskites} perovskites ABX₃ and {rock_salts} rock salts MX. It ships with the package, so that
crystal structure prediction can be tried where no data are at hand.

**Its crystals are exercises in geometry, not materials.** Cells follow from ionic radii; nothing was relaxed, no energy
was computed, no database was read. Numbers obtained on it compare methods with each other on it.

## How it was made

`{made}` (seed {seed}; {versions}) makes it again.

1. *Compositions.* Neutral combinations of common ions whose Shannon radii (from pymatgen) fit the prototype: for
   perovskites Goldschmidt's tolerance factor in [{t_low}, {t_high}] and r_B / r_X in [{o_low}, {o_high}], for rock
   salts r_M / r_X in [{r_low}, {r_high}]. {c_perovskites} and {c_rock_salts} compositions fit; {perovskites} and
   {rock_salts} were drawn.
2. *Ideal cells.* The larger of 2 (r_B + r_X) and √2 (r_A + r_X) for perovskites, 2 (r_M + r_X) for rock salts, in their
   primitive cell.
3. *Distortions.* Each length is strained by {strain:.0%} (standard deviation). A third of the perovskites stay
   cubic, a third become tetragonal, a third orthorhombic; in the latter two the B site leaves its place along c by
   {shift:.0%} of the cell.
4. *Reduction* to the Niggli cell, standard orientation.
5. *Split* by one seeded permutation: {splits}. No composition occurs twice.

`bench/data/mini_crystals.npz` (SHA-256 `{sha256}`) has the layout of `bench/structures/crystal_files.py`, and `split`
(0 train, 1 valid, 2 test).

| | {heads} |
|---|{rules}
{facts}

## Rows to read against

Of {judged}, judged as samples are (`bench/metrics/crystals.py`, `bench/metrics/crystal_rows.py`); rates in %.

{rows}
"""


def outside() -> DataSet | None:
    """Perov-5, where CRYSTALS_DIR has it."""
    if "CRYSTALS_DIR" not in os.environ:
        log.warning("CRYSTALS_DIR is not set: no Perov-5 on the page")
        return None
    entry = datasets["crystals"]
    return entry.build(entry.config(of=OUTSIDE))


def facts_of(data: DataSet) -> dict[str, str]:
    """Figures that stand beside one another."""
    cells = [part.cells for part in data.splits.values() if part.cells is not None]
    sizes = np.concatenate([part.n_atoms for part in data.splits.values()])
    per_site = np.concatenate([volumes(some) for some in cells]) / sizes
    q1, median, q3 = np.percentile(per_site, [25, 50, 75])
    return {
        "crystals, train / valid / test": " / ".join(str(len(part)) for part in data.splits.values()),
        "elements": str(len(data.elements)),
        "sites, least to most": f"{sizes.min()} to {sizes.max()}",
        "volume per site in Å³, quartiles": f"{q1:.1f} / {median:.1f} / {q3:.1f}",
    }


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(name: str, data: DataSet) -> str:
    """The rows of one data set."""
    test = data.test.select(np.random.default_rng(0).permutation(len(data.test))[:N_JUDGED])
    found = {
        (value.at["samples"], value.name): value for value in row_values(test, data.train) if value.name in METRICS
    }
    labels = [found[str(Row.DATA), metric].label for metric in METRICS]

    def shown(row: Row, metric: str) -> str:
        value = found[str(row), metric]
        if value.value is None:
            return "none"
        return f"{100 * value.value:.1f}" if value.unit == "fraction" else f"{value.value:.3f}"

    rows = [[str(row), *(shown(row, metric) for metric in METRICS)] for row in Row]
    return f"*{name}*, {len(test)} test crystals\n\n{table(['samples', *labels], rows)}"


def page() -> str:
    record = read_json(made_by.DATA / "mini_crystals.json")
    entry = datasets["mini_crystals"]
    sets = {"mini_crystals": entry.build(entry.config())}
    if (other := outside()) is not None:
        sets[f"Perov-5 ({other.label.split(', ')[1].split(':')[0]})"] = other
    facts = {name: facts_of(data) for name, data in sets.items()}
    keys = next(iter(facts.values()))
    return TEXT.format(
        command=COMMAND,
        made=record["command"],
        seed=record["seed"],
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        n=sum(record["crystals"].values()),
        perovskites=record["crystals"]["perovskite"],
        rock_salts=record["crystals"]["rocksalt"],
        c_perovskites=record["compositions"]["perovskite"],
        c_rock_salts=record["compositions"]["rocksalt"],
        t_low=made_by.TOLERANCE[0],
        t_high=made_by.TOLERANCE[1],
        o_low=made_by.OCTAHEDRAL[0],
        o_high=made_by.OCTAHEDRAL[1],
        r_low=made_by.RATIO[0],
        r_high=made_by.RATIO[1],
        strain=made_by.STRAIN,
        shift=made_by.SHIFT,
        splits=", ".join(f"{name} {n}" for name, n in record["splits"].items()),
        sha256=record["sha256"],
        heads=" | ".join(facts),
        rules="---:|" * len(facts),
        facts="\n".join(f"| {key} | {' | '.join(of[key] for of in facts.values())} |" for key in keys),
        judged=f"at most {N_JUDGED} test crystals of each set",
        rows="\n\n".join(rows_of(name, data) for name, data in sets.items()),
    )


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_atomically(PAGE, page().encode())
    log.info("wrote %s", PAGE)


if __name__ == "__main__":
    main()
