"""Items of values: read back as written, and anything else refused with one line."""

from pathlib import Path

import numpy as np
import pytest

from bench.records.items import read_items, write_items
from bench.records.schema import RecordError

ITEMS = {"nll": np.array([1.5, np.nan, -3.0]), "atom_stability": np.array([[3, 4], [5, 5], [0, 2]])}


def test_items_are_read_back(tmp_path):
    """As float32, booleans and integers included, NaN kept; none where there is no file."""
    path = tmp_path / "items.npz"
    write_items(path, ITEMS | {"valid": np.array([True, False, True])})
    found = read_items(path)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    for name, array in ITEMS.items():
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(found["valid"], [1, 0, 1])
    assert read_items(tmp_path / "none.npz") == {}


def test_equal_items_are_equal_files(tmp_path):
    """Published again, a run does not change in the repository."""
    paths = [tmp_path / name for name in "abc"]
    for path, items in zip(paths, (ITEMS, ITEMS, ITEMS | {"nll": np.zeros(3)}), strict=True):
        write_items(path, items)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"a": np.zeros(3), "b": np.zeros(4)}, "items have 3 and 4 rows, expected one length"),
        ({"a": np.zeros((3, 3))}, r"'a' are float32 of shape \(3, 3\), expected floats \[M\] or \[M, 2\]"),
        ({"a": np.zeros(())}, r"shape \(\), expected"),
    ],
)
def test_what_are_no_items_is_refused_on_both_sides(items, message, tmp_path):
    with pytest.raises(RecordError, match=message):
        write_items(tmp_path / "a.npz", items)
    assert not (tmp_path / "a.npz").exists()
    np.savez(tmp_path / "b.npz", **{name: array.astype(np.float32) for name, array in items.items()})
    with pytest.raises(RecordError, match=message):
        read_items(tmp_path / "b.npz")


def damaged(path: Path) -> None:
    write_items(path, ITEMS)
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (damaged, "no npz archive, or a damaged one"),
        (lambda path: np.savez(path, a=np.array([{}])), "pickled objects, which are never loaded"),
        (lambda path: np.savez(path, a=np.array(["x"])), "expected floats"),
    ],
)
def test_a_file_that_holds_no_items_is_refused_in_one_line(make, message, tmp_path):
    path = tmp_path / "items.npz"
    make(path)
    with pytest.raises(RecordError, match=message) as caught:
        read_items(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
