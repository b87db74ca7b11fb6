"""Damaged and malicious files for every reader, and what became of each.

A reader may accept a file, if what it returns makes sense, or refuse it by its documented exception in one line that
names the file. Anything else is a loss: another exception, a crash, memory out of proportion, a file changed outside
the reader's folder, code that ran. `PYTHONPATH=.:tests python -m faults.hostile [N]` prints rows as JSON.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

PER_READER = 2000
MAX_MEMORY = 200 << 20  # bytes of memory that reading a file of a few kB may need at its peak
MAX_SECONDS = 30  # after which a reader counts as hanging
MAX_MESSAGE = 1000
OWNED = "owned"  # the file that malicious content would make in the current folder, if it were run

identity: Callable[[bytes], bytes] = bytes


@dataclass(frozen=True)
class Seed:
    """A valid content to be mutated, and how a mutant becomes a file (packed again, checksums made to fit)."""

    content: bytes
    pack: Callable[[bytes], bytes] = identity


@dataclass(frozen=True)
class Reader:
    """One reader: its name, the name of its file, how to read and to judge, its exceptions, and valid contents."""

    name: str
    file: str
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    seeds: Sequence[Seed]


class HangError(BaseException):
    """A reader does not come back; no Exception, so that none can catch it."""


# ---------------------------------------------------------------------- mutation

WORDS = [
    *(b"2", b"3", b"7", b"20", b"100", b"0.5", b"1.0e-4"),  # some that may well be accepted
    *(b"1e400", b"-1e400", b"nan", b"NaN", b"-inf", b"Infinity", b"1e308", b"1_0", b"-1", b"0", b"0x10", b"null"),
    *(b"1000000000", b"9223372036854775807", b"18446744073709551616", b"9" * 5000, b"-0.0", b"true", b"1e-400"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n", b"\0", b"\xe2\x80\xa8", b'"\\ud800"', b"\x1b[31m", b"%s"),
    *(b"[" * 3000, b'{"a":' * 3000, b"- " * 3000, b"{}", b"[]", b'""', b"..", b"../../etc/passwd", b"/dev/zero"),
    *(
        b"!!python/object/apply:os.mknod [owned]",
        b"!!binary aGk=",
        b"!!set {a}",
        b"2001-99-99",
        b"&a [*a, *a]",
        b"<<: ",
    ),
    *(b"!!int ''", b"!!float x", b"!!bool x", b"${oc.env:HOME}", b"? [a]", b"1:2:3", b"~", b"'", b'"', b"#", b"\t"),
    *(b'"schema": 99,', b'"schema": 1,', b"$$$$\n", b"M  V30 COUNTS 1000000000 0 0 0 0\n", b"999999", b"V3000"),
    *(b"Properties=pos:R:3", b"O", b"<U0", b"|O", b">f8", b"(1000000000,)", b"(0, 1000000000000)", b"(-1,)"),
]
EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def mutant(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """A content after one to four mutations."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        size = len(content)
        a = rng.randrange(size + 1)
        b = min(size, a + rng.choice((1, 2, 4, 8, 40, 400)))
        kind = rng.choice(
            ("cut", "flip", "flip", "splice", "repeat", "drop", "word", "word", "number", "number", "field")
        )
        if kind == "cut":
            content = content[:a]
        elif kind == "flip" and a < size:
            content = content[:a] + bytes([content[a] ^ 1 << rng.randrange(8)]) + content[a + 1 :]
        elif kind == "splice":
            start = rng.randrange(len(other) + 1)
            content = content[:a] + other[start : start + b - a] + content[rng.choice((a, b)) :]
        elif kind == "repeat":
            content = content[:a] + content[a:b] * rng.choice((2, 3, 50)) + content[b:]
        elif kind == "drop":
            content = content[:a] + content[b:]
        elif kind == "word":
            content = content[:a] + rng.choice(WORDS) + content[rng.choice((a, b)) :]
        elif kind == "number" and (numbers := list(re.finditer(rb"-?\d+(\.\d+)?", content))):
            found = rng.choice(numbers)
            content = content[: found.start()] + rng.choice(WORDS) + content[found.end() :]
        elif kind == "field":
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice(EXTREMES) % (1 << 8 * width)
            content = content[:a] + value.to_bytes(width, rng.choice(("little", "big"))) + content[a + width :]
    return content


