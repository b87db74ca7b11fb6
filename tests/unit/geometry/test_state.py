"""Ragged batches: indices, sums, rotations, sorting by size."""

import numpy as np
import pytest
import torch
from support import SIZES, generator, orthogonal, states, structures, turned

from bench.geometry.groups import O3
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.structures.structures import Structures


def test_layout_points_at_each_molecule():
    layout = Layout([2, 3, 1])
    assert layout.ptr.tolist() == [0, 2, 5, 6]
    assert layout.n_atoms.tolist() == [2, 3, 1]
    assert layout.molecule.tolist() == [0, 0, 1, 1, 1, 2]
    assert layout.n_pairs == 4 + 9 + 1


@pytest.mark.parametrize("sizes", [[], [3, 0], [-1]])
def test_layout_refuses_empty_molecules(sizes):
    with pytest.raises(ValueError, match="at least one molecule"):
        Layout(sizes)


def test_sorting_by_size_is_undone_exactly():
    layout = Layout(SIZES)
    values = torch.arange(layout.n_total, dtype=torch.float64)[:, None]
    ordered = layout.to_sorted(values)
    assert layout.by_size.sizes.tolist() == sorted(SIZES)
    assert torch.equal(layout.from_sorted(ordered), values)
    assert not torch.equal(ordered, values)
    # atoms of a molecule stay together and in order; molecule-wise values go with them
    of_molecule = layout.to_sorted(layout.molecule[:, None].double())[:, 0]
    expected = layout.molecules_to_sorted(torch.arange(float(len(SIZES))))[layout.by_size.molecule]
    assert torch.equal(of_molecule, expected.double())


def test_sorted_layout_is_its_own_sorted_layout():
    layout = Layout([2, 2, 5])
    assert layout.by_size is layout
    assert layout.buckets == [(2, 2, 0), (5, 1, 4)]


def test_sums_and_means_stay_within_molecules():
    x0 = states()[0]
    totals = x0.sum_over_atoms(x0.h)
    for i, (a, b) in enumerate(zip(x0.ptr.tolist(), x0.ptr.tolist()[1:], strict=False)):
        torch.testing.assert_close(totals[i], x0.h[a:b].sum(0))
        torch.testing.assert_close(x0.mean_over_atoms(x0.h)[i], x0.h[a:b].mean(0))
        torch.testing.assert_close(x0.squared_norm()[i], x0.x[a:b].square().sum() + x0.h[a:b].square().sum())


def test_centring_is_a_projection():
    x0 = states()[0]
    moved = x0.replace(x=x0.x + x0.per_atom(torch.randn(len(x0), 3, generator=generator(0), dtype=torch.float64)))
    assert moved.mean_over_atoms(moved.x).abs().max() > 0.1
    centred = moved.centred()
    assert centred.mean_over_atoms(centred.x).abs().max() < 1e-12
    torch.testing.assert_close(centred.centred().x, centred.x)
    torch.testing.assert_close(centred.x, x0.x)
    assert torch.equal(centred.h, x0.h)


def test_rotation_acts_on_rows():
    """x_n -> R x_n: the convention of the whole code base, told from x_n -> R^T x_n."""
    z = State({"x": torch.tensor([[1.0, 0, 0], [0, 2.0, 0]]), "h": torch.zeros(2, 1)}, Layout([1, 1]))
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # turns x to y
    out = z.rotate(torch.stack([quarter, torch.eye(3)]))
    assert out.x.tolist() == [[0, 1, 0], [0, 2, 0]]
    assert z.rotate(torch.stack([quarter.T, torch.eye(3)])).x.tolist() != out.x.tolist()


def test_rotation_keeps_float32_under_bf16_autocast():
    """A turned position has seven digits in a bf16 training step too; a matrix product there has three."""
    z = states(dtype=torch.float32)[0]
    R = O3().haar(len(z), generator(3))
    exact = z.rotate(R).x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(z.rotate(R).x, exact)
        product = torch.einsum("aij,aj->ai", z.per_atom(R), z.x)
    assert (product - exact).abs().max() > 1e-3


def test_rotations_compose_and_keep_distances():
    z = states()[0]
    A, B = orthogonal(1, 1), orthogonal(-1, 2)
    torch.testing.assert_close(turned(turned(z, B), A).x, turned(z, A @ B).x)
    torch.testing.assert_close(turned(z, A).squared_norm(), z.squared_norm())
    assert not torch.allclose(turned(turned(z, A), B).x, turned(z, A @ B).x)


def test_structures_survive_selection_and_concatenation():
    s = structures()
    assert [len(numbers) for numbers, _ in s] == list(SIZES)
    picked = s.select(np.array([3, 0]))
    assert np.array_equal(picked[0][1], s[3][1])
    assert np.array_equal(picked[1][0], s[0][0])
    both = Structures.concatenate([picked, s])
    assert both.n_atoms.tolist() == [9, 5, *SIZES]
    assert np.array_equal(both[2][1], s[0][1])
    assert np.array_equal(s.select(s.n_atoms == 9).n_atoms, [9, 9])


def test_structures_refuse_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match="one row for each nuclear charge"):
        Structures(np.array([6, 6]), np.zeros((3, 3)), np.array([0, 2]))
    with pytest.raises(ValueError, match="ptr runs from"):
        Structures(np.array([6, 6]), np.zeros((2, 3)), np.array([0, 3]))


def test_synthetic_molecules_keep_their_distance():
    for _, x in structures(seed=4):
        d = np.linalg.norm(x[:, None] - x, axis=-1)[np.triu_indices(len(x), 1)]
        assert d.min() > 0.9


def test_rotation_is_not_made_in_bf16_under_autocast():
    """bf16 training turns data in float32; the product that autocast would make is off by more than 1e-3."""
    z = states(dtype=torch.float32)[0]
    R = O3().haar(len(z), generator(1))
    with torch.autocast("cpu", torch.bfloat16):
        turned = z.rotate(R).x
        product = torch.einsum("aij,aj->ai", z.per_atom(R), z.x)
    assert turned.dtype == torch.float32
    assert torch.equal(turned, z.rotate(R).x)
    assert (product - turned).abs().max() > 1e-3
