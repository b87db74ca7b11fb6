"""Ensembles: what counts as one molecule, whatever the order of atoms and records, and its automorphisms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conformer_examples import SYMMETRIES, ensembles, mirrored, records_of, shuffled

from bench.structures.dataset import DataSet
from bench.structures.elements import FileError
from bench.structures.ensembles import Ensembles, Graphs
from bench.structures.perception import Record, collect
from bench.symmetry.permutations import automorphisms


def index_of(found: Ensembles, smiles: str) -> int:
    return list(SYMMETRIES).index(smiles) if found is ensembles() else found.graphs.smiles.index(smiles)


def distances(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - x[None], axis=2)


def test_order_of_atoms_bonds_and_records_does_not_matter():
    """A shuffled conformer is brought into the order of the molecule's first one. Control: as it stands, it is not."""
    record = records_of("C[C@H](F)[C@H](C)F", 1)[0]
    other = shuffled(record)
    found, _ = collect([record, other])
    assert len(found.graphs) == 1
    first, second = found.conformers(0).astype(np.float64)
    bonded = found.graphs.bonds_of(0)[:, :2]
    lengths = [np.linalg.norm(x[bonded[:, 0]] - x[bonded[:, 1]], axis=1) for x in (first, second)]
    assert np.allclose(np.sort(lengths[0]), np.sort(lengths[1]), atol=1e-5)
    assert max(lengths[1]) < 1.7
    assert np.allclose(found.graphs.numbers, record.numbers)
    control = np.linalg.norm(other.positions[bonded[:, 0]] - other.positions[bonded[:, 1]], axis=1)
    assert max(control) > 1.7


def test_stereoisomers_are_different_molecules():
    """A mirror image has the other label at each centre; of a molecule without centres it is another conformer."""
    chiral, flat = records_of("C[C@H](O)F", 1)[0], records_of("CC(=O)[O-]", 1)[0]
    found, _ = collect([chiral, mirrored(chiral), flat, mirrored(flat)])
    assert found.molecule.tolist() == [0, 1, 2, 2]
    labels = [found.graphs.chirality[found.graphs.atoms(k)] for k in range(3)]
    assert labels[0].any()
    assert np.array_equal(np.sort(labels[0]), np.sort(-labels[1]))
    assert not labels[2].any()
    cis, trans = (index_of(ensembles(), smiles) for smiles in ("F/C=C\\F", "F/C=C/F"))
    graphs = ensembles().graphs
    assert sorted(graphs.bonds_of(cis)[:, 3].tolist())[-1] == 1
    assert sorted(graphs.bonds_of(trans)[:, 3].tolist())[-1] == 2


def places(found: Ensembles, index: int) -> dict[int, list[int]]:
    """The neighbours of each stereocentre of a molecule, in their order."""
    rows = slice(*found.graphs.bond_ptr[index : index + 2])
    around: dict[int, dict[int, int]] = {}
    for (i, j, *_), (first, second) in zip(found.graphs.bonds[rows], found.graphs.turns[rows], strict=True):
        for centre, other, place in ((i, j, first), (j, i, second)):
            if place:
                around.setdefault(int(centre), {})[int(place)] = int(other)
    return {centre: [by[k] for k in sorted(by)] for centre, by in around.items()}


@pytest.mark.parametrize(
    "smiles", ["C[C@H](O)F", "C[C@H](F)[C@H](C)F", "C[C@H]1CC[C@@H](O)N1", "CS(=O)CC", "CC(=O)[O-]"]
)
def test_places_around_a_stereocentre_tell_its_hand(smiles: str):
    """Every centre with a label has its neighbours in an order of positive volume, the same whatever the order of the
    atoms. Controls: a mirror image has other places, and its coordinates a negative volume in these; no label, no
    place."""
    record = records_of(smiles, 1)[0]
    found, _ = collect([record, mirrored(record)])
    mine, x = places(found, 0), found.conformers(0)[0].astype(np.float64)
    labels = found.graphs.chirality[found.graphs.atoms(0)]
    assert sorted(mine) == np.flatnonzero(labels).tolist()
    assert bool(mine) == (smiles != "CC(=O)[O-]")
    for centre, around in mine.items():
        assert len(around) == (3 if smiles == "CS(=O)CC" else 4)
        assert np.linalg.det(x[around[:3]] - x[centre]) > 0
        assert np.linalg.det((x[around[:3]] - x[centre]) * [1, 1, -1]) < 0
    again, _ = collect([shuffled(record)])
    theirs, y = places(again, 0), again.conformers(0)[0].astype(np.float64)
    numbers = [part.graphs.numbers for part in (found, again)]

    def seen(by: dict[int, list[int]], z: np.ndarray, positions: np.ndarray) -> list:
        return sorted(
            [[int(z[k]) for k in around], *np.linalg.norm(positions[around] - positions[c], axis=1).round(3).tolist()]
            for c, around in by.items()
        )

    assert seen(mine, numbers[0], x) == seen(theirs, numbers[1], y)
    other = places(found, 1)
    assert len(other) == len(mine)
    assert all(around != mine[centre] for centre, around in other.items())


def test_kekule_and_aromatic_bonds_are_one_molecule():
    record = records_of("Cc1ccccc1", 1)[0]
    kekule = record.bonds.copy()
    ring = np.flatnonzero(kekule[:, 2] == 4)
    kekule[ring, 2] = 1
    # around the ring, every other bond is double
    atoms, last = [int(kekule[ring[0], 0]), int(kekule[ring[0], 1])], ring[0]
    kekule[last, 2] = 2
    for k in range(5):
        last = next(b for b in ring if atoms[-1] in kekule[b, :2] and b != last)
        atoms.append(int(kekule[last, :2].sum()) - atoms[-1])
        kekule[last, 2] = 1 + k % 2
    found, faults = collect([record, dataclasses.replace(record, bonds=kekule)])
    assert not faults
    assert found.molecule.tolist() == [0, 0]
    assert (found.graphs.bonds[:, 2] == 4).sum() == 6


