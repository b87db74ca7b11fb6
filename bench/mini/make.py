"""Makes the embedded data set `mini` and its data card.

    OMP_NUM_THREADS=1 python -m bench.mini.make            relax, filter, split, write bench/data/mini.{npz,json}
    QM9_DIR=... python -m bench.mini.card                  write docs/mini.md and docs/figures/mini.png

Random graphs (bench.mini.graphs) get an ETKDG conformer and are relaxed with GFN2-xTB; a molecule is kept if EDM's
distance rule finds exactly the bonds of its graph in the relaxed geometry, with every valence filled. Relaxed
chunks are kept under build/mini, so an interrupted run resumes. Positions are in angstrom, with their mean at the
origin and in a Haar-random orientation: ETKDG aligns every molecule with x, which an asymmetric method could learn.
"""

from __future__ import annotations

import argparse
import io
import logging
from collections import Counter
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem.rdDistGeom import EmbedMolecule, ETKDGv3

from bench.metrics.molecules import evaluate_molecules
from bench.metrics.strain import MAX_GRADIENT, NoStrainError, gfn2_relaxed
from bench.mini.graphs import MAX_ATOMS, random_graphs
from bench.records.store import write_atomically, write_json
from bench.structures.dataset import SPLITS
from bench.structures.structures import Structures

log = logging.getLogger(__name__)

SEED = 20
N_GRAPHS, N_MOLECULES, CHUNK = 5700, 5000, 100
SPLIT_SHARES = (0.8, 0.1, 0.1)  # train, valid, test, coded 0, 1, 2

COMMAND = "OMP_NUM_THREADS=1 python -m bench.mini.make"  # with more threads the last digits differ
DATA = Path(__file__).parents[1] / "data"


def relax(smiles: str, seed: int) -> tuple[np.ndarray, np.ndarray] | str:
    """Nuclear charges [n] and GFN2-xTB geometry [n, 3] in angstrom of a molecule, or the reason for its failure.

    References: Riniker & Landrum (2015), ETKDG; Bannwarth, Ehlert & Grimme (2019), GFN2-xTB.
    """
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    embedding = ETKDGv3()
    embedding.randomSeed = seed
    if EmbedMolecule(mol, embedding) < 0:
        return "no ETKDG conformer"
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    try:
        relaxed = gfn2_relaxed(numbers, mol.GetConformer().GetPositions()).positions
    except NoStrainError as error:
        return str(error)
    return numbers, (relaxed - relaxed.mean(0)).astype(np.float32)


def relaxed_chunk(index: int, smiles: list[str], work: Path) -> dict[str, np.ndarray]:
    """One chunk of relaxed molecules, read from `work` if it is there already.

    Returns:
        Arrays smiles [n], reason [n] ('' where relaxed), num_atoms [n], charges [n, 14] and positions [n, 14, 3].
    """
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
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomically(path, content.getvalue())


def split_codes(n: int) -> np.ndarray:
    """0 (train), 1 (valid) or 2 (test) for each of n molecules [n], from a seeded permutation."""
    ends = np.cumsum([round(share * n) for share in SPLIT_SHARES[:-1]])
    codes = np.zeros(n, np.uint8)
    for code, part in enumerate(np.split(np.random.default_rng(SEED).permutation(n), ends)):
        codes[part] = code
    return codes


def has_bonds_of_graph(structures: Structures, smiles: list[str]) -> np.ndarray:
    """Whether EDM's rule finds the bonds of the graph, and only stable atoms, in each geometry [M]."""
    graphs = [Chem.MolToSmiles(Chem.AddHs(Chem.MolFromSmiles(one))) for one in smiles]
    found = evaluate_molecules(structures, n_workers=1)
    return found.molecule_stable & (np.array(found.smiles, dtype=object) == np.array(graphs, dtype=object))


def randomly_rotated(positions: np.ndarray) -> np.ndarray:
    """Positions [M, 14, 3], each molecule rotated by its own seeded Haar-random rotation."""
    from scipy.spatial.transform import Rotation

    quaternions = np.random.default_rng(SEED).normal(size=(len(positions), 4))  # normalised: uniform on the sphere
    R = Rotation.from_quat(quaternions).as_matrix()
    return np.einsum("mij,mnj->mni", R, positions).astype(np.float32)


def make(work: Path) -> None:
    """Grow, relax, filter and split; writes mini.npz and mini.json beside the package's data sets."""
    refused: Counter[str] = Counter()
    smiles = list(islice(random_graphs(SEED, refused), N_GRAPHS))
    log.info("%d graphs of %d drawn", len(smiles), len(smiles) + refused.total())
    chunks = []
    for start in range(0, N_GRAPHS, CHUNK):
        chunks.append(relaxed_chunk(start // CHUNK, smiles[start : start + CHUNK], work))
        log.info("%d of %d relaxed", start + CHUNK, N_GRAPHS)
    stacked = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
    failed = Counter(reason for reason in stacked["reason"].tolist() if reason)
    relaxed = {key: array[stacked["reason"] == ""] for key, array in stacked.items()}
    relaxed["positions"] = randomly_rotated(relaxed["positions"])
    structures = Structures.from_padded(*(relaxed[key] for key in ("num_atoms", "charges", "positions")))
    same = has_bonds_of_graph(structures, relaxed["smiles"].tolist())
    kept = np.flatnonzero(same)[:N_MOLECULES]
    arrays = {key: relaxed[key][kept] for key in ("num_atoms", "charges", "positions")}
    arrays["split"] = split_codes(len(kept))
    write_npz(DATA / "mini.npz", arrays)
    codes = arrays["split"].tolist()
    n_drawn = len(smiles) + refused.total()
    record = {
        "command": COMMAND,
        "seed": SEED,
        "sha256": sha256((DATA / "mini.npz").read_bytes()).hexdigest(),
        "n_molecules": len(kept),
        "n_in_split": {name: codes.count(code) for code, name in enumerate(SPLITS)},
        "graphs": {"drawn": n_drawn, "handed_out": len(smiles), "refused": dict(refused.most_common())},
        "relaxation": {
            "converged": len(structures),
            "failed": dict(failed),
            "max_gradient_ev_per_angstrom": MAX_GRADIENT,
        },
        "bonds": {"as_in_graph": int(same.sum()), "otherwise": int((~same).sum()), "kept": len(kept)},
        "stability_before_this_filter": evaluate_molecules(structures, n_workers=1).summary(),
        "versions": {name: version(name) for name in ("numpy", "rdkit", "scipy", "tblite")},
    }
    write_json(DATA / "mini.json", record)
    log.info("%d molecules in %s", len(kept), DATA / "mini.npz")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.mini.make", description="Makes the embedded data set mini.")
    parser.add_argument("--work", type=Path, default=Path("build/mini"), help="folder of relaxed chunks (build/mini)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        make(arguments.work)
    except ModuleNotFoundError as error:
        raise SystemExit(f"making mini needs the package {error.name!r}; pip install -e '.[mini]'") from error


if __name__ == "__main__":
    main()
