"""Batches as a function of (seed, step)."""

import numpy as np
from support import core, structures

from bench.run.batches import Batches

DATA = structures([5, 3, 7, 4, 6, 5, 8, 3, 4, 6, 7], seed=8)  # 11 molecules: an incomplete batch is left over


def batches(seed: int = 0, batch_size: int = 4) -> Batches:
    return Batches(DATA, core(), batch_size, seed)


def test_an_epoch_takes_no_molecule_twice():
    b = batches()
    assert b.per_epoch == 2
    for epoch in range(5):
        seen = np.concatenate([b.indices(epoch * 2 + i).numpy() for i in range(2)])
        assert len(set(seen.tolist())) == 8


def test_every_molecule_is_seen_in_the_long_run():
    b = batches()
    counts = np.bincount(np.concatenate([b.indices(step).numpy() for step in range(400)]), minlength=11)
    assert np.abs(counts - 1600 / 11).max() < 5 * (200 * (8 / 11) * (3 / 11)) ** 0.5


def test_a_batch_does_not_depend_on_those_before_it():
    fresh, used = batches(), batches()
    for step in range(7):
        used.indices(step)
    for step in (6, 0, 13):
        assert fresh.indices(step).tolist() == used.indices(step).tolist()
    assert [fresh.indices(i).tolist() for i in range(4)] != [batches(seed=1).indices(i).tolist() for i in range(4)]
    assert fresh.indices(0).tolist() != fresh.indices(2).tolist()  # another epoch, another permutation


def test_a_batch_is_sorted_by_size_and_centred():
    x0 = batches()(3)
    assert (np.diff(x0.layout.sizes) >= 0).all()
    assert sorted(DATA.n_atoms[batches().indices(3).numpy()]) == x0.layout.sizes.tolist()
    assert x0.mean_over_atoms(x0.x).abs().max() < 1e-6


def test_a_batch_larger_than_the_data_is_the_data():
    b = batches(batch_size=100)
    assert b.per_epoch == 1
    assert sorted(b.indices(5).tolist()) == list(range(11))
