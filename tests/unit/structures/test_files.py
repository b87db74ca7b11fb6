"""Readers and writers of molecule files: round trips, and one clear line for everything that is wrong with a file."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import AllChem

from bench.structures import files
from bench.structures.elements import FileError
from bench.structures.structures import Structures

WATER = "3\nwater\nO 0.0 0.0 0.1\nH 0.0 0.7 -0.5\nH 0.0 -0.7 -0.5\n"


def molecules(dtype=np.float32, seed=0) -> Structures:
    rng = np.random.default_rng(seed)
    sizes = [5, 1, 29, 3, 3]
    return Structures.from_list(
        [(rng.integers(1, 87, n), rng.normal(scale=3, size=(n, 3)).astype(dtype)) for n in sizes]
    )


def arrays() -> dict[str, np.ndarray]:
    """EDM's layout: a molecule of three atoms and one of two."""
    charges = np.array([[8, 1, 1], [6, 8, 0]], np.uint8)
    return {"num_atoms": np.array([3, 2]), "charges": charges, "positions": np.ones((2, 3, 3), np.float32)}


def npz(folder: Path, **changes) -> Path:
    path = folder / "a.npz"
    np.savez(path, **{name: value for name, value in {**arrays(), **changes}.items() if value is not None})
    return path


def fault(path: Path, content: str | bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FileError) as caught:
        files.read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


# round trips


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".npz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_digit_survives_writing_and_reading(tmp_path, suffix, dtype):
    written = molecules(dtype)
    files.write(tmp_path / f"a{suffix}", written)
    read = files.read(tmp_path / f"a{suffix}")
    assert np.array_equal(read.numbers, written.numbers)
    assert np.array_equal(read.ptr, written.ptr)
    assert np.array_equal(read.positions.astype(dtype), written.positions)


def test_sdf_survives_to_four_decimals_with_and_without_bonds(tmp_path):
    written = molecules()
    bonds = [np.zeros((0, 3), int) for _ in range(len(written))]
    bonds[0] = np.array([[1, 0, 1], [2, 0, 3], [4, 3, 2]])
    for given_bonds in (None, bonds):
        files.write(tmp_path / "a.sdf", written, given_bonds)
        read = files.read(tmp_path / "a.sdf")
        assert np.array_equal(read.numbers, written.numbers)
        assert np.array_equal(read.ptr, written.ptr)
        assert np.abs(read.positions - written.positions).max() <= 0.5001e-4
    block = (tmp_path / "a.sdf").read_text().split("$$$$")[0]
    assert [line.split() for line in block.splitlines()[-4:-1]] == [
        ["2", "1", "1", "0"],
        ["3", "1", "3", "0"],
        ["5", "4", "2", "0"],
    ]


def test_sdf_keeps_what_v2000_has_no_columns_for(tmp_path):
    wide = Structures.from_list([(np.array([6, 1]), np.array([[-123456.5, 0, 0], [2e6, 1, 1]]))])
    long = Structures.from_list([(np.full(1200, 6), np.arange(3600.0).reshape(-1, 3))])
    for written in (wide, long):
        files.write(tmp_path / "a.sdf", written)
        assert "V3000" in (tmp_path / "a.sdf").read_text()
        assert np.array_equal(files.read(tmp_path / "a.sdf").positions, written.positions)