def hostile(reader: Reader, seed: int) -> bytes:
    """A damaged file for a reader; a function of the seed."""
    rng = random.Random(seed)
    chosen = rng.choice(reader.seeds)
    return chosen.pack(mutant(chosen.content, rng.choice(reader.seeds).content, rng))


# ---------------------------------------------------------------------- judgement


def verdict(reader: Reader, content: bytes, folder: Path) -> str:
    """'accepted', 'refused', or what was lost. `folder` is an empty one, used as the current folder meanwhile."""
    inside = folder / "inside"
    inside.mkdir(exist_ok=True)
    path = inside / reader.file
    path.write_bytes(content)
    before = _reset_peak()
    with chdir(inside):
        outcome = _outcome(reader, path)
    grown = _memory("VmHWM") - before
    strays = sorted(p.name for place in (folder, inside) for p in place.iterdir() if p not in (inside, path))
    path.unlink(missing_ok=True)
    if strays:
        return f"made {', '.join(strays)}"
    if grown > MAX_MEMORY + 40 * len(content):
        return f"took {grown >> 20} MiB for {len(content)} bytes ({outcome})"
    return outcome


def _outcome(reader: Reader, path: Path) -> str:
    def stop(*_: Any) -> None:
        raise HangError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    try:
        reader.read(path)
    except HangError:
        return "hangs"
    except reader.errors as error:
        text = str(error)
        told = path.stem in text  # of a folder or a partial file, the name of the whole
        if "\n" in text or not told or len(text) > MAX_MESSAGE:
            return f"refused, but not in one line that names the file: {type(error).__name__}: {text[:300]!r}"
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return "accepted"


def _reset_peak() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no such file, or not allowed: the peak so far stands in
        return _memory("VmHWM")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    """Bytes of this process; 0 where /proc is not."""
    status = Path("/proc/self/status")
    found = re.search(rf"{key}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) << 10 if found else 0


def judge(reader: Reader, n: int, folder: Path) -> dict[str, Any]:
    """One row of the table, of n files that hypothesis draws."""
    row: dict[str, Any] = {"reader": reader.name, "inputs": 0, "accepted": 0, "refused": 0, "losses": []}

    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**32))
    def draw(seed: int) -> None:
        said = verdict(reader, hostile(reader, seed), folder)
        row["inputs"] += 1
        if said in row:
            row[said] += 1
        else:
            row["losses"].append({"seed": seed, "what": said})

    draw()
    return row


# ---------------------------------------------------------------------- valid files, and how to pack them


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def in_zip(members: dict[str, bytes]) -> list[Seed]:
    """The archive as it is, and each member alone, packed again with checksums that fit."""

    def pack(name: str, content: bytes) -> bytes:
        return zipped({**members, name: content}, zipfile.ZIP_DEFLATED)

    return [Seed(zipped(members)), *(Seed(members[name], functools.partial(pack, name)) for name in members)]


