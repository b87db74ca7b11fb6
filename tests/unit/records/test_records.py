"""Records: schemas are checked on both sides, files appear whole or not at all."""

import json
import os

import pytest

from bench.records import store as records
from bench.records.store import (
    RecordError,
    append_line,
    check,
    read_json,
    read_steps,
    run_folders,
    write_atomically,
    write_json,
)

SCHEMA = {"schema": int, "name": str, "value": (int, float), "note?": (str, type(None)), "inner": {"n": int}}
GOOD = {"schema": records.SCHEMA_VERSION, "name": "a", "value": 1.5, "inner": {"n": 3}}


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
    path, lines = tmp_path / "record.json", tmp_path / "steps.jsonl"
    write_json(path, GOOD, SCHEMA)
    for step in (1, 2):
        append_line(lines, {"step": step, "seconds": 0.5, "loss": 0.25})
    assert [line["loss"] for line in read_steps(lines)] == [0.25, 0.25]
    path.write_text(path.read_text().replace("1.5", "1.7"))
    lines.write_text(lines.read_text().replace("0.25", "0.24", 1))
    with pytest.raises(RecordError, match=r"record\.json: its values do not agree with its checksum"):
        read_json(path, SCHEMA)
    with pytest.raises(RecordError, match=r"steps\.jsonl:1: its values do not agree"):
        read_steps(lines)


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
    assert [folder.name for folder in run_folders(tmp_path)] == ["a", "b"]
    assert list(run_folders(tmp_path / "nowhere")) == []


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
