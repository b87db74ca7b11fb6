"""Padded slots: values stand where their molecule's are, and come back."""

import torch
from support import generator

from bench.geometry.layout import Layout
from bench.nn.padded import slots_of
from bench.nn.pairs import pairs_of

LAYOUT = Layout([3, 1, 4])


def test_atoms_stand_in_their_slots_and_come_back():
    values = torch.randn(8, 2, generator=generator(0))
    slots = slots_of(LAYOUT)
    padded = slots.pad(values)
    assert padded.shape == (3, 4, 2)
    for molecule, atoms in enumerate(values.split([3, 1, 4])):
        assert torch.equal(padded[molecule, : len(atoms)], atoms)
        assert not padded[molecule, len(atoms) :].any()
    assert slots.filled.sum(1).tolist() == [3, 1, 4]
    assert torch.equal(slots.unpad(padded), values)
    assert not torch.equal(slots.unpad(padded.flip(1)), values)  # control
    assert slots_of(LAYOUT) is slots


def test_pairs_stand_in_their_molecules_matrix():
    pairs = pairs_of(LAYOUT)
    x = torch.randn(8, generator=generator(1))
    dense = slots_of(LAYOUT).pad_pairs(x[pairs.i] * x[pairs.j] ** 2, pairs)
    for molecule, atoms in enumerate(x.split([3, 1, 4])):
        n = len(atoms)
        expected = torch.outer(atoms, atoms**2) * (1 - torch.eye(n))
        assert torch.equal(dense[molecule, :n, :n], expected)
        assert torch.equal(dense[molecule, :n, :n], expected.t()) == (n == 1)  # control
        assert not dense[molecule, n:].any()
        assert not dense[molecule, :, n:].any()