def test_padded_and_concatenated_npz_hold_the_same(tmp_path):
    written = molecules()
    files.write(tmp_path / "padded.npz", written)
    np.savez(
        tmp_path / "flat.npz",
        num_atoms=written.n_atoms,
        charges=written.numbers,
        positions=written.positions,
        smiles=["x"],
    )
    padded, flat = files.read(tmp_path / "padded.npz"), files.read(tmp_path / "flat.npz")
    for name in ("numbers", "positions", "ptr"):
        assert np.array_equal(getattr(padded, name), getattr(flat, name))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.xyz"
    files.write(path, molecules())
    before = path.read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(OSError, match=r"could not write .*a\.xyz"):
        files.write(path, molecules(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    bad = molecules()
    bad.positions[7, 1] = np.nan
    with pytest.raises(FileError, match=r"molecule 2 has a coordinate that is not finite"):
        files.write(tmp_path / "a.sdf", bad)
    with pytest.raises(FileError, match=r"\.xyz files hold no bonds"):
        files.write(tmp_path / "a.xyz", molecules(), [])
    with pytest.raises(FileError, match="bonds of 1 molecules for 5 molecules"):
        files.write(tmp_path / "a.sdf", molecules(), [np.zeros((0, 3), int)])
    with pytest.raises(FileError, match=r"unknown kind of file '\.mol2', expected \.xyz, \.extxyz, \.sdf, \.npz"):
        files.write(tmp_path / "a.mol2", molecules())
    assert not list(tmp_path.iterdir())


# dialects of xyz


def read_xyz(folder: Path, text: str, name: str = "a.xyz") -> Structures:
    (folder / name).write_text(text)
    return files.read(folder / name)


def test_frames_may_be_set_apart_by_blank_lines_and_windows_line_ends(tmp_path):
    plain = read_xyz(tmp_path, WATER * 2)
    other = read_xyz(tmp_path, ("\n\n" + WATER + "  \n" + WATER + "\n\n").replace("\n", "\r\n"))
    assert np.array_equal(plain.positions, other.positions)
    assert plain.n_atoms.tolist() == [3, 3]


def test_elements_may_be_numbers_or_upper_case(tmp_path):
    assert read_xyz(tmp_path, "4\n\nCL 0 0 0\n17 0 0 1\ncl 0 0 2\nRn 0 0 3\n").numbers.tolist() == [17, 17, 17, 86]


@pytest.mark.parametrize("name", ["a.xyz", "a.EXTXYZ"])
def test_properties_set_the_columns(tmp_path, name):
    text = '1\nLattice="9 0 0 0 9 0 0 0 9" Properties=tag:I:1:pos:R:3:q:R:1:species:S:1 pbc="F F F"\n7 1 2 3 9 N\n'
    read = read_xyz(tmp_path, text, name)
    assert read.numbers.tolist() == [7]
    assert read.positions.tolist() == [[1, 2, 3]]
    assert read_xyz(tmp_path, "1\nProperties=Z:I:1:pos:R:3\n8 1 2 3\n").numbers.tolist() == [8]


def test_figshare_qm9_files_are_read(tmp_path):
    tail = "1.0\t2.0\nC\tC\nInChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"
    one = f"2\ngdb 1\t157.7\t157.7\nC\t-0.01\t1.08\t8.0*^-3\t-0.5\nH\t0.002\t-6.0*^-5\t1.*^1\t0.1\n{tail}"
    read = read_xyz(tmp_path, one * 2)
    assert read.n_atoms.tolist() == [2, 2]
    assert read.positions[:2].tolist() == [[-0.01, 1.08, 0.008], [0.002, -6e-05, 10.0]]
    without = read_xyz(tmp_path, one.removesuffix(tail) * 2 + one)  # a gdb comment, but none of QM9's closing lines
    assert without.n_atoms.tolist() == [2, 2, 2]


def test_isotopes_of_hydrogen_are_hydrogen(tmp_path):
    assert read_xyz(tmp_path, "3\nheavy water\nO 0 0 0\nD 0 0.7 0.5\nT 0 -0.7 0.5\n").numbers.tolist() == [8, 1, 1]


def test_symbols_are_those_of_rdkit():
    table = Chem.GetPeriodicTable()
    assert {n: table.GetElementSymbol(n) for n in range(1, files.MAX_NUMBER + 1)} == files.SYMBOL


# faults


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": holds no molecule, expected at least one"),
        ("\n \n", ": holds no molecule, expected at least one"),
        (WATER.replace("O ", "Xx "), ":3: frame 1: unknown element 'Xx', expected H to Cm"),
        (WATER.replace("O ", "Og "), ":3: frame 1: unknown element 'Og'"),
        (WATER.replace("O ", "0 "), ":3: frame 1: unknown element '0'"),
        (WATER + WATER.replace("0.7 -0.5", "0.7"), ":9: frame 2: 3 columns, expected at least 4"),
        (WATER.replace("H 0.0 0.7 -0.5", ""), ": frame 1 is cut short: 2 atoms of the 3 that line 1 declares"),
        (
            WATER.replace("water\n", ""),
            ": frame 1 is cut short: 2 atoms of the 3 that line 1 declares; line 2 looks like an atom",
        ),
        (WATER.replace("water", "Properties=species:S:1:pos:R:3:q:R:1"), ":3: frame 1: 4 columns, expected 5"),
        (
            WATER.replace("water", "Properties=species:S:1:pos:R:2"),
            ":2: frame 1: Properties='species:S:1:pos:R:2' lacks",
        ),
        (
            WATER.replace("water", "Properties=species:S:pos:R:3"),
            ":2: frame 1: Properties='species:S:pos:R:3', expected name",
        ),
        (WATER + "3\n", ": frame 2 is cut short: 0 atoms of the 3 that line 6 declares"),
        (WATER[: WATER.index("H 0.0 -")], ": frame 1 is cut short: 2 atoms of the 3 that line 1 declares"),
        ("999999999999999\nhuge\nH 0 0 0\n", ": frame 1 is cut short: 1 atoms of the 999999999999999"),
        ("9" * 5000 + "\nhuge\nH 0 0 0\n", ":1: frame 1: got '" + "9" * 40 + "...', expected a number of atoms"),
        ("0\n\n", ":1: frame 1: got '0', expected a number of atoms, 1 or more"),
        ("-3\n\n", ":1: frame 1: got '-3', expected a number of atoms"),
        ("3.0\n\n", ":1: frame 1: got '3.0', expected a number of atoms"),
        (WATER.replace("-0.7", "nan"), ":5: frame 1: coordinate 'nan' is not finite"),
        (WATER.replace("-0.7", "-Infinity"), ":5: frame 1: coordinate '-Infinity' is not finite"),
        (WATER.replace("-0.7", "1e999"), ":5: frame 1: coordinate '1e999' is not finite"),
        (WATER.replace("-0.7", "1.0^-5"), ":5: frame 1: got '1.0^-5', expected a coordinate in angstrom"),
        (WATER.replace("3\n", "2\n"), ":5: frame 2: got 'H 0.0 -0.7 -0.5', expected a number of atoms"),
        (b"\x00\xff\xfe binary", ":1: frame 1: got "),
    ],
)
def test_a_faulty_xyz_is_named_by_line_and_frame(tmp_path, text, expected):
    assert fault(tmp_path / "a.xyz", text).startswith(expected)


