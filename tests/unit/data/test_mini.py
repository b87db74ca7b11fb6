"""The embedded data set as shipped, and the graphs that it is made from."""

import hashlib
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from rdkit import Chem

from bench.data import mini
from bench.metrics.molecules import MoleculeEvaluation, evaluate_molecules
from bench.mini.card import CARD, FIGURE, Description
from bench.mini.graphs import FORBIDDEN, MAX_ATOMS, PATTERNS, random_graphs, refusal
from bench.mini.make import has_bonds_of_graph, split_codes
from bench.records.store import read_json
from bench.structures.dataset import DataSet
from bench.structures.structures import Structures

CLASH_ANGSTROM = 0.85  # no two nuclei of these elements come closer in a molecule at rest


@pytest.fixture(scope="module")
def data() -> DataSet:
    return mini.load(mini.MiniConfig())


@pytest.fixture(scope="module")
def everything(data: DataSet) -> Structures:
    return Structures.concatenate(list(data.splits.values()))


@pytest.fixture(scope="module")
def evaluation(everything: Structures) -> MoleculeEvaluation:
    return evaluate_molecules(everything, n_workers=1)


def closest(structures: Structures) -> float:
    """Smallest distance of two atoms of one molecule, in angstrom."""
    return min(
        np.linalg.norm(x[:, None] - x, axis=-1)[np.triu_indices(len(x), 1)].min() for _, x in structures if len(x) > 1
    )


def test_set_has_the_promised_size_and_elements(everything: Structures) -> None:
    assert len(everything) >= 4000
    assert everything.n_atoms.max() <= 14
    assert set(np.unique(everything.numbers)) == {1, 6, 7, 8, 9}
    assert mini.PATH.stat().st_size < 4_000_000


def test_file_has_the_documented_arrays() -> None:
    with np.load(mini.PATH, allow_pickle=False) as stored:
        n = len(stored["num_atoms"])
        kinds = {key: (stored[key].dtype, stored[key].shape) for key in stored.files}
        assert kinds == {
            "num_atoms": (np.dtype(np.uint8), (n,)),
            "charges": (np.dtype(np.uint8), (n, MAX_ATOMS)),
            "positions": (np.dtype(np.float32), (n, MAX_ATOMS, 3)),
            "split": (np.dtype(np.uint8), (n,)),
        }
        padding = np.arange(MAX_ATOMS) >= stored["num_atoms"][:, None]
        assert np.array_equal(stored["charges"] == 0, padding)
        assert not stored["positions"][padding].any()


def test_provenance_is_of_the_shipped_file(data: DataSet) -> None:
    record = read_json(mini.PATH.with_suffix(".json"))
    assert record["sha256"] == hashlib.sha256(mini.PATH.read_bytes()).hexdigest()
    assert record["n_in_split"] == {name: len(split) for name, split in data.splits.items()}
    graphs = record["graphs"]
    assert graphs["drawn"] == graphs["handed_out"] + sum(graphs["refused"].values())


def test_card_is_of_the_shipped_file() -> None:
    assert read_json(mini.PATH.with_suffix(".json"))["sha256"] in CARD.read_text()
    assert FIGURE.read_bytes().startswith(b"\x89PNG")


def test_positions_are_finite_and_no_atoms_clash(everything: Structures) -> None:
    assert np.isfinite(everything.positions).all()
    assert closest(everything) > CLASH_ANGSTROM


def test_clash_check_sees_a_clash(everything: Structures) -> None:
    numbers, positions = everything[0]
    moved = positions.copy()
    moved[-1] = moved[0] + [0.5, 0, 0]
    assert closest(Structures.from_list([(numbers, moved)])) < CLASH_ANGSTROM


def test_atoms_are_stable_under_the_distance_rule(evaluation: MoleculeEvaluation) -> None:
    assert evaluation.stable_atoms.sum() >= 0.98 * evaluation.n_atoms.sum()
    assert evaluation.valid.mean() >= 0.98


def test_stretched_molecules_are_not_stable(everything: Structures) -> None:
    stretched = Structures(everything.numbers, 1.15 * everything.positions, everything.ptr)
    found = evaluate_molecules(stretched, n_workers=1)
    assert found.stable_atoms.sum() < 0.98 * found.n_atoms.sum()


def test_no_molecule_occurs_twice_within_or_across_splits(evaluation: MoleculeEvaluation) -> None:
    assert None not in evaluation.smiles
    assert len(set(evaluation.smiles)) == len(evaluation.smiles)


def test_splits_are_80_10_10_and_alike_in_size(data: DataSet, everything: Structures) -> None:
    shares = [len(split) / len(everything) for split in data.splits.values()]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.001)
    for split in data.splits.values():
        error = everything.n_atoms.std() / len(split) ** 0.5
        assert abs(split.n_atoms.mean() - everything.n_atoms.mean()) < 4 * error


