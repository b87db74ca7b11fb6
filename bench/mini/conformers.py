"""Makes the embedded data set `mini_conformers`: ensembles of GFN2-xTB conformers of QM9-size molecules.

    OMP_NUM_THREADS=1 python -m bench.mini.conformers                 search, relax, prune, split, write the set
    OMP_NUM_THREADS=1 python -m bench.mini.conformers --n-graphs 20   the same for fewer molecules, into build/
    python -m bench.mini.conformers_card                              write docs/mini_conformers.md

Random graphs (`bench.mini.graphs`) get one stereoisomer each, drawn among those that can be embedded. Its conformers
are sought with ETKDGv3, preselected with MMFF94s and relaxed with GFN2-xTB; kept are those within WINDOW of the lowest
one that still have the bonds and the stereochemistry of the molecule and differ from all lower ones. Finished chunks
are kept under build/mini_conformers, so that an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers, StereoEnumerationOptions
from rdkit.Chem.rdDistGeom import EmbedMultipleConfs, ETKDGv3
from rdkit.Chem.rdForceFieldHelpers import MMFFHasAllMoleculeParams, MMFFOptimizeMoleculeConfs

from bench.metrics.pool import in_workers
from bench.metrics.rmsd import rmsd_between, with_conformers
from bench.metrics.strain import KCAL_PER_EV, MAX_GRADIENT, NoStrainError, gfn2_relaxed
from bench.mini.graphs import random_graphs
from bench.mini.make import DATA, split_codes, write_npz
from bench.records.store import write_json
from bench.structures.dataset import SPLITS
from bench.structures.identity import graph_keys
from bench.structures.structures import Structures

log = logging.getLogger(__name__)

SEED = 21
N_GRAPHS, CHUNK = 1700, 10
# QM9 has 18 atoms a molecule; those with fewer hydrogens than here have rings and little to turn
SIZE_WEIGHTS = {
    12: 0.01,
    13: 0.02,
    14: 0.04,
    15: 0.07,
    16: 0.11,
    17: 0.14,
    18: 0.17,
    19: 0.16,
    20: 0.13,
    21: 0.1,
    22: 0.05,
}
N_EMBEDDED = 40  # ETKDGv3 conformers that the search starts from
MAX_ISOMERS = 16  # stereoisomers to choose from
MMFF_ITERATIONS = 2000
MMFF_WINDOW = 10.0  # kcal/mol above the lowest MMFF94s minimum
MAX_RELAXED = 12  # of the preselected conformers, the lowest ones
WINDOW = 6.0  # kcal/mol above the lowest GFN2-xTB minimum, as in GEOM
SAME = 0.125  # angstrom, RMSD below which two conformers are one, as in CREST

COMMAND = "OMP_NUM_THREADS=1 python -m bench.mini.conformers"
NAME = "mini_conformers"


@dataclass
class Ensemble:
    """What the search found for one graph.

    Attributes:
        graph: SMILES without stereochemistry.
        smiles: canonical isomeric SMILES; '' where no conformer was found.
        positions: conformers [n, A, 3] in angstrom, atoms in the order of `with_hydrogens(smiles)`, lowest first.
        energies: [n] in kcal/mol above the lowest.
        counts: what became of the candidates.
    """

    graph: str
    smiles: str = ""
    positions: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3)))
    energies: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: Counter[str] = field(default_factory=Counter)


def with_hydrogens(smiles: str) -> Chem.Mol:
    """The molecule of a SMILES with explicit hydrogens after its heavy atoms; the order of atoms of the data set."""
    return Chem.AddHs(Chem.MolFromSmiles(smiles))


def isomers(graph: str, seed: int) -> list[str]:
    """Canonical isomeric SMILES of the stereoisomers of a graph, at most MAX_ISOMERS, in seeded random order."""
    options = StereoEnumerationOptions(unique=True, maxIsomers=MAX_ISOMERS, rand=seed)
    found = sorted(
        {Chem.MolToSmiles(Chem.RemoveHs(isomer)) for isomer in EnumerateStereoisomers(with_hydrogens(graph), options)}
    )
    return [found[k] for k in np.random.default_rng(seed).permutation(len(found))]


def isomer_of(mol: Chem.Mol, positions: np.ndarray) -> list[str]:
    """Canonical isomeric SMILES of each conformer [n, A, 3], its stereochemistry from the positions alone."""
    flat = Chem.Mol(mol, True)
    Chem.RemoveStereochemistry(flat)
    found = []
    for x in positions:
        one = with_conformers(flat, x[None])
        Chem.AssignStereochemistryFrom3D(one)
        found.append(Chem.MolToSmiles(Chem.RemoveHs(one)))
    return found


def search(graph: str, seed: int) -> Ensemble:
    """Conformers of one graph, with `seed` above 0: from seed 0, ETKDG would draw one conformer again and again.

    References: Riniker & Landrum (2015), ETKDG, doi:10.1021/acs.jcim.5b00654; Halgren (1999), MMFF94s.
    """
    found = Ensemble(graph)
    parameters = ETKDGv3()
    parameters.randomSeed = seed
    parameters.maxIterations = 20  # an impossible isomer is not tried for minutes
    for smiles in isomers(graph, seed):
        mol = with_hydrogens(smiles)
        if len(EmbedMultipleConfs(mol, N_EMBEDDED, parameters)):
            break
        found.counts["isomers that ETKDG cannot embed"] += 1
    else:
        return found
    if not MMFFHasAllMoleculeParams(mol):
        found.counts["molecules without MMFF94s parameters"] += 1
        return found
    outcome = MMFFOptimizeMoleculeConfs(mol, maxIters=MMFF_ITERATIONS, mmffVariant="MMFF94s")
    energies = np.array([energy for _, energy in outcome])
    starts = np.array([conformer.GetPositions() for conformer in mol.GetConformers()])
    found.counts["embedded"] += len(starts)
    chosen = distinct(mol, starts, energies, MMFF_WINDOW)
    found.counts["preselected"] += len(chosen)
    found.counts["preselected, but beyond the limit"] += max(0, len(chosen) - MAX_RELAXED)
    kept = _relaxed(mol, smiles, starts[chosen[:MAX_RELAXED]], found.counts)
    if not kept:
        return found
    positions, energies = np.array([x for x, _ in kept]), np.array([energy for _, energy in kept]) * KCAL_PER_EV
    lowest = distinct(mol, positions, energies, WINDOW)
    found.counts["outside of the window, or the same as a lower one"] += len(positions) - len(lowest)
    found.counts["kept"] += len(lowest)
    found.smiles, found.positions, found.energies = smiles, positions[lowest], energies[lowest] - energies.min()
    return found


def _relaxed(mol: Chem.Mol, smiles: str, starts: np.ndarray, counts: Counter[str]) -> list[tuple[np.ndarray, float]]:
    """Positions and energy in eV of the conformers that relax and stay the molecule."""
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])  # pyright: ignore[reportGeneralTypeIssues]
    kept = []
    for start in starts:
        try:
            found = gfn2_relaxed(numbers, start)
        except NoStrainError as error:
            counts[str(error)] += 1
            continue
        if len(np.unique(graph_keys(Structures.from_list([(numbers, start), (numbers, found.positions)])))) > 1:
            counts["other bonds after relaxation"] += 1
        elif isomer_of(mol, found.positions[None]) != [smiles]:
            counts["other stereochemistry after relaxation"] += 1
        else:
            kept.append((found.positions, found.energy))
    return kept


def distinct(mol: Chem.Mol, positions: np.ndarray, energies: np.ndarray, window: float) -> list[int]:
    """Conformers within `window` of the lowest energy, lowest first, each unlike all lower ones that are kept.

    They are compared by RMSD over symmetries, with the heavy atoms and the hydrogens on N and O: those on carbon tell
    nothing new, and the six orders of every methyl group would be tried.
    """
    atoms = mol.GetAtoms()
    polar = [
        atom.GetIdx()
        for atom in atoms  # pyright: ignore[reportGeneralTypeIssues] - incomplete stubs
        if atom.GetAtomicNum() == 1 and atom.GetNeighbors()[0].GetAtomicNum() in (7, 8)
    ]
    order = np.argsort(energies, kind="stable")
    order = order[energies[order] <= energies.min() + window]
    rmsd = rmsd_between(mol, positions[order], positions[order], hydrogens=polar).rmsd
    kept: list[int] = []
    for k in range(len(order)):
        if (rmsd[k, kept] >= SAME).all():
            kept.append(k)
    return order[kept].tolist()


# ---------------------------------------------------------------------- chunks on disk


def searched_chunk(task: tuple[int, list[str], Path]) -> list[Ensemble]:
    """One chunk of graphs, read from the folder of finished work if it is there already."""
    index, graphs, work = task
    path = work / f"chunk-{index:04d}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            if stored["graphs"].tolist() == graphs:
                return list(_unpacked(dict(stored)))
    with rdBase.BlockLogs():
        found = [search(graph, seed=1 + index * CHUNK + k) for k, graph in enumerate(graphs)]
    write_npz(path, _packed(found))
    log.info("graphs %d to %d searched", index * CHUNK, index * CHUNK + len(graphs) - 1)
    return found


def _packed(found: list[Ensemble]) -> dict[str, np.ndarray]:
    names = sorted({name for one in found for name in one.counts})
    return {
        "graphs": np.array([one.graph for one in found]),
        "smiles": np.array([one.smiles for one in found]),
        "shapes": np.array([one.positions.shape[:2] for one in found], np.int32),
        "positions": np.concatenate([one.positions.reshape(-1, 3) for one in found]).astype(np.float32),
        "energies": np.concatenate([one.energies for one in found]).astype(np.float32),
        "count_names": np.array(names, dtype="U80"),
        "counts": np.array([[one.counts[name] for name in names] for one in found], np.int32),
    }


def _unpacked(stored: dict[str, np.ndarray]) -> Iterator[Ensemble]:
    row, conformer = 0, 0
    for k, (n, n_atoms) in enumerate(stored["shapes"].tolist()):
        yield Ensemble(
            str(stored["graphs"][k]),
            str(stored["smiles"][k]),
            stored["positions"][row : row + n * n_atoms].reshape(n, n_atoms, 3),
            stored["energies"][conformer : conformer + n],
            Counter(dict(zip(stored["count_names"].tolist(), stored["counts"][k].tolist(), strict=True))),
        )
        row, conformer = row + n * n_atoms, conformer + n


# ---------------------------------------------------------------------- the data set


def layout(ensembles: list[Ensemble]) -> dict[str, np.ndarray]:
    """Arrays of the data set's file; each conformer is centred and turned by a random rotation of its own."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(SEED)
    mols = [with_hydrogens(one.smiles) for one in ensembles]
    n_conformers = [len(one.positions) for one in ensembles]
    rotated = []
    for one in ensembles:
        R = Rotation.random(len(one.positions), rng=rng).as_matrix()
        rotated.append(np.einsum("nij,naj->nai", R, one.positions - one.positions.mean(axis=1, keepdims=True)))
    bonds = [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), round(2 * bond.GetBondTypeAsDouble()))
        for mol in mols
        for bond in mol.GetBonds()
    ]
    split = np.array(SPLITS)[split_codes(len(mols))]
    sizes = np.array([mol.GetNumAtoms() for mol in mols])
    molecule = np.repeat(np.arange(len(mols)), n_conformers)
    return {
        "smiles": np.array([one.smiles for one in ensembles]),
        "split": split,
        "atom_ptr": _pointer(sizes),
        "atomic_numbers": np.array([atom.GetAtomicNum() for mol in mols for atom in mol.GetAtoms()], np.uint8),
        "formal_charge": np.array([atom.GetFormalCharge() for mol in mols for atom in mol.GetAtoms()], np.int8),
        "bond_ptr": _pointer([mol.GetNumBonds() for mol in mols]),
        "bonds_i_j_twice_order": np.array(bonds, np.int16),
        "conf_mol": molecule.astype(np.int32),
        "conf_ptr": _pointer(sizes[molecule]),
        "positions": np.concatenate([x.reshape(-1, 3) for x in rotated]).astype(np.float32),
        "energy_kcal": np.concatenate([one.energies for one in ensembles]).astype(np.float32),
    }


