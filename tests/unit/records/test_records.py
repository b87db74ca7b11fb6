"""Records: schemas are checked on both sides, files appear whole or not at all."""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from bench.records import inputs, schema
from bench.records.inputs import YamlError, as_yaml, csv_cell, parse_yaml, printable
from bench.records.schema import RecordError, check
from bench.records.store import (
    RunFolder,
    StudyFolder,
    append_line,
    read_json,
    read_steps,
    write_atomically,
    write_json,
)

SCHEMA = {"schema": int, "name": str, "value": (int, float), "note?": (str, type(None)), "inner": {"n": int}}
GOOD = {"schema": schema.SCHEMA_VERSION, "name": "a", "value": 1.5, "inner": {"n": 3}}


def test_a_record_of_the_schema_passes():
    check(GOOD, SCHEMA, "here")
    check({**GOOD, "note": None, "value": 2}, SCHEMA, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "1.5"}, "here: 'value' is '1.5', expected int or float"),
        ({"value": True}, "'value' is True"),
        ({"inner": {"n": True}}, "here: inner: 'n' is True"),
        ({"inner": 3}, "here: inner: expected an object, got int"),
        ({"surprise": 1}, "unknown key 'surprise'; expected inner, name, note, schema, value"),
        ({"schema": 99}, "written with record schema 99"),
        ({"note": 3}, "expected str or NoneType"),
    ],
)
def test_a_fault_is_named_with_its_place(change, message):
    with pytest.raises(RecordError, match=message):
        check({**GOOD, **change}, SCHEMA, "here")


def test_a_missing_key_is_named():
    with pytest.raises(RecordError, match="here: key 'name' is missing"):
        check({k: v for k, v in GOOD.items() if k != "name"}, SCHEMA, "here")


def test_json_is_written_and_read_back(tmp_path):
    path = tmp_path / "deep" / "record.json"
    write_json(path, GOOD, SCHEMA)
    assert read_json(path, SCHEMA) == GOOD
    with pytest.raises(RecordError, match="unknown key"):
        write_json(path, {**GOOD, "x": 1}, SCHEMA)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {**GOOD, "value": float("nan")}, SCHEMA)
    assert read_json(path, SCHEMA) == GOOD  # refused records left the file alone
    path.write_text("{")
    with pytest.raises(RecordError, match="not readable as JSON"):
        read_json(path)


def test_a_changed_value_is_noticed(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, GOOD, SCHEMA)
    path.write_text(path.read_text().replace("1.5", "1.7"))
    with pytest.raises(RecordError, match=r"record\.json: its values do not agree with its checksum"):
        read_json(path, SCHEMA)


def test_a_record_without_a_checksum_is_taken(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**GOOD, "value": 1.7}))
    assert read_json(path, SCHEMA)["value"] == 1.7


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: could not write .*file; nothing already written"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_only_a_last_line_may_be_cut_short(tmp_path):
    path = tmp_path / "steps.jsonl"
    assert read_steps(path) == []
    line = json.dumps({"step": 1, "seconds": 0.5})
    path.write_text(f'{line}\n{line}\n{{"step": 3, "se')
    assert [step["step"] for step in read_steps(path)] == [1, 1]
    path.write_text(f'{line}\n{{"step": 3, "se\n{line}\n')
    with pytest.raises(RecordError, match=r"steps\.jsonl:2"):
        read_steps(path)
    path.write_text(json.dumps({"step": 1, "seconds": 0.5, "extra": 1}) + "\n")
    with pytest.raises(RecordError, match="unknown key 'extra'"):
        read_steps(path)


def test_only_folders_with_a_manifest_are_runs(tmp_path):
    for name in ("b", "a", "no_run"):
        (tmp_path / name).mkdir()
    for name in ("b", "a"):
        (tmp_path / name / "manifest.json").write_text("{}")
    assert [folder.name for folder in StudyFolder(tmp_path).runs()] == ["a", "b"]
    assert StudyFolder(tmp_path / "nowhere").runs() == []


def test_lines_that_are_missing_at_the_end_of_a_run_are_noticed(tmp_path):
    path = tmp_path / "steps.jsonl"
    for step in (5, 10):
        append_line(path, {"step": step, "seconds": 1.0})
    assert [line["step"] for line in read_steps(path, until=10)] == [5, 10]
    whole = path.read_bytes()
    for content, last in ((whole[:-5], 5), (whole[: whole.index(b"\n") + 1], 5), (whole[:3], 0), (b"", 0)):
        path.write_bytes(content)
        assert len(read_steps(path)) == last // 5  # of a run that was cut, this is all there is
        with pytest.raises(RecordError, match=f"steps.jsonl: ends at step {last}, expected 10"):
            read_steps(path, until=10)
    path.unlink()
    with pytest.raises(RecordError, match="ends at step 0"):
        read_steps(path, until=10)


