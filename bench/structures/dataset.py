"""The data set contract: three splits of molecules, and the facts about them that tables and records state.

Positions are in angstrom, float32, as stored in the source: neither centred nor rotated. A data set is a file of
`bench/data/` whose `load(cfg) -> DataSet` carries `@datasets.register(name, Config)`; every config has the options
`max_atoms` and `n_train`, those of molecules in space `turned` too, all of which `DataSet.limited` applies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.records import inputs
from bench.records.inputs import one_line
from bench.structures import files
from bench.structures.sizes import size_histogram
from bench.structures.structures import Structures

if TYPE_CHECKING:
    from torch_geometric.data import Data

SPLITS = ("train", "valid", "test")
SUBSET_SEED = 0  # of the permutation from which n_train molecules are taken, so that subsets are nested
TURN_SEED = 0  # of the rotations of `turned`


class DataError(ValueError):
    """Invalid data; the message says what was found, what was expected and what to do."""


def grouped(n: int) -> str:
    """12345 -> '12 345'."""
    return f"{n:,}".replace(",", " ")


def require_fractions(valid: float, test: float) -> None:
    """DataError unless validation and test split, and what they leave for training, are positive parts of a whole."""
    if min(valid, test) <= 0 or valid + test >= 1:
        raise DataError(
            f"valid_fraction and test_fraction are {valid:g} and {test:g}; expected positive ones below 1 in sum"
        )


@dataclass(frozen=True)
class Facts:
    """What a model, and sampling from it, must know of the training set.

    Attributes:
        elements: nuclear charges, ascending.
        mean_atoms: mean number of atoms of a training molecule.
        sizes: number of atoms -> training molecules.
    """

    elements: tuple[int, ...]
    mean_atoms: float
    sizes: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Molecules to train on, to validate on and to test on.

    Attributes:
        name: as registered, e.g. 'qm9'.
        label: name in tables: 'QM9 without fluorine, at most 14 atoms'.
        source: where it came from, without a local path.
        elements: nuclear charges that a model of this data set must know, ascending; some may have no atom.
        notes: one line each, e.g. which molecules are missing.
    """

    name: str
    label: str
    source: str
    elements: tuple[int, ...]
    train: Structures
    valid: Structures
    test: Structures
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for split in SPLITS:
            structures: Structures = getattr(self, split)
            if len(structures) == 0:
                raise DataError(f"{self.label}: the {split} split is empty; every split needs at least one molecule")
            if structures.positions.dtype != np.float32:
                with np.errstate(over="ignore"):
                    cells = None if structures.cells is None else structures.cells.astype(np.float32)
                    single = replace(structures, positions=structures.positions.astype(np.float32), cells=cells)
                object.__setattr__(self, split, single)
                structures = single
            if not all(np.isfinite(array).all() for array in structures.arrays()):
                raise DataError(f"{self.label}: the {split} split has a coordinate that is not finite in float32")
            strange = set(np.unique(structures.numbers).tolist()) - set(self.elements)
            if strange:
                raise DataError(
                    f"{self.label}: the {split} split has nuclear charges {sorted(strange)}, "
                    f"expected only {list(self.elements)}"
                )

    @property
    def splits(self) -> dict[str, Structures]:
        """The three splits by name."""
        return {split: getattr(self, split) for split in SPLITS}

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 over elements and the sizes, nuclear charges, positions and graphs of each
        split."""
        digest = hashlib.sha256(np.array(self.elements, dtype="<i8").tobytes())
        for structures in self.splits.values():
            for array in structures.arrays():
                digest.update(array.astype("<f4" if array.dtype.kind == "f" else "<i8").tobytes())
        return digest.hexdigest()[:16]

    @property
    def mean_atoms(self) -> float:
        """Mean number of atoms of a training molecule."""
        return float(self.train.n_atoms.mean())

    @property
    def size_histogram(self) -> dict[int, int]:
        """n atoms -> how many training molecules have them."""
        return size_histogram(self.train)

    @property
    def facts(self) -> Facts:
        return Facts(self.elements, self.mean_atoms, self.size_histogram)

    def graph(self, split: str, index: int) -> Data:
        """Molecule `index` of a split as a PyTorch Geometric graph with `z` [n] and `pos` [n, 3] in angstrom."""
        from bench.structures.graphs import to_graph

        return to_graph(self.splits[split], index)

    def record(self) -> dict[str, Any]:
        """The manifest's entry `data` (`bench.records.schema.MANIFEST`)."""
        return {
            "name": self.name,
            "label": self.label,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "n_train": len(self.train),
            "n_valid": len(self.valid),
            "n_test": len(self.test),
            "mean_atoms": self.mean_atoms,
            "elements": list(self.elements),
            "notes": list(self.notes),
        }

    def turned(self) -> DataSet:
        """Each molecule in a fixed orientation drawn at random, in all splits: stored orientations then say nothing.

        Rotations are proper, so that no molecule becomes its mirror image, and functions of split and index alone.
        """
        splits = {
            name: replace(part, positions=_turned(part, number))
            for number, (name, part) in enumerate(self.splits.items())
        }
        return replace(self, label=f"{self.label}, molecules turned at random", **splits)

    def limited(self, max_atoms: int | None, n_train: int | None, turned: bool = False) -> DataSet:
        """Keep the molecules of at most `max_atoms` atoms in all splits, then `n_train` of the training molecules.

        With `turned` all molecules are turned first, so that each has one orientation in every subset.

        The training molecules are the first of one seeded permutation, kept in their original order, so for one
        `max_atoms` smaller subsets are nested in larger ones. Validation and test are those of the whole set. All that
        a run knows of its training set comes from the subset alone: mean and histogram of sizes, and the molecules
        that a novel one must differ from. A note counts the test molecules of sizes that the subset lacks.

        Raises DataError when a split is empty or has fewer than `n_train` training molecules.
        """
        if turned:
            return self.turned().limited(max_atoms, n_train)
        splits, label = self.splits, self.label
        if max_atoms is not None:
            splits = {name: split.select(split.n_atoms <= max_atoms) for name, split in splits.items()}
            label += f", at most {max_atoms} atoms"
        if n_train is not None:
            available = len(splits["train"])
            if not 1 <= n_train <= available:
                choose = f"choose from 1 to {grouped(available)}" if available else "choose a larger max_atoms"
                raise DataError(f"n_train={n_train}: {label} has {grouped(available)} training molecules; {choose}")
            kept = np.random.default_rng(SUBSET_SEED).permutation(available)[:n_train]
            splits = {**splits, "train": splits["train"].select(np.sort(kept))}
            label += f", {grouped(n_train)} training molecules"
        return replace(self, label=label, notes=[*self.notes, *_unseen_sizes(**splits)], **splits)


