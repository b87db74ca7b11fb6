"""Every reader accepts a file or refuses it in one line, whatever the file holds (`faults.hostile` is the harness)."""

from __future__ import annotations

import bz2
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from faults import hostile
from faults.hostile import OWNED, Reader, Seed, npy, safetensors, verdict, zipped

from bench.records import inputs

READERS = {reader.name: reader for reader in hostile.readers()}
ARRAYS = {
    "num_atoms.npy": npy(np.array([3, 2])),
    "charges.npy": npy(np.array([[8, 1, 1], [6, 8, 0]], np.uint8)),
    "positions.npy": npy(np.ones((2, 3, 3), np.float32)),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(name: str, tmp_path: Path):
    reader = READERS[name]
    assert verdict(reader, reader.seeds[0].pack(reader.seeds[0].content), tmp_path) == "accepted"
    row = hostile.judge(reader, 50, tmp_path)
    assert row["losses"] == []
    assert row["inputs"] == row["accepted"] + row["refused"] >= 50


@pytest.mark.slow
def test_thousands_of_damaged_files_are_read_or_refused():
    rows = hostile.main()
    assert [row["reader"] for row in rows] == list(READERS)
    assert all(row["inputs"] >= hostile.PER_READER for row in rows)
    assert [loss for row in rows for loss in row["losses"]] == []


# what no random damage makes


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def zero_strides() -> bytes:
    """A tensor of 10^15 elements that are one in memory."""
    buffer = io.BytesIO()
    torch.save({"egnn.embedding.weight": torch.ones(1).expand(10**8, 10**7)}, buffer)
    return buffer.getvalue()


def saved(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


NINE = [(b"%c" % c, b",".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghij"]  # each nine times the one before
LAUGHS = b"a: &a [x]\n" + b"".join(b"%s: &%s [%s]\n" % (c, c, before) for c, before in NINE)
MERGES = b"a: &a {x: 1}\n" + b"".join(b"%s: &%s {<<: [%s]}\n" % (c, c, before) for c, before in NINE)
DOUBLED = b", ".join(b"a%d: '${base.a%d}${base.a%d}'" % (i + 1, i, i) for i in range(40))
PAGES = ("study page (YAML)", "run's config.yaml", "import page (YAML)")
RECORDS = ("manifest.json", "eval.json", "data.json")
STATE = READERS["checkpoint (safetensors)"].seeds[0].content


def state_with(key: str, **changes: object) -> bytes:
    """The valid checkpoint, with one header entry changed."""
    n = 8 + int.from_bytes(STATE[:8], "little")
    entries = json.loads(STATE[8:n])
    entries[key] |= changes
    return safetensors(json.dumps(entries).encode(), STATE[n:])


CASES = {
    "zip bomb": ("npz", lambda: zipped({**ARRAYS, "positions.npy": header((2, 3, 1 << 24)) + bytes(6 << 26)}, 8)),
    "bz2 in npz": ("npz", lambda: zipped(ARRAYS, zipfile.ZIP_BZIP2)),
    "lzma in npz": ("npz", lambda: zipped(ARRAYS, zipfile.ZIP_LZMA)),
    "two entries for a name": ("npz", lambda: zipped({**ARRAYS, "positions": npy(np.zeros(9))})),
    "room for 10^12 atoms in no molecule": (
        "npz",
        lambda: saved(num_atoms=np.zeros(0, int), charges=np.zeros((0, 10**9), int), positions=np.zeros((0, 10**9, 3))),
    ),
    "elements without bytes": ("npz", lambda: zipped({**ARRAYS, "charges.npy": header((10**15,), "|V0")})),
    "negative shape": ("npz", lambda: zipped({**ARRAYS, "charges.npy": header((-2, -3), "|u1") + bytes(6)})),
    "a header of brackets": ("npz", lambda: zipped({**ARRAYS, "charges.npy": b"\x93NUMPY\1\0\xff\xff" + b"[" * 65535})),
    "10^9 atoms": ("xyz", lambda: b"1000000000\n\nH 0 0 0\n"),
    "minus three atoms": ("xyz", lambda: b"-3\n\n"),
    "1e400": ("xyz", lambda: b"1\n\nH 1e400 0 0\n"),
    "1_0": ("xyz", lambda: b"1\n\nH 1_0 0 0\n"),
    "other digits": ("xyz", lambda: "1\n\nH ١ 0 0\n".encode()),
    "a line without end": ("xyz", lambda: b"1\n" + b"x" * (1 << 22)),
    "more than float32": ("data folder", lambda: b"1\n\nH 1e300 0 0\n" * 4 + b"2\n\nH 1e300 0 0\nH 0 0 0\n" * 4),
    "room for 10^9 atoms, V3000": ("sdf", lambda: hostile.SDF3.replace(b"COUNTS 2", b"COUNTS 1000000000")),
    "room for 10^9 bonds, V3000": ("sdf", lambda: hostile.SDF3.replace(b"COUNTS 2 1", b"COUNTS 2 1000000000")),
    "an id of 5000 digits": ("list of exclusions", lambda: b"\xff" + b"9" * 5000),
    **{
        f"{what} ({page})": (page, lambda content=content: content)
        for page in PAGES
        for what, content in {
            "billion laughs": LAUGHS,
            "merged mappings": MERGES,
            "a list in itself": b"base: &a [*a]",
            "a tag": b"!!python/object/apply:os.mknod [owned]",
            "a deep page": b"[" * 10_000,
            "a number of 5000 digits": b"sample: {n_steps: " + b"9" * 5000 + b"}",
            "a date that is none": b"study: !!timestamp 2001-99-99",
            "a key that comes twice": b"sample: {n_steps: 1, n_steps: 2}",
            "no UTF-8": b"study: \xff\xfe",
            "nothing but a number": b"3",
        }.items()
    },
    "growing interpolations": (PAGES[0], lambda: b"study: x\nbase: {a0: xxxxxxxxxx, " + DOUBLED + b"}"),
    "the environment": (PAGES[0], lambda: hostile.STUDY.replace(b"study: small", b"study: ${oc.env:HOME}")),
    "a study elsewhere": (PAGES[0], lambda: hostile.STUDY.replace(b"study: small", b"study: ../../small")),
    "a grid of 10^12 runs": (
        PAGES[0],
        lambda: b"study: x\ngrid: {" + b", ".join(b"k%d: [%s]" % (i, b",".join([b"1"] * 100)) for i in range(6)) + b"}",
    ),
    "NaN in a page": (PAGES[1], lambda: hostile.RUN.replace(b"0.0002", b".nan")),
    **{
        f"{what} ({record})": (record, lambda content=content: content)
        for record in RECORDS
        for what, content in {
            "deep lists": b"[" * 100_000,
            "NaN": b'{"schema": NaN}',
            "1e400": b'{"schema": 1e400}',
            "5000 digits": b'{"schema": ' + b"9" * 5000 + b"}",
            "a key twice": b'{"schema": 1, "schema": 1}',
            "a byte order mark": b"\xef\xbb\xbf{}",
            "no object": b"[]",
            "half a surrogate pair": b'{"schema": "\\ud800"}',
        }.items()
    },
    "10^9 atoms in data.json": (
        "data.json",
        lambda: json.dumps({**hostile.DATA_JSON, "sizes": {"1000000000": 1}}).encode(),
    ),
    "a header of 2^63 bytes": ("checkpoint (safetensors)", lambda: b"\xff" * 7 + b"\x7f" + STATE[8:]),
    "a shape that would broadcast": (
        "checkpoint (safetensors)",
        lambda: state_with("weights/weight", shape=[12]),
    ),
    "another type": ("checkpoint (safetensors)", lambda: state_with("weights/weight", dtype="I32")),
    "a tensor that is not all there": ("published checkpoint (torch.save)", zero_strides),
}


@pytest.mark.parametrize("case", CASES)
def test_a_malicious_file_is_refused(case: str, tmp_path: Path):
    name, make = CASES[case]
    assert verdict(READERS[name], make(), tmp_path) == "refused"


@pytest.mark.parametrize("name", [n for n in READERS if "report" not in n and "folder" not in n])
def test_a_pipe_or_a_device_is_not_waited_for(name: str, tmp_path: Path):
    reader = READERS[name]
    os.mkfifo(tmp_path / reader.file)
    with pytest.raises((*reader.errors, OSError), match=r"pipe or a device|expected a regular file|no study"):
        reader.read(tmp_path / reader.file)


def test_what_windows_adds_to_a_file_is_no_fault(tmp_path: Path):
    for name in ("xyz", "sdf", "study page (YAML)", "import page (YAML)"):
        reader = READERS[name]
        content = reader.seeds[0].content.replace(b"\n", b"\r\n")
        assert verdict(reader, content, tmp_path) == "accepted"
        assert verdict(reader, b"\xef\xbb\xbf" + content, tmp_path) == "accepted"


def test_a_record_of_another_schema_names_the_version_that_wrote_it(tmp_path: Path):
    record = {**hostile.manifest(), "schema": 99, "code": {"version": "9.8.7"}, "unheard": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"written by equibench 9\.8\.7 with record schema 99, this"):
        READERS["manifest.json"].read(tmp_path / "manifest.json")


def test_padding_may_still_be_compressed(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(inputs.SMALL // 8 - 100))
    assert inputs.read_arrays(tmp_path / "a.npz")["x"].sum() == 0


# controls: what the harness must call a loss


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path(OWNED),))


def naive(file: str, read) -> Reader:  # one that does what tutorials do
    return Reader("naive", file, read, (ValueError,), [Seed(b"")])


def test_a_reader_that_unpickles_is_found(tmp_path: Path):
    def read(path: Path) -> None:
        with np.load(path, allow_pickle=True) as file:
            dict(file)

    evil = saved(charges=np.array([Harmful()], dtype=object))
    assert verdict(naive("a.npz", read), evil, tmp_path) == f"made {OWNED}"


def test_a_reader_of_unsafe_yaml_is_found(tmp_path: Path):
    def read(path: Path) -> None:
        yaml.unsafe_load(path.read_text())

    evil = b"!!python/object/apply:os.mkdir [owned]"
    assert verdict(naive("a.yaml", read), evil, tmp_path) == f"made {OWNED}"


def test_a_reader_that_unpacks_a_tar_is_found(tmp_path: Path):
    def read(path: Path) -> None:
        with tarfile.open(path) as archive:
            archive.extractall(filter="fully_trusted")

    evil = bz2.compress(hostile.tar({"../escaped": b"x"}))
    assert verdict(naive("a.tar.bz2", read), evil, tmp_path) == "made escaped"


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda path: bytearray(b"x") * (250 << 20), "took "),
        (lambda path: {}["other"], "KeyError"),
        (lambda path: int("two\nlines of no file"), "refused, but not in one line"),
        (lambda path: pickle.loads(b"no pickle"), "UnpicklingError"),
    ],
)
def test_other_losses_are_found(tmp_path: Path, read, expected: str):
    assert verdict(naive("given.bin", read), b"content", tmp_path).startswith(expected)


def test_a_reader_that_hangs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def read(path: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(hostile, "MAX_SECONDS", 1)
    assert verdict(naive("a.bin", read), b"", tmp_path) == "hangs"


def test_a_campaign_against_a_naive_reader_has_losses(tmp_path: Path):
    def read(path: Path) -> None:
        with np.load(path) as file:
            dict(file)

    row = hostile.judge(replace(naive("a.npz", read), seeds=READERS["npz"].seeds), 50, tmp_path)
    assert row["losses"]


def test_a_mutant_is_a_function_of_its_seed():
    reader = READERS["npz"]
    assert hostile.hostile(reader, 3) == hostile.hostile(reader, 3)
    assert len({hostile.mutant(hostile.XYZ, hostile.SDF, random.Random(i)) for i in range(100)}) > 80