# ---------------------------------------------------------------------- folders and YAML


def test_no_two_files_of_a_run_have_one_name():
    for folder in (RunFolder(Path("run")), StudyFolder(Path("study"))):
        names = [name for name, kind in vars(type(folder)).items() if isinstance(kind, property)]
        files = [getattr(folder, name) for name in names]
        assert len(set(files)) == len(files) > 4
        assert {file.parent for file in files} == {folder.path}


def test_only_one_file_knows_the_names_of_files():
    """Elsewhere in bench and analysis no code, docstrings aside, spells them."""
    root = Path(__file__).parents[3]
    run, study = RunFolder(Path()), StudyFolder(Path())
    known = {getattr(f, n).name for f in (run, study) for n, k in vars(type(f)).items() if isinstance(k, property)}
    known -= {"lock", "chunks", ".cache"}  # words, and the name of another folder too
    assert spelled(root / "bench" / "records" / "store.py", known) == known  # control
    others = [path for top in ("bench", "analysis") for path in (root / top).rglob("*.py")]
    assert len(others) > 50
    found = {path.name: names for path in others if (names := spelled(path, known)) and path.name != "store.py"}
    assert found == {}


def spelled(path: Path, names: set[str]) -> set[str]:
    """Those of the names that are string constants of a module."""
    constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    return names & {value for value in constants if isinstance(value, str)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0E+3", 1000.0),
        (".5", 0.5),
        ("-12", -12),
        ("0", 0),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("off", "off"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("", None),
        ("1e", "1e"),
        (".inf", float("inf")),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_yaml_is_read_back_as_it_was_written():
    texts = ["off", "1e-4", "010", "1:30", "2024", "2024-01-01", "~", "", "<<", "=", "true", "é", "a: b", "- x", "1_0"]
    data = {"texts": texts, "numbers": [1e-5, 1e22, 3, -0.5, True, None], "off": {"1e3": []}}
    assert parse_yaml(as_yaml(data)) == data
    assert yaml.safe_load(as_yaml(data)) == data  # readers of YAML 1.1 too
    assert parse_yaml(yaml.safe_dump({"a": "1e-4"})) != {"a": "1e-4"}  # control: PyYAML does not quote it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2: key 'a' comes twice"),
        ("a: &a [*a]", "an alias refers to a value that contains it"),
        ("a: !!binary aGk=", "could not determine a constructor"),
        ("[" * 50 + "]" * 50, "nested more than 40 deep"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_fault_of_yaml_is_one_line(text, message):
    with pytest.raises(YamlError, match=message) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert parse_yaml("a: &a [1]\nb: *a") == {"a": [1], "b": [1]}  # control


def test_npz_is_read_by_name_and_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.zeros((2, 2)))
    assert set(inputs.read_arrays(tmp_path / "a.npz")) == {"x", "y"}
    assert list(inputs.read_arrays(tmp_path / "a.npz", ("y",), ("z",))) == ["y"]
    with pytest.raises(inputs.NpzError, match="array 'z' is missing; expected z, got 'x, y'"):
        inputs.read_arrays(tmp_path / "a.npz", ("z",))
    np.savez(tmp_path / "b.npz", x=np.array([{}], dtype=object))
    with pytest.raises(inputs.NpzError, match="pickled objects, which are never loaded"):
        inputs.read_arrays(tmp_path / "b.npz")


def test_a_changed_digit_in_a_line_is_noticed(tmp_path):
    """Control: a line without a checksum, written by hand, is taken as it is."""
    path = tmp_path / "steps.jsonl"
    for step in (1, 2):
        append_line(path, {"step": step, "seconds": 1.5, "loss": 0.25})
    assert [line["loss"] for line in read_steps(path)] == [0.25, 0.25]
    path.write_text(path.read_text().replace("0.25", "0.35", 1))
    with pytest.raises(RecordError, match=r"steps\.jsonl:1: its values do not agree with its checksum"):
        read_steps(path)
    path.write_text('{"step": 1, "seconds": 1.5, "loss": 0.35}\n')
    assert read_steps(path) == [{"step": 1, "seconds": 1.5, "loss": 0.35}]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07\x1b[31mred", r"\x1b]0;owned\x07\x1b[31mred"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x9b31m\u202eabc\u2028", r"\x9b31m\u202eabc\u2028"),
        ("5.0\N{NO-BREAK SPACE}Å ± ≤", "5.0\N{NO-BREAK SPACE}Å ± ≤"),  # control: text as it should be
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text, shown):
    assert printable(text) == shown
    assert printable([text, 1.5]) == [shown, 1.5]


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_a_csv_file_is_a_formula(text):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-1.5e-3", "+2", "-inf", "a=b", "", -1.5, None, True])
def test_numbers_and_plain_text_are_left_alone(value):
    assert csv_cell(value) is value
