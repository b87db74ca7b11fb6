"""QM9 as published on figshare: the archive of xyz files, the list of excluded molecules, and EDM's split of the rest.

A molecule's id is its gdb index counted from 0: the file dsgdb9nsd_000001.xyz is molecule 0. Positions are B3LYP
geometries in angstrom. References: Ramakrishnan et al., Sci. Data 1, 140022 (2014); for the split, EDM
(arXiv:2203.17003), qm9/data/prepare/qm9.py, which took it over from Cormorant (arXiv:1906.04015).
"""

from __future__ import annotations

import bz2
import hashlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.records.inputs import cut, said, size_of
from bench.structures.dataset import DataError, grouped
from bench.structures.fetch import Artefact
from bench.structures.structures import Structures

N_MOLECULES = 133_885
N_TRAIN = 100_000
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


def _artefact(name: str, figshare_id: int, size: int, sha256: str) -> Artefact:
    hosts = (
        "ndownloader.figshare.com/files",
        "figshare.com/ndownloader/files",
        "springernature.figshare.com/ndownloader/files",
    )
    return Artefact(name, tuple(f"https://{host}/{figshare_id}" for host in hosts), size, sha256)


# figshare collection 978904; sizes and checksums as in tensorflow_datasets' qm9/checksums.tsv
ARCHIVE = _artefact(
    "dsgdb9nsd.xyz.tar.bz2", 3195389, 86_144_227, "3a63848ac80691bdb8d41834b575afad345b9300d7a2db0c38adb7f6eaa8360c"
)
EXCLUDED = _artefact(
    "uncharacterized.txt", 3195404, 486_752, "3aa5115d540b356de94791d4a74c3bf1ed91c469ecf52a4f5d7cc0506fe02e24"
)
# Split -> (molecules, fingerprint of the ids, sum of the ids), to tell that the recipe below gave EDM's split.
SPLIT_FACTS = {
    "train": (100_000, "c7fba7cb427a12ca", 6_687_586_303),
    "valid": (17_748, "88da98f542d5f7b2", 1_182_431_266),
    "test": (13_083, "57cb7e37acad0bf8", 874_541_342),
}
# EDM's training split, from its configs/datasets_config.py: atoms of each element, and molecules of some sizes
TRAIN_ATOMS = {1: 923_537, 6: 635_559, 7: 101_476, 8: 140_202, 9: 2_323}
TRAIN_SIZES = {3: 1, 17: 13_025, 18: 13_364, 19: 13_832, 29: 25}

