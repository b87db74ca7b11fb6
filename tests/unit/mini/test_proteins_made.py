"""How `mini_proteins` is made: ideal geometry, and what the tests of geometry keep."""

from __future__ import annotations

import numpy as np
import pytest

from bench.data.mini_proteins import PATH
from bench.metrics import backbones as geometry
from bench.mini import proteins
from bench.mini.proteins import C_N, C_N_CA, CA_C, CA_C_N, N_CA, N_CA_C, Builder, backbones, clear
from bench.records.inputs import read_arrays


def built(n: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dihedral angles drawn at random, and the chains that have them."""
    rng = np.random.default_rng(0)
    phi, psi = rng.uniform(-180, 180, size=(2, 3, n))
    return phi, psi, backbones(phi, psi, np.full((3, n), 175.0))


def test_chains_have_the_bonds_and_angles_that_they_are_built_from():
    """Every bond length, bond angle and dihedral angle. Control: in the mirror each dihedral has the other sign."""
    phi, psi, x = built()
    for chain, ours, theirs in zip(x, phi, psi, strict=True):
        flat = chain.reshape(-1, 3)
        lengths = np.linalg.norm(np.diff(flat, axis=0), axis=1)
        assert np.allclose(lengths, np.resize([N_CA, CA_C, C_N], len(lengths)))
        assert np.allclose(geometry.angles(flat), np.resize([N_CA_C, CA_C_N, C_N_CA], len(flat) - 2))
        turns = geometry.dihedrals(flat)  # psi, omega, phi, psi, ..
        assert np.allclose(turns[::3], theirs[:-1])
        assert np.allclose(turns[1::3], 175)
        assert np.allclose(turns[2::3], ours[1:])
        assert np.allclose(geometry.dihedrals(-flat), -turns)


@pytest.mark.parametrize("kind", ["helices", "hairpins", "two_helices", "three_helices"])
def test_what_is_kept_is_of_its_kind(kind: str):
    """Helices are right-handed, hairpins have strands side by side, bundles as many helices as they should."""
    builder, found = Builder(0, 0), []
    while len(found) < 4:
        found += list(getattr(builder, kind)()[:4])
    for x in found:
        ca = x[:, 1]
        assert clear(ca[None])[0]
        assert not clear(np.concatenate([ca, ca[:1]])[None])[0]  # control: the last residue on the first
        structure = geometry.secondary_structure(ca)
        assert not structure.left.any()
        starts = np.flatnonzero(np.diff(structure.right.astype(int), prepend=0) == 1)
        assert len(starts) == {"helices": 1, "hairpins": 0, "two_helices": 2, "three_helices": 3}[kind]
        if kind == "hairpins":
            across = np.linalg.norm(ca - ca[::-1], axis=1)[: len(ca) // 2]
            assert across.max() < proteins.PAIRED[1] + 0.1


def test_the_file_has_ideal_geometry_but_for_noise():
    """Bond lengths to a twentieth of an angstrom on average, and no left-handed helix."""
    arrays = read_arrays(PATH)
    x = np.split(arrays["centi_angstrom"] / 100, np.cumsum(arrays["n_residues"])[:-1])
    off = [np.abs(np.linalg.norm(chain[:, 1] - chain[:, 0], axis=1) - N_CA).mean() for chain in x]
    assert 0.01 < np.mean(off) < 0.05
    assert not any(geometry.secondary_structure(chain[:, 1]).left.any() for chain in x)
    assert any(geometry.secondary_structure(-chain[:, 1]).left.any() for chain in x)