def _turned(structures: Structures, split: int) -> np.ndarray:
    """Positions, each molecule turned about the origin by a rotation of its own [A, 3], float32."""
    from scipy.spatial.transform import Rotation  # here: it is slow to load, and few runs turn anything

    # rows of one stream, so that molecule i has the same rotation however many there are; normal quaternions are Haar
    quaternions = np.random.default_rng([TURN_SEED, split]).normal(size=(len(structures), 4))
    each = Rotation.from_quat(np.repeat(quaternions, structures.n_atoms, axis=0))
    return each.apply(structures.positions.astype(np.float64)).astype(np.float32)


def _unseen_sizes(train: Structures, test: Structures, **_: Structures) -> list[str]:
    """A note on test molecules of sizes that no training molecule has: p(N) knows nothing of them."""
    sizes = test.n_atoms[~np.isin(test.n_atoms, train.n_atoms)]
    if not len(sizes):
        return []
    shown = ", ".join(map(str, np.unique(sizes)))
    return [
        f"{grouped(len(sizes))} of {grouped(len(test))} test molecules have a size that no training one has: {shown}"
    ]


def read_with(path: Path, key: str) -> tuple[Structures, np.ndarray | None]:
    """Molecules of an npz file and its integer array `key` [M], or None if the file has no such array.

    Raises FileError from `bench.structures.files`, or DataError; each is one line that names the file.
    """
    structures = files.read(path)
    try:
        array = inputs.read_arrays(path, (), (key,)).get(key)
    except (inputs.NpzError, OSError) as error:
        raise DataError(f"{path}: {one_line(error)}; fetch the file again") from error
    if array is not None and (array.shape != (len(structures),) or array.dtype.kind not in "iu"):
        raise DataError(
            f"{path}: array {key!r} is {array.dtype} of shape {array.shape}, "
            f"expected one integer for each of the {len(structures)} molecules"
        )
    return structures, array
