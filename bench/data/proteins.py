"""Backbones of proteins from a folder: PDB and mmCIF files, or npz archives of chains (`bench.structures.chain_files`).

The folder is `dir`, else the environment variable PROTEINS_DIR. Chains are cut into consecutive pieces. The split is by
family: pieces of one chain, of one entry, or of chains of similar sequence are all in one split.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from bench.references import EQUIBENCH
from bench.registry import datasets
from bench.structures.chain_files import Flaw, Found, kind, read_files
from bench.structures.chains import Chain, ChainAtoms, families, pieces, structures_of
from bench.structures.dataset import SPLITS, DataError, DataSet, grouped, require_fractions
from bench.structures.fetch import CannotStartError
from bench.structures.structures import Structures

log = logging.getLogger(__name__)

MAX_NAMED = 3  # files or entries that a note names


class Offline(StrEnum):
    """What a study does where no folder is named."""

    ERROR = "error"
    MINI = "mini_proteins"


@dataclass
class ProteinsConfig:
    """Options: the folder, the atoms kept, lengths of pieces, the split; limits as in all data sets."""

    dir: str | None = None  # folder with PDB, mmCIF or npz files; null: `PROTEINS_DIR`
    atoms: ChainAtoms = ChainAtoms.CA
    min_residues: int = 32  # residues of the shortest piece
    max_residues: int = 128  # residues of the longest piece
    seed: int = 0  # of the lengths of pieces and of the split
    valid_fraction: float = 0.1  # of the families
    test_fraction: float = 0.1  # of the families
    max_atoms: int | None = None
    n_train: int | None = None
    turned: bool = False
    offline: Offline = Offline.ERROR

    def __post_init__(self) -> None:
        if not 2 <= self.min_residues <= self.max_residues:
            raise ValueError(
                f"'min_residues' and 'max_residues' are {self.min_residues} and {self.max_residues}, expected at least "
                "2 and no fewer at most than at least"
            )
        require_fractions(self.valid_fraction, self.test_fraction)


# the reader alone: the structures are another's to cite
@datasets.register("proteins", ProteinsConfig, references=(EQUIBENCH,))
def load(cfg: ProteinsConfig) -> DataSet:
    """Protein backbones in a folder: your own PDB or mmCIF files, or npz; pieces of chains, split by family.

    Raises:
        CannotStartError: no folder is named.
        DataError: the folder does not exist, holds no such files, or no chain that is long enough for every split.
        FileError: an npz file is damaged; gemmi is needed and not installed.
    """
    given = cfg.dir or os.environ.get("PROTEINS_DIR")
    if not given:
        raise CannotStartError(
            "proteins are read from a folder of PDB, mmCIF or npz files; set data.dir or PROTEINS_DIR"
        )
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist; correct data.dir or PROTEINS_DIR")
    paths = sorted(path for path in folder.iterdir() if path.name[0] != "." and kind(path))
    if not paths:
        raise DataError(f"{folder} has no file ending in .pdb, .ent, .cif, .mmcif or .npz; correct data.dir")
    found = read_files(paths, cfg.atoms)
    notes = notes_of(found)
    chains = [chain for chain in found.chains if len(chain) >= cfg.min_residues]
    if short := len(found.chains) - len(chains):
        notes.append(f"{grouped(short)} chains, or stretches of them, are shorter than {cfg.min_residues} residues")
    parts, counts = split_of(chains, cfg)
    if lacking := [name for name in SPLITS if name not in parts]:
        raise DataError(
            f"{folder}: the {lacking[0]} split is empty: {counts}; every split needs a family with a chain of "
            f"{cfg.min_residues} residues; add files or lower data.min_residues"
            + "".join(f"; {note}" for note in notes[:2])
        )
    notes.append(counts)
    for note in notes:
        log.info("%s", note)
    what = "C-alpha" if cfg.atoms is ChainAtoms.CA else "N, C-alpha, C"
    label = f"{folder.resolve().name}, {what}, {cfg.min_residues} to {cfg.max_residues} residues"
    source = f"pieces of chains, split by family, seed {cfg.seed}"
    data = DataSet("proteins", label, source, cfg.atoms.elements, notes=notes, **parts)
    return data.limited(cfg.max_atoms, cfg.n_train, cfg.turned)


def split_of(chains: Sequence[Chain], cfg: ProteinsConfig) -> tuple[dict[str, Structures], str]:
    """Pieces of the chains of each split that has some, and how many of what there are."""
    if not chains:
        return {}, "no chain is long enough"
    # an order that does not depend on that of the files
    chains = sorted(chains, key=lambda chain: (chain.entry, chain.sequence, chain.positions.tobytes()))
    family, rng = families(chains), np.random.default_rng(cfg.seed)
    order = rng.permutation(family.max() + 1)
    n_valid, n_test = (max(1, int(share * len(order))) for share in (cfg.valid_fraction, cfg.test_fraction))
    valid, test, train = np.split(order, [n_valid, n_valid + n_test])
    of_split: dict[str, np.ndarray] = dict(zip(SPLITS, (train, valid, test), strict=True))
    cut: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    number_of = {int(k): name for name, some in of_split.items() for k in some}
    for chain, k in zip(chains, family.tolist(), strict=True):
        for piece in pieces(len(chain), cfg.min_residues, cfg.max_residues, rng):
            cut[number_of[k]].append(chain.positions[piece])
    counted = ", ".join(f"{name} {grouped(len(some))} of {grouped(len(of_split[name]))}" for name, some in cut.items())
    counts = f"pieces of families: {counted}; {grouped(len(chains))} chains in all"
    return {name: structures_of(some) for name, some in cut.items() if some}, counts


def notes_of(found: Found) -> list[str]:
    """A line for the files left out, and one for each flaw, with counts and the first names."""
    notes = []
    if found.faults:
        notes.append(f"{grouped(len(found.faults))} files left out: {_named(found.faults)}")
    total = sum(found.flaws.values(), Counter[Flaw]())
    for flaw in Flaw:
        if total[flaw]:
            entries = sorted(name for name, flaws in found.flaws.items() if flaws[flaw])
            notes.append(f"{grouped(total[flaw])} {flaw}, in {grouped(len(entries))} entries: {_named(entries)}")
    return notes


def _named(lines: Sequence[str]) -> str:
    """The first lines, and how many more there are."""
    more = f"; and {grouped(n)} more" if (n := len(lines) - MAX_NAMED) > 0 else ""
    return "; ".join(lines[:MAX_NAMED]) + more
