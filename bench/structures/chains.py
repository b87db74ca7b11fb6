"""Protein chains: stretches of residues without a gap, families of similar sequences, and pieces cut from chains.

Of a residue either C-alpha alone is kept, or N, C-alpha and C. Positions are in angstrom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from bench.structures.structures import Structures

LETTERS = 4  # of a word of a sequence
MAX_SHARED = 0.3  # of the words of the shorter of two chains, above which they belong to one family
UNKNOWN = "X"


class ChainAtoms(StrEnum):
    """Which atoms of a residue are kept."""

    CA = "ca"  # C-alpha
    BACKBONE = "backbone"  # N, C-alpha and C, in this order

    @property
    def names(self) -> tuple[str, ...]:
        return ("CA",) if self is ChainAtoms.CA else ("N", "CA", "C")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Nuclear charges."""
        return (6,) if self is ChainAtoms.CA else (7, 6, 6)

    @property
    def elements(self) -> tuple[int, ...]:
        """Distinct nuclear charges, ascending: what tells the two kinds of data sets apart."""
        return tuple(sorted(set(self.numbers)))


@dataclass(frozen=True, eq=False)
class Chain:
    """Consecutive residues.

    Attributes:
        entry: what the chain was found in, such as a PDB entry: chains of one entry belong to one family.
        sequence: a letter for each residue, X for an unknown one.
        positions: [n, K, 3] in angstrom, K = 1 (C-alpha) or 3 (N, C-alpha, C).
    """

    entry: str
    sequence: str
    positions: np.ndarray

    def __post_init__(self) -> None:
        if self.positions.shape[0] != len(self.sequence) or self.positions.shape[2:] != (3,):
            raise ValueError(
                f"{self.entry}: positions have shape {self.positions.shape}, expected ({len(self.sequence)}, K, 3)"
            )

    def __len__(self) -> int:
        return len(self.sequence)


def families(chains: Sequence[Chain]) -> np.ndarray:
    """Number of the family of each chain [M], so that chains of two families are not alike.

    Two chains are linked if they are of one entry, or share more than 30 % of the distinct words of four letters of the
    one that has fewer; families are what is linked through any number of others. Words with an unknown residue are left
    out. Similar folds of unlike sequences are not found.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    words = [words_of(chain.sequence) for chain in chains]
    column = {word: k for k, word in enumerate(sorted(set().union(*words)))}
    of_chain = np.repeat(np.arange(len(chains)), [len(some) for some in words])
    of_word = np.array([column[word] for some in words for word in sorted(some)], dtype=np.int64)
    has = coo_matrix((np.ones(len(of_word), np.int64), (of_chain, of_word)), shape=(len(chains), len(column) + 1))
    shared = (has.tocsr() @ has.T.tocsr()).tocoo()
    n_words = np.array([len(some) for some in words])
    alike = shared.data > MAX_SHARED * np.minimum(n_words[shared.row], n_words[shared.col])
    entry = np.unique([chain.entry for chain in chains], return_inverse=True)[1]
    first = np.unique(entry, return_index=True)[1][entry]  # each chain is linked with the first one of its entry
    i, j = np.concatenate([shared.row[alike], np.arange(len(chains))]), np.concatenate([shared.col[alike], first])
    links = coo_matrix((np.ones(len(i), bool), (i, j)), shape=(len(chains), len(chains)))
    return connected_components(links, directed=False)[1]


def words_of(sequence: str) -> set[str]:
    """Distinct words of four known letters."""
    found = {sequence[k : k + LETTERS] for k in range(len(sequence) - LETTERS + 1)}
    return {word for word in found if UNKNOWN not in word}


def pieces(n: int, shortest: int, longest: int, rng: np.random.Generator) -> list[slice]:
    """Consecutive pieces of a chain of n residues, none of which is in two of them.

    Lengths are uniform from `shortest` to `longest`, but for the last piece: a rest that is no longer than `longest` is
    one piece, and one that is shorter than `shortest` none.
    """
    found, start = [], 0
    while n - start >= shortest:
        rest = n - start
        length = rest if rest <= longest else int(rng.integers(shortest, longest + 1))
        found.append(slice(start, start + length))
        start += length
    return found


def structures_of(backbones: Sequence[np.ndarray]) -> Structures:
    """Backbones [n, K, 3] as structures, residue by residue.

    Raises:
        ValueError: K is neither 1 nor 3, or not the same for all.
    """
    kinds = {x.shape[1] for x in backbones}
    if kinds not in ({1}, {3}):
        raise ValueError(f"backbones have {sorted(kinds)} atoms per residue, expected 1 or 3 in all of them")
    numbers = (ChainAtoms.CA if kinds == {1} else ChainAtoms.BACKBONE).numbers
    n_residues = np.array([len(x) for x in backbones])
    positions = np.concatenate([x.reshape(-1, 3) for x in backbones])
    return Structures.from_sizes(np.tile(numbers, n_residues.sum()), positions, n_residues * len(numbers))