SDF = """
  made by hand

  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0
    1.2000    0.0000    0.0000 O   0  0
  1  2  2  0
M  END
$$$$
"""


@pytest.mark.parametrize(
    "content",
    [
        (SDF * 2).encode(),
        (SDF * 2).replace("\n", "\r\n").encode(),
        (SDF * 2).replace("by hand", "by händ").encode("latin-1"),
        b"\xef\xbb\xbf" + (SDF * 2).encode(),
        (SDF * 2).encode() + b"\n \n",
        (SDF * 2).encode().rstrip().removesuffix(b"$$$$"),
    ],
    ids=["plain", "windows", "latin-1", "byte order mark", "blank lines", "no last delimiter"],
)
def test_sdf_dialects(tmp_path, content):
    (tmp_path / "a.sdf").write_bytes(content)
    assert files.read(tmp_path / "a.sdf").numbers.tolist() == [6, 8, 6, 8]


def test_sdf_records_that_are_joined_or_cut_are_noticed(tmp_path):
    joined = SDF * 2 + SDF.replace("$$$$\n", "") + SDF
    message = fault(tmp_path / "a.sdf", joined)
    with Chem.SDMolSupplier(str(tmp_path / "a.sdf"), sanitize=False) as supplier:  # control: RDKit alone loses one
        assert [mol is not None for mol in supplier] == [True] * 3
    assert message.startswith(": molecule 3: line 34 is a second 'M  END'; two records are joined")
    assert joined.splitlines()[33] == "M  END"
    without_end = SDF * 2 + SDF.replace("M  END\n$$$$\n", "") + SDF
    assert fault(tmp_path / "a.sdf", without_end).startswith(": molecule 3: line 29 is a second counts line;")
    assert without_end.splitlines()[28].endswith("V2000")


