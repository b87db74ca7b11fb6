import csv
import hashlib
import io
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.data import mini, qm9
from bench.registry import datasets
from bench.structures import gdb9
from bench.structures.dataset import DataError
from bench.structures.elements import FileError
from bench.structures.fetch import Artefact, CannotStartError, DownloadError, cache_folder

QM9_DIR = os.environ.get("QM9_DIR")
COMPLETE = "1ef3544c2c760a9d"  # fingerprint of all 130 831 molecules, measured on npz files and on the wheel alike
EXCLUDED = np.array([0, 7, 8])
SIZES = {"train": 30, "valid": 6, "test": 4}


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.delenv("QM9_DIR", raising=False)
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")  # pip has no registry but the folder of `small_wheel`
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_figshare(monkeypatch):
    for name in ("EXCLUDED", "ARCHIVE"):
        monkeypatch.setattr(gdb9, name, Artefact(getattr(gdb9, name).name, ("http://figshare.invalid/x",), "0"))


@pytest.fixture
def small_qm9(monkeypatch):
    """A QM9 of 43 molecules, three of them excluded, whose published facts are its own; even ids hold fluorine."""
    ids = gdb9.split_ids(EXCLUDED, n_molecules=43, n_train=30)
    facts = {split: (len(i), gdb9.id_fingerprint(i), int(i.sum())) for split, i in ids.items()}
    assert {split: n for split, (n, _, _) in facts.items()} == SIZES
    monkeypatch.setattr(gdb9, "SPLIT_FACTS", facts)
    monkeypatch.setattr(gdb9, "official_split", lambda excluded: gdb9.split_ids(excluded, n_molecules=43, n_train=30))
    n_fluorine = int((ids["train"] % 2 == 0).sum())
    monkeypatch.setattr(gdb9, "TRAIN_ATOMS", {1: 30 - n_fluorine, 6: 30, 7: 30, 8: 30, 9: n_fluorine})
    monkeypatch.setattr(gdb9, "TRAIN_SIZES", {4: 30})
    monkeypatch.setattr(qm9, "N_TOTAL", 40)
    return ids


def write(folder: Path, ids: dict[str, np.ndarray], first=0, listed=True, index=True) -> Path:
    """An EDM folder: molecule i is C, N, O and H or F; its positions are i times 1e-3 and more."""
    folder.mkdir(exist_ok=True)
    for split, i in ids.items():
        charges = np.tile([6, 7, 8, 1, 0], (len(i), 1))
        charges[:, 3] = np.where(i % 2, 1, 9)
        positions = (i * 1e-3)[:, None, None] + np.arange(15).reshape(5, 3) * (charges > 0)[:, :, None]
        arrays = {"num_atoms": np.full(len(i), 4), "charges": charges.astype(np.uint8), "positions": positions}
        np.savez_compressed(folder / f"{split}.npz", **arrays, **({"index": i + first} if index else {}))
    if listed:
        text = "List of 43 molecules\n====\n" + "".join(f"{i + 1} C C C 1.0\n" for i in EXCLUDED)
        (folder / gdb9.EXCLUDED.name).write_text(text)
    return folder


def load(folder, **options):
    return qm9.load(qm9.QM9Config(dir=str(folder), **options))


@pytest.mark.parametrize("listed", [True, False])
def test_a_complete_folder_is_verified_without_a_note(tmp_path, small_qm9, listed):
    data = load(write(tmp_path / "edm", small_qm9, listed=listed))
    assert (data.name, data.label, data.notes) == ("qm9", "QM9", [])
    assert {split: len(s) for split, s in data.splits.items()} == SIZES
    assert data.elements == (1, 6, 7, 8, 9)


def test_rows_in_any_order_counted_from_zero_or_one_give_one_fingerprint(tmp_path, small_qm9):
    permuted = load(write(tmp_path / "a", small_qm9))
    sorted_ids = {split: np.sort(i) for split, i in small_qm9.items()}
    from_one = load(write(tmp_path / "b", sorted_ids, first=1))
    assert permuted.fingerprint == from_one.fingerprint
    assert (np.diff(permuted.train.positions[::4, 0]) > 0).all()
    fewer = {**small_qm9, "test": small_qm9["test"][1:]}  # control
    assert load(write(tmp_path / "c", fewer)).fingerprint != permuted.fingerprint


