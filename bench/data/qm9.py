"""QM9 in EDM's split: 130 831 molecules of H, C, N, O and F in B3LYP geometry, positions in angstrom.

Three sources, in this order: a folder (`dir`, else the environment variable QM9_DIR) with EDM's npz files or with
figshare's archive; a download from figshare; the wheel of `qm9pack` from a package registry. Molecules are in the
order of their gdb index, so all sources give the same fingerprint. Where none is in reach, the option `offline`
decides.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from bench.records import inputs
from bench.records.store import write_atomically
from bench.references import HOOGEBOOM_2022, Reference
from bench.registry import datasets
from bench.structures import gdb9
from bench.structures.dataset import SPLITS, DataError, DataSet, grouped, read_with
from bench.structures.fetch import Artefact, CannotStartError, DownloadError, cache_folder, fetch, fetch_wheel
from bench.structures.structures import Structures

log = logging.getLogger(__name__)

ELEMENTS = (1, 6, 7, 8, 9)
ELEMENT_NAMES = {1: "hydrogen", 6: "carbon", 7: "nitrogen", 8: "oxygen", 9: "fluorine"}
N_TOTAL = sum(n for n, _, _ in gdb9.SPLIT_FACTS.values())


class Offline(StrEnum):
    """What a study does where QM9 is out of reach: stop, or run on the embedded set under that name."""

    ERROR = "error"
    MINI = "mini"


@dataclass
class QM9Config:
    """Options: folder with the data; keep molecules of at most `max_atoms` atoms; keep `n_train` training molecules;
    turn each at random; what a study does where QM9 is out of reach (`bench.run.batches.load_or_stand_in`)."""

    dir: str | None = None  # folder with QM9; null: `QM9_DIR`, a download, or offline the set 'mini'
    max_atoms: int | None = None
    n_train: int | None = None
    turned: bool = False
    offline: Offline = Offline.ERROR


RAMAKRISHNAN_2014 = Reference(
    "ramakrishnan2014quantum",
    "Quantum chemistry structures and properties of 134 kilo molecules",
    ("Ramakrishnan, Raghunathan", "Dral, Pavlo O.", "Rupp, Matthias", "von Lilienfeld, O. Anatole"),
    2014,
    doi="10.1038/sdata.2014.22",
    venue="Scientific Data",
)


@datasets.register("qm9", QM9Config, references=(RAMAKRISHNAN_2014, HOOGEBOOM_2022))
def load(cfg: QM9Config) -> DataSet:
    """QM9, EDM's split: up to 29 atoms of H, C, N, O, F; from a folder, figshare or a package registry.

    Raises:
        CannotStartError: no folder is given, and neither figshare nor a package registry can be reached.
        DataError: the folder holds neither form of QM9, or one that is damaged or split differently; or the download
            broke off or brought another file.
    """
    folder = cfg.dir or os.environ.get("QM9_DIR")
    data = from_folder(Path(folder).expanduser()) if folder else from_download()
    return data.limited(cfg.max_atoms, cfg.n_train, cfg.turned)


def from_folder(folder: Path) -> DataSet:
    """Read a folder with {train,valid,test}.npz, or with the archive dsgdb9nsd.xyz.tar.bz2."""
    if not folder.is_dir():
        raise DataError(f"QM9 folder {folder} does not exist; correct QM9_DIR or data.dir, or unset it to download QM9")
    missing = [f"{split}.npz" for split in SPLITS if not (folder / f"{split}.npz").is_file()]
    if not missing:
        return _from_npz(folder)
    archive = folder / gdb9.ARCHIVE.name
    if archive.is_file() and len(missing) == len(SPLITS):
        listed = folder / gdb9.EXCLUDED.name
        try:
            excluded = gdb9.read_excluded(listed if listed.is_file() else fetch(gdb9.EXCLUDED))
        except CannotStartError as error:
            raise DataError(
                f"{listed} is missing and could not be downloaded ({error}); put it beside the archive"
            ) from error
        if not gdb9.ARCHIVE.is_at(archive):
            raise DataError(
                f"{archive} does not match the published SHA-256; fetch it again from {gdb9.ARCHIVE.urls[0]}"
            )
        return _from_archive(archive, excluded, f"folder with {archive.name}")
    raise DataError(
        f"QM9 folder {folder} lacks {', '.join(missing)}; expected train.npz, valid.npz and test.npz in EDM's layout, "
        f"or {gdb9.ARCHIVE.name} from {gdb9.ARCHIVE.urls[0]}"
    )


def from_download() -> DataSet:
    """QM9 from figshare or, where that fails, from a package registry. What is in the cache comes first."""
    faults = []
    for _, source in sorted(((gdb9.ARCHIVE, _from_figshare), (gdb9.WHEEL, _from_registry)), key=_not_in_cache):
        try:
            return source()
        except DownloadError as error:
            faults.append(error)
    kind = CannotStartError if all(isinstance(fault, CannotStartError) for fault in faults) else DownloadError
    raise kind(f"QM9 is out of reach: {'; '.join(map(str, faults))}; set QM9_DIR to a folder with QM9")


def _not_in_cache(source: tuple[Artefact, Callable]) -> bool:
    return not source[0].in_cache


def _from_figshare() -> DataSet:
    # the small file first: it shows whether there is a network
    excluded = gdb9.read_excluded(fetch(gdb9.EXCLUDED))
    return _from_archive(fetch(gdb9.ARCHIVE), excluded, "downloaded from figshare")


def _from_registry() -> DataSet:
    molecules = _parsed_once(fetch_wheel(gdb9.WHEEL), gdb9.WHEEL, gdb9.read_wheel)
    return _split(molecules, np.flatnonzero(molecules.n_atoms == 0), "qm9pack 1.0.3 from a package registry")


def _from_archive(path: Path, excluded: np.ndarray, source: str) -> DataSet:
    """The data set from an archive whose SHA-256 has been verified."""
    return _split(_parsed_once(path, gdb9.ARCHIVE, gdb9.read_archive), excluded, source)


def _split(molecules: Structures, excluded: np.ndarray, source: str) -> DataSet:
    """Molecules at the places of their ids, in EDM's split."""
    ids = gdb9.official_split(excluded)
    train, valid, test = (molecules.select(np.sort(ids[split])) for split in SPLITS)
    gdb9.check_train_counts(train)
    return DataSet("qm9", "QM9", source, ELEMENTS, train, valid, test)