def test_a_flat_drawing_is_refused_and_a_planar_molecule_is_not(tmp_path):
    drawing = SDF.replace("  made by hand", "     RDKit          2D")
    message = fault(tmp_path / "a.sdf", SDF + drawing)
    assert message.startswith(": molecule 2 is a flat drawing (its header says 2D and every z is 0), expected 3D")
    for planar in (SDF, drawing.replace("2D", "3D"), drawing.replace("0.0000 O", "0.1000 O")):
        (tmp_path / "a.sdf").write_text(planar)
        assert len(files.read(tmp_path / "a.sdf")) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": holds no molecule"),
        (SDF + SDF[:120], ": molecule 2 (line 10) is cut short or no V2000 or V3000 block"),
        (SDF.replace("C ", "Xx"), ": molecule 1 "),
        (SDF.replace("C ", "* "), ": molecule 1: unknown element '*', expected H to Cm"),
        (SDF.replace("C ", "Og"), ": molecule 1: unknown element 'Og', expected H to Cm"),
        (SDF.replace("1.2000", "   nan"), ": molecule 1 "),
        (SDF.replace("1.2000", "   inf"), ": molecule 1 "),
        (SDF.replace("  2  1  0", "999999  0"), ": molecule 1 (line 1) is cut short"),
        (SDF.replace("M  END", "M  V30 COUNTS 1000000000 1\nM  END"), ": molecule 1 (line 1) is cut short"),
        (SDF.replace("M  END", f"M  V30 COUNTS {'9' * 5000} 1\nM  END"), ": molecule 1 (line 1) is cut short"),
        ("\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n", ": molecule 1 has no atoms"),
        (WATER, ": molecule 1 (line 1) is cut short or no"),
    ],
)
def test_a_faulty_sdf_is_named_by_molecule(tmp_path, text, expected, capfd):
    assert fault(tmp_path / "a.sdf", text).startswith(expected)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"positions": None},
            ": array 'positions' is missing; expected num_atoms, charges, positions, got 'num_atoms, charges'",
        ),
        ({"num_atoms": np.array([3.0, 2.0])}, ": array 'num_atoms' holds float64, expected integers"),
        ({"charges": np.array([["O"] * 3] * 2)}, ": array 'charges' holds <U1, expected integers"),
        ({"charges": np.array([[8, None, 1]] * 2)}, ": array 'charges' holds pickled objects, which are never loaded"),
        (
            {"positions": np.zeros((2, 3, 2))},
            ": num_atoms, charges, positions have shapes (2,), (2, 3), (2, 3, 2); expected",
        ),
        ({"num_atoms": np.array(3)}, ": num_atoms, charges, positions have shapes ()"),
        ({"num_atoms": np.array([3, 4])}, ": molecule 1 declares 4 atoms, expected 1 to 3"),
        ({"num_atoms": np.array([0, 2])}, ": molecule 0 declares 0 atoms, expected 1 to 3"),
        ({"num_atoms": np.array([2**63, 2], np.uint64)}, ": molecule 0 declares 9223372036854775808 atoms"),
        ({"num_atoms": np.array([3, 3])}, ": molecule 1 declares 3 atoms, but its charges are '[6, 8, 0]'"),
        ({"charges": np.array([[8, 1, 1], [6, 119, 0]])}, ": molecule 1 has a charge outside 1 to 96 (H to Cm)"),
        ({"charges": np.array([[8, 1, 1], [6, -1, 0]])}, ": molecule 1 has a charge outside 1 to 96 (H to Cm)"),
        ({"positions": np.full((2, 3, 3), np.inf)}, ": molecule 0 has a coordinate that is not finite"),
        (
            {"num_atoms": np.array([1, 1]), "charges": np.ones(3, int), "positions": np.zeros((3, 3))},
            ": num_atoms sums to 2, but there are 3 charges",
        ),
        (
            {"num_atoms": np.zeros(0, int), "charges": np.zeros((0, 3), int), "positions": np.zeros((0, 3, 3))},
            ": holds no molecule",
        ),
    ],
)
def test_a_faulty_npz_is_named_by_array_or_molecule(tmp_path, changes, expected):
    assert fault(npz(tmp_path, **changes)).startswith(expected)


def test_padding_may_hold_anything(tmp_path):
    positions = np.zeros((2, 3, 3))
    positions[1, 2] = np.nan
    assert files.read(npz(tmp_path, positions=positions)).numbers.tolist() == [8, 1, 1, 6, 8]


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array([[Harmful()] * 3] * 2, dtype=object)
    assert "pickled objects" in fault(npz(tmp_path, charges=objects))
    assert "no npz archive" in fault(tmp_path / "b.npz", pickle.dumps(Harmful()))
    assert not Path("unpickled").exists()
    pickle.loads(pickle.dumps(Harmful()))  # control: the trap does spring
    assert Path("unpickled").exists()