def safetensors(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def in_safetensors(content: bytes) -> list[Seed]:
    """The file as it is, and its header alone, its length made to fit."""
    n = 8 + struct.unpack("<Q", content[:8])[0]
    return [Seed(content), Seed(content[8:n], lambda header: safetensors(header, content[n:]))]


def tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            info.size = len(content) if isinstance(content, bytes) else info.size
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


XYZ = b"3\nwater\nO 0.0 0.0 0.1\nH 0.0 0.7 -0.5\nH 0.0 -0.7 -0.5\n2\n\nH 0 0 0\nH 0 0 0.74\n"
EXTXYZ = b'2\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:q:R:1 pbc="F F F"\nO 1 2 3.5 0\nH 1 2 4.4 1\n'
GDB9 = b"3\ngdb 1\t1 2\nO\t0.\t0.\t1.*^-1\t0\nH\t0.\t0.76\t-0.47\t0\nH\t0.\t-0.76\t-0.47\t0\n1\t2\nO\tO\nx\ty\n"
SDF = (
    b"\n  by hand\n\n  2  1  0  0  0  0  0  0  0  0999 V2000\n    0.0000    0.0000    0.0000 C   0  0\n"
    b"    1.2000    0.0000    0.0000 O   0  0\n  1  2  2  0\nM  END\n> <note>\ntext\n\n$$$$\n"
)
SDF3 = (
    b"\n  by hand\n\n  0  0  0     0  0            999 V3000\nM  V30 BEGIN CTAB\nM  V30 COUNTS 2 1 0 0 0\n"
    b"M  V30 BEGIN ATOM\nM  V30 1 C 0 0 0 0\nM  V30 2 O 1.2 0 0 0\nM  V30 END ATOM\nM  V30 BEGIN BOND\n"
    b"M  V30 1 2 1 2\nM  V30 END BOND\nM  V30 END CTAB\nM  END\n$$$$\n"
)
STUDY = b"""# a study
study: small
base: {data: {name: mini, n_train: 100}, train: {n_steps: 20, batch_size: 8, lr: 2.0e-4}, sample: {n_molecules: 10}}
grid:
  method: [plain, {name: edm}]
  backbone: &b [{name: egnn, width: 16, depth: 1}]
  seed: [0, 1]
launch: {cluster: local, n_parallel: 1, timeout_min: 10}
"""
PAGE = b"""method: {name: edm}
backbone: {n_heads: 4}
sizes: {5: 1, 9: 3}
elements: [1, 6, 7, 8, 9]
diffusion: {n_levels: 1000, precision: 1.0e-5, scale_onehot: 4}
sample: {n_steps: 10}
"""
RUN = b"""study: small
method: {name: edm}
backbone: {name: egnn, width: 16, depth: 1}
data: {name: mini, n_train: 100}
seed: 3
group: O3
diffusion: {n_levels: 100, precision: 1.0e-05, edm_compat: false}
train: {n_steps: 20, lr: 0.0002, max_seconds: null, clip: norm, bf16: false}
sample: {n_molecules: 10, n_steps: 10}
"""


def manifest() -> dict[str, Any]:
    data = {
        "name": "mini",
        "label": "mini",
        "source": "x",
        "fingerprint": "0f",
        "n_train": 9,
        "n_valid": 1,
        "n_test": 1,
    }
    return {
        "schema": 2,
        "run": "edm-egnn-s0-0f",
        "study": "small",
        "status": "done",
        "reason": None,
        "seed": 0,
        "n_steps": 20,
        "method": {"name": "edm"},
        "backbone": {"name": "egnn"},
        "guarantee": "exact",
        "weights_from": None,
        "data": {**data, "mean_atoms": 11.5, "elements": [1, 6, 7, 8, 9], "notes": ["a note"]},
        "code": {"version": "0.1.0", "commit": None, "dirty": None},
        "environment": {
            "device": "cpu",
            "dtype": "float32",
            "n_threads": 1,
            "compile": "eager",
            "platform": "x",
            "versions": {"torch": "2"},
        },
        "parameters": {"backbone": 10, "method": 0, "total": 10},
        "cost": {"step_seconds": 0.1, "train_seconds": 2.0},
        "created": "2026-01-01T00:00:00+00:00",
        "updated": "2026-01-01T00:00:00+00:00",
    }


def evaluation() -> dict[str, Any]:
    stable = {"name": "atom_stability", "label": "Atom stability", "unit": "fraction", "better": "higher"}
    bound = {"name": "nll", "label": "NLL", "value": 1.5, "unit": "nats/molecule", "kind": "likelihood", "sem": 0.1}
    return {
        "schema": 2,
        "run": "edm-egnn-s0-0f",
        "step": 20,
        "weights": "ema",
        "n_sampling_steps": 10,
        "sampling_seed": 0,
        "n_samples": 10,
        "values": [{**stable, "value": 0.5, "low": 0.4, "high": 0.6}, bound],
        "data_values": [{**stable, "value": None}],
        "versions": {"python": "3.11"},
    }


STEPS = (
    b'{"step": 10, "seconds": 0.5, "loss": 1.5, "lr": 0.0002}\n{"step": 20, "seconds": 1, "diagnostics": {"x": 1}}\n'
)
DATA_JSON = {"elements": [1, 6, 7, 8, 9], "mean_atoms": 11.5, "sizes": {"5": 1, "9": 3}}


# ---------------------------------------------------------------------- the readers


def sensible(structures: Any) -> None:
    """What every reader of molecules promises."""
    assert len(structures) > 0
    assert (structures.n_atoms > 0).all()
    assert np.isfinite(structures.positions).all()
    assert ((structures.numbers > 0) & (structures.numbers <= 96)).all()


def readers() -> list[Reader]:
    """Every reader; made in a function because what they read with takes its time to import."""
    return [*_of_molecules(), *_of_pages(), *_of_records(), *_of_weights()]


def _of_molecules() -> list[Reader]:
    from bench.data.folder import FolderConfig, load
    from bench.structures import files, gdb9
    from bench.structures.dataset import DataError, read_with

    def molecules(path: Path) -> None:
        sensible(files.read(path))

    def indexed(path: Path) -> None:
        structures, index = read_with(path, "index")
        sensible(structures)
        assert index is None or len(index) == len(structures)

    def folder(path: Path) -> None:
        for split in load(FolderConfig(str(path.parent))).splits.values():
            sensible(split)

    def excluded(path: Path) -> None:
        gdb9.read_excluded(path)

    arrays = {
        "num_atoms.npy": npy(np.array([3, 2])),
        "charges.npy": npy(np.array([[8, 1, 1], [6, 8, 0]], np.uint8)),
        "positions.npy": npy(np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)),
        "index.npy": npy(np.array([4, 2])),
    }
    flat = {
        "num_atoms.npy": npy(np.array([3, 2])),
        "charges.npy": npy(np.array([8, 1, 1, 6, 8])),
        "positions.npy": npy(np.arange(15.0).reshape(5, 3)),
    }
    xyz = [Seed(XYZ), Seed(EXTXYZ), Seed(GDB9)]
    error, data_error = (files.FileError,), (DataError, files.FileError)
    listed = b"\nList of 133885 molecules\n=====\n  58  NC  [NH]C 6.0\n 3 C C 1.\n=====\n"
    return [
        Reader("xyz", "given.xyz", molecules, error, xyz),
        Reader("extended xyz", "given.extxyz", molecules, error, xyz),
        Reader("sdf", "given.sdf", molecules, error, [Seed(SDF * 2), Seed(SDF3 + SDF)]),
        Reader("npz", "given.npz", molecules, error, [*in_zip(arrays), *in_zip(flat)]),
        Reader("npz with an index (EDM's QM9)", "given.npz", indexed, data_error, in_zip(arrays)),
        Reader("data folder", "inside.xyz", folder, data_error, [Seed(XYZ * 3), Seed(EXTXYZ * 4)]),
        Reader("list of exclusions", "uncharacterized.txt", excluded, (DataError,), [Seed(listed)]),
    ]


