import bz2
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bench.structures import gdb9
from bench.structures.dataset import DataError

METHANE = (
    "5\ngdb 1\t157.7118\t157.70997\t0.\t13.21\t\n"
    "C\t-0.0126981359\t 1.0858041578\t 8.0009958*^-3\t-0.535689\n"
    "H\t 2.15*^-6\t-6.0313176*^-3\t 1.9761204*^-3\t 0.133921\n"
    "H\t 1.0117308433\t 1.4637511618\t 2.765748*^-4\t 0.133922\n"
    "H  -0.540815069   1.4475266138\t-0.8766437152\t 1.3*^-1 \n"
    "H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923\n"
    "1341.307\t1341.3284\nC\tC\t\nInChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"
)
WATER = "3\ngdb 2\t1 2\nO\t0.\t0.\t1.*^-1\t0\nH\t0.\t0.76\t-0.47\t0\nH\t0.\t-0.76\t-0.47\t0\n1\t2\nO\tO\nx\ty\n"


def archive(path: Path, members: dict[str, str]) -> Path:
    with tarfile.open(path, "w:bz2") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            tar.addfile(info, io.BytesIO(content.encode()))
    return path


def name(number: int) -> str:
    return f"dsgdb9nsd_{number:06d}.xyz"


def test_molecules_of_the_archive_come_in_the_order_of_their_ids(tmp_path):
    path = archive(tmp_path / "x.tar.bz2", {name(2): WATER, name(1): METHANE})
    structures = gdb9.read_archive(path, n_molecules=2)
    assert structures.n_atoms.tolist() == [5, 3]
    assert structures.numbers.tolist() == [6, 1, 1, 1, 1, 8, 1, 1]
    assert structures.positions.dtype == np.float32
    np.testing.assert_array_equal(
        structures.positions[[0, 1, 3, 5]],
        np.float32(
            [
                [-0.0126981359, 1.0858041578, 8.0009958e-3],
                [2.15e-6, -6.0313176e-3, 1.9761204e-3],
                [-0.540815069, 1.4475266138, -0.8766437152],
                [0, 0, 0.1],
            ]
        ),
    )


def test_nothing_is_unpacked_to_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gdb9.read_archive(archive(tmp_path / "x.tar.bz2", {name(1): METHANE, f"./{name(2)}": WATER}), n_molecules=2)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.bz2"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({name(3): WATER}, "2 molecules, expected 2"),
        ({f"a/{name(1)}": METHANE}, "1 molecules, expected 2"),
        ({name(2): WATER.replace("O\t0.", "Q\t0.")}, "unknown element 'Q'"),
        ({name(2): WATER + WATER}, "2 molecules, expected 2"),
        ({name(2): ""}, "2 molecules, expected 2"),
        ({}, "1 molecules, expected 2"),
    ],
)
def test_anything_but_one_xyz_file_for_each_molecule_is_refused(tmp_path, second, message):
    path = archive(tmp_path / "x.tar.bz2", {name(1): METHANE, **second})
    with pytest.raises(DataError, match=message) as raised:
        gdb9.read_archive(path, n_molecules=2)
    assert "\n" not in str(raised.value)
    assert "x.tar.bz2" in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"no archive", bz2.compress(b"no tar")])
def test_a_damaged_archive_is_refused(tmp_path, content):
    path = archive(tmp_path / "x.tar.bz2", {name(1): METHANE, name(2): WATER})
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    with pytest.raises(DataError, match=r"x\.tar\.bz2"):
        gdb9.read_archive(path, n_molecules=2)


def test_the_list_of_exclusions_counts_from_one_and_its_header_is_skipped(tmp_path):
    path = tmp_path / "uncharacterized.txt"
    path.write_text(
        "\nList of 133885 molecules\n=====\n#  Index  SMILES\n=====\n  58  NC  [NH]C 6.0\n 3 C C 1.\n=====\n"
    )
    assert gdb9.read_excluded(path).tolist() == [2, 57]


def test_split_is_the_legacy_permutation_of_what_is_not_excluded():
    excluded = np.array([0, 7, 8])
    splits = gdb9.split_ids(excluded, n_molecules=43, n_train=30)
    included = [i for i in range(43) if i not in (0, 7, 8)]
    np.random.seed(0)  # noqa: NPY002 - the published recipe, word for word
    permuted = [included[i] for i in np.random.permutation(40)]  # noqa: NPY002
    assert [splits[split].tolist() for split in splits] == [permuted[:30], permuted[30:36], permuted[36:]]
    other = gdb9.split_ids(np.array([0, 7, 20]), n_molecules=43, n_train=30)  # control: one exclusion moves the split
    assert other["train"].tolist() != splits["train"].tolist()