def _pointer(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


def make(work: Path, n_graphs: int, n_workers: int, target: Path) -> None:
    """Search all graphs, and write the data set and its record to `target`/mini_conformers.{npz,json}."""
    refused: Counter[str] = Counter()
    graphs = list(islice(random_graphs(SEED, refused, SIZE_WEIGHTS), n_graphs))
    tasks = [(k, graphs[start : start + CHUNK], work) for k, start in enumerate(range(0, n_graphs, CHUNK))]
    searched = [one for chunk in in_workers(searched_chunk, tasks, n_workers) for one in chunk]
    counts = sum((one.counts for one in searched), Counter())
    kept = [one for one in searched if len(one.positions)]
    arrays = layout(kept)
    path = target / f"{NAME}.npz"
    write_npz(path, arrays)
    split, of_conformer = arrays["split"], arrays["split"][arrays["conf_mol"]]
    record = {
        "command": COMMAND if n_graphs == N_GRAPHS else f"{COMMAND} --n-graphs {n_graphs}",
        "seed": SEED,
        "sha256": sha256(path.read_bytes()).hexdigest(),
        "n_molecules": len(kept),
        "n_conformers": len(of_conformer),
        "molecules_in_split": {name: int((split == name).sum()) for name in SPLITS},
        "conformers_in_split": {name: int((of_conformer == name).sum()) for name in SPLITS},
        "graphs": {
            "drawn": n_graphs + refused.total(),
            "handed_out": n_graphs,
            "refused": dict(refused.most_common()),
        },
        "candidates": dict(counts.most_common()),
        "settings": {
            "embedded": N_EMBEDDED,
            "mmff_window_kcal": MMFF_WINDOW,
            "relaxed_at_most": MAX_RELAXED,
            "max_gradient_ev_per_angstrom": MAX_GRADIENT,
            "window_kcal": WINDOW,
            "same_angstrom": SAME,
        },
        "versions": {name: version(name) for name in ("numpy", "rdkit", "scipy", "tblite")},
    }
    write_json(target / f"{NAME}.json", record)
    log.info("%d conformers of %d molecules in %s", len(of_conformer), len(kept), path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.mini.conformers", description=f"Makes the data set {NAME}.")
    build = Path("build") / NAME
    parser.add_argument("--work", type=Path, default=build, help=f"folder of finished chunks ({build})")
    parser.add_argument(
        "--n-graphs", type=int, help=f"search fewer than {N_GRAPHS} graphs, and write into the folder of chunks"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (1); the outcome is the same")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    n_graphs, target = (N_GRAPHS, DATA) if arguments.n_graphs is None else (arguments.n_graphs, arguments.work)
    try:
        make(arguments.work, n_graphs, arguments.workers, target)
    except ModuleNotFoundError as error:
        raise SystemExit(f"making {NAME} needs the package {error.name!r}; pip install -e '.[mini]'") from error


if __name__ == "__main__":
    main()
