import numpy as np
import pytest

from bench.data import folder
from bench.structures import files
from bench.structures.dataset import DataError
from bench.structures.elements import FileError
from bench.structures.identity import graph_keys
from bench.structures.structures import Structures


def molecules(n, seed=0, elements=(1, 6, 16)):
    """n molecules of 2 to 5 atoms on a jittered lattice, four decimals, as sdf keeps."""
    rng = np.random.default_rng(seed)
    sites = np.stack(np.meshgrid(*[np.arange(2)] * 3), axis=-1).reshape(-1, 3) * 1.5
    sizes = [2 + i % 4 for i in range(n)]
    return Structures.from_list(
        [(rng.choice(elements, size=k), np.round(sites[:k] + rng.uniform(0, 0.2, (k, 3)), 4)) for k in sizes]
    )


def notes_of_files(data):
    """Notes but those on repetition and sizes, which these made-up molecules do have."""
    return [note for note in data.notes if "atoms and bonds" not in note and "a size that" not in note]


def load(path, **options):
    return folder.load(folder.FolderConfig(dir=str(path), **options))


@pytest.mark.parametrize("suffix", ["xyz", "extxyz", "sdf", "npz"])
def test_every_format_is_read_and_its_elements_found(tmp_path, suffix):
    split_of = {"train": molecules(8, 1), "valid": molecules(3, 2), "test": molecules(4, 3)}
    for split, structures in split_of.items():
        files.write(tmp_path / f"{split}.{suffix}", structures)
    data = load(tmp_path)
    assert data.elements == (1, 6, 16)
    assert data.source == f"folder of {suffix}, split by file name"
    assert data.label == tmp_path.name
    assert notes_of_files(data) == []
    for split, structures in split_of.items():
        np.testing.assert_array_equal(data.splits[split].numbers, structures.numbers)
        np.testing.assert_array_equal(data.splits[split].ptr, structures.ptr)
        np.testing.assert_allclose(data.splits[split].positions, structures.positions, atol=1e-6)


def test_one_set_in_two_formats_has_one_fingerprint(tmp_path):
    for suffix in ("xyz", "npz"):
        (tmp_path / suffix).mkdir()
        files.write(tmp_path / suffix / f"all.{suffix}", molecules(30))
    assert load(tmp_path / "xyz").fingerprint == load(tmp_path / "npz").fingerprint
    assert load(tmp_path / "xyz", seed=1).fingerprint != load(tmp_path / "npz").fingerprint  # control


def test_unnamed_files_are_split_by_a_seeded_permutation(tmp_path):
    files.write(tmp_path / "a.xyz", molecules(25, 1))
    files.write(tmp_path / "b.npz", molecules(15, 2))
    data = load(tmp_path, seed=3, test_fraction=0.2)
    assert [len(split) for split in data.splits.values()] == [28, 4, 8]
    assert data.source == "folder of npz/xyz, split at random, seed 3, fractions 0.1 valid and 0.2 test"
    together = np.concatenate([split.positions[split.ptr[:-1]] for split in data.splits.values()])
    given = np.concatenate([m.positions[m.ptr[:-1]] for m in (molecules(25, 1), molecules(15, 2))]).astype(np.float32)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, given.tolist()))
    assert load(tmp_path, seed=3, test_fraction=0.2).fingerprint == data.fingerprint
    assert load(tmp_path, seed=4, test_fraction=0.2).fingerprint != data.fingerprint


def test_unusable_molecules_are_left_out_and_named(tmp_path):
    bad = [(np.array([1]), np.zeros((1, 3))), (np.array([6, 1]), np.array([[0.0, 0, 0], [0, 0, 0.1]]))]
    files.write(tmp_path / "mixed.xyz", Structures.concatenate([molecules(10), Structures.from_list(bad)]))
    data = load(tmp_path)
    assert sum(map(len, data.splits.values())) == 10
    assert notes_of_files(data) == [
        "2 of 12 molecules left out (mixed.xyz: molecule 11: 1 atom(s), at least 2 needed; "
        "mixed.xyz: molecule 12: two atoms 0.10 angstrom apart)"
    ]


def test_other_files_beside_the_splits_are_noted(tmp_path):
    for seed, name in enumerate(("train.xyz", "valid.npz", "test.xyz", "extra.xyz")):
        files.write(tmp_path / name, molecules(4, seed))
    data = load(tmp_path, max_atoms=4, n_train=2)
    assert notes_of_files(data) == ["not read, since train, valid and test are there: extra.xyz"]
    assert data.label == f"{tmp_path.name}, at most 4 atoms, 2 training molecules"
    assert [len(split) for split in data.splits.values()] == [2, 3, 3]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "has no file ending in"),
        (("train.xyz", "test.xyz"), r"no file for valid; expected files for each"),
        (("train.xyz", "valid.xyz", "test.xyz", "test.npz"), r"test\.npz and test\.xyz; expected files"),
        (("train_val.xyz", "test.xyz"), r"train_val\.xyz: its name tells several splits \(train and valid\)"),
    ],
)
def test_a_folder_whose_splits_cannot_be_told_is_refused(tmp_path, names, message):
    for name in names:
        files.write(tmp_path / name, molecules(4))
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("fractions", [(0.0, 0.1), (0.5, 0.5), (-0.1, 0.1)])
def test_fractions_that_leave_a_split_empty_are_refused(tmp_path, fractions):
    files.write(tmp_path / "all.xyz", molecules(10))
    with pytest.raises(DataError, match="valid_fraction"):
        load(tmp_path, valid_fraction=fractions[0], test_fraction=fractions[1])