def test_a_declared_size_is_held_against_the_bytes_that_are_there(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2, 10**14, 3)})
    path = npz(tmp_path, positions=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("positions.npy", header.getvalue() + bytes(72))
    assert fault(path).startswith(": array 'positions' declares shape (2, 100000000000000, 3) of float32, but")


def test_missing_files_and_unknown_kinds_are_one_line(tmp_path):
    assert fault(tmp_path / "none.xyz") == ": No such file or directory"
    (tmp_path / "folder.sdf").mkdir()
    assert fault(tmp_path / "folder.sdf") == ": Is a directory"
    assert fault(tmp_path / "a.pdb", "x").startswith(
        ": unknown kind of file '.pdb', expected .xyz, .extxyz, .sdf, .npz, .xyz.gz, .extxyz.gz, .sdf.gz"
    )
    assert fault(tmp_path / "a.npz", "") != ""


# one bad molecule among good ones

BAD = WATER.replace("0.7", "x")
COUNT = WATER.replace("3\n", "4\n")  # declares an atom more than there is


@pytest.mark.parametrize(
    ("name", "content", "n_good", "faults"),
    [
        ("a.xyz", WATER + BAD + WATER, 2, [":9: frame 2: got 'x', expected a coordinate in angstrom"]),
        ("a.xyz", COUNT + WATER + BAD, 1, [": frame 1 is cut short: 3 atoms of the 4 ", ":14: frame 3: got 'x'"]),
        ("a.xyz", WATER + COUNT, 1, [": frame 2 is cut short"]),
        ("a.xyz", BAD + WATER.replace("H 0.0 0.7", "\nH 0.0 0.7"), 1, [":4: frame 1"]),
        ("a.xyz", WATER + WATER.replace("O ", "Xx "), 1, [":8: frame 2: unknown element 'Xx'"]),
        ("a.xyz", BAD, 0, [":4: frame 1"]),
        ("a.sdf", SDF + SDF.replace("C ", "* ") + SDF, 2, [": molecule 2: unknown element '*'"]),
        ("a.sdf", SDF.replace("$$$$\n", "") + SDF * 2, 1, [": molecule 1: line 16 is a second 'M  END'"]),
        ("a.sdf", SDF + SDF.replace("  made by hand", "     RDKit          2D"), 1, [": molecule 2 is a flat drawing"]),
        ("a.sdf", SDF.replace("999 V2000", "999 V4000") + SDF, 1, [": molecule 1 "]),
    ],
)
def test_bad_molecules_are_named_and_may_be_left_out(tmp_path, name, content, n_good, faults):
    message = fault(tmp_path / name, content)
    assert message.startswith(faults[0])
    n = n_good + len(faults)
    assert message.endswith(f" ({len(faults)} of {n} molecules are bad)") is (n > 1)
    held = files.contents(tmp_path / name, skip_bad=True)
    assert len(held.structures) == n_good
    assert len(held.faults) == len(faults)
    for found, expected in zip(held.faults, faults, strict=True):
        assert found.removeprefix(str(tmp_path / name)).startswith(expected)


def test_bad_molecules_of_an_npz_are_left_out(tmp_path):
    positions = np.ones((2, 3, 3))
    positions[0, 1] = np.nan
    held = files.contents(npz(tmp_path, positions=positions), skip_bad=True)
    assert held.structures.numbers.tolist() == [6, 8]
    assert held.faults == [f"{tmp_path / 'a.npz'}: molecule 0 has a coordinate that is not finite"]


@pytest.mark.parametrize("text", [WATER.replace("3\n", "2\n") + WATER, "three\n" + WATER, WATER + "the end\n"])
def test_what_follows_an_unknown_end_is_refused_whatever_is_asked(tmp_path, text):
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(FileError, match="expected a number of atoms"):
        files.contents(tmp_path / "a.xyz", skip_bad=True)


# compressed files and folders


@pytest.mark.parametrize(("suffix", "text"), [(".xyz", WATER * 2), (".extxyz", WATER * 2), (".sdf", SDF * 2)])
def test_compressed_files_are_read_and_damaged_ones_refused(tmp_path, suffix, text):
    (tmp_path / f"plain{suffix}").write_text(text)
    packed = tmp_path / f"a{suffix}.GZ"
    packed.write_bytes(gzip.compress(text.encode()))
    assert np.array_equal(files.read(packed).positions, files.read(tmp_path / f"plain{suffix}").positions)
    whole = packed.read_bytes()
    for content in (whole[:-9], text.encode(), whole[:12] + bytes(20) + whole[32:]):
        assert fault(packed, content) != ""


def test_a_folder_stands_for_its_files(tmp_path):
    for name in ("b.xyz", "a.xyz.gz", ".hidden.xyz", "notes.txt"):
        (tmp_path / name).write_bytes(gzip.compress(WATER.encode()) if name.endswith("gz") else WATER.encode())
    assert files.expand([tmp_path, tmp_path / "c.npz"]) == [tmp_path / n for n in ("a.xyz.gz", "b.xyz", "c.npz")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="empty: folder without a file of molecules"):
        files.expand([tmp_path / "empty"])


# what an sdf says beside elements and positions


def block(smiles: str, hydrogens: bool = True, kekulize: bool = True) -> str:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles)) if hydrogens else Chem.MolFromSmiles(smiles)
    AllChem.EmbedMolecule(mol, randomSeed=1)
    return Chem.MolToMolBlock(mol, kekulize=kekulize) + "$$$$\n"


