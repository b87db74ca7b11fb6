"""Chains: families by sequence and entry, pieces that share no residue, and the flat form that data sets hold."""

from __future__ import annotations

import numpy as np
import pytest
from chain_files import helix, sequence

from bench.structures.chains import MAX_SHARED, Chain, ChainAtoms, families, pieces, structures_of, words_of


def chain(letters: str, entry: str) -> Chain:
    return Chain(entry, letters, np.zeros((len(letters), 1, 3)))


def test_alike_sequences_are_one_family_and_others_are_not():
    """Half of a sequence is enough, one tenth is not; what is linked through a third is one family too."""
    whole, other = sequence(100), sequence(100, 1)
    half = whole[:50] + sequence(50, 2)
    tenth = whole[:10] + sequence(90, 3)
    through = half[50:] + sequence(50, 4)  # shares nothing with `whole`
    number = families([chain(s, str(k)) for k, s in enumerate((whole, other, half, tenth, through))])
    assert number[0] == number[2] == number[4]
    assert len({number[0], number[1], number[3]}) == 3


def test_no_two_families_share_more_words_than_allowed():
    letters = [sequence(40)[: 40 - k] + sequence(40, 9)[:k] for k in range(0, 41, 4)]
    number = families([chain(s, str(k)) for k, s in enumerate(letters)])
    words = [words_of(s) for s in letters]
    for i, a in enumerate(words):
        for j, b in enumerate(words):
            if number[i] != number[j]:
                assert len(a & b) <= MAX_SHARED * min(len(a), len(b))


def test_chains_of_one_entry_are_one_family():
    number = families([chain(sequence(50, k), entry) for k, entry in enumerate(("1abc", "2xyz", "1abc"))])
    assert number[0] == number[2] != number[1]


def test_unknown_residues_make_nothing_alike():
    """Control: as a known residue they would."""
    number = families([chain("X" * 50, "a"), chain("X" * 50, "b")])
    assert number[0] != number[1]
    assert len(set(families([chain("A" * 50, "a"), chain("A" * 50, "b")]))) == 1


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 65, 95, 96, 500])
def test_pieces_are_disjoint_and_of_the_lengths_asked_for(n: int):
    found = pieces(n, 32, 64, np.random.default_rng(0))
    covered = np.concatenate([np.arange(n)[piece] for piece in found] or [np.zeros(0, np.int64)])
    assert np.array_equal(covered, np.arange(len(covered)))
    assert n - len(covered) < 32
    assert all(32 <= piece.stop - piece.start <= 64 for piece in found)


def test_a_chain_that_fits_is_left_whole():
    assert pieces(64, 32, 64, np.random.default_rng(0)) == [slice(0, 64)]


def test_structures_hold_atoms_residue_by_residue():
    x = helix(5)
    whole = structures_of([x, x[:3]])
    assert whole.numbers.tolist() == [7, 6, 6] * 8
    assert whole.n_atoms.tolist() == [15, 9]
    assert np.array_equal(whole.positions[3], x[1, 0])
    trace = structures_of([x[:, 1:2]])
    assert trace.numbers.tolist() == [6] * 5
    assert (ChainAtoms.CA.elements, ChainAtoms.BACKBONE.elements) == ((6,), (6, 7))
    with pytest.raises(ValueError, match=r"have \[1, 3\] atoms per residue, expected 1 or 3 in all of them"):
        structures_of([x, x[:, 1:2]])
