"""Bonds looked up from distances, and the stability of atoms and molecules that follows from them.

The rule is EDM's (Hoogeboom et al. 2022, arXiv:2203.17003): a pair of atoms is bonded when it is closer than the
typical single-bond length plus a margin; the bond is double when it is also closer than the double-bond length plus its
own margin, and triple when it is double and closer than the triple-bond length plus its margin. Every `<` is strict.
Lengths are in pm and positions in angstrom; distances are taken in float32, as the published code takes them, so that
float64 and float32 files give the same bonds. An atom is stable when its bond orders add up to the valence of the
neutral element.

The table for QM9 covers H, C, N, O, F, that for GEOM-Drugs B, Si, P, S, Cl, As, Br, I too. Besides, `perceived` takes
RDKit's rule (rdDetermineBonds: xyz2mol, Kim & Kim 2015, doi:10.1002/bkcs.10334), or the bonds of the file; both have
formal charges, and an atom is then stable when its orders add up to a valence that RDKit knows for the neutral element
of as many electrons (N+ as C). Numbers by different rules do not compare.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources

import numpy as np
from rdkit import Chem, rdBase

from bench.structures.elements import MAX_NUMBER, Contents
from bench.structures.sdf import bonds_of
from bench.structures.structures import Structures

PAIRS_AT_ONCE = 500_000  # bounds the memory of the dense distances (some 50 bytes a pair)
ORDERS = ("single", "double", "triple")
MAX_ORDERS = 32  # sums of bond orders are below it
MAX_ITERATIONS = 10_000  # of RDKit's search for bond orders, which is exponential in the worst case


class BondRule(StrEnum):
    """Where bonds come from."""

    EDM = "edm"
    GEOM = "geom"
    RDKIT = "rdkit"
    FILE = "file"

    @property
    def description(self) -> str:
        """In words, for tables and logs."""
        return {
            BondRule.EDM: "EDM's table of lengths and valences",
            BondRule.GEOM: "EDM's table of lengths and valences for GEOM-Drugs",
            BondRule.RDKIT: "RDKit's rdDetermineBonds, neutral molecules",
            BondRule.FILE: "the file's own bonds and charges",
        }[self]

    @property
    def table(self) -> BondTable | None:
        """The look-up table behind the rule, where there is one."""
        return BondTable.load(TABLES[self]) if self in TABLES else None


TABLES = {BondRule.EDM: "edm", BondRule.GEOM: "edm_geom"}  # files under bench/metrics/valence


class UnknownElementError(ValueError):
    """An element that the table has no bond lengths for."""


@dataclass(frozen=True)
class BondTable:
    """A look-up table of bond lengths.

    Attributes:
        name: file under `bench/metrics/valence`, without suffix.
        reach: [3, Z, Z] float32, length plus margin in pm for single, double, triple; 0 where there is no such bond.
        valences: [Z, MAX_ORDERS] whether the bond orders of an element may add up to a number; none of an element that
            is not in the table.
    """

    name: str
    reach: np.ndarray
    valences: np.ndarray

    @classmethod
    @functools.cache
    def load(cls, name: str = "edm") -> BondTable:
        """Read `bench/metrics/valence/<name>.json`."""
        table = json.loads(resources.files("bench.metrics").joinpath(f"valence/{name}.json").read_text())
        number = {symbol: Chem.GetPeriodicTable().GetAtomicNumber(symbol) for symbol in table["valence"]}
        n = max(number.values()) + 1
        valences = np.zeros((n, MAX_ORDERS), dtype=bool)
        reach = np.zeros((len(ORDERS), n, n), dtype=np.float32)
        for symbol, allowed in table["valence"].items():
            valences[number[symbol], allowed] = True
        for k, order in enumerate(ORDERS):
            for pair, length in table[order].items():
                a, b = (number[symbol] for symbol in pair.split("-"))
                reach[k, a, b] = reach[k, b, a] = length + table["margins"][order]
        return cls(name, reach, valences)

    @property
    def elements(self) -> np.ndarray:
        """Atomic numbers that it covers."""
        return np.flatnonzero(self.valences.any(axis=1))

    def check(self, structures: Structures) -> None:
        """Raise UnknownElementError when a molecule has an element that is not in the table."""
        numbers = structures.numbers
        unknown = ~np.isin(numbers, self.elements)
        if unknown.any():
            atom = int(np.argmax(unknown))
            symbol = Chem.GetPeriodicTable().GetElementSymbol
            known = ", ".join(symbol(int(number)) for number in self.elements)
            raise UnknownElementError(
                f"molecule {structures.of_atom(atom)} (counted from 0) has element {symbol(int(numbers[atom]))}, but "
                f"bond table {self.name!r} covers {known}; evaluate molecules of these elements alone"
            )


@dataclass(frozen=True)
class Bonds:
    """Bonds of M molecules, E in all, molecule after molecule; `bonds[i]` gives those of one.

    Attributes:
        pairs: [E, 2] int32, atoms counted from 0 within the molecule, the later atom first.
        order: [E] int8, 1 to 3.
        ptr: [M + 1] int64.
        rule: where they come from.
        charges: formal charges [A], None where the rule knows none.
        found: whether the rule finds bonds of each molecule [M], None: always; never of one with a position that is not
            finite. The others have none here, no stable atom, and are not valid.
        n_gave_up: molecules without bonds because there were too many bond orders to try.
    """

    pairs: np.ndarray
    order: np.ndarray
    ptr: np.ndarray
    rule: BondRule = BondRule.EDM
    charges: np.ndarray | None = None
    found: np.ndarray | None = None
    n_gave_up: int = 0

    @classmethod
    def from_rows(
        cls, rows: Sequence[np.ndarray | None], rule: BondRule, charges: np.ndarray, n_gave_up: int = 0
    ) -> Bonds:
        """From rows (first atom, second atom, order) of each molecule, None where the rule finds none."""
        known = [np.zeros((0, 3), np.int64) if some is None else some for some in rows]
        together = np.concatenate(known or [np.zeros((0, 3), np.int64)])
        pairs = np.sort(together[:, :2], axis=1)[:, ::-1].astype(np.int32)
        ptr = np.concatenate([[0], np.cumsum([len(some) for some in known])]).astype(np.int64)
        found = np.array([some is not None for some in rows], dtype=bool)
        return cls(pairs, together[:, 2].astype(np.int8), ptr, rule, charges, found, n_gave_up)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Rows (first atom, second atom, order) of molecule `index`, [n, 3]."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = slice(self.ptr[index], self.ptr[index + 1])
        return np.column_stack([self.pairs[rows], self.order[rows]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def order_sums(self, structures: Structures) -> np.ndarray:
        """Sum of bond orders at each atom [A], int64."""
        start = np.repeat(structures.ptr[:-1], np.diff(self.ptr))
        atoms = (start[:, None] + self.pairs).ravel()
        weights = np.repeat(self.order, 2)
        return np.bincount(atoms, weights, minlength=len(structures.numbers)).astype(np.int64)


def perceived(structures: Structures, rule: BondRule, given: Contents | None = None) -> Bonds:
    """Bonds of every molecule by a rule.

    Args:
        given: the file's contents, for rule `file`.
    Raises:
        UnknownElementError: an element that the rule does not know.
        ValueError: rule `file` for a file without bonds.
    """
    if rule.table is not None:
        return infer_bonds(structures, rule.table)
    if rule is BondRule.RDKIT:
        return determined_bonds(structures)
    if given is None or given.bonds is None or given.charges is None:
        raise ValueError("the file has no bonds of its own; expected an sdf file, or choose another rule for the bonds")
    return Bonds.from_rows(given.bonds, rule, given.charges)


def unknown_to(rule: BondRule, given: Contents) -> dict[int, str]:
    """Why the rule has no bonds to offer for molecules of a file, by their index."""
    if rule is BondRule.FILE:
        rows = given.bonds or [None] * len(given.structures)
        why = "its own bonds are missing, or of other orders than 1, 2, 3 and aromatic in a Kekule form"
        return {i: why for i, some in enumerate(rows) if some is None}
    structures = given.structures
    symbol = Chem.GetPeriodicTable().GetElementSymbol
    if rule.table is not None:
        known: np.ndarray = np.isin(np.arange(MAX_NUMBER + 1), rule.table.elements)
        what = f"bond table {rule.value!r} covers {', '.join(symbol(int(z)) for z in rule.table.elements)} alone"
    else:
        known = np.asarray(_valences().any(axis=1))
        what = "RDKit knows no valence of it"
    atoms = np.flatnonzero(~known[structures.numbers])
    return {structures.of_atom(a): f"has element {symbol(int(structures.numbers[a]))}: {what}" for a in atoms.tolist()}


def natural_rule(structures: Structures) -> BondRule:
    """EDM's table where it covers all elements, else RDKit's rule; UnknownElementError where that does not either."""
    if not unknown_to(BondRule.EDM, Contents(structures)):
        return BondRule.EDM
    _check_rdkit(structures)
    return BondRule.RDKIT


def _check_rdkit(structures: Structures) -> None:
    for molecule, why in unknown_to(BondRule.RDKIT, Contents(structures)).items():
        raise UnknownElementError(f"molecule {molecule} (counted from 0) {why}; evaluate main-group elements alone")


def determined_bonds(structures: Structures) -> Bonds:
    """Bonds and formal charges by RDKit's rdDetermineBonds for neutral molecules, in a Kekule form.

    None are found where an element has no valence in RDKit: a model of GEOM-Drugs' sixteen elements may draw mercury,
    and such a sample is an invalid one.
    """
    unknown = {*unknown_to(BondRule.RDKIT, Contents(structures)), *np.flatnonzero(~structures.is_finite()).tolist()}
    rows: list[np.ndarray | None] = []
    charges = np.zeros(len(structures.numbers), np.int64)
    n_gave_up = 0
    with rdBase.BlockLogs():
        for k, (numbers, positions) in enumerate(structures):
            try:
                mol = None if k in unknown else _determined(numbers, positions)
            except RuntimeError:  # too many orders to try
                mol, n_gave_up = None, n_gave_up + 1
            rows.append(None if mol is None else bonds_of(mol))
            if mol is not None:
                atoms = mol.GetAtoms()
                own = slice(structures.ptr[k], structures.ptr[k + 1])
                charges[own] = [atom.GetFormalCharge() for atom in atoms]  # pyright: ignore[reportGeneralTypeIssues]
    return Bonds.from_rows(rows, BondRule.RDKIT, charges, n_gave_up)


def _determined(numbers: np.ndarray, positions: np.ndarray) -> Chem.Mol | None:
    from rdkit.Chem import rdDetermineBonds

    mol = Chem.RWMol()
    for number in numbers.tolist():
        mol.AddAtom(Chem.Atom(number))
    conformer = Chem.Conformer(len(numbers))
    conformer.SetPositions(np.ascontiguousarray(positions, dtype=np.float64))
    mol.AddConformer(conformer)
    try:
        rdDetermineBonds.DetermineBonds(mol, charge=0, embedChiral=False, maxIterations=MAX_ITERATIONS)
    except ValueError:  # no orders that add up
        return None
    return mol


@functools.cache
def _valences() -> np.ndarray:
    """Whether an element [97] may have a sum of bond orders [MAX_ORDERS]; none where RDKit has no valences for it."""
    allowed = np.zeros((MAX_NUMBER + 1, MAX_ORDERS), dtype=bool)
    for number in range(1, MAX_NUMBER + 1):
        known = list(Chem.GetPeriodicTable().GetValenceList(number))
        allowed[number, [valence for valence in known if valence >= 0]] = True
    return allowed


def stable_atoms(structures: Structures, bonds: Bonds, table: BondTable | None = None) -> np.ndarray:
    """Whether the bond orders of each atom add up to a valence of its element [A]."""
    sums = np.minimum(bonds.order_sums(structures), MAX_ORDERS - 1)
    if (table := table or bonds.rule.table) is not None:
        stable = table.valences[structures.numbers, sums]
    else:
        charges = 0 if bonds.charges is None else bonds.charges
        like = np.clip(structures.numbers - charges, 0, MAX_NUMBER)  # the neutral element of as many electrons
        stable = _valences()[like, sums]
    return stable if bonds.found is None else stable & np.repeat(bonds.found, structures.n_atoms)


def infer_bonds(structures: Structures, table: BondTable | None = None) -> Bonds:
    """Bonds of every molecule by the look-up rule, default EDM's table.

    Raises:
        UnknownElementError: an element that the table does not cover.
    References: Hoogeboom et al. (2022), Equivariant Diffusion for Molecule Generation in 3D, arXiv:2203.17003.
    """
    table = BondTable.load() if table is None else table
    table.check(structures)
    found = list(_bonds_by_size(structures, table))
    molecule = np.concatenate([part[0] for part in found] or [np.zeros(0, np.int64)])
    pairs = np.concatenate([part[1] for part in found] or [np.zeros((0, 2), np.int32)])
    order = np.concatenate([part[2] for part in found] or [np.zeros(0, np.int8)])
    finite = structures.is_finite()
    if not finite.all():
        kept = finite[molecule]
        molecule, pairs, order = molecule[kept], pairs[kept], order[kept]
    by_molecule = np.argsort(molecule, kind="stable")
    counts = np.bincount(molecule, minlength=len(structures))
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rule = next((rule for rule, name in TABLES.items() if name == table.name), BondRule.EDM)
    return Bonds(pairs[by_molecule], order[by_molecule], ptr, rule, found=None if finite.all() else finite)


def _bonds_by_size(structures: Structures, table: BondTable) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(molecule [e], pairs [e, 2], order [e]) of molecules of one size at a time, as dense blocks."""
    sizes = structures.n_atoms
    for n in np.unique(sizes[sizes > 1]).tolist():
        molecules = np.flatnonzero(sizes == n)
        for first, second in _pair_blocks(n):
            n_at_once = max(1, PAIRS_AT_ONCE // len(first))
            for chunk in np.array_split(molecules, -(-len(molecules) // n_at_once)):
                atoms = structures.ptr[chunk][:, None] + np.arange(n)
                numbers = structures.numbers[atoms]
                reach = table.reach[:, numbers[:, first], numbers[:, second]]  # [3, g, pairs]
                with np.errstate(over="ignore", invalid="ignore"):  # atoms too far apart for float32 are not bonded
                    x = structures.positions[atoms].astype(np.float32)
                    d = 100 * np.sqrt(sum((x[:, first, k] - x[:, second, k]) ** 2 for k in range(3)))
                single = d < reach[0]
                double = single & (d < reach[1])
                triple = double & (d < reach[2])
                row, pair = np.nonzero(single)
                order = 1 + double[row, pair].astype(np.int8) + triple[row, pair].astype(np.int8)
                yield chunk[row], np.column_stack([first[pair], second[pair]]).astype(np.int32), order


def _pair_blocks(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs first > second of n atoms, row after row, in blocks of about PAIRS_AT_ONCE."""
    n_rows = max(1, PAIRS_AT_ONCE // n)
    for start in range(1, n, n_rows):
        sizes = np.arange(start, min(start + n_rows, n))  # row i pairs atom i with the i atoms before it
        first = np.repeat(sizes, sizes)
        yield first, np.arange(len(first)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
