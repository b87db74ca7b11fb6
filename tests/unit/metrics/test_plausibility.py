"""Plausibility of molecules drawn by hand, and of real ones with noise, which every metric must notice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem
from support import model_of, run_config, subject_of

from bench.cli.main import main
from bench.data.toys import Toy
from bench.measure.contract import Subject
from bench.metrics import posebusters, strain
from bench.metrics.molecules import evaluate_molecules
from bench.metrics.plausibility import (
    DATA,
    Effort,
    Profile,
    are_molecules,
    distances,
    judge,
    median_interval,
    noised,
    of_molecules,
    rows_of,
)
from bench.metrics.pool import Lost, MissingPackageError, bounded_map, require
from bench.metrics.stability import BondRule, determined_bonds, infer_bonds
from bench.metrics.valence_table import ELEMENTS, allowed_atoms, by_rule, environments, load
from bench.metrics.validity import molecules_of
from bench.records.values import Kind, Value
from bench.registry import datasets, measures
from bench.structures import files
from bench.structures.dataset import DataSet
from bench.structures.elements import Contents
from bench.structures.structures import Structures

QUICK = Effort(0, 0, 0)
WATER = (np.array([8, 1, 1]), np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
BENZENE = Chem.AddHs(Chem.MolFromSmiles("c1ccccc1"))
DRUGS = [  # every kind of aromatic atom that drugs have, charges, hypervalent sulphur and phosphorus
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "O=S(=O)(N)c1cc(ccc1Cl)C1(O)NC(=O)c2ccccc12",
    "C[n+]1ccccc1",
    "c1ccc2[nH]ccc2c1",
    "c1ccc2cccnc2c1",
    "c1ccsc1",
    "c1ccoc1",
    "Fc1ccc(Br)cc1I",
    "[O-][N+](=O)c1ccccc1",
    "CP(=O)(O)OCC",
    "c1ccc2cc3ccccc3cc2c1",
    "c1nn[n-]n1",
    "C[S+](C)CC[NH3+]",
    "OB(O)c1ccccc1",
    "C[Si](C)(C)C#Cc1cc[o+]cc1",
    "O=c1cc[nH]cc1",
]


def mini() -> DataSet:
    return datasets["mini"].build(datasets["mini"].config())


def some(n: int, split: str = "test") -> Structures:
    return mini().splits[split].select(np.arange(n))


def by_name(values: list[Value]) -> dict[str, Value]:
    assert len({value.name for value in values}) == len(values)
    return {value.name: value for value in values}


def value(values: list[Value], name: str) -> float:
    found = by_name(values)[name].value
    assert found is not None
    return found


def test_a_pair_of_valid_molecules_is_valid_and_not_connected():
    numbers, x = WATER
    pair = Structures.from_list([(np.tile(numbers, 2), np.concatenate([x, x + 9])), WATER])
    evaluation = evaluate_molecules(pair)
    assert evaluation.valid.tolist() == [True, True]
    assert evaluation.connected_and_valid.tolist() == [False, True]
    assert evaluation.summary()["connected_and_valid"] == 0.5
    values = of_molecules(Contents(pair), infer_bonds(pair), QUICK, n_workers=1)
    assert [value(values, name) for name in ("validity", "connected_and_valid", "connected_and_valid_rdkit")] == [
        1,
        0.5,
        0.5,
    ]


def test_rdkit_is_told_where_it_finds_no_bonds():
    lone = Structures.from_list([WATER, (np.array([6, 1]), np.array([[0, 0, 0], [1.09, 0, 0]]))])
    values = of_molecules(Contents(lone), infer_bonds(lone), QUICK, n_workers=1)
    assert value(values, "rdkit_no_bonds") == 0.5
    assert value(values, "rdkit_gave_up") == 0


def test_noise_moves_every_distance_away_from_the_data():
    data = mini()
    rows, others = rows_of(None, Contents(data.test), noises=(0.05, 0.1))
    against = Profile.of(others.structures, infer_bonds(others.structures))
    found = {
        row: by_name(distances(Profile.of(given.structures, infer_bonds(given.structures)), against))
        for row, given in rows.items()
    }
    floor, half, whole = (found[row] for row in (DATA, "noise 0.05", "noise 0.1"))
    for name in ("w1_bond_length", "js_bond_length", "js_angle", "w1_angle", "js_torsion", "w1_valence", "js_valence"):
        assert (floor[name].value or 0) < (half[name].value or 0) < (whole[name].value or 0), name
    for name in ("w1_size", "js_size", "w1_element", "js_element"):  # which noise does not change
        assert floor[name].value == half[name].value == whole[name].value


def test_a_set_is_at_no_distance_from_itself():
    structures = some(50)
    profile = Profile.of(structures, infer_bonds(structures))
    assert {v.value for v in distances(profile, profile) if not v.name.startswith("overflow")} == {0.0}


def test_rows_are_disjoint_and_of_equal_size():
    data = mini()
    rows, others = rows_of(Contents(some(30, "valid")), Contents(data.test))
    sizes = {name: len(given.structures) for name, given in rows.items()}
    assert sizes == {"samples": 30, "data": 30, "noise 0.05": 30, "noise 0.1": 30}
    assert len(others.structures) == len(data.test) - 30
    both = Structures.concatenate([rows[DATA].structures, others.structures])
    assert len(both.distinct()[0]) == len(data.test.distinct()[0])
    with pytest.raises(ValueError, match="at least two"):
        rows_of(None, Contents(some(1)))


def test_noise_has_the_standard_deviation_asked_for():
    structures = some(100)
    moved = noised(structures, 0.1, 0).positions - structures.positions
    assert moved.std() == pytest.approx(0.1, rel=0.03)
    assert np.allclose(2 * (noised(structures, 0.05, 0).positions - structures.positions), moved, atol=1e-5)


def test_points_with_made_up_numbers_are_no_molecules():
    assert are_molecules(some(50), BondRule.EDM)
    assert not are_molecules(noised(some(50), 1.0, 0), BondRule.EDM)


# ---------------------------------------------------------------------- valences


@pytest.mark.parametrize("smiles", DRUGS)
def test_atoms_of_real_molecules_are_in_the_table(smiles: str):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    allowed = allowed_atoms(mol)
    assert allowed is not None
    assert allowed.all(), [e for e in environments(mol) if e not in load()]


def test_the_published_table_takes_a_carbon_that_lacks_a_hydrogen():
    """Aromatic orders of 1.5 stored as integers are 1; benzene then needs carbon 3, which a radical has too."""
    orders = np.array([1.5, 1.5, 1.0]).astype(np.int64)
    assert orders.sum() == 3
    published = {"C": {3, 4}, "H": {1}}
    broken = Chem.AddHs(Chem.MolFromSmiles("C[CH2]"))
    carbons = [atom for atom in broken.GetAtoms() if atom.GetSymbol() == "C"]
    assert all(sum(b.GetBondTypeAsDouble() for b in atom.GetBonds()) in published["C"] for atom in carbons)
    for mol, good in ((broken, False), (BENZENE, True), (Chem.AddHs(Chem.MolFromSmiles("CC")), True)):
        allowed = allowed_atoms(mol)
        assert allowed is not None
        assert allowed.all() == good
    assert ("C", 0, 0, 3) not in load()
    assert ("C", 0, 2, 1) in load()


def test_the_table_is_that_of_the_rule():
    rule = {(s, q, *pair) for s in ELEMENTS for q in (-1, 0, 1) for pair in by_rule(s, q)}
    assert load() == rule
    assert allowed_atoms(Chem.MolFromSmiles("[CH2-2]")).tolist() == [False]  # type: ignore[union-attr]
    assert allowed_atoms(None) is None


def test_an_open_valence_is_a_radical_and_no_hidden_hydrogen():
    numbers, x = WATER
    hydroxyl = Structures.from_list([(numbers[:2], x[:2])])
    (mol,) = molecules_of(hydroxyl, infer_bonds(hydroxyl))
    assert mol is not None
    assert (allowed_atoms(mol) == [False, True]).all()  # type: ignore[union-attr]


# ---------------------------------------------------------------------- strain and PoseBusters


def embedded(smiles: str) -> tuple[np.ndarray, np.ndarray]:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(mol, maxIters=5000)
    return np.array([a.GetAtomicNum() for a in mol.GetAtoms()]), mol.GetConformer().GetPositions()


def test_a_relaxed_molecule_has_no_strain_by_mmff94_and_noise_gives_it_some():
    ethanol = Structures.from_list([embedded("CCO")])
    moved = noised(ethanol, 0.03, 0)
    found = strain.mmff94_strain(
        [*molecules_of(ethanol, infer_bonds(ethanol)), *molecules_of(moved, infer_bonds(ethanol))]
    )
    assert found[0] == pytest.approx(0, abs=0.01)
    assert found[1] > 0.5


def test_molecules_without_bonds_or_with_radicals_have_no_strain_by_mmff94():
    assert np.isnan(strain.mmff94_strain([None, Chem.AddHs(Chem.MolFromSmiles("[CH3]"))])).all()


def test_a_relaxed_molecule_has_no_strain_by_gfn2_and_noise_gives_it_some():
    pytest.importorskip("tblite")
    numbers, x = embedded("CO")
    relaxed, _, gained = strain.gfn2_relaxed(numbers, x)
    assert 0 < gained < 0.5
    at_rest = Structures.from_list([(numbers, relaxed)])
    still, moved = strain.gfn2_strain(Structures.concatenate([at_rest, noised(at_rest, 0.05, 0)]), n_workers=1)
    assert still == pytest.approx(0, abs=0.01)
    assert moved > 1


def test_posebusters_checks_pass_real_molecules_and_not_squeezed_ones():
    pytest.importorskip("posebusters")
    data = Structures.from_list([embedded("CC(=O)Nc1ccccc1")])
    bonds = determined_bonds(data)
    squeezed = replace(data, positions=data.positions * 0.6)
    found = posebusters.checks([*molecules_of(data, bonds), *molecules_of(squeezed, bonds), None], n_workers=1)
    assert found.all_passed.tolist() == [True, False, False]
    assert found.passed["sanitization"][:2].tolist() == [1, 1]
    assert found.passed["bond_lengths"].tolist()[:2] == [1, 0]
    assert np.isnan(found.passed["bond_lengths"][2])
    energy = posebusters.energy_ratios(list(molecules_of(data, bonds)), n_workers=1)
    assert energy.passed[posebusters.ENERGY].tolist() == [1]


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MissingPackageError, match="needs the package 'no_such_package'; pip install") as error:
        require("no_such_package", "a metric")
    assert "\n" not in str(error.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="tblite"):
        Effort(0, 0, 1).check()
    QUICK.check()


def test_the_median_of_few_values_has_no_interval():
    assert median_interval(np.arange(5.0)) == (None, None)
    low, high = median_interval(np.arange(1001.0))
    assert low is not None
    assert high is not None
    assert (low, high) == (pytest.approx(469, abs=1), pytest.approx(531, abs=1))


# ---------------------------------------------------------------------- workers


def slow_square(x: int) -> int:
    if x == 3:
        end = time.process_time() + 60
        while time.process_time() < end:
            pass
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if x == 7:
        raise KeyError(x)
    return x * x


def test_what_takes_too_long_or_crashes_is_lost_alone():
    found = bounded_map(slow_square, [1, 3, 5, 2, 4, 6], cpu_seconds=1, n_workers=2)
    assert found == [1, Lost.TIMEOUT, Lost.CRASH, 4, 16, 36]
    assert bounded_map(slow_square, [], 1) == []


def test_workers_end_with_the_work():
    before = set(multiprocessing.active_children())
    assert bounded_map(slow_square, [1, 2, 4, 6], cpu_seconds=5, n_workers=2) == [1, 4, 16, 36]
    for worker in set(multiprocessing.active_children()) - before:
        worker.join(60)
        assert not worker.is_alive()


def test_an_error_of_the_function_surfaces():
    with pytest.raises(KeyError):
        bounded_map(slow_square, [1, 7], cpu_seconds=1, n_workers=1)


# ---------------------------------------------------------------------- measure and verb


def test_the_verb_compares_two_files(tmp_path, capfd):
    a, b = tmp_path / "a.xyz", tmp_path / "b.npz"
    files.write(a, noised(some(20), 0.1, 1))
    files.write(b, some(60, "valid"))
    options = ["--n-posebusters", "0", "--n-energy", "0", "--n-strain", "0"]
    assert main(["compare", str(a), str(b), *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert found["n"] == {"samples": 20, "data": 20, "noise 0.05": 20, "noise 0.1": 20, "others": 40}
    w1 = {row: next(v["value"] for v in vs if v["name"] == "w1_bond_length") for row, vs in found["values"].items()}
    assert w1["data"] < w1["noise 0.05"] < w1["samples"]
    assert main(["compare", str(a), str(b), *options]) == 0
    assert "W1 of bond lengths" in capfd.readouterr().out


def test_the_verb_says_in_one_line_what_it_cannot_do(tmp_path, caplog):
    one = tmp_path / "one.npz"
    files.write(one, some(1))
    assert main(["compare", str(one), str(one), "--n-posebusters", "0", "--n-energy", "0", "--n-strain", "0"]) == 2
    assert "at least two" in caplog.text
    assert main(["compare", str(one), str(one), "--bonds", "ruler"]) == 2
    assert "expected edm, geom, rdkit, file" in caplog.text


def test_judging_tells_rows_apart():
    rows, others = rows_of(None, Contents(some(60)))
    found = judge(rows, others, BondRule.EDM, QUICK, n_workers=1)
    good = [value(of_row, "connected_and_valid") for of_row in found.values()]
    assert good[0] > good[1] >= good[2]


def judged(samples: Structures | None, data: DataSet) -> Subject:
    """A subject with these samples; its model is not asked."""
    subject = subject_of(run_config("plain", "egnn"), model_of("plain", "egnn"), data, samples)
    return replace(subject, seed=3)


def test_the_measure_has_samples_as_scalars_and_floor_and_ceilings_beside_them():
    data = mini()
    entry = measures["plausibility"]
    options = entry.config(n_posebusters=0, n_energy=0, n_strain=0)
    found = entry.build(judged(noised(some(20, "valid"), 0.1, 0), data), options)
    w1 = {str(v.at.get("of", "samples")): v.value for v in found if v.name == "w1_bond_length"}
    assert set(w1) == {"samples", "data", "noise 0.05", "noise 0.1"}
    assert w1["samples"] == pytest.approx(w1["noise 0.1"], rel=0.5)
    assert w1["data"] < w1["noise 0.05"] < w1["samples"]
    scalars = {v.name for v in found if not v.at}
    assert scalars.isdisjoint({"validity", "connected_and_valid"})  # which the evaluation of the run has
    assert all(v.kind is Kind.DIAGNOSTIC for v in found if v.at)


def test_the_measure_refuses_in_one_line_what_is_no_set_of_molecules():
    entry = measures["plausibility"]
    toys = [datasets["toys"].build(datasets["toys"].config(toy, n_copies=4)) for toy in Toy]
    refused = [(toy.test, toy, "takes molecules") for toy in toys]
    for samples, data, why in [(None, mini(), "has none"), *refused]:
        with pytest.raises(ValueError, match=why) as error:
            entry.build(judged(samples, data), entry.config())
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="at least 0"):
        entry.config(n_strain=-1)
