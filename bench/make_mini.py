"""Makes the embedded data set `mini` and its data card.

    OMP_NUM_THREADS=1 python -m bench.make_mini            relax, filter, split, write bench/data/mini.{npz,json}
    QM9_DIR=... python -m bench.make_mini --card           write docs/mini.md and docs/figures/mini.png

Random graphs (bench.data.random_graphs) get an ETKDG conformer and are relaxed with GFN2-xTB; a molecule is kept when
EDM's distance rule finds in the relaxed geometry exactly the bonds of its graph, and every valence filled. Relaxed
chunks are kept under build/mini, so that a run cut short goes on where it was. Positions are in angstrom, with the
centre of mass of the nuclei (unit weights) at the origin.
"""

from __future__ import annotations

import argparse
import io
import logging
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem import AllChem

from bench.data.random_graphs import MAX_ATOMS, random_graphs
from bench.records import write_atomically, write_json

log = logging.getLogger(__name__)

SEED = 20
N_GRAPHS, N_MOLECULES, CHUNK = 6500, 5000, 100
SPLIT_SHARES = (0.8, 0.1, 0.1)  # train, valid, test: written as 0, 1, 2
MAX_GRADIENT = 0.02  # eV/angstrom, largest component at which a geometry counts as relaxed
MAX_ITERATIONS = 300
ANGSTROM_PER_BOHR, EV_PER_HARTREE = 0.529177210903, 27.211386245988
CURVATURE = 30.0  # eV/angstrom^2, about that of a bond; first guess of the Hessian

DATA = Path(__file__).parent / "data"
WORK = Path("build/mini")


def relax(smiles: str, seed: int) -> tuple[np.ndarray, np.ndarray] | str:
    """Nuclear charges [n] and GFN2-xTB geometry [n, 3] in angstrom of a molecule, or the reason why there is none.

    References: Riniker & Landrum (2015), ETKDG; Bannwarth, Ehlert & Grimme (2019), GFN2-xTB.
    """
    from scipy.optimize import minimize
    from tblite.exceptions import TBLiteRuntimeError
    from tblite.interface import Calculator

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    options = AllChem.ETKDGv3()
    options.randomSeed = seed
    if AllChem.EmbedMolecule(mol, options) < 0:
        return "no ETKDG conformer"
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    start = mol.GetConformer().GetPositions()
    calculator = Calculator("GFN2-xTB", numbers, start / ANGSTROM_PER_BOHR)
    calculator.set("verbosity", 0)
    state = None

    def energy_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal state
        calculator.update(positions=x.reshape(-1, 3) / ANGSTROM_PER_BOHR)
        state = calculator.singlepoint(state)  # starts from the density of the last geometry
        return state.get("energy") * EV_PER_HARTREE, state.get("gradient").ravel() * EV_PER_HARTREE / ANGSTROM_PER_BOHR

    options = {"gtol": MAX_GRADIENT, "maxiter": MAX_ITERATIONS, "hess_inv0": np.eye(start.size) / CURVATURE}
    try:
        found = minimize(energy_and_gradient, start.ravel(), jac=True, method="BFGS", options=options)
    except TBLiteRuntimeError:
        return "no self-consistent charges"
    if np.abs(found.jac).max() > MAX_GRADIENT:
        return "not relaxed"
    return numbers, (found.x.reshape(-1, 3) - found.x.reshape(-1, 3).mean(0)).astype(np.float32)


def relaxed_chunk(index: int, smiles: list[str], work: Path) -> dict[str, np.ndarray]:
    """Padded arrays smiles, reason ('' where relaxed), num_atoms, charges and positions of one chunk, from `work` if there."""
    path = work / f"chunk-{index:04d}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            if stored["smiles"].tolist() == smiles:
                return dict(stored)
    chunk = {
        "smiles": np.array(smiles),
        "reason": np.full(len(smiles), "", dtype="U40"),
        "num_atoms": np.zeros(len(smiles), np.uint8),
        "charges": np.zeros((len(smiles), MAX_ATOMS), np.uint8),
        "positions": np.zeros((len(smiles), MAX_ATOMS, 3), np.float32),
    }
    for i, one in enumerate(smiles):
        relaxed = relax(one, seed=SEED + index * CHUNK + i)
        if isinstance(relaxed, str):
            chunk["reason"][i] = relaxed
            continue
        numbers, positions = relaxed
        n = chunk["num_atoms"][i] = len(numbers)
        chunk["charges"][i, :n], chunk["positions"][i, :n] = numbers, positions
    write_npz(path, chunk)
    return chunk


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    refused: Counter[str] = Counter()
    smiles = list(islice(random_graphs(SEED, refused), N_GRAPHS))
    log.info("graphs done")
    for index in range(0, N_GRAPHS // CHUNK):
        chunk = relaxed_chunk(index, smiles[index * CHUNK : (index + 1) * CHUNK], WORK)
        log.info("chunk %d %s", index, Counter(chunk["reason"].tolist()))