def _of_pages() -> list[Reader]:
    from bench.config.run import ConfigError, read_run
    from bench.config.study import load_study
    from bench.published.importing import read_page

    def study(path: Path) -> None:
        runs = load_study(str(path)).runs
        assert all("/" not in run.study for run in runs)

    def run(path: Path) -> None:
        read_run(path.parent)

    pages = [Seed(STUDY), Seed(PAGE), Seed(RUN)]
    return [
        Reader("study page (YAML)", "study.yaml", study, (ConfigError,), [Seed(STUDY), *pages]),
        Reader("run's config.yaml", "config.yaml", run, (ConfigError,), [Seed(RUN), *pages]),
        Reader("import page (YAML)", "page.yaml", read_page, (ConfigError,), [Seed(PAGE), *pages]),
    ]


def _of_records() -> list[Reader]:
    from analysis.load import load
    from bench.records import schema
    from bench.records import store as records
    from bench.run.sample import facts_of

    def data(path: Path) -> None:
        facts_of(records.read_json(path, schema.DATA), path)

    def of(schema: dict[str, Any]) -> Callable[[Path], None]:
        def read(path: Path) -> None:
            json.dumps(records.read_json(path, schema), allow_nan=False).encode()

        return read

    def steps(path: Path) -> None:
        json.dumps(records.read_steps(path), allow_nan=False).encode()

    def report(path: Path) -> None:
        name, _, content = path.read_bytes().partition(b"\n")
        with tempfile.TemporaryDirectory() as place:
            run = Path(place) / "study" / "edm-egnn-s0-0f"
            run.mkdir(parents=True)
            for other, valid in recorded.items():
                (run / other).write_bytes(content if other.encode() == name else valid)
            assert len(load(run.parent).runs) == 1

    MANIFEST, EVALUATION = (json.dumps(record, indent=1).encode() for record in (manifest(), evaluation()))
    recorded = {"manifest.json": MANIFEST, "eval.json": EVALUATION, "steps.jsonl": STEPS, "config.yaml": RUN}
    damaged = [Seed(valid, (name.encode() + b"\n").__add__) for name, valid in recorded.items()]
    error = (schema.RecordError,)
    return [
        Reader("manifest.json", "manifest.json", of(schema.MANIFEST), error, [Seed(MANIFEST)]),
        Reader("eval.json", "eval.json", of(schema.EVALUATION), error, [Seed(EVALUATION)]),
        Reader("steps.jsonl", "steps.jsonl", steps, error, [Seed(STEPS)]),
        Reader("data.json", "data.json", data, error, [Seed(json.dumps(DATA_JSON).encode())]),
        # a study with a damaged record is still shown: nothing may be raised at all
        Reader("report on a study with a damaged record", "record", report, (), damaged),
    ]


