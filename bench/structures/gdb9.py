"""QM9 as published: the archive of xyz files, the list of excluded molecules, and EDM's split of the rest.

The package qm9pack on PyPI holds the same molecules in CSV files, without the excluded ones. A molecule's id is its gdb
index counted from 0: the file dsgdb9nsd_000001.xyz is molecule 0. Positions are B3LYP geometries in angstrom.
References: Ramakrishnan et al., Sci. Data 1, 140022 (2014); for the split, EDM
(arXiv:2203.17003), qm9/data/prepare/qm9.py, which took it over from Cormorant (arXiv:1906.04015).
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.records.inputs import one_line, size_of
from bench.structures import files
from bench.structures.dataset import DataError, grouped
from bench.structures.fetch import Artefact
from bench.structures.structures import Structures

N_MOLECULES = 133_885
N_TRAIN = 100_000


def _artefact(name: str, figshare_id: int, sha256: str) -> Artefact:
    hosts = (
        "ndownloader.figshare.com/files",
        "figshare.com/ndownloader/files",
        "springernature.figshare.com/ndownloader/files",
    )
    return Artefact(name, tuple(f"https://{host}/{figshare_id}" for host in hosts), sha256)


# figshare collection 978904; checksums as in tensorflow_datasets' qm9/checksums.tsv
ARCHIVE = _artefact(
    "dsgdb9nsd.xyz.tar.bz2", 3195389, "3a63848ac80691bdb8d41834b575afad345b9300d7a2db0c38adb7f6eaa8360c"
)
EXCLUDED = _artefact("uncharacterized.txt", 3195404, "3aa5115d540b356de94791d4a74c3bf1ed91c469ecf52a4f5d7cc0506fe02e24")
WHEEL = Artefact(
    "qm9pack-1.0.3-py3-none-any.whl",
    ("https://pypi.org/project/qm9pack/1.0.3/",),
    "1d88c2988007c6778e717ee3224cf511bd60e10732ebe3b7ed500ea5af05c9f0",
)
WHEEL_PARTS = tuple(f"qm9pack/data/qm9_part{part}.csv" for part in (1, 2, 3))
# Split -> (molecules, fingerprint of the ids, sum of the ids), with which `official_split` verifies the recipe.
SPLIT_FACTS = {
    "train": (100_000, "c7fba7cb427a12ca", 6_687_586_303),
    "valid": (17_748, "88da98f542d5f7b2", 1_182_431_266),
    "test": (13_083, "57cb7e37acad0bf8", 874_541_342),
}
# EDM's training split, from its configs/datasets_config.py: atoms of each element, and molecules of some sizes
TRAIN_ATOMS = {1: 923_537, 6: 635_559, 7: 101_476, 8: 140_202, 9: 2_323}
TRAIN_SIZES = {3: 1, 17: 13_025, 18: 13_364, 19: 13_832, 29: 25}

MEMBER = re.compile(r"(?:\./)?(?:[\w.-]+/)?dsgdb9nsd_(\d{6})\.xyz")
ELEMENT = re.compile("[A-Z][a-z]?")
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
NO_BRACKETS = str.maketrans("", "", "[]")
MAX_LIST_BYTES = 1 << 24
NUMBERED = re.compile(r"[0-9]{1,9}")


def read_archive(path: Path, n_molecules: int = N_MOLECULES) -> Structures:
    """Molecules of the figshare archive in the order of their ids, positions in float32.

    The caller has verified the archive's SHA-256. It is read as a stream; nothing is unpacked to disk. Raises
    DataError when it is missing, damaged or lacks a molecule.
    """
    ids: list[int] = []

    def lines(tar: tarfile.TarFile) -> Iterator[str]:
        for member in tqdm(tar, total=n_molecules, unit=" molecules", desc=f"reading {path.name}", disable=None):
            match, file = MEMBER.fullmatch(member.name), tar.extractfile(member)
            if match and file:
                ids.append(int(match[1]) - 1)
                yield from file.read().decode("ascii").splitlines()

    try:
        with tarfile.open(path, "r|bz2") as tar:
            molecules = files.parse_xyz(lines(tar), path.name)
    except (ValueError, EOFError, OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: {one_line(error)}; fetch the archive again from {ARCHIVE.urls[0]}") from error
    if sorted(ids) != list(range(n_molecules)) or len(molecules) != n_molecules:
        raise DataError(
            f"{path}: {grouped(len(set(ids)))} molecules, expected {grouped(n_molecules)}; "
            f"fetch the archive again from {ARCHIVE.urls[0]}"
        )
    molecules = replace(molecules, positions=molecules.positions.astype(np.float32))
    return molecules.select(np.argsort(ids))


def read_wheel(path: Path, n_molecules: int = N_MOLECULES) -> Structures:
    """Molecules of qm9pack's wheel at the places of their ids, positions in float32; excluded ones have no atoms.

    The caller has verified the wheel's SHA-256. It is read as a zip file of CSV files; nothing of it is imported.
    Raises DataError when it is damaged or is not what is expected.
    """
    sizes = np.zeros(n_molecules, np.int64)
    symbols: list[str] = []
    coordinates: list[np.ndarray] = []
    last = -1
    try:
        with zipfile.ZipFile(path) as wheel, tqdm(unit=" molecules", desc=f"reading {path.name}", disable=None) as bar:
            for part in WHEEL_PARTS:
                with io.TextIOWrapper(wheel.open(part), encoding="ascii", newline="") as file:
                    for row in csv.DictReader(file):
                        atoms, i = ELEMENT.findall(row["Elements"]), int(row["Index"]) - 1
                        found = np.array(row["XYZ_Ang"].translate(NO_BRACKETS).split(","), dtype=np.float64)
                        if not last < i < n_molecules or found.shape != (3 * len(atoms),):
                            raise ValueError(f"{part}: molecule {row['Index']} is out of order or incomplete")
                        sizes[i], last = len(atoms), i
                        symbols += atoms
                        coordinates.append(found)
                        bar.update()
        numbers = np.array([NUMBERS[symbol] for symbol in symbols], dtype=np.int64)
        positions = np.concatenate(coordinates).reshape(-1, 3).astype(np.float32)
        return Structures.from_sizes(numbers, positions, sizes)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zlib.error, zipfile.BadZipFile, csv.Error) as error:
        raise DataError(f"{path}: {one_line(error)}; fetch the wheel again from {WHEEL.urls[0]}") from error


def read_excluded(path: Path) -> np.ndarray:
    """Ids (from 0) of the molecules that uncharacterized.txt lists (from 1), ascending [3054].

    Raises DataError when the file is not text; `official_split` notices a wrong list.
    """
    try:
        size_of(path, MAX_LIST_BYTES)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = one_line(error) if isinstance(error, OSError) else "no text file"
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
    """Whether `ids`, in any order, are exactly those of EDM's split."""
    return (len(ids), id_fingerprint(ids), int(ids.sum())) == SPLIT_FACTS[split]


def official_split(excluded: np.ndarray) -> dict[str, np.ndarray]:
    """Ids of EDM's split; raises DataError when they do not have the published fingerprints."""
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
    """Raise DataError unless the complete training split has the atom and size counts that EDM publishes."""
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