def _parsed_once(path: Path, artefact: Artefact, read: Callable[[Path], Structures]) -> Structures:
    """Molecules of a published file by id; parsing takes up to a minute, so the result is cached."""
    cached = cache_folder() / f"qm9-{artefact.sha256[:16]}.npz"
    if cached.is_file():
        try:
            numbers, positions, ptr = inputs.read_arrays(cached, ("numbers", "positions", "ptr")).values()
            molecules = Structures(numbers.astype(np.int64), positions, ptr.astype(np.int64))
            if (molecules.n_atoms < 0).any() or positions.dtype != np.float32:
                raise ValueError("unexpected arrays")
            return molecules
        except (OSError, ValueError, IndexError):
            log.warning("%s is damaged; reading %s again", cached, path.name)
    molecules = read(path)
    content = io.BytesIO()
    np.savez(
        content,
        numbers=molecules.numbers.astype(np.uint8),
        positions=molecules.positions,
        ptr=molecules.ptr.astype(np.int32),
    )
    try:
        write_atomically(cached, content.getvalue())
    except OSError as error:
        log.warning("%s will be read again next time: %s", path.name, error)
    return molecules


def _from_npz(folder: Path) -> DataSet:
    """EDM's npz files or a part of them: notes what is missing and checks the split of every row if it can."""
    splits, ids = {}, {}
    for split in SPLITS:
        structures, index = read_with(folder / f"{split}.npz", "index")
        if len(structures) > gdb9.SPLIT_FACTS[split][0]:
            raise DataError(
                f"{folder / split}.npz has {grouped(len(structures))} molecules, EDM's {split} split has "
                f"{grouped(gdb9.SPLIT_FACTS[split][0])}; use the folder data set for a split of your own"
            )
        if index is not None:
            structures = structures.select(np.argsort(index, kind="stable"))
            ids[split] = np.sort(index).astype(np.int64)
        splits[split] = structures
    listed = folder / gdb9.EXCLUDED.name
    notes = _check_split(folder, ids, gdb9.read_excluded(listed) if listed.is_file() else None)
    lacking = {split: gdb9.SPLIT_FACTS[split][0] - len(structures) for split, structures in splits.items()}
    label = "QM9"
    if any(lacking.values()):
        label, note = _missing(lacking, Structures.concatenate(list(splits.values())))
        notes = [note, *notes]
    else:
        gdb9.check_train_counts(splits["train"])
    return DataSet("qm9", label, "folder with EDM's npz files", ELEMENTS, notes=notes, **splits)


