"""Files of protein chains: what is read of a clean entry, and what becomes of each flaw."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from chain_files import THREE, atom_line, dihedrals, helix, lines_of, sequence, write_npz, write_pdb

from bench.structures.chain_files import Flaw, entry_of, kind, read_files, read_npz
from bench.structures.chains import ChainAtoms
from bench.structures.elements import FileError

gemmi = pytest.importorskip("gemmi", reason="PDB and mmCIF files need gemmi")
LETTERS = sequence(12)


def read(path: Path, atoms: ChainAtoms = ChainAtoms.BACKBONE):
    return read_files([path], atoms)


@pytest.mark.parametrize("suffix", [".pdb", ".ent", ".cif", ".pdb.gz", ".cif.gz"])
def test_a_clean_entry_comes_back(tmp_path: Path, suffix: str):
    x = helix(12)
    path = write_pdb(tmp_path / "1abc.pdb", lines_of(x, LETTERS))
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    text = structure.make_mmcif_document().as_string() if ".cif" in suffix else path.read_text()
    path = tmp_path / f"1abc{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
    found = read(path)
    assert (found.faults, found.flaws) == ([], {})
    assert [(c.entry, c.sequence) for c in found.chains] == [("1abc", LETTERS)]
    assert np.abs(found.chains[0].positions - x).max() < 1e-3
    trace = read(path, ChainAtoms.CA).chains[0].positions
    assert np.array_equal(trace, found.chains[0].positions[:, 1:2])


def test_only_known_suffixes_are_read():
    given = ("a.PDB", "a.cif.gz", "A.PDB.GZ", "a.NPZ", "a.txt", "a.gz", "a.npz.gz")
    assert [kind(Path(name)) for name in given] == [".pdb", ".cif", ".pdb", ".npz", "", "", ""]
    assert [entry_of(Path(name)) for name in ("1abc.pdb.gz", "1ABC.PDB.GZ", "1abc.pdb")] == ["1abc", "1ABC", "1abc"]


def lines_with_conformers(x: np.ndarray, conformers: list[tuple[str, str, float]]) -> list[str]:
    """Lines of a chain whose sixth residue has these conformers (label, residue, occupancy), each 0.5 angstrom on."""
    lines = lines_of(x, LETTERS)
    lines[15:18] = [
        atom_line(1, name, residue, 6, x[5, k] + 0.5 * step, alt=label, occ=occupancy)
        for step, (label, residue, occupancy) in enumerate(conformers)
        for k, name in enumerate(("N", "CA", "C"))
    ]
    return lines


@pytest.mark.parametrize(
    ("conformers", "kept"),
    [
        ([("A", "SER", 0.4), ("B", "SER", 0.6)], 1),
        ([("A", "SER", 0.25), ("B", "SER", 0.4), ("C", "SER", 0.35)], 1),
        ([("A", "SER", 0.3), ("B", "THR", 0.7)], 1),
        ([("A", "SER", 0.4), ("B", "THR", 0.3), ("C", "THR", 0.3)], 0),
        ([("A", "SER", 0.45), ("B", "SER", 0.05)], 0),
    ],
)
def test_of_conformers_the_likeliest_is_kept_and_counted(tmp_path: Path, conformers: list, kept: int):
    """A residue is present if all of its conformers together are. Control: the next test."""
    x = helix(12)
    found = read(write_pdb(tmp_path / "1alt.pdb", lines_with_conformers(x, conformers)))
    assert found.flaws == {"1alt": {Flaw.ALTERNATE: 1}}
    (chain,) = found.chains
    letter = {"SER": "S", "THR": "T"}[conformers[kept][1]]
    assert chain.sequence == LETTERS[:5] + letter + LETTERS[6:]
    x[5] += 0.5 * kept
    assert np.abs(chain.positions - x).max() < 1e-3


def test_conformers_that_are_rare_together_break_the_chain(tmp_path: Path):
    lines = lines_with_conformers(helix(12), [("A", "SER", 0.3), ("B", "THR", 0.19)])
    found = read(write_pdb(tmp_path / "1rare.pdb", lines))
    assert found.flaws == {"1rare": {Flaw.ALTERNATE: 1, Flaw.OCCUPANCY: 1}}
    assert [chain.sequence for chain in found.chains] == [LETTERS[:5], LETTERS[6:]]


@pytest.mark.parametrize("written", ["  0.00", "      "])
def test_occupancies_that_are_all_zero_are_none_given(tmp_path: Path, written: str):
    """Control: with 0.10 everywhere no residue is present, and the reason is the occupancy."""
    lines = lines_of(helix(12), LETTERS)
    found = read(write_pdb(tmp_path / "model.pdb", [line.replace("  1.00", written) for line in lines]))
    assert (found.faults, found.flaws) == ([], {})
    assert [chain.sequence for chain in found.chains] == [LETTERS]
    found = read(write_pdb(tmp_path / "model.pdb", [line.replace("  1.00", "  0.10") for line in lines]))
    said = f"model.pdb: it has no residue of a peptide chain that can be used; 12 {Flaw.OCCUPANCY}"
    assert (found.faults, found.chains) == ([said], [])


@pytest.mark.parametrize("flaw", [Flaw.OCCUPANCY, Flaw.INCOMPLETE, Flaw.D_AMINO_ACID, Flaw.GAP])
def test_a_flaw_breaks_the_chain_and_is_counted_under_the_entry(tmp_path: Path, flaw: Flaw):
    x = helix(12)
    if flaw is Flaw.GAP:
        x[6:] += [0, 0, 30]
    lines = lines_of(x, LETTERS)
    if flaw is Flaw.OCCUPANCY:
        lines[16] = lines[16].replace("  1.00", "  0.00")
    if flaw is Flaw.INCOMPLETE:
        del lines[16]
    if flaw is Flaw.D_AMINO_ACID:
        lines[15:18] = [line.replace(THREE[LETTERS[5]], "DAL") for line in lines[15:18]]
    found = read(write_pdb(tmp_path / "1bad.pdb", lines))
    assert found.flaws == {"1bad": {flaw: 1}}
    whole = [LETTERS[:6], LETTERS[6:]] if flaw is Flaw.GAP else [LETTERS[:5], LETTERS[6:]]
    assert [chain.sequence for chain in found.chains] == whole


def test_calcium_is_no_alpha_carbon(tmp_path: Path):
    """Both are called CA. The ion's element tells."""
    lines = lines_of(helix(12), LETTERS)
    lines.append("HETATM   99 CA    CA A  99       0.000   0.000   0.000  1.00 10.00          CA")
    assert [len(chain) for chain in read(write_pdb(tmp_path / "1ca.pdb", lines)).chains] == [12]