@pytest.mark.filterwarnings("ignore")
def test_bonds_charges_and_absent_hydrogens_of_an_sdf_are_kept(tmp_path):
    for kekulize in (True, False):
        (tmp_path / "a.sdf").write_text(
            block("c1ccccc1", kekulize=kekulize) + block("C[N+](=O)[O-]") + block("CCO", hydrogens=False)
        )
        held = files.contents(tmp_path / "a.sdf")
        assert held.bonds is not None
        assert held.charges is not None
        assert sorted(held.bonds[0][:, 2].tolist()) == [1] * 9 + [2] * 3  # a Kekule form
        assert held.charges[held.charges != 0].tolist() == [1, -1]
        assert held.n_hydrogens.tolist() == [0, 0, 6]
    one = held.select(np.array([1]))
    assert one.charges.tolist() == [0, 1, 0, -1, 0, 0, 0]
    assert np.array_equal(type(held).concatenate([one, held]).bonds[1], held.bonds[0])


def test_isotopes_of_an_sdf_are_hydrogen(tmp_path):
    (tmp_path / "a.sdf").write_text(SDF.replace("1.2000    0.0000    0.0000 O", "1.2000    0.0000    0.0000 D"))
    assert files.read(tmp_path / "a.sdf").numbers.tolist() == [6, 1]


# whatever the bytes are

_ANY_BYTES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reads_or_refuses(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        structures = files.read(path)
    except FileError:
        return
    assert np.isfinite(structures.positions).all()
    assert (structures.n_atoms > 0).all()


@_ANY_BYTES
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".xyz", ".sdf", ".npz"]))
def test_random_bytes_raise_nothing_but_file_errors(tmp_path, content, suffix):
    reads_or_refuses(tmp_path / f"a{suffix}", content)


@_ANY_BYTES
@given(data=st.data(), suffix=st.sampled_from([".xyz", ".sdf", ".npz"]))
def test_cut_and_altered_files_raise_nothing_but_file_errors(tmp_path, data, suffix):
    files.write(tmp_path / f"good{suffix}", molecules())
    content = bytearray((tmp_path / f"good{suffix}").read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:where]
    else:
        content[where] = data.draw(st.integers(0, 255))
    reads_or_refuses(tmp_path / f"a{suffix}", bytes(content))


def test_npz_in_memory_equals_npz_on_disk(tmp_path):
    files.write(tmp_path / "a.npz", molecules())
    with np.load(io.BytesIO((tmp_path / "a.npz").read_bytes())) as file:
        assert sorted(file.files) == ["charges", "num_atoms", "positions"]
        assert file["charges"].shape == (5, 29)


def test_samples_that_diverged_are_kept_as_they_are(tmp_path):
    """Controls: other files hold no such molecule, and a charge that no element has is refused here too."""
    x = np.array([[0.0, 0, 0], [np.nan, np.inf, 0.74]])
    some = Structures.from_list([(np.array([1, 1]), np.zeros((2, 3))), (np.array([1, 8]), x)])
    assert some.is_finite().tolist() == [True, False]
    files.write_samples(tmp_path / "a.npz", some)
    back = files.read_samples(tmp_path / "a.npz")
    for mine, theirs in zip(back.arrays(), some.arrays(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(FileError, match="molecule 1 has a coordinate that is not finite"):
        files.read(tmp_path / "a.npz")
    with pytest.raises(FileError, match="molecule 1 has a coordinate that is not finite"):
        files.write(tmp_path / "b.npz", some)
    files.write_samples(tmp_path / "a.npz", replace(some, numbers=some.numbers + 100))
    with pytest.raises(FileError, match="holds a charge outside 1 to 96"):
        files.read_samples(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(FileError, match=r"a\.npz: "):
        files.read_samples(tmp_path / "a.npz")