def test_orientations_are_uniform(everything: Structures) -> None:
    bias = np.array(Description("mini", everything).frame_bias())
    assert np.abs(bias - 0.5).max() < 4 / (12 * len(everything)) ** 0.5  # |cos| is uniform on [0, 1]


def test_orientation_check_sees_molecules_laid_along_an_axis(everything: Structures) -> None:
    molecules = [(numbers, (x - x.mean(0)) @ np.linalg.svd(x - x.mean(0))[2].T) for numbers, x in everything]
    assert Description("aligned", Structures.from_list(molecules)).frame_bias()[0] > 0.9


def test_split_codes_are_fixed_and_cover_every_molecule() -> None:
    assert np.array_equal(split_codes(1000), split_codes(1000))
    assert Counter(split_codes(1000).tolist()) == {0: 800, 1: 100, 2: 100}


def test_bonds_are_compared_with_those_of_the_graph(everything: Structures, evaluation: MoleculeEvaluation) -> None:
    first_two = everything.select(np.arange(2))
    graphs = [Chem.MolToSmiles(Chem.MolFromSmiles(str(smiles))) for smiles in evaluation.smiles[:2]]
    assert has_bonds_of_graph(first_two, graphs).tolist() == [True, True]
    assert has_bonds_of_graph(first_two, graphs[::-1]).tolist() == [False, False]


def test_graphs_are_distinct_small_neutral_and_fixed_by_the_seed() -> None:
    refused: Counter[str] = Counter()
    graphs = list(islice(random_graphs(7, refused), 20))
    assert graphs == list(islice(random_graphs(7, Counter()), 20))
    assert graphs != list(islice(random_graphs(8, Counter()), 20))
    assert len(set(graphs)) == len(graphs)
    assert refused.total() > 0
    for smiles in graphs:
        mol = Chem.MolFromSmiles(smiles)
        assert refusal(mol) is None
        assert Chem.AddHs(mol).GetNumAtoms() <= MAX_ATOMS
        assert "." not in smiles


SOUND = [
    "C",
    "CCO",
    "C1CC1",
    "C1CO1",
    "c1ccoc1",
    "c1cnoc1",
    "CC(=O)NC",
    "CC#N",
    "OC(=O)CCF",
    "C1CC2CC1C=C2",
    "CC=NO",
    "C1=CCC1",
]
REFUSED = {
    "charge or radical": ["C[NH3+]", "[CH3]"],
    "peroxide": ["COOC", "C1COOC1"],
    "fluorine on N, O or F": ["CNF", "COF"],
    "chain of N and O": ["CN(C)N(C)NC", "CC(=O)N(N)O", "c1nnnn1C"],
    "nitroso, azo, or N-O and N-N of sp3 N": ["CN=O", "CN=NC", "CNOC", "CNNC"],
    "cumulated double bonds": ["C=C=C", "CC=C=O", "CN=C=O"],
    "hydroxyl or NH beside a heteroatom on sp3 C": ["CC(O)O", "CC(O)N", "CC(O)OC", "CC(N)OC", "CC(F)N(C)C"],
    "enol, enamine, imidic acid or methylene imine": ["CC=CO", "CC=CN", "CC(O)=NC", "CN=C", "CC(=C(F)O)C"],
    "heteroatom on an alkyne": ["CC#CO", "CC#CF", "COC#N"],
    "carbonic acid": ["COC(=O)O", "NC(=O)O", "COC(=O)F", "CC(=O)C(=O)C=O"],
    "unsaturated three-membered ring": ["C1=CC1", "O=C1CC1", "C=C1CC1"],
    "two heteroatoms in a three-membered ring": ["CC1N(C)O1"],
    "crowded four-membered ring": ["C1CN(C)O1", "C1=CC=C1", "C=C1CCC1=C"],
    "triple bond in a ring": ["C1CCCC#C1"],
    "ring of more than seven atoms": ["C1CCCCCCC1"],
    "atom in three rings": ["C12C3C1C23", "C1CC23CC2C13"],
    "two small rings fused": ["C1C2CC12", "C1CC2CC12"],
    "double bond at a bridgehead": ["C1CC2CCC1=C2", "C1CC2=CC1CC2"],
    "double bond at the edge of two small rings": ["C1CC2=C1CC2"],
    "more heteroatoms than carbons": ["O=COC=O"],
}


@pytest.mark.parametrize("smiles", SOUND)
def test_sound_molecules_pass_the_filters(smiles: str) -> None:
    assert refusal(Chem.MolFromSmiles(smiles)) is None


@pytest.mark.parametrize(
    ("reason", "smiles"), [(reason, one) for reason, several in REFUSED.items() for one in several]
)
def test_strained_and_unstable_molecules_are_refused(reason: str, smiles: str) -> None:
    mol = Chem.MolFromSmiles(smiles)
    matched = {name for name, pattern in PATTERNS if mol.HasSubstructMatch(pattern)}
    assert refusal(mol) is not None
    assert reason in matched or reason == refusal(mol)


def test_every_pattern_has_an_example() -> None:
    assert set(FORBIDDEN) <= set(REFUSED)