def _of_weights() -> list[Reader]:
    import torch
    from safetensors.torch import save
    from torch import nn

    from bench.config.run import TrainConfig
    from bench.published.parity import Fixture, FixtureError, compare
    from bench.published.weights import read_checkpoint, understand
    from bench.run.checkpoint import CheckpointError, load_average, load_state, save_state
    from bench.run.optimiser import TrainingState
    from bench.symmetry.published import PublishedError

    def training() -> TrainingState:
        torch.manual_seed(0)
        state = TrainingState.at_start(dict(nn.Linear(3, 4).named_parameters()), TrainConfig())
        for p in state.weights.values():
            p.grad = torch.ones_like(p)
        state.optimiser.step(0.1)
        state.step, state.seconds = 3, 1.5
        return state

    def state(path: Path) -> None:
        restored = training()
        load_state(path, restored)
        assert restored.step >= 0 <= restored.seconds
        assert [tuple(p.shape) for p in restored.weights.values()] == [(4, 3), (4,)]

    def average(path: Path) -> None:
        assert load_average(path, training().weights) >= 0

    def published(path: Path) -> None:
        checkpoint = read_checkpoint(path)
        try:
            understand(checkpoint.weights, {}, {})
        except PublishedError as error:
            raise PublishedError(f"{path}: {error}") from None  # as `import_weights` does

    def fixture(path: Path) -> None:
        try:
            compare(Fixture.read(path))
        except FixtureError as error:
            raise FixtureError(f"{path}: {error}") from None  # as `parity.run` does

    with tempfile.TemporaryDirectory() as place:
        save_state(Path(place) / "state", training())
        saved = (Path(place) / "state").read_bytes()
    network = {"egnn.embedding.weight": torch.ones(8, 7), "egnn.embedding.bias": torch.ones(8)}
    buffer = io.BytesIO()
    torch.save({"gamma.gamma": torch.zeros(5), **{f"dynamics.{k}": v for k, v in network.items()}}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def repack(name: str, content: bytes) -> bytes:
        return zipped({**members, name: content})

    pickled = next(name for name in members if name.endswith("data.pkl"))
    old = io.BytesIO()
    torch.save(network, old, _use_new_zipfile_serialization=False)
    torch_seeds = [
        Seed(buffer.getvalue()),
        Seed(members[pickled], functools.partial(repack, pickled)),
        Seed(old.getvalue()),
    ]
    arrays = in_zip({f"param:{name}.npy": npy(value.numpy()) for name, value in network.items()})
    schedule = {"gamma_T10_s0.001.npy": npy(np.linspace(-7, 7, 11))}
    sums = {
        "bond_order_sum.npy": npy(np.array([2, 1, 1])),
        "num_atoms.npy": npy(np.array([3])),
        "charges.npy": npy(np.array([8, 1, 1])),
        "positions.npy": npy(np.eye(3)),
        "molecule_stable.npy": npy(np.array([True])),
        "valid.npy": npy(np.array([True])),
        "smiles.npy": npy(np.array(["[H]O[H]"])),
        "summary.npy": npy(np.array('{"validity": 1.0}')),
    }
    error = (PublishedError,)
    return [
        Reader("checkpoint (safetensors)", "state.safetensors", state, (CheckpointError,), in_safetensors(saved)),
        Reader(
            "averaged weights (safetensors)", "weights.safetensors", average, (CheckpointError,), in_safetensors(saved)
        ),
        Reader("published checkpoint (torch.save)", "ema.npy", published, error, torch_seeds),
        Reader("published checkpoint (safetensors)", "ema.bin", published, error, in_safetensors(save(network))),
        Reader("published checkpoint (npz)", "ema.npz", published, error, arrays),
        Reader("published numbers (npz)", "numbers.npz", fixture, (FixtureError,), [*in_zip(schedule), *in_zip(sums)]),
    ]


# ---------------------------------------------------------------------- the campaign


def main(n: int = PER_READER) -> list[dict[str, Any]]:
    """Rows of the table: reader, inputs, accepted, refused, losses. A process for each: one may crash."""
    rows = []
    for name in [reader.name for reader in readers()]:
        command = [sys.executable, "-m", "faults.hostile", str(n), name]
        paths = os.pathsep.join(str(folder) for folder in (Path(__file__).parents[2], Path(__file__).parents[1]))
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
        if done.returncode:
            why = {"seed": None, "what": f"the process ended with {done.returncode}: {done.stderr[-500:]}"}
            rows.append({"reader": name, "inputs": n, "accepted": 0, "refused": 0, "losses": [why]})
        else:
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def table_rows(judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as `faults.table` has them."""
    from faults.kills import row

    return [
        row(
            f"damaged file for: {one['reader']}",
            one["inputs"],
            len(one["losses"]),
            f"accepted: {one['accepted']}, refused: {one['refused']}",
        )
        for one in judged
    ]


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PER_READER
    if len(sys.argv) > 2:
        (one,) = (reader for reader in readers() if reader.name == sys.argv[2])
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps(judge(one, count, Path(place))))
    else:
        judged = main(count)
        print(json.dumps([one["losses"] for one in judged if one["losses"]], indent=1), file=sys.stderr)
        print(json.dumps(table_rows(judged), indent=1))
