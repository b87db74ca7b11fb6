"""Makes the embedded data set `mini_crystals`: perovskites and rock salts from composition rules and ionic radii.

    python -m bench.mini.crystals           write bench/data/mini_crystals.{npz,json}
    python -m bench.mini.crystals_card      write docs/mini_crystals.md

Compositions are neutral combinations of common ions whose Shannon radii (from pymatgen) fit the prototype. Ideal cells
follow from the radii; a small seeded strain and displacements of the cations make each crystal a little different. No
database is read, and no energy is computed: these are exercises in geometry, not materials.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pymatgen.core import Lattice, Species, Structure  # pyright: ignore[reportMissingImports] - optional

from bench.records.store import write_atomically, write_json
from bench.structures.crystal_files import reduced
from bench.structures.dataset import SPLITS

log = logging.getLogger(__name__)

SEED = 22
N_PEROVSKITES, N_ROCK_SALTS = 320, 80
SPLIT_SHARES = (0.7, 0.1, 0.2)  # train, valid, test, coded 0, 1, 2
COMMAND = "python -m bench.mini.crystals"
DATA = Path(__file__).parents[1] / "data"

# ions of common charge; radii are Shannon's, of coordination XII for A and VI for the others
A_SITES = {1: "Na K Rb Cs Ag Tl", 2: "Ca Sr Ba Pb Eu", 3: "La Ce Pr Nd Sm Eu Gd Bi"}
B_SITES = {
    1: "Li Na Cu Ag",
    2: "Mg Ca Ti V Cr Mn Fe Co Ni Cu Zn Cd Pb Sn",
    3: "Al Sc Ti V Cr Mn Fe Co Ni Ga Rh Y In",
    4: "Ti V Zr Hf Sn Ge Mn Mo Ru Rh Ir Pt Ce",
    5: "V Nb Sb Ta Mo W",
}
ANIONS = {-1: "F Cl Br I", -2: "O S Se Te"}
ROCK_SALT_CATIONS = {1: "Li Na K Rb Cs Ag Tl", 2: "Mg Ca Sr Ba Ti V Mn Fe Co Ni Zn Cd Pb Eu Yb"}
# Goldschmidt's tolerance factor and the octahedral factor of stable perovskites; radius ratio of rock salts
TOLERANCE, OCTAHEDRAL, RATIO = (0.82, 1.06), (0.38, 0.9), (0.35, 1.0)
STRAIN, SHIFT = 0.02, 0.03  # standard deviations: of lengths relative to ideal ones, of the B site in cell lengths


def radius(symbol: str, charge: int, coordination: str) -> float | None:
    """Shannon's ionic radius in angstrom, of the high-spin ion where there are two; None where there is none."""
    for spin in ("", "High Spin"):
        try:
            return float(Species(symbol, charge).get_shannon_radius(coordination, spin))
        except KeyError:
            continue
    return None


def ions(groups: dict[int, str], coordination: str) -> list[tuple[str, int, float]]:
    """Symbol, charge and radius of the ions that have one."""
    found = [
        (symbol, q, radius(symbol, q, coordination)) for q, symbols in groups.items() for symbol in symbols.split()
    ]
    return [(symbol, q, r) for symbol, q, r in found if r is not None]


def perovskites() -> Iterator[tuple[list[str], float]]:
    """Species of the sites of ABX3, and the ideal lattice constant in angstrom."""
    sites = (ions(A_SITES, "XII"), ions(B_SITES, "VI"), ions(ANIONS, "VI"))
    for (A, q_A, r_A), (B, q_B, r_B), (X, q_X, r_X) in itertools.product(*sites):
        tolerance = (r_A + r_X) / (2**0.5 * (r_B + r_X))
        fits = TOLERANCE[0] <= tolerance <= TOLERANCE[1] and OCTAHEDRAL[0] <= r_B / r_X <= OCTAHEDRAL[1]
        if q_A + q_B + 3 * q_X == 0 and A != B and fits:
            yield [A, B, X, X, X], max(2 * (r_B + r_X), 2**0.5 * (r_A + r_X))


def rock_salts() -> Iterator[tuple[list[str], float]]:
    """Species of the sites of MX, and the ideal lattice constant of the cubic cell in angstrom."""
    for (M, q_M, r_M), (X, q_X, r_X) in itertools.product(ions(ROCK_SALT_CATIONS, "VI"), ions(ANIONS, "VI")):
        if q_M + q_X == 0 and RATIO[0] <= r_M / r_X <= RATIO[1]:
            yield [M, X], 2 * (r_M + r_X)


PEROVSKITE = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
ROCK_SALT = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])


def distorted(species: list[str], a: float, rng: np.random.Generator) -> Structure:
    """One crystal: strained along its axes, a perovskite's B site off its centre along one of them."""
    strain = np.exp(STRAIN * rng.normal(size=3))
    if len(species) == 2:
        rhombohedral = 0.5 * a * (np.ones((3, 3)) - np.eye(3))
        return Structure(Lattice(rhombohedral * strain[:1]), species, ROCK_SALT)
    kept = rng.integers(3)  # cubic, tetragonal or orthorhombic
    lengths = a * (strain if kept == 2 else np.array([strain[0], strain[0], strain[kept]]))
    fractions = PEROVSKITE.copy()
    fractions[1, 2] += SHIFT * rng.normal() * (kept > 0)
    return Structure(Lattice(np.diag(lengths)), species, fractions)


def make() -> dict[str, np.ndarray]:
    """All arrays of the data set: formats as in `bench.structures.crystal_files`, and `split` [M]."""
    rng, made, names = np.random.default_rng(SEED), [], []
    for what, some, wanted in (
        ("perovskite", list(perovskites()), N_PEROVSKITES),
        ("rocksalt", list(rock_salts()), N_ROCK_SALTS),
    ):
        chosen = np.sort(rng.permutation(len(some))[:wanted])
        log.info("%s: %d of %d compositions", what, len(chosen), len(some))
        for k in chosen:
            species, a = some[k]
            crystal = distorted(species, a, rng)
            made.append((crystal.composition.reduced_formula, *reduced(crystal)))
            names.append(f"{what}-{crystal.composition.reduced_formula}")
    sizes = [len(numbers) for _, numbers, _, _ in made]
    edges = np.cumsum([round(share * len(made)) for share in SPLIT_SHARES[:2]])
    split = np.zeros(len(made), np.uint8)
    for code, some in enumerate(np.split(rng.permutation(len(made)), edges)):
        split[some] = code
    return {
        "cell": np.stack([parameters for _, _, parameters, _ in made]).astype(np.float32),
        "ptr": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        "atomic_numbers": np.concatenate([numbers for _, numbers, _, _ in made]).astype(np.uint8),
        "frac": np.concatenate([fractions for _, _, _, fractions in made]).astype(np.float32),
        "material_id": np.array(names),
        "formula": np.array([formula for formula, _, _, _ in made]),
        "split": split,
    }


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arrays = make()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType] - its stub has no names for arrays
    write_atomically(DATA / "mini_crystals.npz", buffer.getvalue())
    kinds = [str(name).split("-")[0] for name in arrays["material_id"]]
    record = {
        "command": COMMAND,
        "seed": SEED,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "versions": {"numpy": version("numpy"), "pymatgen-core": version("pymatgen-core")},
        "compositions": {"perovskite": len(list(perovskites())), "rocksalt": len(list(rock_salts()))},
        "crystals": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "splits": {name: int((arrays["split"] == code).sum()) for code, name in enumerate(SPLITS)},
    }
    write_json(DATA / "mini_crystals.json", record)
    log.info("%s", record)


if __name__ == "__main__":
    main()
