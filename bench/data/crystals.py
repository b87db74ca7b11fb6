"""Crystals from a folder: the benchmarks of CDVAE as official csv files or as npz files, or CIF files of your own.

The folder is `dir`, else the environment variable CRYSTALS_DIR; `of` names one data set in it. Formats, reduction and
what counts as a fault: `bench.structures.crystal_files`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.references import Reference
from bench.registry import datasets
from bench.structures.crystal_files import SUFFIXES, Entries, read_entries
from bench.structures.dataset import SPLITS, DataError, DataSet, grouped, require_fractions
from bench.structures.elements import BadMoleculesError
from bench.structures.prompts import described, label_of
from bench.structures.structures import Structures

log = logging.getLogger(__name__)

WORDS = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}
MAX_NAMED = 2  # faults that a note names

XIE_2022 = Reference(
    "xie2022crystal",
    "Crystal Diffusion Variational Autoencoder for Periodic Material Generation",
    ("Xie, Tian", "Fu, Xiang", "Ganea, Octavian-Eugen", "Barzilay, Regina", "Jaakkola, Tommi S."),
    2022,
    arxiv="2110.06197",
)


@dataclass
class CrystalsConfig:
    """Options: the folder, a data set in it, the split where files do not name one; limits as in all data sets."""

    dir: str | None = None  # folder with cif, csv or npz files; null: `CRYSTALS_DIR`
    of: str | None = None  # data set: a folder in it, or its files crystals_OF_PART.*; null: all files of the folder
    seed: int = 0  # of the split
    valid_fraction: float = 0.1  # of all crystals or, where files name a training part alone, of that part
    test_fraction: float = 0.1  # of all crystals; not read where files name a test part
    # for task 'crystals_text': the attributes of each crystal as a prompt, encoded by 'hashed' (a stand-in) or by the
    # Hugging Face text encoder in this folder (needs transformers); null: none
    text: str | None = None
    skip_bad: bool = False  # leave out entries that cannot be used: malformed, disordered, partial occupancies
    max_atoms: int | None = None
    n_train: int | None = None

    def __post_init__(self) -> None:
        require_fractions(self.valid_fraction, self.test_fraction)


# whose splits and files the benchmarks are; crystals of your own are yours to cite
@datasets.register("crystals", CrystalsConfig, references=(XIE_2022,))
def load(cfg: CrystalsConfig) -> DataSet:
    """Crystals in a folder: Perov-5, Carbon-24, MP-20, MPTS-52 (csv or npz), or your own CIF files; needs pymatgen.

    Raises:
        DataError: no folder is given, or it holds no such files, or several data sets; a split is empty.
        FileError: a file cannot be read, or an entry cannot be used.
    """
    name, parts = _files(cfg)
    read = {part: read_entries(paths) for part, paths in parts.items()}
    notes = _faults([fault for entries in read.values() for fault in entries.faults], cfg.skip_bad)
    splits, how = _split({part: _with_text(entries, cfg.text) for part, entries in read.items()}, cfg)
    for split, structures in splits.items():
        if not len(structures):
            raise DataError(f"{name}: the {split} split is empty; choose larger fractions, or a folder with more")
    notes += _repeated(splits)
    for note in notes:
        log.warning("%s", note)
    elements = tuple(np.unique(np.concatenate([part.numbers for part in splits.values()])).tolist())
    label = f"{name}, {how}" + (f", {label_of(cfg.text)}" if cfg.text else "")
    data = DataSet("crystals", label, f"crystals, {how}", elements, notes=notes, **splits)
    return data.limited(cfg.max_atoms, cfg.n_train)


def _files(cfg: CrystalsConfig) -> tuple[str, dict[str, list[Path]]]:
    """Name of the data set, and its files by the part that they name; '' where they name none."""
    given = cfg.dir or os.environ.get("CRYSTALS_DIR")
    if not given:
        raise DataError("crystals are read from a folder of cif, csv or npz files; set data.dir or CRYSTALS_DIR")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist; correct data.dir or CRYSTALS_DIR")
    name, prefix = folder.resolve().name, ""
    if cfg.of is not None:
        inner = folder / cfg.of
        name, folder, prefix = (cfg.of, inner, "") if inner.is_dir() else (cfg.of, folder, f"crystals_{cfg.of}_")
    named = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name in WORDS]
    inside = [path for home in (folder, *named) for path in sorted(home.iterdir())]
    fits = re.compile(rf"{re.escape(prefix)}({'|'.join(WORDS)})" if prefix else r"[^.].*")
    inside = [path for path in inside if path.suffix.lower() in SUFFIXES and fits.fullmatch(path.stem)]
    kinds = sorted({path.suffix.lower() for path in inside})
    if len(kinds) != 1:
        what = f"files of several kinds ({', '.join(kinds)})" if kinds else f"no file ending in {', '.join(SUFFIXES)}"
        raise DataError(f"{folder} has {what}{f' called {prefix}PART' if prefix else ''}; correct data.dir or data.of")
    parts: dict[str, list[Path]] = {}
    sets = set[str]()
    for path in inside:
        word = re.fullmatch(r"(?:(.*)[_.-])?(train|val|valid|test)", path.stem)
        if path.parent != folder:
            part = WORDS[path.parent.name]
        elif kinds != [".cif"] and word:
            part = WORDS[word[2]]
            sets.add(word[1] or "")
        else:
            part = ""
        parts.setdefault(part, []).append(path)
    if len(sets) > 1:
        choices = ", ".join(sorted(some.removeprefix("crystals_") for some in sets))
        raise DataError(f"{folder} has several data sets: {choices}; choose one by data.of")
    return name, parts


def _with_text(entries: Entries, encoder: str | None) -> Structures:
    """The crystals, with the vectors of their prompts where an encoder is chosen."""
    return described(entries.structures, entries.prompts, encoder) if encoder else entries.structures


def _faults(faults: list[str], skip: bool) -> list[str]:
    """A note that counts and names what cannot be used; an error unless it may be left out."""
    if not faults:
        return []
    if not skip:
        raise BadMoleculesError(f"{faults[0]} ({grouped(len(faults))} such entries); data.skip_bad leaves them out")
    more = f"; and {grouped(n)} more" if (n := len(faults) - MAX_NAMED) > 0 else ""
    return [f"{grouped(len(faults))} left out: {'; '.join(faults[:MAX_NAMED])}{more}"]


def _split(parts: Mapping[str, Structures], cfg: CrystalsConfig) -> tuple[dict[str, Structures], str]:
    """Three splits of what the files name, and how they were chosen; DataError where they name others."""
    rng = np.random.default_rng(cfg.seed)

    def cut(whole: Structures, *fractions: float) -> list[Structures]:
        """Parts of these fractions, then the rest; each in the order of the files."""
        order = rng.permutation(len(whole))
        edges = np.cumsum([max(1, int(fraction * len(whole))) for fraction in fractions])
        return [whole.select(np.sort(some)) for some in np.split(order, edges)]

    names = set(parts)
    if names == set(SPLITS):
        return {split: parts[split] for split in SPLITS}, "split as the files name it"
    if names == {"valid", "test"}:  # the training part is missing
        valid, train = cut(parts["valid"], cfg.valid_fraction)
        how = f"reduced split: trained on the validation part, of which {cfg.valid_fraction:g} validate"
        return {"train": train, "valid": valid, "test": parts["test"]}, how
    if names == {"train", "test"}:
        valid, train = cut(parts["train"], cfg.valid_fraction)
        return {"train": train, "valid": valid, "test": parts["test"]}, f"validation part drawn, seed {cfg.seed}"
    if names == {""}:
        test, valid, train = cut(parts[""], cfg.test_fraction, cfg.valid_fraction)
        return {"train": train, "valid": valid, "test": test}, f"split at random, seed {cfg.seed}"
    named = " and ".join(sorted(name or "no part" for name in names))
    raise DataError(f"files name {named}; expected train, val and test, train and test, val and test, or none at all")


def _repeated(splits: Mapping[str, Structures]) -> list[str]:
    """A note on test crystals whose composition, with its number of atoms, the training part has too."""

    def compositions(structures: Structures) -> list[bytes]:
        return [np.sort(numbers).tobytes() for numbers, _ in structures]

    seen = set(compositions(splits["train"]))
    n = sum(key in seen for key in compositions(splits["test"]))
    return [f"{grouped(n)} of {grouped(len(splits['test']))} test crystals have a composition of the training part"]