def _missing(lacking: dict[str, int], present: Structures) -> tuple[str, str]:
    """Label and note for a folder that lacks so many molecules of each split."""
    absent = [z for z in ELEMENTS if z not in present.numbers]
    names = [ELEMENT_NAMES[z] for z in absent]
    counts = ", ".join(f"{grouped(n)} of {split}" for split, n in lacking.items())
    note = f"{grouped(sum(lacking.values()))} of {grouped(N_TOTAL)} molecules are missing ({counts})"
    note += f"; none of those present contains {' or '.join(names)}" if names else ""
    # A molecule missing for its element holds at least one atom of it, and the number of such atoms is published.
    if absent and lacking["train"] <= sum(gdb9.TRAIN_ATOMS[z] for z in absent):
        return f"QM9 without {' and '.join(names)}", note
    return f"QM9, {grouped(len(present))} of its {grouped(N_TOTAL)} molecules", note


def _check_split(folder: Path, ids: dict[str, np.ndarray], excluded: np.ndarray | None) -> list[str]:
    """Check that each row belongs to the split of its file; returns notes on what could not be checked.

    `ids` are the sorted `index` arrays. EDM's own script counts them from 1, as gdb9 does, other copies from 0; the
    convention that puts more rows into their splits is used.
    """
    if set(ids) != set(SPLITS):
        return ["the npz files carry no 'index' for every split, so the split is taken on trust"]
    for split, index in ids.items():
        if len(np.unique(index)) != len(index):
            raise DataError(f"{folder / split}.npz: a molecule comes twice in its 'index'; fetch the file again")
    if any(all(gdb9.is_official(index - first, split) for split, index in ids.items()) for first in (0, 1)):
        return []
    if excluded is None:
        for split, index in ids.items():
            if len(index) == gdb9.SPLIT_FACTS[split][0] and not any(
                gdb9.is_official(index - first, split) for first in (0, 1)
            ):
                raise DataError(
                    f"{folder / split}.npz has as many molecules as EDM's {split} split, but not the same ones; "
                    "fetch the file again, or use the folder data set for another split"
                )
        return [f"the split is taken on trust: molecules are missing, and {gdb9.EXCLUDED.name} is not in the folder"]
    official = gdb9.official_split(excluded)
    strays = [
        {split: index[~np.isin(index - first, official[split])] for split, index in ids.items()} for first in (0, 1)
    ]
    fewest = min(strays, key=lambda stray: sum(map(len, stray.values())))
    for split, stray in fewest.items():
        if len(stray):
            raise DataError(
                f"{folder / split}.npz: {grouped(len(stray))} of {grouped(len(ids[split]))} molecules are not in EDM's "
                f"{split} split, the first has index {stray[0]}; fetch the file again, or use the folder data set "
                "for another split"
            )
    return []