MEMBER = re.compile(r"(?:\./)?(?:[\w.-]+/)?dsgdb9nsd_(\d{6})\.xyz")
MAX_MEMBER_BYTES = 1 << 16  # the largest file of the official archive has a few kB
MAX_OTHERS = 1000  # folders and extended headers
MAX_LIST_BYTES = 1 << 24
NUMBERED = re.compile(r"[0-9]{1,9}")
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def parse_xyz(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Nuclear charges [n] and positions [n, 3] of one file of the archive.

    Line 1 is n, line 2 holds properties (and mixes a space with tabs, so it is left alone), then come n lines of
    element, x, y, z and Mulliken charge. Small numbers are written as by Mathematica: 2.1*^-6.
    """
    lines = text.split("\n")
    n = int(lines[0]) if re.fullmatch(r" *[0-9]{1,6}\s*", lines[0]) else 0
    rows = [line.split() for line in lines[2 : 2 + n]]
    if n < 1 or len(rows) != n or min(map(len, rows)) < 4:
        raise ValueError(f"line 1 says {cut(lines[0].strip(), 20)!r} atoms, expected as many lines of element, x, y, z")
    numbers = np.array([ELEMENTS[row[0]] for row in rows], dtype=np.int64)
    positions = np.array([[_coordinate(word) for word in row[1:4]] for row in rows])
    if not (np.abs(positions) <= np.finfo(np.float32).max).all():
        raise ValueError("a coordinate is not finite")
    return numbers, positions.astype(np.float32)


def _coordinate(word: str) -> float:
    text = word.replace("*^", "e")
    if not NUMBER.fullmatch(text):  # float() also takes nan, inf and 1_0
        raise ValueError(f"got {cut(word, 20)!r}, expected a coordinate in angstrom, a finite number")
    return float(text)


def read_archive(path: Path, n_molecules: int = N_MOLECULES) -> Structures:
    """Molecules of the figshare archive in the order of their ids.

    The archive is read as a stream and nothing is unpacked to disk. Raises DataError when it is missing, damaged or
    holds anything else than one regular, small xyz file for each molecule.
    """
    molecules: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    bar = tqdm(total=n_molecules, unit=" molecules", desc=f"reading {path.name}", disable=None)
    name = None
    try:
        size_of(path)
        with bar, bz2.BZ2File(path) as stream:
            for name, content in _small_files(stream):
                match = MEMBER.fullmatch(name)
                if match is None:
                    raise ValueError("is no xyz file of QM9")
                index = int(match[1]) - 1
                if index in molecules or not 0 <= index < n_molecules:
                    raise ValueError(f"comes twice, or its number is not in 1 to {n_molecules}")
                molecules[index] = parse_xyz(content.decode("ascii"))
                bar.update()
    except (ValueError, KeyError, EOFError, OSError, tarfile.TarError) as error:
        where = "" if name is None else f"member {cut(name)!r}: "
        what = f"unknown element {cut(str(error), 20)}" if isinstance(error, KeyError) else said(error)
        raise DataError(f"{path}: {where}{what}; fetch the archive again from {ARCHIVE.urls[0]}") from error
    if len(molecules) != n_molecules:
        raise DataError(f"{path}: {grouped(len(molecules))} molecules, expected {grouped(n_molecules)}; fetch it again")
    return Structures.from_list([molecules[i] for i in range(n_molecules)])


def _small_files(stream: bz2.BZ2File) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of a tar; ValueError for a member that is no small regular file.

    Not by `tarfile.open`, which unpacks bz2 without bound, and reads extended headers of any size. Those are skipped
    here: all that they could tell are other names, and another name is refused.
    """
    n_others = 0
    while len(block := stream.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE and any(block):
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        header = info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE)
        if info.isdir() or header:
            n_others += 1
        if not (info.isdir() or header or info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
            raise ValueError(f"member {cut(info.name)!r} is no regular file, so is no xyz file of QM9")
        if not 0 <= info.size <= MAX_MEMBER_BYTES or n_others > MAX_OTHERS:
            raise ValueError(f"member {cut(info.name)!r} of {info.size} bytes is no xyz file of QM9")
        padded = 0 if info.isdir() else -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        content = stream.read(padded)
        if len(content) < padded:
            raise EOFError(f"member {cut(info.name)!r} is cut short")
        if not (info.isdir() or header):
            yield info.name, content[: info.size]


def read_excluded(path: Path) -> np.ndarray:
    """Ids (from 0) of the molecules that uncharacterized.txt lists (from 1), ascending [3054].

    Raises DataError when the file is no such list; that it is the right one shows in the split's fingerprint.
    """
    try:
        size_of(path, MAX_LIST_BYTES)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = said(error) if isinstance(error, OSError) else "no text file"
        raise DataError(f"{path}: {why}; fetch it again from {EXCLUDED.urls[0]}") from error
    ids = [int(token) - 1 for line in lines for token in line.split(maxsplit=1)[:1] if NUMBERED.fullmatch(token)]
    return np.unique(np.array(ids, dtype=np.int64))


def split_ids(excluded: np.ndarray, n_molecules: int = N_MOLECULES, n_train: int = N_TRAIN) -> dict[str, np.ndarray]:
    """EDM's recipe: ids of train, validation and test in permuted order.

    The ids that are not excluded, ascending, are permuted by numpy's legacy generator with seed 0; the first n_train
    are for training, the last tenth (rounded down) for the test, those between for validation.
    """
    included = np.setdiff1d(np.arange(n_molecules, dtype=np.int64), excluded)
    permuted = included[np.random.RandomState(0).permutation(len(included))]
    n_test = int(0.1 * len(included))
    train, valid, test = np.split(permuted, [n_train, len(included) - n_test])
    return {"train": train, "valid": valid, "test": test}


def id_fingerprint(ids: np.ndarray) -> str:
    """First 16 hex digits of the SHA-256 of the ids, sorted, as little-endian int64."""
    return hashlib.sha256(np.sort(ids).astype("<i8").tobytes()).hexdigest()[:16]


def is_official(ids: np.ndarray, split: str) -> bool:
    """Whether these are all the ids of EDM's split, in any order."""
    return (len(ids), id_fingerprint(ids), int(ids.sum())) == SPLIT_FACTS[split]


def official_split(excluded: np.ndarray) -> dict[str, np.ndarray]:
    """EDM's split; DataError when the recipe does not end at the published fingerprints."""
    splits = split_ids(excluded)
    for split, ids in splits.items():
        if not is_official(ids, split):
            raise DataError(
                f"EDM's {split} split has fingerprint {id_fingerprint(ids)}, expected {SPLIT_FACTS[split][1]}: "
                f"{EXCLUDED.name} (here {len(excluded)} molecules, published 3054) is not the published one; "
                f"fetch it again from {EXCLUDED.urls[0]}"
            )
    return splits


def check_train_counts(train: Structures) -> None:
    """DataError unless the complete training split has the atoms and the sizes that EDM publishes for it."""
    atoms, sizes = np.bincount(train.numbers), np.bincount(train.n_atoms)
    for what, counted, published in (
        ("atoms of charge", atoms, TRAIN_ATOMS),
        ("molecules of size", sizes, TRAIN_SIZES),
    ):
        for key, expected in published.items():
            found = int(counted[key]) if key < len(counted) else 0
            if found != expected:
                raise DataError(
                    f"the training split has {found} {what} {key}, EDM's has {expected}: these are not QM9's "
                    "molecules though their ids are; fetch the data again"
                )