def test_too_few_molecules_or_no_folder_are_refused(tmp_path):
    files.write(tmp_path / "all.xyz", molecules(2))
    with pytest.raises(DataError, match="2 usable molecules; a split needs at least 3"):
        load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_faults_of_a_file_pass_through_with_its_name(tmp_path):
    files.write(tmp_path / "good.xyz", molecules(10))
    (tmp_path / "broken.xyz").write_text("3\n\nC 0 0 0\nH 0 0 x\nH 0 1 0\n")
    with pytest.raises(FileError, match=r"broken\.xyz"):
        load(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("mine_train.xyz", "mine_val.xyz", "mine_test.xyz"),
        ("train_mine.sdf", "validation-mine.sdf", "TEST 1.sdf"),
        ("training/a.npz", "dev/a.npz", "testing/a.npz"),
    ],
)
def test_splits_are_recognised_by_a_word_of_the_name_or_the_folder(tmp_path, names):
    for k, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        files.write(tmp_path / name, molecules(4 + k, k))
    data = load(tmp_path)
    assert [len(split) for split in data.splits.values()] == [4, 5, 6]
    assert "split by file name" in data.source


def test_a_split_may_have_several_files_and_a_word_within_a_word_is_none(tmp_path):
    for k, name in enumerate(("train_1.xyz", "train_2.xyz", "valid.xyz", "test.xyz", "contest.xyz", "trainable.xyz")):
        files.write(tmp_path / name, molecules(3, k))
    data = load(tmp_path)
    assert [len(split) for split in data.splits.values()] == [6, 3, 3]
    assert data.notes[0] == "not read, since train, valid and test are there: contest.xyz; trainable.xyz"


BAD = "2\n\nC 0 0 0\nH nan 0 1\n"


def test_bad_molecules_are_an_error_or_one_line_for_many(tmp_path):
    files.write(tmp_path / "good.xyz", molecules(20))
    for k in range(6):
        (tmp_path / f"bad{k}.xyz").write_text(BAD)
    with pytest.raises(FileError, match=r"bad0\.xyz:4: .* is not finite; .* data\.skip_bad=true"):
        load(tmp_path)
    data = load(tmp_path, skip_bad=True)
    assert sum(map(len, data.splits.values())) == 20
    (note,) = notes_of_files(data)
    assert note.startswith("6 of 26 molecules left out (bad0.xyz:4: frame 1: coordinate 'nan' is not finite; bad1.xyz")
    assert note.endswith("; and 3 more)")


def conformers(n_molecules: int, n_each: int) -> Structures:
    """Chains of carbon of different lengths, `n_each` geometries of each."""
    rng = np.random.default_rng(0)
    chains = [np.column_stack([1.5 * np.arange(2 + k), np.zeros((2 + k, 2))]) for k in range(n_molecules)]
    return Structures.from_list(
        [(np.full(len(x), 6), x + rng.uniform(0, 0.05, x.shape)) for x in chains for _ in range(n_each)]
    )


@pytest.mark.parametrize("split", ["random", "molecule", "scaffold"])
def test_conformers_stay_together_where_they_are_asked_to(tmp_path, split):
    files.write(tmp_path / "all.xyz", conformers(20, 5))
    data = load(tmp_path, split=folder.Split(split), valid_fraction=0.2, test_fraction=0.2)
    keys = {name: set(graph_keys(part).tolist()) for name, part in data.splits.items()}
    apart = not keys["train"] & (keys["valid"] | keys["test"]) and not keys["valid"] & keys["test"]
    assert apart is (split != "random")
    assert any("molecules with the atoms and bonds of a training molecule" in note for note in data.notes) is not apart
    assert any(note.startswith("100 conformers are of 20 molecules") for note in data.notes)
    assert [len(part) for part in data.splits.values()] == [60, 20, 20]


def test_copies_are_counted(tmp_path):
    files.write(tmp_path / "all.xyz", Structures.concatenate([molecules(20), molecules(20).select(np.arange(3))]))
    assert "3 of 23 molecules are copies of others, coordinate by coordinate" in load(tmp_path).notes


def test_a_split_by_molecule_that_leaves_a_part_empty_is_refused(tmp_path):
    files.write(tmp_path / "all.xyz", conformers(2, 30))
    with pytest.raises(DataError, match="split=molecule leaves a split empty: 2 groups among 60 molecules"):
        load(tmp_path, split=folder.Split.MOLECULE)


def test_a_folder_in_bohr_is_warned_of(tmp_path):
    files.write(tmp_path / "all.xyz", conformers(10, 1))
    assert not any("angstrom" in note for note in load(tmp_path).notes)
    far = conformers(10, 1)
    files.write(tmp_path / "all.xyz", Structures(far.numbers, far.positions / 0.529177, far.ptr))
    assert any("are these angstrom?" in note for note in load(tmp_path).notes)