def test_of_several_models_the_first_is_read(tmp_path: Path):
    lines = lines_of(helix(12), LETTERS)
    other = lines_of(helix(12) + 1, LETTERS)
    path = write_pdb(tmp_path / "1nmr.pdb", ["MODEL        1", *lines, "ENDMDL", "MODEL        2", *other, "ENDMDL"])
    found = read(path)
    assert len(found.chains) == 1
    assert np.abs(found.chains[0].positions - helix(12)).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.cif", b"data_\nloop_\n_atom_site.id\n1 '", "it cannot be parsed"),
        ("a.pdb", b"", "it has no residue of a peptide chain"),
        ("a.pdb", b"HELLO WORLD\n", "it has no residue of a peptide chain"),
        ("a.pdb.gz", gzip.compress(b"HELLO WORLD", mtime=0)[:15], "it cannot be parsed"),  # one name for the test
        (
            "a.pdb",
            b"ATOM      1 CA  ALA A   1       1.000   x.000   1.000  1.00 10.00           C",
            "line 1 has a coordinate that is no number",
        ),
    ],
)
def test_a_malformed_file_is_a_fault_of_one_line(tmp_path: Path, name: str, content: bytes, said: str):
    path = tmp_path / name
    path.write_bytes(content)
    good = write_pdb(tmp_path / "good.pdb", lines_of(helix(12), LETTERS))
    found = read_files([path, good], ChainAtoms.CA)
    assert [chain.entry for chain in found.chains] == ["good"]
    assert len(found.faults) == 1
    assert found.faults[0].startswith(f"{name}: {said}")
    assert "\n" not in found.faults[0]


def test_npz_holds_chains_of_entries(tmp_path: Path):
    x = helix(12)
    path = write_npz(tmp_path / "a.npz", [("repo:1abc.pdb:A", LETTERS, x), ("2xyz:0", LETTERS[:5], x[:5])])
    found = read_npz(path, ChainAtoms.BACKBONE)
    assert [(c.entry, c.sequence) for c in found] == [("repo:1abc.pdb", LETTERS), ("2xyz", LETTERS[:5])]
    assert np.abs(found[1].positions - x[:5]).max() < 0.01
    ca = {"ca_centi_angstrom": np.zeros((17, 3), np.int16)}
    both = write_npz(tmp_path / "b.npz", [("1abc:A", LETTERS, x), ("2xyz:0", LETTERS[:5], x[:5])], **ca)
    assert read_npz(both, ChainAtoms.CA)[0].positions.shape == (12, 1, 3)


def test_traces_are_left_out_of_backbones_with_a_line(tmp_path: Path):
    """Control: for C-alphas they are read."""
    path = tmp_path / "traces.npz"
    write_npz(path, [("1abc:A", LETTERS, helix(12))])
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in ("ptr", "seq", "name")}
        np.savez(path, **kept, ca_centi_angstrom=arrays["xyz_centi_angstrom"][:, 1])
    found = read(path)
    assert found.faults == ["traces.npz: its 1 chains have C-alphas alone, and 'atoms' is backbone"]
    assert found.chains == []
    found = read(path, ChainAtoms.CA)
    assert [len(chain) for chain in found.chains] == [12]
    assert found.faults == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ptr": np.array([0, 5, 4])}, "'ptr' does not rise"),
        ({"ptr": np.array([0, 5, 11])}, "'ptr' does not rise"),
        ({"seq": np.zeros(12)}, "'seq' is float64"),
        ({"name": np.array(["a", "b"])}, "'name' has shape"),
        ({"xyz_centi_angstrom": np.zeros((12, 3, 3), np.int16)}, "expected integers"),
        ({"xyz_centi_angstrom": np.zeros((12, 4, 3))}, "expected integers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, changes: dict, said: str):
    path = write_npz(tmp_path / "a.npz", [("a:A", LETTERS, helix(12))], **changes)
    with pytest.raises(FileError, match=said):
        read_npz(path, ChainAtoms.CA)


def test_extended_chains_are_read_as_helices_are(tmp_path: Path):
    """No distance of neighbours in an ideal chain is a gap."""
    for k, (phi, psi) in enumerate([(-120.0, 130.0), (57.0, 47.0), (-75.0, 145.0)]):
        path = write_pdb(tmp_path / f"{k}.pdb", lines_of(dihedrals(12, phi, psi), LETTERS))
        assert [len(chain) for chain in read(path).chains] == [12]