def test_missing_fluorine_is_counted_and_stated_in_the_label(tmp_path, small_qm9):
    ids = {split: i[i % 2 == 1] for split, i in small_qm9.items()}
    data = load(write(tmp_path / "edm", ids), max_atoms=14)
    missing = {split: SIZES[split] - len(i) for split, i in ids.items()}
    counts = ", ".join(f"{n} of {split}" for split, n in missing.items())
    assert data.label == "QM9 without fluorine, at most 14 atoms"
    assert data.notes == [
        f"{sum(missing.values())} of 40 molecules are missing ({counts}); none of those present contains fluorine"
    ]


def test_molecules_missing_for_another_reason_are_not_laid_on_fluorine(tmp_path, small_qm9):
    ids = {split: i[i % 2 == 1][:2] for split, i in small_qm9.items()}
    data = load(write(tmp_path / "edm", ids))
    assert data.label == "QM9, 6 of its 40 molecules"


@pytest.mark.parametrize("first", [0, 1])
def test_a_row_of_another_split_is_refused(tmp_path, small_qm9, first):
    ids = {**small_qm9, "test": np.append(small_qm9["test"][:-1], small_qm9["train"][3])}
    stray = small_qm9["train"][3] + first
    with pytest.raises(DataError, match=rf"test\.npz: 1 of 4 molecules .* first has index {stray}"):
        load(write(tmp_path / "edm", {**ids, "train": small_qm9["train"][4:]}, first=first))


def test_without_the_list_an_incomplete_split_is_taken_on_trust_and_a_wrong_full_one_refused(tmp_path, small_qm9):
    data = load(write(tmp_path / "a", {**small_qm9, "train": small_qm9["train"][:20]}, listed=False))
    assert "on trust" in data.notes[1]
    swapped = {**small_qm9, "train": small_qm9["train"][:20], "test": small_qm9["valid"][:4]}
    with pytest.raises(DataError, match=r"test\.npz has as many molecules .* but not the same"):
        load(write(tmp_path / "b", swapped, listed=False))


def test_rows_without_index_are_taken_on_trust(tmp_path, small_qm9):
    data = load(write(tmp_path / "edm", small_qm9, index=False))
    assert data.notes == ["the npz files carry no 'index' for every split, so the split is taken on trust"]


def test_a_molecule_that_comes_twice_is_refused(tmp_path, small_qm9):
    ids = {**small_qm9, "valid": np.append(small_qm9["valid"][:-1], small_qm9["valid"][0])}
    with pytest.raises(DataError, match=r"valid\.npz: a molecule comes twice"):
        load(write(tmp_path / "edm", ids))


def test_too_many_rows_are_refused(tmp_path, small_qm9):
    ids = {**small_qm9, "test": np.arange(100, 105)}
    with pytest.raises(DataError, match=r"test\.npz has 5 molecules, EDM's test split has 4"):
        load(write(tmp_path / "edm", ids))


def test_a_complete_folder_with_other_atoms_is_refused(tmp_path, small_qm9, monkeypatch):
    monkeypatch.setattr(gdb9, "TRAIN_ATOMS", {**gdb9.TRAIN_ATOMS, 8: 31})
    with pytest.raises(DataError, match="has 30 atoms of charge 8, EDM's has 31"):
        load(write(tmp_path / "edm", small_qm9))


def test_a_folder_without_qm9_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"lacks train\.npz.*dsgdb9nsd"):
        load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_a_damaged_npz_is_refused(tmp_path, small_qm9):
    folder = write(tmp_path / "edm", small_qm9)
    (folder / "valid.npz").write_bytes((folder / "valid.npz").read_bytes()[:-200])
    with pytest.raises(FileError, match=r"valid\.npz"):
        load(folder)