@pytest.mark.parametrize("smiles", SYMMETRIES)
def test_automorphisms_are_the_counted_ones_and_keep_the_graph(smiles: str):
    graphs, k = ensembles().graphs, index_of(ensembles(), smiles)
    found = graphs.automorphisms(k, 64)
    assert len(found) == SYMMETRIES[smiles]
    assert found[0].tolist() == list(range(len(found[0])))
    known = {tuple(image) for image in found.tolist()}
    assert all(tuple(a[b]) in known for a in found for b in found)  # a group
    rows = {(*sorted(row[:2]), *row[2:]) for row in graphs.bonds_of(k).tolist()}
    for image in found:
        moved = np.column_stack([image[graphs.bonds_of(k)[:, :2]], graphs.bonds_of(k)[:, 2:]]).tolist()
        assert {(*sorted(row[:2]), *row[2:]) for row in moved} == rows
        for of_atoms in (graphs.numbers, graphs.charges, graphs.chirality):
            assert np.array_equal(of_atoms[graphs.atoms(k)][image], of_atoms[graphs.atoms(k)])


def test_automorphisms_are_those_of_another_algorithm():
    """On the graph of the heavy atoms, against networkx. Control: with hydrogens there are more."""
    graphs = ensembles().graphs
    for smiles in SYMMETRIES:
        k = index_of(ensembles(), smiles)
        numbers, bonds = graphs.numbers[graphs.atoms(k)], graphs.bonds_of(k)
        heavy = np.flatnonzero(numbers != 1)
        place = {atom: i for i, atom in enumerate(heavy.tolist())}
        inner = [(place[i], place[j], (a, b)) for i, j, a, b in bonds.tolist() if i in place and j in place]
        n_hydrogens = np.bincount(bonds[:, :2][np.isin(bonds[:, :2][:, ::-1], np.flatnonzero(numbers == 1))])
        n_hydrogens = np.pad(n_hydrogens, (0, len(numbers) - len(n_hydrogens)))
        start = graphs.atoms(k).start
        colours = [(numbers[a], graphs.charges[start + a], graphs.chirality[start + a], n_hydrogens[a]) for a in heavy]
        expected = automorphisms(colours, inner).numpy()
        found = graphs.automorphisms(k, 64)[:, heavy]
        assert sorted(heavy[expected].tolist()) == sorted(found.tolist())
    k = index_of(ensembles(), "CC(F)(F)F")
    bonds = [(i, j, kind) for i, j, kind, _ in graphs.bonds_of(k).tolist()]
    everything = automorphisms(graphs.numbers[graphs.atoms(k)].tolist(), bonds)
    assert len(everything) == 36


def test_a_group_that_is_too_large_counts_as_the_identity():
    graphs, k = ensembles().graphs, index_of(ensembles(), "CC(F)(F)F")
    assert len(graphs.automorphisms(k, 6)) == 6
    assert graphs.automorphisms(k, 5).tolist() == [list(range(8))]


def test_fragments_and_impossible_valences_are_left_out_with_a_reason():
    good = records_of("CC(=O)[O-]", 1)[0]
    apart = dataclasses.replace(good, bonds=good.bonds[1:])
    wrong = dataclasses.replace(good, bonds=np.column_stack([good.bonds[:, :2], np.full(len(good.bonds), 3)]))
    found, faults = collect([apart, good, wrong])
    assert len(found) == 1
    assert "2 fragments" in faults[0]
    assert "RDKit refuses the molecule" in faults[1]
    with pytest.raises(FileError, match=r"no conformer can be used: .*2 fragments"):
        collect([apart])


def test_selection_keeps_molecules_and_the_fingerprint_knows_bonds():
    some = ensembles()
    chosen = some.select(np.array([7, 0]))
    assert chosen.molecule.tolist() == some.molecule[[7, 0]].tolist()
    assert np.array_equal(chosen[0][1], some[7][1])
    assert np.array_equal(some.select(some.molecule == 2).conformers(2), some.conformers(2))
    assert len(some.select(np.array([]))) == 0

    def fingerprint(part: Ensembles) -> str:
        return DataSet("x", "x", "x", tuple(np.unique(part.numbers).tolist()), part, part, part).fingerprint

    graphs = some.graphs
    other = graphs.bonds.copy()
    other[0, 2] = 2
    same = Graphs(
        graphs.numbers, graphs.charges, graphs.chirality, graphs.ptr, graphs.bonds, graphs.turns, graphs.bond_ptr, ()
    )
    changed = dataclasses.replace(same, bonds=other)
    assert fingerprint(dataclasses.replace(some, graphs=same)) == fingerprint(some)
    assert fingerprint(dataclasses.replace(some, graphs=changed)) != fingerprint(some)


def test_conformers_and_graphs_have_to_fit():
    some = ensembles()
    with pytest.raises(ValueError, match="differ in the number of atoms"):
        dataclasses.replace(some, molecule=some.molecule[::-1].copy())
    with pytest.raises(ValueError, match="one index for each of"):
        dataclasses.replace(some, molecule=some.molecule[1:])


def test_records_are_not_changed():
    record = records_of("CC(F)(F)F", 1)[0]
    before = Record(*(np.copy(a) for a in (record.numbers, record.bonds, record.charges, record.positions)), "")
    collect([record, shuffled(record)])
    assert np.array_equal(record.positions, before.positions)
    assert np.array_equal(record.bonds, before.bonds)
