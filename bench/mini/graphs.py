"""Random molecular graphs of C, N, O, F (and the hydrogens that fill their valences), grown by valence rules.

The embedded set `mini` starts from these. No database is enumerated: a random tree of single bonds is drawn, then
ring closures and higher bond orders until the number of hydrogens that fill the valences is the one wanted. Named
filters refuse strained and unstable molecules and fleeting tautomers. All are neutral and closed-shell by construction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from rdkit import Chem, rdBase

MAX_ATOMS, MAX_HEAVY = 14, 9
VALENCE = {"C": 4, "N": 3, "O": 2, "F": 1}
# Design choices, not measurements. Elements are drawn with more N, O and F than wanted, for the filters refuse those.
ELEMENT_WEIGHTS = {"C": 0.47, "N": 0.34, "O": 0.17, "F": 0.02}
SIZE_WEIGHTS = {6: 0.001, 7: 0.002, 8: 0.006, 9: 0.015, 10: 0.036, 11: 0.08, 12: 0.16, 13: 0.27, 14: 0.43}
RING_SHARE = 0.55  # of the unsaturations, those tried as ring closure first
RING_SIZES = {3: 0.3, 4: 0.5, 5: 1.0, 6: 1.0, 7: 0.2}  # relative rate at which a closure of this size is taken
HETERO_BOND_RATE = 0.12  # of a bond between two of N, O, F against one that has a carbon
MAX_FAILURES = 400  # growths in a row without a new graph, after which a size counts as exhausted

# A graph that matches is refused under this name. Hydrogens are implicit in the patterns.
FORBIDDEN = {
    "peroxide": ["[#8]~[#8]"],
    "fluorine on N, O or F": ["[#7,#8,#9]-[#9]"],
    "chain of N and O": ["[#7,#8;!a]~[#7,#8]~[#7,#8]", "[#7,#8]~[#7,#8;!a]~[#7,#8]", "[#7,#8]~[#7,#8]~[#7,#8]~[#7,#8]"],
    "nitroso, azo, or N-O and N-N of sp3 N": [
        "[N;!a]=[#7,#8;!a]",
        "[NX3;!a;!$(N-[#6]=,:[#6,#7,#8])]-[OX2,NX3;!a;!$(N-[#6]=,:[#6,#7,#8])]",
    ],
    "cumulated double bonds": ["*=[#6]=*"],
    "hydroxyl or NH beside a heteroatom on sp3 C": [
        "[CX4]([OX2H])[#7,#8,#9]",
        "[CX4]([NX3;!H0])[#7,#8,#9]",
        "[CX4](F)[#7]",
    ],
    "enol, enamine, imidic acid or methylene imine": [
        "[CX3H2]=[NX2]",
        "[C;!a]=[C;!a][OX2H]",
        "[C;!a]=[C;!a][NX3;!H0;!$(N-C=[O,N])]",
        "[N;!a]=[C;!a][OX2H]",
        "[C,N;!a]=[C;!a](F)[#7,#8]",
    ],
    "heteroatom on an alkyne": ["C#C-[#7,#8,#9]", "N#C-[#8,#9]", "N#C-[#7]~[#7,#8]"],
    "carbonic acid": ["[#7,#8,#9]-C(=[O,N])-[OX2H]", "[#7,#8,#9]-C(=O)F", "O=C-C(=O)-C=O"],
    "unsaturated three-membered ring": ["[r3]=,#,:*"],
    "two heteroatoms in a three-membered ring": ["[#7,#8]1~[#7,#8]~*1"],
    "crowded four-membered ring": [
        "[#7,#8]1~[#7,#8]~*~*1",
        "*1=,:*~*=,:*1",
        "*=,:*1~*~*=,:*1",
        "*=*1~*(=*)~*~*1",
        "*=*1~*~*(=*)~*1",
    ],
    "triple bond in a ring": ["[R]#[R]"],
}
PATTERNS = [(name, Chem.MolFromSmarts(smarts)) for name, several in FORBIDDEN.items() for smarts in several]


def refusal(mol: Chem.Mol) -> str | None:
    """Name of the first filter that refuses a sanitised molecule; None if it passes all."""
    if any(atom.GetFormalCharge() or atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
        return "charge or radical"
    for name, pattern in PATTERNS:
        if mol.HasSubstructMatch(pattern):
            return name
    rings = [set(ring) for ring in mol.GetRingInfo().AtomRings()]
    if any(len(ring) > 7 for ring in rings):
        return "ring of more than seven atoms"
    if any(sum(atom in ring for ring in rings) > 2 for ring in rings for atom in ring):
        return "atom in three rings"
    for i, one in enumerate(rings):
        for other in rings[:i]:
            shared = one & other
            if len(shared) >= 2 and len(one) + len(other) <= 7:  # bicyclobutane, bicyclo[1.1.1]pentane, housane
                return "two small rings fused"
            if len(shared) >= 3:
                bridgeheads = [atom for atom in shared if len(_neighbours(mol, atom) & shared) == 1]
                if any(_is_sp2(mol, atom) for atom in bridgeheads):
                    return "double bond at a bridgehead"
            elif len(shared) == 2 and len(one) + len(other) <= 8 and any(_is_sp2(mol, atom) for atom in shared):
                return "double bond at the edge of two small rings"
    n_hetero = sum(atom.GetSymbol() != "C" for atom in mol.GetAtoms())
    return "more heteroatoms than carbons" if n_hetero > mol.GetNumAtoms() - n_hetero else None


def _neighbours(mol: Chem.Mol, atom: int) -> set[int]:
    return {other.GetIdx() for other in mol.GetAtomWithIdx(atom).GetNeighbors()}


def _is_sp2(mol: Chem.Mol, atom: int) -> bool:
    return any(bond.GetBondTypeAsDouble() > 1 for bond in mol.GetAtomWithIdx(atom).GetBonds())


def grow(rng: np.random.Generator, n_atoms: int) -> Chem.Mol | None:
    """Draw one sanitised molecule of exactly `n_atoms` atoms, hydrogens counted; None if the draw fails."""
    n_heavy = int(np.clip(round(rng.normal(0.66, 0.06) * n_atoms), 2, min(MAX_HEAVY, n_atoms - 1)))
    symbols = rng.choice(list(ELEMENT_WEIGHTS), n_heavy, p=list(ELEMENT_WEIGHTS.values()))
    free = np.array([VALENCE[symbol] for symbol in symbols])
    doubled, odd = divmod(free.sum() - 2 * (n_heavy - 1) - (n_atoms - n_heavy), 2)
    if odd or doubled < 0:
        return None
    order = np.zeros((n_heavy, n_heavy), dtype=int)
    hetero = symbols != "C"
    affinity = np.where(hetero[:, None] & hetero, HETERO_BOND_RATE, 1.0)

    def bind(i: int, j: int) -> None:
        order[i, j] = order[j, i] = order[i, j] + 1
        free[[i, j]] -= 1

    for new in range(1, n_heavy):
        places = np.flatnonzero(free[:new])
        if not len(places):
            return None
        rate = free[places] * affinity[places, new]
        bind(int(rng.choice(places, p=rate / rate.sum())), new)
    for _ in range(doubled):
        ring = rng.random() < RING_SHARE
        pairs = _closures(order, free, affinity, rng) if ring else _raisable(order, free)
        pairs = pairs or (_raisable(order, free) if ring else _closures(order, free, affinity, rng))
        if not pairs:
            return None
        bind(*pairs[rng.integers(len(pairs))])
    return _molecule(symbols, order)


def _raisable(order: np.ndarray, free: np.ndarray) -> list[tuple[int, int]]:
    return [(i, j) for i, j in np.argwhere(np.triu(order)).tolist() if free[i] and free[j]]


def _closures(
    order: np.ndarray, free: np.ndarray, affinity: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Pairs of unsaturated atoms whose bond closes a ring of 3 to 7 atoms, each kept at the rate of its ring size."""
    distance = Chem.GetDistanceMatrix(_skeleton(order)).astype(int)
    open_atoms = np.flatnonzero(free).tolist()
    pairs = [(i, j) for i in open_atoms for j in open_atoms if i < j]
    return [(i, j) for i, j in pairs if rng.random() < affinity[i, j] * RING_SIZES.get(distance[i, j] + 1, 0)]


