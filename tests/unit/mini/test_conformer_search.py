"""The search behind `mini_conformers`: stereoisomers, pruning, what is dropped, resuming, the layout of its file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from bench.data import mini_conformers
from bench.metrics.conformer_rows import embedded
from bench.metrics.rmsd import rmsd_between
from bench.metrics.strain import NoStrainError, Relaxed
from bench.mini import conformers
from bench.mini.conformers import Ensemble, distinct, isomer_of, isomers, layout, searched_chunk, with_hydrogens
from bench.registry import datasets
from bench.structures.dataset import DataError
from bench.structures.ensembles import Ensembles


def found(smiles: str, n: int) -> Ensemble:
    """An ensemble that ETKDG stands in for."""
    mol = with_hydrogens(smiles)
    counts = Counter({"kept": n})
    return Ensemble(smiles, smiles, embedded(mol, n, seed=3), np.arange(n) * 0.5, counts)


def test_isomers_have_all_stereochemistry_and_a_seeded_order():
    listed = isomers("CC(O)C=CC", seed=1)
    assert sorted(listed) == sorted({Chem.CanonSmiles(one) for one in listed})
    assert len(listed) == 4
    assert isomers("CC(O)C=CC", seed=1) == listed
    assert any(isomers("CC(O)C=CC", seed=seed) != listed for seed in range(2, 8))
    assert isomers("CCO", seed=1) == ["CCO"]


def test_stereochemistry_is_read_from_positions():
    (right,) = (one for one in isomers("CC(O)F", seed=1) if "@@" in one)
    (left,) = (one for one in isomers("CC(O)F", seed=1) if "@@" not in one)
    mol = with_hydrogens(right)
    x = embedded(mol, 2, seed=1)
    assert isomer_of(mol, np.concatenate([x, -x])) == [right, right, left, left]


def test_pruning_keeps_the_lowest_of_those_that_are_alike():
    mol = with_hydrogens("CCCCO")
    x = embedded(mol, 8, seed=3)
    x = x[[0, np.argmax(rmsd_between(mol, x[:1], x).rmsd)]]
    assert rmsd_between(mol, x[:1], x[1:]).rmsd > conformers.SAME
    copies = np.concatenate([x, x + 1.0])  # moved, but the same
    assert distinct(mol, copies, np.array([2.0, 1.0, 0.5, 3.0]), window=10.0) == [2, 1]
    assert distinct(mol, copies, np.array([2.0, 1.0, 0.5, 3.0]), window=0.4) == [2]


def test_hydrogens_tell_conformers_apart_on_oxygen_and_not_on_carbon():
    mol = with_hydrogens("CO")
    x = embedded(mol, 1, seed=3)
    on_oxygen = next(a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 1 and a.GetNeighbors()[0].GetIdx() == 1)
    on_carbon = next(a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 1 and a.GetNeighbors()[0].GetIdx() == 0)
    for moved, n in ((on_oxygen, 2), (on_carbon, 1)):
        other = x.copy()
        other[0, moved] += 0.8
        assert len(distinct(mol, np.concatenate([x, other]), np.zeros(2), window=1.0)) == n


def test_a_search_ends_in_different_minima_of_one_isomer():
    pytest.importorskip("tblite")
    one = conformers.search("CC(F)O", seed=1)
    mol = with_hydrogens(one.smiles)
    assert set(isomer_of(mol, one.positions)) == {one.smiles}
    assert one.smiles in isomers("CC(F)O", seed=1)
    assert one.energies[0] == 0
    assert (np.diff(one.energies) >= 0).all()
    assert one.energies[-1] <= conformers.WINDOW
    assert one.counts["kept"] == len(one.positions) >= 1


def test_what_changes_its_bonds_or_its_stereochemistry_is_dropped(monkeypatch: pytest.MonkeyPatch):
    smiles = "C[C@H](O)F"
    mol = with_hydrogens(smiles)
    starts = embedded(mol, 4, seed=1)
    torn = starts[2].copy()
    torn[0] += 9.0
    ends = iter([starts[0], -starts[1], torn, None])

    def relaxed(numbers: np.ndarray, start: np.ndarray) -> Relaxed:
        del numbers, start
        if (end := next(ends)) is None:
            raise NoStrainError("not relaxed")
        return Relaxed(end, energy=-1.0, gained=0.1)

    monkeypatch.setattr(conformers, "gfn2_relaxed", relaxed)
    counts: Counter[str] = Counter()
    kept = conformers._relaxed(mol, isomer_of(mol, starts[:1])[0], starts, counts)
    assert len(kept) == 1
    assert dict(counts) == {
        "other stereochemistry after relaxation": 1,
        "other bonds after relaxation": 1,
        "not relaxed": 1,
    }


def test_a_finished_chunk_is_read_and_another_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stored = {"CO": found("CO", 1), "CCO": found("CCO", 3), "C": Ensemble("C", counts=Counter({"embedded": 2}))}
    searched: list[str] = []

    def search(graph: str, seed: int) -> Ensemble:
        searched.append(graph)
        return stored[graph]

    monkeypatch.setattr(conformers, "search", search)
    first = searched_chunk((0, list(stored), tmp_path))
    again = searched_chunk((0, list(stored), tmp_path))
    assert searched == list(stored)
    for one, other in zip(first, again, strict=True):
        assert (one.graph, one.smiles) == (other.graph, other.smiles)
        assert +one.counts == +other.counts
        assert np.allclose(one.positions, other.positions, atol=1e-5)
        assert np.allclose(one.energies, other.energies)
    searched_chunk((0, ["CO", "CCO"], tmp_path))
    assert len(searched) == 5


def test_the_file_gives_the_data_set_split_by_molecule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smiles = ["CCO", "C[C@H](O)F", "c1ccoc1", "CC#N", "O=CO", "CCN", "CCC", "COC", "CCF", "NCC=O"]
    ensembles = [found(Chem.CanonSmiles(one), n) for n, one in enumerate(smiles, start=1)]
    path = tmp_path / "mini_conformers.npz"
    conformers.write_npz(path, layout(ensembles))
    monkeypatch.setattr(mini_conformers, "PATH", path)
    entry = datasets["mini_conformers"]
    data = entry.build(entry.config())
    seen: list[set[str]] = []
    for part in data.splits.values():
        assert isinstance(part, Ensembles)
        seen.append({part.graphs.smiles[k] for k in part.present})
        for k in part.present.tolist():
            (one,) = (one for one in ensembles if one.smiles == part.graphs.smiles[k])
            mol = part.graphs.mol(k, part.conformers(k))
            theirs = part.conformers(k)
            assert len(theirs) == len(one.positions)
            assert np.abs(theirs.mean(axis=1)).max() < 1e-5
            # turned, but the same distances, whatever the order of the atoms
            assert np.allclose(*(np.sort(_distances(x), axis=1) for x in (theirs, one.positions)), atol=1e-4)
            assert mol.GetNumAtoms() == theirs.shape[1]
    assert [len(part) for part in seen] == [8, 1, 1]
    assert set.union(*seen) == {one.smiles for one in ensembles}
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"mini_conformers\.npz"):
        entry.build(entry.config())


def _distances(x: np.ndarray) -> np.ndarray:
    """Distances of all pairs of atoms [n, pairs]."""
    first, second = np.triu_indices(x.shape[1], 1)
    return np.linalg.norm(x[:, first] - x[:, second], axis=-1)
