import argparse
import json

import numpy as np
import pytest

from bench.cli import data as command
from bench.records import schema
from bench.structures import files
from bench.structures.structures import Structures


@pytest.fixture
def call(monkeypatch):
    monkeypatch.delenv("QM9_DIR", raising=False)
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    command.add_verbs(lambda name, run, text: verbs.add_parser(name, help=text))
    return lambda *words: command.run(parser.parse_args(["data", *(str(word) for word in words)]))


@pytest.fixture
def path(tmp_path):
    water = (np.array([8, 1, 1]), np.array([[0, 0, 0.1], [0, 0.76, -0.47], [0, -0.76, -0.47]]))
    hydroxyl = (np.array([8, 1]), np.array([[0, 0, 0.0], [0, 0, 0.97]]))
    for split, molecules in {"train": [water, hydroxyl], "valid": [water], "test": [hydroxyl, hydroxyl]}.items():
        files.write(tmp_path / f"{split}.xyz", Structures.from_list(molecules))
    return tmp_path


def test_table_counts_molecules_atoms_and_elements_of_each_split(call, path, capsys):
    assert call("folder", "--dir", path) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["split", "molecules", "atoms", "H", "O", "smallest", "mean", "largest"] in rows
    assert ["train", "2", "5", "3", "2", "2", "2.500", "3"] in rows
    assert ["test", "2", "4", "2", "2", "2", "2.000", "2"] in rows


def test_json_is_the_manifest_entry_and_nothing_else(call, path, capsys):
    assert call("folder", "--dir", path, "--json", "--n-train", "1") == 0
    record = json.loads(capsys.readouterr().out)
    schema.check(record, schema.MANIFEST["data"], "data")
    assert record["n_train"] == 1


def test_options_of_a_data_set_are_given_as_in_a_study(call, capsys):
    assert call("toys", "toy=sign_flip", "n_copies=7") == 0
    assert ["train", "7", "7"] in [line.split()[:3] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("qm8",), "did you mean 'qm9'"),
        (("folder",), "'data.dir' is missing"),
        (("mini", "--dir", "x"), "unknown key 'data.dir'"),
        (("toys",), "'data.toy' is missing"),
        (("toys", "toy=sign"), "'data.toy' is 'sign', expected one of sign_flip"),
        (("toys", "sign_flip"), "is not of the form key=value"),
        (("qm9", "--dir", "/nowhere"), "QM9 folder /nowhere does not exist"),
        (("folder", "--dir", "{path}", "--max-atoms", "1"), "train split is empty"),
    ],
)
def test_faults_are_one_line_on_standard_error(call, path, capsys, words, message):
    assert call(*(word.format(path=path) for word in words)) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