def test_id_fingerprint_ignores_order_and_sees_any_id():
    assert gdb9.id_fingerprint(np.array([3, 1, 2])) == gdb9.id_fingerprint(np.array([1, 2, 3]))
    assert gdb9.id_fingerprint(np.array([3, 1, 2])) != gdb9.id_fingerprint(np.array([1, 2, 4]))


def test_a_wrong_list_of_exclusions_shows_in_the_fingerprints():
    with pytest.raises(DataError, match=r"expected c7fba7cb427a12ca.*uncharacterized"):
        gdb9.official_split(np.arange(3054))


def test_published_split_follows_from_the_published_list():
    folder = os.environ.get("QM9_DIR")
    path = Path(folder or "") / gdb9.EXCLUDED.name
    if not folder or not path.is_file():
        pytest.skip("QM9_DIR is not set to a folder with uncharacterized.txt")
    assert gdb9.EXCLUDED.is_at(path)
    excluded = gdb9.read_excluded(path)
    assert (len(excluded), excluded[0], excluded[-1]) == (3054, 57, 133_865)
    splits = gdb9.official_split(excluded)
    assert splits["train"][:5].tolist() == [133160, 70466, 8225, 26623, 20503]
    with pytest.raises(DataError, match="here 3053 molecules"):  # control
        gdb9.official_split(excluded[1:])
    with pytest.raises(DataError):  # control: exclusions read as if they counted from 0
        gdb9.official_split(excluded + 1)


# ---------------------------------------------------------------------- the wheel of qm9pack

HEAD = "Index,InChi,Elements,XYZ_Ang\n"
METHANE_ROW = (
    """1,"InChI=1S/a,b","['C','H','H','H','H']","[[-0.0126981359,1.0858041578,8.0009958E-3],[2.15E-6,-6.0313176E-3,"""
    "1.9761204E-3],[1.0117308433,1.4637511618,2.765748E-4],[-0.540815069,1.4475266138,-0.8766437152],"
    '[-0.5238136345,1.4379326443,0.9063972942]]"\n'
)
WATER_ROW = """2,"InChI=1S/c","['O','H','H']","[[0.,0.,0.1],[0.,0.76,-0.47],[0.,-0.76,-0.47]]"\n"""


def wheel(path: Path, *parts: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, rows in zip(gdb9.WHEEL_PARTS, parts, strict=True):
            made.writestr(name, HEAD + rows)
    return path


def test_the_wheel_holds_what_the_archive_holds_to_the_last_bit(tmp_path):
    found = gdb9.read_wheel(wheel(tmp_path / "x.whl", METHANE_ROW, WATER_ROW, ""), n_molecules=2)
    of_archive = gdb9.read_archive(archive(tmp_path / "x.tar.bz2", {name(2): WATER, name(1): METHANE}), n_molecules=2)
    for key in ("numbers", "positions", "ptr"):
        assert getattr(found, key).tobytes() == getattr(of_archive, key).tobytes()


def test_molecules_that_the_wheel_leaves_out_have_no_atoms_and_keep_the_places_of_the_others(tmp_path):
    found = gdb9.read_wheel(wheel(tmp_path / "x.whl", "", WATER_ROW, ""), n_molecules=4)
    assert found.n_atoms.tolist() == [0, 3, 0, 0]
    with pytest.raises(DataError, match="fingerprint"):
        gdb9.official_split(np.flatnonzero(found.n_atoms == 0))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((WATER_ROW, METHANE_ROW, ""), "molecule 1 is out of order"),
        ((METHANE_ROW, METHANE_ROW, ""), "molecule 1 is out of order"),
        ((METHANE_ROW, WATER_ROW.replace("2,", "3,", 1), ""), "molecule 3 is out of order"),
        ((METHANE_ROW.replace("'C',", ""), "", ""), "incomplete"),
        ((METHANE_ROW.replace("'C'", "'Si'"), "", ""), "Si"),
        ((METHANE_ROW.replace("1.0117308433", "x"), "", ""), "could not convert"),
        (("1,,,\n", "", ""), "could not convert"),
        (("1\n", "", ""), "expected string"),
    ],
)
def test_a_wheel_of_another_content_is_refused_in_one_line(tmp_path, parts, message):
    with pytest.raises(DataError, match=message) as raised:
        gdb9.read_wheel(wheel(tmp_path / "x.whl", *parts), n_molecules=2)
    assert str(raised.value).startswith(str(tmp_path / "x.whl"))
    assert "fetch the wheel again" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_damaged_wheel_is_refused(tmp_path):
    path = wheel(tmp_path / "x.whl", METHANE_ROW, WATER_ROW, "")
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:90] + bytes([content[90] ^ 255]) + content[91:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="fetch the wheel again"):
            gdb9.read_wheel(path, n_molecules=2)
