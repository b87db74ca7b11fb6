"""Values of backbones: perfect samples, mirrored ones, noise, and what is not defined."""

from __future__ import annotations

import numpy as np
import pytest
from chain_files import helix

from bench.metrics import proteins
from bench.metrics.proteins import evaluate_backbones, n_clusters, tm_score
from bench.records.values import Value
from bench.registry import datasets
from bench.structures.chains import ChainAtoms, structures_of
from bench.structures.dataset import DataSet
from bench.structures.structures import Structures


def data(atoms: ChainAtoms = ChainAtoms.CA) -> DataSet:
    entry = datasets["mini_proteins"]
    return entry.build(entry.config(atoms=atoms))


def values(samples: Structures, of: DataSet, **changes) -> dict[str, Value]:
    return {value.name: value for value in evaluate_backbones(samples, of.test, of.train)}


def moved(part: Structures, of) -> Structures:
    return Structures(part.numbers, of(part.positions.astype(np.float64)), part.ptr)


@pytest.fixture
def few_alignments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proteins, "N_COMPARED", 4)
    monkeypatch.setattr(proteins, "N_KNOWN", 4)


@pytest.mark.usefixtures("few_alignments")
@pytest.mark.parametrize("atoms", ChainAtoms)
def test_the_test_split_is_perfect_and_its_mirror_image_is_all_left_handed(atoms: ChainAtoms):
    some = data(atoms)
    found, mirrored = values(some.test, some), values(moved(some.test, lambda x: -x), some)
    for name in ("ca_distance_w1", "gyration_w1", "angle_js", "dihedral_js", "clash"):
        assert found[name].value == pytest.approx(0, abs=1e-6)
    assert found["ca_distance_ok"].value == 1
    assert found["left_handed"].value == 0
    assert mirrored["left_handed"].value == 1
    for name in ("ca_distance_ok", "clash", "gyration_w1", "angle_js", "helix"):  # blind to handedness
        assert mirrored[name].value == pytest.approx(found[name].value, abs=1e-6)
    assert mirrored["dihedral_js"].value > 0.5
    if atoms is ChainAtoms.BACKBONE:
        assert found["ramachandran_js"].value == pytest.approx(0)
        assert found["bond_error"].value < 0.05
        assert mirrored["ramachandran_js"].value > 0.8
    else:
        assert "bond_error" not in found


@pytest.mark.usefixtures("few_alignments")
def test_noise_makes_every_value_worse():
    some = data()
    rng = np.random.default_rng(0)
    clean, noisy = values(some.test, some), values(moved(some.test, lambda x: x + rng.normal(size=x.shape)), some)
    for name in ("ca_distance_w1", "angle_js", "dihedral_js", "clash"):
        assert noisy[name].value > clean[name].value
    for name in ("ca_distance_ok", "helix"):
        assert noisy[name].value < clean[name].value


@pytest.mark.usefixtures("few_alignments")
def test_half_of_each_hand_is_one_half_by_residues():
    some = data()
    both = Structures.concatenate([some.test, moved(some.test, lambda x: -x)])
    found = values(both, some)["left_handed"]
    assert found.value == pytest.approx(0.5)
    assert found.items is not None
    assert found.items[:, 0].sum() / found.items[:, 1].sum() == pytest.approx(0.5)
    assert found.sem is not None


@pytest.mark.usefixtures("few_alignments")
def test_without_helices_there_is_no_share():
    line = np.arange(40)[:, None, None] * np.array([[[3.8, 0, 0]]])
    found = values(structures_of([line, line]), data())
    assert found["left_handed"].value is None
    assert found["helix"].value == 0


def test_a_backbone_has_a_tm_score_of_one_to_itself_turned_and_less_to_its_mirror_image():
    pytest.importorskip("tmtools")
    x = data().test[int(data().test.n_atoms.argmax())][1].astype(np.float64)
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    Q *= np.sign(np.linalg.det(Q))
    assert min(tm_score(x, x @ Q.T + 3)) > 0.999
    assert max(tm_score(x, -x)) < 0.9


def test_copies_are_one_cluster():
    pytest.importorskip("tmtools")
    x, other = helix(40)[:, 1], np.arange(40)[:, None] * np.array([[3.8, 0, 0]])
    assert n_clusters([x, x + 1, other]) == 2
    assert n_clusters([x, x]) == 1


@pytest.mark.usefixtures("few_alignments")
def test_without_tmtools_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proteins, "version", lambda: "1")
    found = values(data().test, data())
    for name in ("tm_to_training", "tm_clusters"):
        assert found[name].value is None
        assert "pip install" in found[name].definition
