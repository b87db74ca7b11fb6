"""Ragged batches: indices, sums, rotations, context."""

import numpy as np
import pytest
import torch
from support import SIZES, generator, orthogonal, states, structures, turned
from torch_geometric.data import Batch, Data

from bench.geometry.groups import O3
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.spaces import Centred, Euclidean, Spaces
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


def test_buckets_are_runs_of_equal_size():
    assert Layout([2, 2, 5]).buckets == [(2, 2, 0), (5, 1, 4)]
    assert Layout([2, 5, 2]).buckets == [(2, 1, 0), (5, 1, 2), (2, 1, 7)]


def test_sums_and_means_stay_within_molecules():
    x0 = states()[0]
    totals = x0.sum_over_atoms(x0.h)
    for i, (a, b) in enumerate(zip(x0.ptr.tolist(), x0.ptr.tolist()[1:], strict=False)):
        torch.testing.assert_close(totals[i], x0.h[a:b].sum(0))
        torch.testing.assert_close(x0.mean_over_atoms(x0.h)[i], x0.h[a:b].mean(0))
        torch.testing.assert_close(x0.squared_norm()[i], x0.x[a:b].square().sum() + x0.h[a:b].square().sum())


def test_replace_refuses_parts_that_the_state_does_not_have():
    """A misspelt name would otherwise leave the part as it was and add another."""
    z = states()[0]
    assert torch.equal(z.replace(x=z.x + 1).x, z.x + 1)
    with pytest.raises(ValueError, match="cannot replace 'X', 'y': the parts are x, h"):
        z.replace(y=z.x, X=z.x)


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


# ---------------------------------------------------------------------- context


def with_context() -> State:
    """A state whose context has an integer and a floating-point attribute."""
    graphs = [
        Data(z=torch.tensor([6, 1]), mass=torch.tensor([12.0, 1.0])),
        Data(z=torch.tensor([8]), mass=torch.ones(1)),
    ]
    return State({"x": torch.zeros(3, 3), "h": torch.zeros(3, 1)}, Layout([2, 1]), Batch.from_data_list(graphs))


def test_context_travels_with_a_state():
    """Through every operation that makes a state of another; the first state's, where two take part."""
    z = with_context()
    bare = State(z.parts, z.layout)
    spaces = Spaces({"x": Centred(3), "h": Euclidean(1)})
    level = Level(*torch.full((3, 2), 0.5))
    for out in (
        *(
            z.map(torch.neg),
            z.replace(x=z.x + 1),
            z.combine(bare, torch.add),
            z.centred(),
            z.rotate(torch.eye(3).expand(2, 3, 3)),
        ),
        *(spaces.project(z), spaces.wrap(z), spaces.prior(z, 2.0), spaces.move(z, bare, level)),
        *(spaces.expected_noise(z, bare, bare, level), spaces.displacement(z, bare, level)),
        spaces.noise(z.layout, generator(0), context=z.context),
    ):
        assert out.context is z.context
    assert bare.combine(z, torch.add).context is None


def test_moving_a_state_moves_a_copy_of_its_context():
    """PyG's own `to` would move the context of the state that is left behind."""
    z = with_context()
    there = z.to("meta", torch.float64)
    assert (there.context.z.device.type, there.context.z.dtype) == ("meta", torch.int64)
    assert (there.context.mass.device.type, there.context.mass.dtype) == ("meta", torch.float64)
    assert (z.context.z.device.type, z.context.mass.dtype) == ("cpu", torch.float32)
    assert there.context.num_graphs == 2
    assert [graph.z.tolist() for graph in z.to(dtype=torch.float64).context.to_data_list()] == [[6, 1], [8]]
    moved = with_context()
    moved.context.to("meta")
    assert moved.context.z.device.type == "meta"  # control: in place