@pytest.fixture
def small_archive(tmp_path, monkeypatch):
    """A folder with an archive of 43 waters and hydroxyls, and the list of exclusions."""
    (tmp_path / "figshare").mkdir()
    path = tmp_path / "figshare" / gdb9.ARCHIVE.name
    with tarfile.open(path, "w:bz2") as tar:
        for i in reversed(range(43)):
            rows = [f"O 0.{i:02d} 0. 0. 0", "H 0 0 .9*^0 0", *(["H 0 0 -9.*^-1 0"] if i % 3 else [])]
            text = "\n".join([str(len(rows)), f"gdb {i + 1}\t1", *rows, "1.0\t2.0", "O O", "x x", ""])
            member = tarfile.TarInfo(f"dsgdb9nsd_{i + 1:06d}.xyz")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    content = path.read_bytes()
    published = Artefact(path.name, ("http://figshare.invalid/x",), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(gdb9, "ARCHIVE", published)
    monkeypatch.setattr(gdb9, "check_train_counts", lambda _: None)
    read = gdb9.read_archive
    monkeypatch.setattr(gdb9, "read_archive", lambda path: read(path, n_molecules=43))
    (path.parent / gdb9.EXCLUDED.name).write_text("List\n" + "".join(f"{i + 1} C\n" for i in EXCLUDED))
    return path.parent


def test_an_archive_is_split_by_the_recipe_and_read_once(small_archive, small_qm9, monkeypatch):
    data = load(small_archive)
    waters = {split: i[i % 3 > 0] for split, i in small_qm9.items()}
    assert {split: len(s) for split, s in data.splits.items()} == SIZES
    for split, structures in data.splits.items():
        assert (structures.n_atoms == 3).sum() == len(waters[split])
        np.testing.assert_array_equal(
            structures.positions[structures.ptr[:-1], 0], np.float32(np.sort(small_qm9[split]) / 100)
        )
    monkeypatch.setattr(gdb9, "read_archive", lambda _: pytest.fail("the archive was read again"))
    assert load(small_archive).fingerprint == data.fingerprint


def test_a_damaged_cache_is_made_again(small_archive, small_qm9):
    fingerprint = load(small_archive).fingerprint
    (cached,) = cache_folder().glob("*.npz")
    cached.write_bytes(cached.read_bytes()[:300])
    assert load(small_archive).fingerprint == fingerprint


def test_an_archive_with_another_checksum_is_refused(small_archive, small_qm9, monkeypatch):
    monkeypatch.setattr(gdb9, "ARCHIVE", replace(gdb9.ARCHIVE, sha256="0" * 64))
    with pytest.raises(DataError, match=r"does not match the published SHA-256"):
        load(small_archive)


@pytest.fixture
def small_mini(tmp_path, monkeypatch):
    n = 12
    path = tmp_path / "mini.npz"
    charges = np.zeros((n, 14), np.uint8)
    charges[:, :2] = [[9, 1]]
    positions = np.random.default_rng(0).normal(size=(n, 14, 3)).astype(np.float32)
    split = np.array([0] * 8 + [1] * 2 + [2] * 2, np.uint8)
    np.savez(path, num_atoms=np.full(n, 2, np.uint8), charges=charges, positions=positions, split=split)
    monkeypatch.setattr(mini, "PATH", path)
    return path


def test_without_any_source_it_is_an_error_that_names_each(no_figshare):
    with pytest.raises(
        CannotStartError, match=r"out of reach: .*figshare\.invalid.*pip: .*qm9pack==1\.0\.3.*set QM9_DIR"
    ):
        datasets["qm9"].build(qm9.QM9Config())


@pytest.fixture
def small_wheel(tmp_path, monkeypatch, small_qm9, no_figshare):
    """A registry whose qm9pack holds the molecules of `write`, without the excluded ones, coordinates to 10 digits."""
    included = np.sort(np.concatenate(list(small_qm9.values())))
    (tmp_path / "registry").mkdir()
    path = tmp_path / "registry" / gdb9.WHEEL.name
    with zipfile.ZipFile(path, "w") as wheel:
        for part, ids in zip(gdb9.WHEEL_PARTS, np.array_split(included, 3), strict=True):
            text = io.StringIO()
            rows = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
            rows.writerow(["Index", "InChi", "Elements", "XYZ_Ang"])
            for i in ids.tolist():
                x = i * 1e-3 + np.arange(12).reshape(4, 3)
                xyz = (
                    "[" + ",".join("[" + ",".join(np.format_float_positional(v, 10) for v in r) + "]" for r in x) + "]"
                )
                rows.writerow([i + 1, "InChI=1S/a,b", str(["C", "N", "O", "H" if i % 2 else "F"]), xyz])
            wheel.writestr(part, text.getvalue())
        about = "Metadata-Version: 2.1\nName: qm9pack\nVersion: 1.0.3\nRequires-Dist: pandas\n"
        wheel.writestr("qm9pack/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("qm9pack-1.0.3.dist-info/METADATA", about)
        wheel.writestr("qm9pack-1.0.3.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setattr(gdb9, "WHEEL", replace(gdb9.WHEEL, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    read = gdb9.read_wheel
    monkeypatch.setattr(gdb9, "read_wheel", lambda path: read(path, n_molecules=43))
    return path


def test_the_registry_gives_the_molecules_and_the_fingerprint_of_a_folder(small_wheel, tmp_path, small_qm9):
    data = qm9.load(qm9.QM9Config())
    assert (data.name, data.label, data.notes) == ("qm9", "QM9", [])
    assert data.source == "qm9pack 1.0.3 from a package registry"
    assert data.fingerprint == load(write(tmp_path / "edm", small_qm9)).fingerprint
    fewer = {**small_qm9, "test": small_qm9["test"][1:]}  # control
    assert data.fingerprint != load(write(tmp_path / "fewer", fewer)).fingerprint


def test_what_the_cache_holds_needs_neither_figshare_nor_registry(small_wheel, monkeypatch):
    fingerprint = qm9.load(qm9.QM9Config()).fingerprint
    small_wheel.unlink()
    monkeypatch.setattr(gdb9, "read_wheel", lambda _: pytest.fail("the wheel was read again"))
    monkeypatch.setattr(qm9, "_from_figshare", lambda: pytest.fail("figshare was asked"))
    assert qm9.load(qm9.QM9Config()).fingerprint == fingerprint


def test_a_download_from_figshare_that_breaks_off_is_made_up_for_by_the_registry(small_wheel, monkeypatch):
    def broken():
        raise DownloadError("the connection broke off")

    monkeypatch.setattr(qm9, "_from_figshare", broken)
    assert qm9.load(qm9.QM9Config()).label == "QM9"
    small_wheel.unlink()
    (cache_folder() / gdb9.WHEEL.name).unlink()
    with pytest.raises(DownloadError, match="broke off") as raised:  # there is a network: nothing may stand in
        qm9.load(qm9.QM9Config())
    assert not isinstance(raised.value, CannotStartError)


def test_a_folder_that_was_asked_for_is_never_replaced_by_the_embedded_set(small_mini, monkeypatch, tmp_path):
    monkeypatch.setenv("QM9_DIR", str(tmp_path / "typo"))
    with pytest.raises(DataError, match="typo does not exist") as raised:
        qm9.load(qm9.QM9Config(offline=qm9.Offline.MINI))
    assert not isinstance(raised.value, CannotStartError)


def test_mini_is_split_as_its_file_says(small_mini):
    data = mini.load(mini.MiniConfig())
    assert [len(split) for split in data.splits.values()] == [8, 2, 2]
    with np.load(small_mini) as arrays:
        np.testing.assert_array_equal(data.valid.positions[:2], arrays["positions"][8, :2])


def test_published_training_histogram_agrees_with_itself():
    assert sum(n for n, _, _ in gdb9.SPLIT_FACTS.values()) == gdb9.N_MOLECULES - 3054
    assert round(sum(gdb9.TRAIN_ATOMS.values()) / gdb9.SPLIT_FACTS["train"][0], 3) == 18.031


@pytest.mark.skipif(not QM9_DIR, reason="QM9_DIR is not set")
def test_real_qm9_is_verified_and_what_it_lacks_is_stated():
    data = load(QM9_DIR)
    present = sum(len(split) for split in data.splits.values())
    for split, structures in data.splits.items():
        assert set(np.unique(structures.numbers)) <= set(data.elements)
        assert len(structures) <= gdb9.SPLIT_FACTS[split][0]
    if present == qm9.N_TOTAL:
        assert data.label == "QM9"
        assert data.fingerprint == COMPLETE
    else:
        assert str(qm9.N_TOTAL - present) == data.notes[0].split(" of ")[0].replace(" ", "")


@pytest.mark.slow
@pytest.mark.skipif("EQUIBENCH_WHEEL" not in os.environ, reason="EQUIBENCH_WHEEL, qm9pack's wheel, is not set")
def test_the_published_wheel_is_complete_qm9(tmp_path, no_figshare, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(Path(os.environ["EQUIBENCH_WHEEL"]).parent))
    data = qm9.load(qm9.QM9Config())
    assert (data.label, data.notes, data.fingerprint) == ("QM9", [], COMPLETE)