def _skeleton(order: np.ndarray) -> Chem.Mol:
    return _editable(["C"] * len(order), np.minimum(order, 1)).GetMol()


def _editable(symbols: Iterable[str], order: np.ndarray) -> Chem.RWMol:
    mol = Chem.RWMol()
    for symbol in symbols:
        mol.AddAtom(Chem.Atom(str(symbol)))
    for i, j in np.argwhere(np.triu(order)).tolist():
        mol.AddBond(i, j, Chem.BondType.values[int(order[i, j])])
    return mol


def _molecule(symbols: Iterable[str], order: np.ndarray) -> Chem.Mol | None:
    mol = _editable(symbols, order).GetMol()
    with rdBase.BlockLogs():
        return None if Chem.SanitizeMol(mol, catchErrors=True) else mol


def random_graphs(seed: int, refused: Counter[str], size_weights: Mapping[int, float] = SIZE_WEIGHTS) -> Iterator[str]:
    """Endless stream of distinct canonical SMILES, the same for the same seed.

    Args:
        seed: of numpy's default generator.
        refused: counts, by filter, of the graphs drawn and not handed out; filled as the stream is read.
        size_weights: number of atoms, hydrogens counted -> relative rate.
    """
    rng = np.random.default_rng(seed)
    sizes, weights = list(size_weights), np.array(list(size_weights.values()))
    seen: set[str] = set()
    while True:
        n_atoms = int(rng.choice(sizes, p=weights / weights.sum()))
        for _ in range(MAX_FAILURES):
            mol = grow(rng, n_atoms)
            if mol is None:
                continue
            reason = refusal(mol)
            smiles = Chem.MolToSmiles(mol)
            if reason is None and smiles not in seen:
                seen.add(smiles)
                yield smiles
                break
            refused[reason or "drawn before"] += 1
