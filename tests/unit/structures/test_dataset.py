import dataclasses

import numpy as np
import pytest

from bench.records import schema
from bench.structures.dataset import DataError, DataSet, read_with
from bench.structures.structures import Structures


def structures(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return Structures.from_list([(rng.choice([1, 6], size=n), rng.normal(size=(n, 3))) for n in sizes])


@pytest.fixture
def data():
    train, valid, test = structures(range(2, 22)), structures([3, 9], 1), structures([4, 5, 20], 2)
    return DataSet("toy", "toy", "made up", (1, 6), train, valid, test, ["a note"])


def test_record_is_what_the_manifest_expects(data):
    schema.check(data.record(), schema.MANIFEST["data"], "data")
    assert data.record()["n_test"] == 3
    assert data.record()["mean_atoms"] == np.mean(range(2, 22))
    with pytest.raises(schema.RecordError, match="label"):  # control
        schema.check({k: v for k, v in data.record().items() if k != "label"}, schema.MANIFEST["data"], "data")


def test_fingerprint_changes_with_any_content_and_with_nothing_else(data):
    def moved(split):
        positions = split.positions.copy()
        positions[-1, -1] = np.nextafter(positions[-1, -1], np.float32(9))
        return dataclasses.replace(split, positions=positions)

    def transmuted(split):
        numbers = split.numbers.copy()
        numbers[0] = 7 - numbers[0]
        return dataclasses.replace(split, numbers=numbers)

    changed = [
        dataclasses.replace(data, test=moved(data.test)),
        dataclasses.replace(data, valid=transmuted(data.valid)),
        dataclasses.replace(data, elements=(1, 6, 7)),
        dataclasses.replace(data, valid=data.test, test=data.valid),
        dataclasses.replace(
            data,
            train=dataclasses.replace(data.train, ptr=data.train.ptr + np.eye(len(data.train) + 1, dtype=np.int64)[1]),
        ),
    ]
    fingerprints = [data.fingerprint, *(other.fingerprint for other in changed)]
    assert len(set(fingerprints)) == len(fingerprints)
    assert dataclasses.replace(data, label="another", source="elsewhere", notes=[]).fingerprint == data.fingerprint


def test_positions_are_kept_in_single_precision(data):
    assert all(split.positions.dtype == np.float32 for split in data.splits.values())


def test_max_atoms_applies_to_every_split_and_shows_in_the_label(data):
    small = data.limited(max_atoms=9, n_train=None)
    assert [split.n_atoms.max() for split in small.splits.values()] == [9, 9, 5]
    assert [len(split) for split in small.splits.values()] == [8, 2, 2]
    assert small.label == "toy, at most 9 atoms"
    assert small.fingerprint != data.fingerprint


def test_smaller_training_subsets_lie_within_larger_ones(data):
    subsets = [set(data.limited(None, n).train.n_atoms.tolist()) for n in (3, 7, 15)]
    assert [len(subset) for subset in subsets] == [3, 7, 15]
    assert subsets[0] < subsets[1] < subsets[2]
    assert subsets[0] != {2, 3, 4}  # control: drawn, not the first of the file
    assert len(data.limited(None, 3).test) == 3


def test_a_training_subset_leaves_the_other_splits_alone_and_brings_its_own_facts(data):
    few = data.limited(None, 3)
    assert few.valid is data.valid
    assert few.test is data.test
    assert few.facts.sizes == dict.fromkeys(sorted(few.train.n_atoms.tolist()), 1)
    assert few.mean_atoms == few.train.n_atoms.mean() != data.mean_atoms
    assert few.fingerprint != data.limited(None, 4).fingerprint
    assert data.limited(None, 20).fingerprint == data.fingerprint  # all of them: the same data


def test_test_sizes_that_training_lacks_are_counted_in_a_note(data):
    few = data.limited(None, 3)
    lacking = [n for n in (4, 5, 20) if n not in few.train.n_atoms]
    assert lacking
    note = f"{len(lacking)} of 3 test molecules have a size that no training one has: {', '.join(map(str, lacking))}"
    assert few.notes == ["a note", note]
    assert data.limited(None, 20).notes == ["a note"]  # control


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((1, None), "train split is empty"),
        ((None, 0), "20 training"),
        ((None, 21), "20 training"),
        ((3, None), "test split is empty"),
    ],
)
def test_limits_that_leave_nothing_are_refused(data, limits, message):
    with pytest.raises(DataError, match=message):
        data.limited(*limits)


def test_elements_outside_those_declared_are_refused(data):
    with pytest.raises(DataError, match=r"charges \[6\]"):
        dataclasses.replace(data, elements=(1,))


@pytest.mark.parametrize("index", [np.zeros(3, np.int64), np.zeros(2), np.array(["a", "b"])])
def test_an_array_that_does_not_fit_the_molecules_is_refused(tmp_path, index):
    arrays = {"num_atoms": np.array([2, 1]), "charges": np.array([[1, 1], [6, 0]]), "positions": np.ones((2, 2, 3))}
    np.savez(tmp_path / "good.npz", **arrays, index=np.arange(2))
    np.savez(tmp_path / "bad.npz", **arrays, index=index)
    assert read_with(tmp_path / "good.npz", "index")[1].tolist() == [0, 1]
    assert read_with(tmp_path / "good.npz", "other")[1] is None
    with pytest.raises(DataError, match=r"bad\.npz: array 'index'"):
        read_with(tmp_path / "bad.npz", "index")


def test_pickled_arrays_are_never_loaded(tmp_path):
    arrays = {"num_atoms": np.array([1]), "charges": np.array([[6]]), "positions": np.ones((1, 1, 3))}
    np.savez(tmp_path / "x.npz", **arrays, index=np.array([{}]))
    with pytest.raises(DataError, match="'index' holds pickled objects"):
        read_with(tmp_path / "x.npz", "index")
